"""Several labels a text: from the TSV to scores, what a small encoder learns, every method on a table."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import calc_metrics
import predict
import prepare_distillation_data
import prepro_std
from data_utils.errors import DataError, TaskDefError, UserError
from data_utils.metrics import Metric
from data_utils.prepro import Split
from data_utils.readers import read_score_file, read_token_json
from data_utils.storage.text_files import write_lines
from data_utils.task_def import TaskType
from mt_dnn.batcher import Batch, Collater, SingleTaskDataset
from mt_dnn.configuration.config import parse_args
from mt_dnn.loss import BceCriterion, KlCriterion, MseCriterion, SymKlCriterion
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.perturbation import SmartPerturbation
from mt_dnn.training.bregman import BregmanTerm
from mt_dnn.training.objective import TrainingObjective
from mt_dnn.training.trainer import train
from tasks import Task, get_task
from tasks.definition import TaskDefs
from tests.encoders import tiny_encoder
from tests.mt_dnn.runs import parameters
from tests.tasks.learning import PROBE, SIFT, WORDS, learned, write_small_encoder, write_task

DEFINITION = """
toy:
  data_format: PremiseOnly
  task_type: MultiLabel
  n_class: 3
  labels: [warm, cold, both]
  metric_meta: [F1MIC, F1MAC, ACC, AUC]
"""


def toy(tmp_path: Path, text: str = DEFINITION) -> Task:
    (tmp_path / "tasks.yml").write_text(text)
    return get_task(TaskDefs(tmp_path / "tasks.yml").get_task_def("toy"))


# definition and labels


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("  labels: [warm, cold, both]\n", ""), "key 'labels': missing, accepted: a list with the name of each label"),
        (("n_class: 3", "n_class: 2"), r"key 'labels': found 3 labels, accepted: as many as n_class \(2\)"),
        (("PremiseOnly", "PremiseAndOneHypothesis\n  enable_san: true"), "'enable_san': found true, accepted: false"),
        (("both]", "warm]"), "key 'labels': found 'warm' 2 times"),
    ],
)
def test_a_definition_that_cannot_be_meant_is_told(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(TaskDefError, match=said):
        toy(tmp_path, DEFINITION.replace(*change))


@pytest.mark.parametrize("text", ["[0, 1, 1]", "[0.0, 1, 0.25]", "[0,0,0]"])
def test_labels_are_a_list_of_numbers_from_0_to_1(text: str, tmp_path: Path) -> None:
    task = toy(tmp_path)
    label = task.parse_label(Split(tmp_path / "a.tsv", task, True), 3, text)
    assert label == json.loads(text) and task.accepts_label(label, [5])


@pytest.mark.parametrize(
    "text",
    ["warm", "[0, 1]", "[0, 1, 1, 0]", "[0, 1, 2]", "[0, 1, -0.1]", "[0, 1, NaN]", "[true, 0, 1]", "1", "[" * 9999],
)
def test_other_labels_are_told_by_line(text: str, tmp_path: Path) -> None:
    task = toy(tmp_path)
    with pytest.raises(DataError) as caught:
        task.parse_label(Split(tmp_path / "a.tsv", task, True), 3, text)
    told = str(caught.value)
    assert "a.tsv, line 3: found the label " in told and len(told) < 300 + len(str(tmp_path))
    assert told.endswith("accepted: a list of 3 numbers from 0 to 1, in JSON, a number each for warm, cold, both")


def token_file(folder: Path, labels: list[list[float] | None]) -> Path:
    lines = [{"uid": str(place), "token_id": [2, 5 + place], "label": own} for place, own in enumerate(labels)]
    write_lines(folder / "toy_dev.json", map(json.dumps, lines))
    return folder / "toy_dev.json"


def test_from_the_token_file_to_the_batch_and_to_metrics(tmp_path: Path) -> None:
    """Fractions are targets of the loss as they are; metrics count those of at least a half as 1."""
    task = toy(tmp_path)
    path = token_file(tmp_path, [[0, 1, 0.5], [1, 0, 0.49]])
    dataset = SingleTaskDataset(path, True, 0, task.task_def)
    batch = Collater(0)([dataset[0], dataset[1]])
    assert batch.labels is not None
    torch.testing.assert_close(batch.labels, torch.tensor([[0, 1, 0.5], [1, 0, 0.49]]), rtol=0, atol=0)
    assert task.golds(dataset).tolist() == [[0, 1, 1], [1, 0, 0]]
    logits = torch.tensor([[-1.0, 0.0, 2.0], [3.0, -1e4, 1e4]])
    scores, predictions = task.predict(logits, batch)
    np.testing.assert_allclose(scores, logits.double().sigmoid().numpy(), atol=1e-7)
    assert np.asarray(predictions).tolist() == [[0, 1, 1], [1, 0, 1]]
    found = task.evaluate(dataset, task.task_def.metric_meta, scores, predictions)
    assert found.metrics["ACC"] == 50.0 and found.metrics["F1MIC"] == pytest.approx(100 * 6 / 7)
    assert task.answers(scores, predictions) == ['["cold", "both"]', '["warm", "both"]']


def test_a_token_file_with_another_label_is_told_by_line(tmp_path: Path) -> None:
    task = toy(tmp_path)
    with pytest.raises(DataError, match=r"toy_dev.json, line 2: label is \[1, 0\]; accepted are a list of 3 numbers"):
        SingleTaskDataset(token_file(tmp_path, [[0, 1, 0], [1, 0]]), True, 0, task.task_def)
    with pytest.raises(DataError, match="line 2: found no label; a training example needs one"):
        SingleTaskDataset(token_file(tmp_path, [[0, 1, 0], None]), True, 0, task.task_def)


def test_labels_without_an_area_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = toy(tmp_path)
    dataset = SingleTaskDataset(token_file(tmp_path, [[0, 1, 0], [1, 1, 0]]), False, 0, task.task_def)
    scores = np.array([[0.1, 0.9, 0.1], [0.9, 0.9, 0.1]])
    with caplog.at_level("INFO"):
        found = task.evaluate(dataset, (Metric.AUC,), scores, (scores > 0.5).astype(int))
    assert found.metrics == {"AUC": 100.0}
    assert (
        caplog.messages[-1] == "toy_dev: AUC is the mean over 1 of 3 labels; all examples have, or none has: cold, both"
    )
    assert task.notes((Metric.ACC,), task.golds(dataset)) == []


def test_a_teachers_scores_become_log_odds_and_labels(tmp_path: Path) -> None:
    task = toy(tmp_path)
    scores = np.array([0.2, 0.5, 1.0])
    np.testing.assert_allclose(task.soft_label(scores)[:2], [np.log(0.25), 0], atol=1e-12)
    assert np.isfinite(task.soft_label(scores)).all() and task.soft_label(scores)[2] == pytest.approx(13.8, abs=0.1)
    assert task.taught_label(scores) == [0, 1, 1]


def bernoulli_kl(z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """KL(σ(z) ‖ σ(w)), summed over labels, a mean over rows."""
    p, q = z.detach().double().sigmoid(), w.detach().double().sigmoid()
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()


def test_the_objective_compares_each_label(tmp_path: Path) -> None:
    """Loss, a teacher's loss, the proximal term and R of a network, each by hand."""
    torch.manual_seed(0)
    task_def = toy(tmp_path).task_def
    network = SANBertNetwork({"task_def_list": [task_def]}, tiny_encoder("bert", dtype=torch.float32)).eval()
    for parameter in network.scoring_list.parameters():
        torch.nn.init.normal_(parameter)  # of an untrained head the outputs are all alike
    ids, labels, soft = torch.randint(5, 40, (2, 6)), torch.tensor([[1, 0, 0.5], [0, 1, 1]]), torch.randn(2, 3)
    ones = torch.ones_like(ids)
    batch = Batch(ids, ones, torch.zeros_like(ids), labels, 0, ("a", "b"), soft_labels=soft)
    logits = network.run(batch)
    gold = -(labels * logits.sigmoid().log() + (1 - labels) * (-logits).sigmoid().log()).mean()
    for kd, expected in (
        (KlCriterion(), bernoulli_kl(soft, logits)),
        (MseCriterion(), (logits - soft).square().mean()),
    ):
        found = TrainingObjective(network, [BceCriterion()], kd_criteria=[kd])(batch, [])
        torch.testing.assert_close(found.loss, (gold + expected).float())
    bregman = BregmanTerm(network, 2.0, (0.9, 0.9), 10)
    for parameter in bregman.teacher.parameters():
        parameter += 0.01 * torch.randn(parameter.shape)
    before = bregman.teacher.run(batch)
    found = TrainingObjective(network, [BceCriterion()], bregman=bregman)(batch, [])
    both = bernoulli_kl(logits, before) + bernoulli_kl(before, logits)
    torch.testing.assert_close(found.bregman, (2 * both).float(), rtol=1e-4, atol=1e-6)
    seen = []
    smart = SmartPerturbation(radius=0.5, step_size=0.5, noise_var=0.1, loss_map=[SymKlCriterion()])
    objective = TrainingObjective(network, [BceCriterion()], smart, alpha=1.0)
    with patch.object(network, "run", lambda own, run=network.run: seen.append(run(own)) or seen[-1]):
        found = objective(batch, [1, 2])
    assert found.regularization is not None and len(seen) == 3  # clean, ascent, final
    both = bernoulli_kl(seen[2], seen[0]) + bernoulli_kl(seen[0], seen[2])
    assert both > 1e-3
    torch.testing.assert_close(found.regularization.loss, both.float(), rtol=1e-4, atol=1e-6)


# learning


SIGNS = (WORDS[:2], WORDS[2:4], WORDS[4:6])


def texts(count: int, seed: int) -> Iterator[str]:
    """A text has a label where both of the label's signs stand in it, and else one of them or none."""
    draw = random.Random(seed)
    for number in range(count):
        label = [int(draw.random() < 0.5) for _ in SIGNS]
        words = [
            word for held, own in zip(label, SIGNS, strict=True) for word in own[: 2 if held else draw.randint(0, 1)]
        ]
        words += draw.choices(WORDS[6:], k=2)
        draw.shuffle(words)
        yield f"{number}\t{json.dumps(label)}\t{' '.join(words)}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"toy_train": list(texts(600, 1)), "toy_dev": list(texts(100, 2))}
    return write_task(tmp_path_factory.mktemp("labels"), DEFINITION, splits, encoder)


def test_a_linear_probe_does_not_learn_it(data: Path, encoder: Path, tmp_path: Path) -> None:
    assert learned(data, encoder, tmp_path, "toy", "F1MIC", *PROBE) < 85


@pytest.mark.parametrize("method", [(), SIFT])
def test_it_learns_which_words_stand_together(
    data: Path, encoder: Path, tmp_path: Path, method: tuple[str, ...]
) -> None:
    assert learned(data, encoder, tmp_path, "toy", "F1MIC", *method, "--epochs", "6") > 95
    assert read_score_file(tmp_path / "toy_dev_scores_epoch_5.json")["metrics"]["AUC"] > 98


# a table of one's own, end to end


def table(path: Path, count: int, seed: int, *more: str) -> Path:
    """Comments that are rude where `red` stands in them, loud where `blue` does."""
    draw = random.Random(seed)
    lines = ["comment,rude,loud"]
    for _ in range(count):
        words = draw.choices(WORDS, k=5)
        lines.append(f"{' '.join(words)},{int('red' in words)},{('blue' in words)}")
    write_lines(path, [*lines, *more])
    return path


@pytest.fixture(scope="module")
def own(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenized table, and an unlabeled file."""
    folder = tmp_path_factory.mktemp("own")
    flags = f"--from {table(folder / 'comments.csv', 60, 0)} --text comment --label rude,loud --model {encoder}"
    prepro_std.main([*flags.split(), "--root_dir", str(folder)])
    lines = [json.dumps({**own, "label": None}) for _, own in read_token_json(folder / "small" / "comments_train.json")]
    write_lines(folder / "small" / "comments_unlabeled.json", lines[:20])
    return folder


def flags_of(own: Path, encoder: Path, output: Path, *more: str) -> list[str]:
    given = (
        f"--task_def {own / 'task_def.yml'} --data_dir {own / 'small'} --init_checkpoint {encoder} --epochs 1 "
        f"--train_datasets comments --test_datasets comments --output_dir {output} --log_file {output / 'log.txt'} "
        "--optimizer adamw --learning_rate 3e-3 --dataloader_num_workers 0"
    )
    return [*given.split(), *more]


def test_several_label_columns_make_a_task_of_this_type(own: Path) -> None:
    task_def = TaskDefs(own / "task_def.yml").get_task_def("comments")
    assert (task_def.task_type, task_def.n_class) == (TaskType["MultiLabel"], 2)
    assert task_def.class_names() == ["rude", "loud"]
    assert [own.name for own in task_def.metric_meta] == ["F1MIC", "F1MAC", "ACC"]
    for line in (own / "comments_train.tsv").read_text().splitlines():
        _, label, text = line.split("\t")
        assert json.loads(label) == ["red" in text, "blue" in text]


# Large steps, so that R shows.
NOISE = "--adv_train --adv_projection project --adv_radius 1 --adv_step_size 0.5 --adv_noise_var 0.5"


@pytest.mark.parametrize("level", ["pre_ln", "post_ln", "deberta"])
@pytest.mark.parametrize("method", ["random", "at", "vat", "smart", "alum", "freelb", "r3f"])
def test_every_method_trains_at_every_level(method: str, level: str, own: Path, encoder: Path, tmp_path: Path) -> None:
    more = f"{NOISE} --adv_opt {method} --adv_norm_level {level} --bregman_mu 1 --log_per_updates 1"
    more += "" if method in ("at", "freelb") else " --unlabeled_datasets comments"
    train(parse_args(flags_of(own, encoder, tmp_path, *more.split())))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "update"][-1]
    assert last["R"] > 1e-4 and np.isfinite(last["loss"])
    assert last["skipped"] == 0


@pytest.mark.parametrize(
    "more",
    [
        f"{NOISE} --adv_free",
        f"{NOISE} --adv_preset mtdnn_release",
        f"{NOISE} --adv_every 2 --adv_scale relative --adv_p_norm l2 --adv_norm_scope sentence",
        "--class_weights balanced",
        "--glue_format_on",
    ],
)
def test_flags_of_training_go_with_it(more: str, own: Path, encoder: Path, tmp_path: Path) -> None:
    result = train(parse_args(flags_of(own, encoder, tmp_path, *more.split())))
    assert 0 <= result.history[0]["metrics"]["comments_dev"]["F1MIC"] <= 100
    if "glue" in more:
        answers = (tmp_path / "comments_dev_scores_epoch_0.tsv").read_text().splitlines()
        assert len(answers) == 7 and all(set(json.loads(own.split("\t")[1])) <= {"rude", "loud"} for own in answers[1:])


def test_scores_metrics_distillation_and_export(
    own: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trained model through predict.py, calc_metrics.py, prepare_distillation_data.py and transformers' pipeline."""
    out, definition, dev = tmp_path / "out", own / "task_def.yml", own / "small" / "comments_dev.json"
    text = definition.read_text().replace("ACC]", "ACC, AUC]")
    (tmp_path / "task_def.yml").write_text(text)
    exported = flags_of(own, encoder, out, "--save_hf", str(tmp_path / "hf"), "--epochs", "2")
    exported[1] = str(tmp_path / "task_def.yml")
    result = train(parse_args(exported))
    checkpoint = str(out / f"model_{result.best_epoch}.pt")
    named = ["--task_def", str(tmp_path / "task_def.yml"), "--task", "comments"]
    score = str(tmp_path / "scores.json")
    predict.main([*named, "--checkpoint", checkpoint, "--prep_input", str(dev), "--score", score, "--with_label"])
    found = read_score_file(score)
    assert found["metrics"] == pytest.approx(result.history[result.best_epoch]["metrics"]["comments_dev"], abs=1e-6)
    scores = np.array(found["scores"]).reshape(-1, 2)
    assert (scores > 0).all() and (scores < 1).all()
    assert found["predictions"] == (scores >= 0.5).astype(int).tolist()
    for labels in (dev, own / "comments_dev.tsv"):
        capsys.readouterr()
        calc_metrics.main([*named, "--std_input", str(labels), "--score", score])
        assert json.loads(capsys.readouterr().out) == pytest.approx(found["metrics"])

    # transformers gives the same probabilities
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == {0: "rude", 1: "loud"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    lines = [line.split("\t") for line in (own / "comments_dev.tsv").read_text().splitlines()]
    classify = pipeline("text-classification", model, tokenizer=tokenizer, truncation=True, top_k=None)
    for answer, expected in zip(classify([text for _, _, text in lines]), scores, strict=True):
        assert {own["label"]: own["score"] for own in answer} == pytest.approx(
            dict(zip(("rude", "loud"), expected.tolist(), strict=True)), abs=1e-5
        )
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "truncation=True, top_k=None)" in card and "| MultiLabel of a text | rude, loud |" in card

    # a student
    train_file = own / "small" / "comments_train.json"
    predict.main([*named, "--checkpoint", checkpoint, "--prep_input", str(train_file), "--score", score])
    teach = [*named, "--std_input", str(train_file), "--score", score, "--std_output"]
    prepare_distillation_data.main([*teach, str(tmp_path / "kd" / "comments_train.json"), "--add_soft_label"])
    prepare_distillation_data.main([*teach, str(tmp_path / "taught.json")])
    teacher = np.array(read_score_file(score)["scores"]).reshape(-1, 2)
    samples = [sample for _, sample in read_token_json(tmp_path / "kd" / "comments_train.json")]
    np.testing.assert_allclose(1 / (1 + np.exp([-np.array(own["softlabel"]) for own in samples])), teacher, atol=1e-5)
    taught = [sample["label"] for _, sample in read_token_json(tmp_path / "taught.json")]
    assert taught == (teacher >= 0.5).astype(int).tolist()
    write_lines(tmp_path / "kd" / "comments_dev.json", dev.read_text().splitlines())
    ends = {}
    for name in ("", "MseCriterion", "KlCriterion"):
        more = ["--data_dir", str(tmp_path / "kd"), *(("--mkd_opt", "1") if name else ())]
        student = flags_of(own, encoder, tmp_path / f"student{name}", *more)
        (tmp_path / "student.yml").write_text(
            text.replace("loss: Bce", f"kd_loss: {name or 'MseCriterion'}\n  loss: Bce")
        )
        student[1] = str(tmp_path / "student.yml")
        train(parse_args(student))
        ends[name] = parameters(tmp_path / f"student{name}" / "model_0.pt")["scoring_list.0.1.weight"]
    assert not any(torch.equal(first, second) for first, second in [(ends[""], ends["MseCriterion"])])
    assert not torch.equal(ends["KlCriterion"], ends["MseCriterion"])


def test_a_loss_that_compares_no_labels_is_refused(own: Path, encoder: Path, tmp_path: Path) -> None:
    text = (own / "task_def.yml").read_text().replace("BceCriterion", "CeCriterion")
    (tmp_path / "wrong.yml").write_text(text)
    flags = flags_of(own, encoder, tmp_path)
    flags[1] = str(tmp_path / "wrong.yml")
    with pytest.raises(UserError, match="key 'loss': found CeCriterion, accepted: BceCriterion for MultiLabel"):
        train(parse_args(flags))
