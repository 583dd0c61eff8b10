"""Distillation: its objective in closed form, and from a teacher's score file to a trained student."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import predict
import prepare_distillation_data
from data_utils.errors import FlagError, UserError
from data_utils.readers import read_score_file, read_token_json
from data_utils.storage.text_files import write_lines
from mt_dnn.batcher import Batch
from mt_dnn.checkpoints.build import build_network, build_objective
from mt_dnn.data.run_data import RunData
from mt_dnn.loss import (
    Criterion,
    KlCriterion,
    LossCriterion,
    MseCriterion,
    RankCeCriterion,
    SeqCeCriterion,
    SpanCeCriterion,
)
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.training.objective import TrainingObjective
from tasks.definition import TaskDefs
from tests.encoders import tiny_encoder
from tests.mt_dnn.runs import RUN, TASK_DEF, tiny_config
from tests.tasks.learning import WORDS, learned, write_small_encoder, write_task

COLA = ("--train_datasets", "cola", "--test_datasets", "cola")
DATA = RUN / "tinydata"


def with_soft_labels(folder: Path, task: str, n_class: int) -> Path:
    """The tiny run's data with soft labels in one task's training set."""
    for path in DATA.glob("*.json"):
        samples = [sample for _, sample in read_token_json(path)]
        if path.stem == f"{task}_train":
            draw = np.random.default_rng(0)
            samples = [sample | {"softlabel": draw.normal(size=n_class).tolist()} for sample in samples]
        write_lines(folder / path.name, map(json.dumps, samples))
    return folder


@pytest.mark.parametrize("kd_loss", [LossCriterion.MseCriterion, LossCriterion.KlCriterion])
def test_the_loss_is_that_of_labels_plus_that_of_scores(tmp_path: Path, kd_loss: LossCriterion) -> None:
    data = with_soft_labels(tmp_path / "data", "cola", 2)
    flags = (*COLA, "--data_dir", str(data), "--dropout_p", "0", "--bert_dropout_p", "0")
    config = tiny_config(tmp_path, *flags, "--mkd_opt", "1")
    run = RunData(config)
    run.task_defs[0].kd_loss = kd_loss
    torch.manual_seed(0)
    network = build_network(config, run.task_defs).eval()
    batch = _batch(run)
    value = build_objective(config, network)(batch, [])
    logits, soft = network.run(batch), batch.soft_labels
    assert soft is not None and batch.labels is not None
    gold = -logits.log_softmax(1)[range(4), batch.labels].mean()
    if kd_loss == LossCriterion.MseCriterion:
        distilled = ((logits - soft) ** 2).mean()
    else:
        q = soft.softmax(1)
        distilled = (q * (q.log() - logits.log_softmax(1))).sum() / 4
    torch.testing.assert_close(value.loss, gold + distilled)

    plain = build_objective(tiny_config(tmp_path, *flags), network)(batch, [])
    torch.testing.assert_close(plain.loss, gold)
    without = build_objective(config, network)(dataclasses.replace(batch, soft_labels=None), [])
    torch.testing.assert_close(without.loss, gold)


def test_methods_that_stand_in_the_task_losss_place_distil_too(tmp_path: Path) -> None:
    data = with_soft_labels(tmp_path / "data", "cola", 2)
    flags = (*COLA, "--data_dir", str(data), "--dropout_p", "0", "--bert_dropout_p", "0", "--adv_train")
    freelb = ("--adv_opt", "freelb", "--adv_noise_var", "0", "--adv_step_size", "1e-9")
    losses = []
    for more in ((), ("--mkd_opt", "1")):
        config = tiny_config(tmp_path, *flags, *freelb, *more)
        run = RunData(config)
        torch.manual_seed(0)
        network = build_network(config, run.task_defs).eval()
        losses.append(build_objective(config, network)(_batch(run), [1, 2, 3, 4]).loss)
    batch = _batch(run)
    assert batch.soft_labels is not None
    distilled = ((network.run(batch) - batch.soft_labels) ** 2).mean()
    torch.testing.assert_close(losses[1] - losses[0], distilled, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("enable_san", [False, True])
def test_of_ranking_candidates_are_compared_within_their_group(tmp_path: Path, enable_san: bool) -> None:
    definition = "toy: {data_format: PremiseAndMultiHypothesis, task_type: Ranking, n_class: 1, metric_meta: [ACC], "
    (tmp_path / "tasks.yml").write_text(f"{definition} enable_san: {str(enable_san).lower()}}}")
    opt = {"task_def_list": [TaskDefs(tmp_path / "tasks.yml").get_task_def("toy")], "answer_mem_type": 0}
    torch.manual_seed(0)
    network = SANBertNetwork(opt, tiny_encoder("bert", dtype=torch.float32)).eval()
    ids = torch.randint(5, 40, (5, 6))
    types, soft = torch.tensor([[0, 0, 0, 1, 1, 1]] * 5), torch.randn(5, 1)
    ones = torch.ones_like(ids)
    batch = Batch(ids, ones, types, torch.tensor([0, 1]), 0, ("a", "b"), groups=(2, 3), soft_labels=soft)
    found = TrainingObjective(network, [RankCeCriterion()], kd_criteria=[KlCriterion()])(batch, [])
    gold = distilled = torch.zeros(())
    for label, logits, scores in zip((0, 1), network.run(batch).split((2, 3)), soft.split((2, 3)), strict=True):
        log_p, q = logits.flatten().log_softmax(0), scores.flatten().softmax(0)
        gold = gold - log_p[label] / 2
        distilled = distilled + (q * (q.log() - log_p)).sum() / 2
    torch.testing.assert_close(found.loss, gold + distilled)


SPANS = "toy: {data_format: CLUE_SPAN, task_type: KIND, n_class: COUNT, metric_meta: [EmF12]}"
LABELS = "toy: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 3, metric_meta: [ACC]}"


def over_tokens(tmp_path: Path, definition: str) -> SANBertNetwork:
    (tmp_path / "tasks.yml").write_text(definition)
    torch.manual_seed(0)
    task_def = TaskDefs(tmp_path / "tasks.yml").get_task_def("toy")
    network = SANBertNetwork({"task_def_list": [task_def]}, tiny_encoder("bert", dtype=torch.float32)).eval()
    for parameter in network.scoring_list.parameters():
        torch.nn.init.normal_(parameter)  # of an untrained head the outputs are all alike
    return network


def two_examples(network: SANBertNetwork, labels: torch.Tensor, soft: list[np.ndarray]) -> Batch:
    """Of 6 and 4 tokens."""
    ids, mask = torch.randint(5, 40, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    collated = network.tasks[0].collate_soft_labels(soft, 6)
    return Batch(ids, mask, torch.zeros_like(ids), labels, 0, ("a", "b"), soft_labels=collated)


def kl(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    q = teacher.softmax(-1)
    return (q * (q.log() - logits.log_softmax(-1))).sum(-1)


def test_of_labels_every_real_token_is_compared(tmp_path: Path) -> None:
    network = over_tokens(tmp_path, LABELS)
    soft = [np.random.default_rng(n).normal(size=own * 3).astype(np.float32) for n, own in enumerate((6, 4))]
    batch = two_examples(network, torch.tensor([[0, 1, 2, 0, 1, 2], [2, 1, 0, 1, -1, -1]]), soft)
    logits = network.run(batch)
    criterion = SeqCeCriterion()
    found = TrainingObjective(network, [criterion], kd_criteria=[KlCriterion()])(batch, [])
    rows = [kl(logits[row, :own], torch.from_numpy(soft[row]).view(-1, 3)) for row, own in enumerate((6, 4))]
    gold = TrainingObjective(network, [criterion])(batch, [])
    torch.testing.assert_close(found.loss - gold.loss, torch.cat(rows).mean())


def squared_error(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return (logits - teacher).square().mean(-1)


@pytest.mark.parametrize(("kd_criterion", "compared"), [(KlCriterion, kl), (MseCriterion, squared_error)])
@pytest.mark.parametrize(("kind", "n_class"), [("SpanClassification", 2), ("SpanClassificationYN", 3)])
def test_of_spans_starts_and_ends_are_compared_without_padding(
    tmp_path: Path,
    kind: str,
    n_class: int,
    kd_criterion: type[Criterion],
    compared: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    network = over_tokens(tmp_path, SPANS.replace("KIND", kind).replace("COUNT", str(n_class)))
    soft = [np.random.default_rng(n).normal(size=own * 2).astype(np.float32) for n, own in enumerate((6, 4))]
    batch = two_examples(network, torch.tensor([[1, 2, 1], [0, 0, 0]])[:, :n_class], soft)
    start, end, *log_odds = network.run(batch)
    start = start.clone()
    for own in log_odds:
        start[:, 0] -= own
    criterion = SpanCeCriterion()
    found = TrainingObjective(network, [criterion], kd_criteria=[kd_criterion()])(batch, [])
    rows = [
        compared(part[row, :own], torch.from_numpy(soft[row]).view(2, -1)[place])
        for row, own in enumerate((6, 4))
        for place, part in enumerate((start, end))
    ]
    gold = TrainingObjective(network, [criterion])(batch, [])
    torch.testing.assert_close(found.loss - gold.loss, torch.stack(rows).sum() / 2)


def _batch(run: RunData) -> Batch:
    from mt_dnn.batcher import Collater

    return Collater(0)([run.train[0][index] for index in range(4)])


def test_what_cannot_be_distilled_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=r"--mkd_opt: no training set has a softlabel; prepare_distillation_data.py"):
        RunData(tiny_config(tmp_path, "--mkd_opt", "1"))


def test_soft_labels_are_logarithms_of_probabilities_by_id(tmp_path: Path) -> None:
    given = f"--task_def {TASK_DEF} --task cola --std_input {DATA / 'cola_dev.json'} --std_output {tmp_path / 'o.json'}"
    scores = read_score_file(RUN / "cola_dev_scores_epoch_0.json")
    order = list(range(len(scores["uids"])))[::-1]
    shuffled = {
        "metrics": {},
        "uids": [scores["uids"][place] for place in order],
        "predictions": [scores["predictions"][place] for place in order],
        "scores": np.array(scores["scores"]).reshape(-1, 2)[order].flatten().tolist(),
    }
    (tmp_path / "scores.json").write_text(json.dumps(shuffled))
    prepare_distillation_data.main([*given.split(), "--score", str(tmp_path / "scores.json"), "--add_soft_label"])
    before = [sample for _, sample in read_token_json(DATA / "cola_dev.json")]
    after = [sample for _, sample in read_token_json(tmp_path / "o.json")]
    assert [{**own, "softlabel": None} for own in after] == [{**own, "softlabel": None} for own in before]
    found = np.exp([own["softlabel"] for own in after])
    np.testing.assert_allclose(found, np.array(scores["scores"]).reshape(-1, 2), rtol=1e-6)

    prepare_distillation_data.main([*given.split(), "--score", str(RUN / "cola_dev_scores_epoch_0.json")])
    after = [sample for _, sample in read_token_json(tmp_path / "o.json")]
    assert [own["label"] for own in after] == scores["predictions"] and "softlabel" not in after[0]


def test_a_regressions_outputs_stay_as_they_are(tmp_path: Path) -> None:
    scores = RUN / "stsb_dev_scores_epoch_0.json"
    given = (
        f"--task_def {TASK_DEF} --task stsb --std_input {DATA / 'stsb_dev.json'} --score {scores} "
        f"--std_output {tmp_path / 'o.json'}"
    )
    expected = read_score_file(scores)["scores"]
    prepare_distillation_data.main([*given.split(), "--add_soft_label"])
    assert [own["softlabel"] for _, own in read_token_json(tmp_path / "o.json")] == [[score] for score in expected]
    prepare_distillation_data.main(given.split())
    assert [own["label"] for _, own in read_token_json(tmp_path / "o.json")] == expected


def prepared(
    tmp_path: Path, definition: str, samples: list[dict[str, Any]], scores: dict[str, Any], *flags: str
) -> Any:
    """What a teacher's score file makes of a token file, line by line."""
    (tmp_path / "tasks.yml").write_text(definition)
    write_lines(tmp_path / "given.json", map(json.dumps, samples))
    (tmp_path / "scores.json").write_text(json.dumps({"metrics": {}, **scores}))
    given = f"--task_def {tmp_path / 'tasks.yml'} --task toy --std_input {tmp_path / 'given.json'} "
    files = f"--score {tmp_path / 'scores.json'} --std_output {tmp_path / 'taught.json'}"
    prepare_distillation_data.main([*(given + files).split(), *flags])
    return [json.loads(line) for line in (tmp_path / "taught.json").read_text().splitlines()]


def test_candidates_scores_go_to_their_group(tmp_path: Path) -> None:
    definition = "toy: {data_format: PremiseAndMultiHypothesis, task_type: Ranking, n_class: 1, metric_meta: [ACC]}"
    samples = [
        {"uid": "a", "token_id": [[2], [3]], "label": 0, "ruid": ["a0", "a1"]},
        {"uid": "b", "token_id": [[2], [3], [4]], "label": 0, "ruid": ["b0", "b1", "b2"]},
    ]
    scores = {
        "uids": ["b2", "a0", "a1", "b0", "b1"],
        "predictions": [0, 1, 0, 0, 1],
        "scores": [0.2, 0.9, 0.1, 0.3, 0.5],
    }
    found = prepared(tmp_path, definition, samples, scores, "--add_soft_label")
    assert [np.exp(own["softlabel"]).round(6).tolist() for own in found] == [[0.9, 0.1], [0.3, 0.5, 0.2]]
    assert [own["label"] for own in prepared(tmp_path, definition, samples, scores)] == [0, 1]


def test_words_have_scores_of_their_own(tmp_path: Path) -> None:
    samples = [{"uid": "a", "token_id": [2, 3], "label": [0, 0]}, {"uid": "b", "token_id": [2], "label": [0]}]
    scores = {"uids": ["b", "a"], "predictions": [[2], [1, 0]], "scores": [0.1, 0.2, 0.7, 0.2, 0.5, 0.3, 0.6, 0.3, 0.1]}
    found = prepared(tmp_path, LABELS, samples, scores, "--add_soft_label")
    assert np.exp(found[0]["softlabel"]).round(6).tolist() == [0.2, 0.5, 0.3, 0.6, 0.3, 0.1]
    assert [own["label"] for own in prepared(tmp_path, LABELS, samples, scores)] == [[1, 0], [2]]


def test_windows_have_logits_of_their_own(tmp_path: Path) -> None:
    """The likeliest span ends where or after it starts; one from the first token is no answer."""
    definition = SPANS.replace("KIND", "SpanClassificationYN").replace("COUNT", "2")
    samples = [
        {"uid": "q", "token_id": [2, 3, 4], "label": [1, 2, 1]},
        {"uid": "q", "token_id": [2, 3], "label": [0, 0, 0]},
    ]
    logits = [0, 1, 4, 0, 9, 2, 3, 0, 1, 3]  # start and end of three tokens, then of two
    scores = {"uids": ["q", "q"], "predictions": [[2, 1], [0, 1]], "scores": logits}
    found = prepared(tmp_path, definition, samples, scores, "--add_soft_label")
    assert [own["softlabel"] for own in found] == [logits[:6], logits[6:]]
    assert [own["label"] for own in found] == [[1, 2, 1], [0, 0, 0]]
    assert [own["label"] for own in prepared(tmp_path, definition, samples, scores)] == [[1, 1, 1], [0, 0, 0]]
    one_answer = {"uids": ["q"], "predictions": ["x"], "scores": [1.0, 2.0]}
    with pytest.raises(UserError, match="of the 2 of the .*; of SpanClassificationYN predict.py --by_window"):
        prepared(tmp_path, definition, samples, one_answer)


def test_types_without_such_scores_are_refused(tmp_path: Path) -> None:
    definition = "toy: {data_format: MLM, task_type: MaskLM, n_class: 1, metric_meta: [ACC]}"
    with pytest.raises(FlagError, match="MaskLM has no scores to learn from a teacher; accepted: Classification, "):
        prepared(tmp_path, definition, [{"uid": "a", "token_id": [2]}], {})


def test_scores_of_other_examples_are_refused(tmp_path: Path) -> None:
    given = (
        f"--task_def {TASK_DEF} --task mnli --std_input {DATA / 'mnli_train.json'} --std_output {tmp_path / 'o.json'} "
        f"--score {RUN / 'mnli_matched_dev_scores_epoch_0.json'}"
    )
    with pytest.raises(UserError, match="not of the .* of the dataset"):
        prepare_distillation_data.main(given.split())
    assert not (tmp_path / "o.json").exists()


DEFINITION = """
toy:
  data_format: PremiseOnly
  task_type: Classification
  n_class: 2
  metric_meta: [ACC]
  kd_loss: KlCriterion
"""


def lines(count: int, seed: int, wrong: float) -> Iterator[str]:
    """Whether the first word is a colour; of some the label is another."""
    draw = random.Random(seed)
    for number in range(count):
        words = draw.choices(WORDS, k=4)
        label = int(WORDS.index(words[0]) < 4)
        yield f"{number}\t{1 - label if draw.random() < wrong else label}\t{' '.join(words)}"


def test_a_student_learns_from_a_teacher_what_its_labels_hide(tmp_path: Path) -> None:
    """A teacher trained on right labels scores the text that a student has with coin tosses for labels."""
    encoder = write_small_encoder(tmp_path / "small")
    splits = {"toy_train": lines(300, 1, 0.0), "toy_dev": lines(100, 2, 0.0)}
    data = write_task(tmp_path / "right", DEFINITION, splits, encoder)
    assert learned(data, encoder, tmp_path / "teacher", "toy", "ACC", "--epochs", "3") > 95
    splits = {"toy_train": lines(300, 3, 0.5), "toy_dev": lines(100, 2, 0.0)}
    hidden = write_task(tmp_path / "hidden", DEFINITION, splits, encoder)
    task = ["--task", "toy", "--task_def", str(hidden.parent / "tasks.yml")]
    score = str(tmp_path / "scores.json")
    predict.main(
        [*task, "--prep_input", str(hidden / "toy_train.json"), "--score", score, "--checkpoint",
         str(tmp_path / "teacher" / "model_2.pt")]
    )  # fmt: skip
    without = learned(hidden, encoder, tmp_path / "alone", "toy", "ACC", "--epochs", "3")
    taught = tmp_path / "taught" / hidden.name
    prepare_distillation_data.main(
        [*task, "--add_soft_label", "--std_input", str(hidden / "toy_train.json"), "--score", score, "--std_output",
         str(taught / "toy_train.json")]
    )  # fmt: skip
    (taught / "toy_dev.json").write_bytes((hidden / "toy_dev.json").read_bytes())
    (taught.parent / "tasks.yml").write_text(DEFINITION)
    assert TaskDefs(taught.parent / "tasks.yml").get_task_def("toy").kd_loss == LossCriterion.KlCriterion
    assert (
        learned(taught, encoder, tmp_path / "student", "toy", "ACC", "--epochs", "3", "--mkd_opt", "1") > 95 > without
    )
