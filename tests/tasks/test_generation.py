from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import predict
from data_utils.errors import DataError, FlagError, TaskDefError, UserError
from data_utils.metrics import Metric
from data_utils.readers import read_score_file
from mt_dnn.batcher import Batch, Collater, SingleTaskDataset
from mt_dnn.configuration.config import parse_args
from mt_dnn.data.run_data import RunData, check_fits_encoder
from mt_dnn.loss import SeqCeCriterion
from mt_dnn.model import MTDNNModel
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.perturbation.outputs import Comparison
from tasks.definition import TaskDefs
from tasks.generation import metrics_of_numbers
from tests.tasks.learning import PROBE, SIFT, SMART, WORDS, learned, write_small_encoder, write_task

DEFINITION = """
toy: {data_format: PremiseOnly, task_type: SeqenceGeneration, n_class: 1, metric_meta: [ACC, EmF1]}
mrc: {data_format: CLUE_GEN, task_type: SeqenceGenerationMRC, n_class: 1, metric_meta: [EmF12]}
"""
CLS, SEP = 2, 3


def lines(count: int, seed: int) -> Iterator[str]:
    """Words, to be written in one order; 400 such texts exist."""
    draw = random.Random(seed)
    for number in range(count):
        words = draw.sample(WORDS, k=draw.randint(1, 3))
        yield f"{number}\t{' '.join(sorted(words, key=WORDS.index))}\t{' '.join(words)}"


def questions(count: int, seed: int) -> Iterator[str]:
    """A colour and a number, of which the question asks for one."""
    draw = random.Random(seed)
    for number in range(count):
        asked = {"no": draw.choice(WORDS[:4]), "answer": draw.choice(WORDS[4:])}
        context, question = draw.sample([*asked.values()], k=2), draw.choice([*asked])
        yield f'{number}\t["{asked[question]}"]\t{" ".join(context)}\t{question}'


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of one layer each, with the tokenizer of the other tests: it writes `[CLS] … [SEP]`, [SEP] ends."""
    folder = write_small_encoder(tmp_path_factory.mktemp("encoder") / "t5", [*WORDS, "no", "answer", ","])
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
    config = transformers.T5Config(vocab_size=16, eos_token_id=SEP, dropout_rate=0.0, decoder_start_token_id=0, **sizes)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [  # answers, context, question
        ('["two", "one"]', "red one blue two", "one"),
        ("[]", "red blue", "four"),
    ]
    pairs = [f"{number}\t{'	'.join(row)}" for number, row in enumerate(rows)]
    splits = {"toy_train": lines(640, 1), "toy_dev": lines(60, 2), "mrc_dev": pairs}
    splits |= {"mrc_kind_train": questions(800, 1), "mrc_kind_dev": questions(60, 2)}
    return write_task(tmp_path_factory.mktemp("texts"), DEFINITION, splits, encoder)


def dataset(data: Path, name: str, task: str) -> SingleTaskDataset:
    return SingleTaskDataset(data / f"{name}.json", False, 0, TaskDefs(data.parent / "tasks.yml").get_task_def(task))


def model(data: Path, encoder: Path, *flags: str, task: str = "toy") -> MTDNNModel:
    names = f"--task_def {data.parent / 'tasks.yml'} --init_checkpoint {encoder} --bert_dropout_p 0"
    task_def = TaskDefs(data.parent / "tasks.yml").get_task_def(task)
    return MTDNNModel(parse_args([*names.split(), *flags]), [task_def])


@pytest.fixture
def batch(data: Path) -> Batch:
    dev = dataset(data, "toy_dev", "toy")
    batch = Collater(0)([dev[index] for index in range(6)])
    assert batch.labels is not None and (batch.labels == -1).any() and (batch.attention_mask == 0).any()
    return batch


# learning


@pytest.mark.parametrize("method", [(), SMART])
def test_it_learns_to_sort(data: Path, encoder: Path, tmp_path: Path, method: tuple[str, ...]):
    flags = ("--epochs", "3", "--learning_rate", "1e-2", "--max_answer_len", "6")
    assert learned(data, encoder, tmp_path, "toy", "ACC", *flags, *method) > 90


@pytest.mark.parametrize("method", [(), SMART])
def test_it_learns_to_answer(data: Path, encoder: Path, tmp_path: Path, method: tuple[str, ...]):
    flags = ("--epochs", "4", "--learning_rate", "1e-2", "--max_answer_len", "4")
    assert learned(data, encoder, tmp_path, "mrc_kind", "EmF12", *flags, *method) > 90


def test_a_checkpoint_writes_what_the_model_wrote(data: Path, encoder: Path, tmp_path: Path):
    learned(data, encoder, tmp_path, "toy", "ACC", "--epochs", "1", "--num_beams", "2")
    predict.main([
        "--task_def", str(data.parent / "tasks.yml"), "--task", "toy", "--with_label", "--prep_input",
        str(data / "toy_dev.json"), "--checkpoint", str(tmp_path / "model_0.pt"), "--score", str(tmp_path / "again"),
    ])  # fmt: skip
    expected, found = read_score_file(tmp_path / "toy_dev_scores_epoch_0.json"), read_score_file(tmp_path / "again")
    assert found["predictions"] == expected["predictions"] and len(set(found["predictions"])) > 1
    assert found["metrics"] == expected["metrics"]
    torch.testing.assert_close(torch.tensor(found["scores"]), torch.tensor(expected["scores"]), rtol=0, atol=1e-5)


# loss and noise


def test_the_loss_is_the_mean_over_target_tokens_as_the_library_computes_it(data: Path, encoder: Path, batch: Batch):
    network = model(data, encoder).network.eval()
    task, labels = network.tasks[0], batch.labels
    assert labels is not None
    logits = network.run(batch)
    loss = task.loss(SeqCeCriterion(), logits, batch)
    expected = network.bert(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=labels[:, 1:].masked_fill(labels[:, 1:] == -1, -100),
    ).loss
    torch.testing.assert_close(loss, expected)
    counted = task.counted(batch)
    assert counted is not None and counted.tolist() == (labels[:, 1:] != -1).tolist()
    logits[~counted] = 100.0
    torch.testing.assert_close(task.loss(SeqCeCriterion(), logits, batch), expected)


def test_padding_in_a_token_file_of_mt_dnn_is_no_target(data: Path, encoder: Path, batch: Batch):
    """Its files are padded with 0, which is T5's padding and start token."""
    network = model(data, encoder).network.eval()
    task, labels = network.tasks[0], batch.labels
    assert labels is not None
    padded = torch.nn.functional.pad(labels, (0, 2), value=-1)
    other = replace(batch, labels=torch.where(padded == -1, 0, padded))
    losses = [task.loss(SeqCeCriterion(), network.run(own), own) for own in (batch, other)]
    torch.testing.assert_close(losses[1], losses[0])


def test_the_decoder_starts_as_the_model_says(data: Path, encoder: Path, batch: Batch):
    task = model(data, encoder).network.tasks[0]
    task.opt = {**task.opt, "decoder_start_token_id": 7}
    read = task.y_input_ids(batch)
    assert read is not None and batch.labels is not None
    assert (read[:, 0] == 7).all() and (read >= 0).all()
    kept = batch.labels[:, 1:-1] != -1
    assert torch.equal(read[:, 1:][kept], batch.labels[:, 1:-1][kept])


def test_noise_enters_at_the_encoders_words_alone(data: Path, encoder: Path, batch: Batch):
    network = model(data, encoder).network.eval()
    bert, task = network.bert, network.tasks[0]
    delta = 0.5 * torch.randn(*batch.input_ids.shape, 32) * batch.attention_mask.unsqueeze(-1)
    with NoiseInjection(network.encoder, "pre_ln").add(delta):
        perturbed = network.run(batch)
    embedded = bert.get_input_embeddings().weight[batch.input_ids] + delta
    read = task.y_input_ids(batch)
    expected = bert(inputs_embeds=embedded, attention_mask=batch.attention_mask, decoder_input_ids=read).logits
    torch.testing.assert_close(perturbed, expected)
    assert (perturbed - network.run(batch)).abs().max() > 1e-3


def test_divergences_are_means_over_target_tokens(data: Path, encoder: Path, batch: Batch):
    task = model(data, encoder).network.tasks[0]
    counted = task.counted(batch)
    assert counted is not None
    clean, perturbed = torch.randn(2, *counted.shape, 16).unbind(0)
    perturbed[2][~counted[2]] = torch.nan
    rows = Comparison(clean, batch.attention_mask, lambda p, q: (p - q).mean(), task_type=task.view, loss_mask=counted)
    ((found, against),) = rows.pairs(perturbed)
    assert torch.equal(found, perturbed[counted]) and torch.equal(against, clean[counted])
    assert rows.finite(perturbed).all()
    perturbed[1, 0] = torch.nan
    assert rows.finite(perturbed).tolist() == [True, False, True, True, True, True]


# evaluation


@pytest.mark.parametrize("beams", ["1", "3"])
def test_a_score_is_the_log_probability_of_the_text(data: Path, encoder: Path, batch: Batch, beams: str):
    own = model(data, encoder, "--num_beams", beams, "--max_answer_len", "5")
    network = own.network.eval()
    generated: dict[str, Any] = {}
    generate = network.bert.generate
    network.bert.generate = lambda **options: generated.setdefault("found", generate(**options))  # type: ignore[method-assign]
    scores, texts = own.predict(batch)
    sequences = generated["found"].sequences
    assert sequences.shape[1] <= 6 and len(texts) == 6
    for row, sequence in enumerate(sequences):
        tokens = sequence[1:].tolist()
        tokens = tokens[: tokens.index(SEP) + 1] if SEP in tokens else tokens
        read = torch.tensor([[0, *tokens[:-1]]])
        length = int(batch.attention_mask[row].sum())
        logits = network.bert(input_ids=batch.input_ids[row : row + 1, :length], decoder_input_ids=read).logits[0]
        expected = logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)].sum()
        assert float(scores[row]) == pytest.approx(expected.item(), abs=1e-4)


def test_metrics_compare_texts(data: Path, encoder: Path):
    own = model(data, encoder, task="mrc").network.tasks[0]
    mrc = dataset(data, "mrc_dev", "mrc")
    # the gold texts are "one, two", in the order of the context, and none
    found = own.evaluate(mrc, mrc.task_def.metric_meta, np.zeros(2), ["one three", ""])
    assert found.golds == ["one, two", ""]
    assert found.metrics["EmF12"] == pytest.approx((50 + 100) / 2) and found.metrics["EmF12_exact"] == 50
    assert own.evaluate(mrc, mrc.task_def.metric_meta, np.zeros(2), ["", ""], with_label=False).metrics == {}
    own, toy = model(data, encoder).network.tasks[0], dataset(data, "toy_dev", "toy")
    golds = [line.split("\t")[1] for line in lines(60, 2)]
    wrong = ["", *golds[1:45], *(text + " one" for text in golds[45:])]
    found = own.evaluate(toy, toy.task_def.metric_meta, np.zeros(60), wrong)
    assert found.metrics["ACC"] == found.metrics["EmF1_exact"] == pytest.approx(100 * 44 / 60)


def test_texts_that_are_numbers_have_the_metrics_of_numbers():
    """GLUE's labels as texts; what is no class is a wrong one."""
    golds, predictions = ["1", "1", "0", "0", "1"], ["1", "yes", "0", "7", "1.0"]
    # class 1: found 3 times, once wrongly for 7; missed once for "yes"
    assert metrics_of_numbers(Metric.F1, golds, predictions) == pytest.approx({"F1": 200 / 3})
    assert metrics_of_numbers(Metric.F1MIC, golds, predictions) == pytest.approx({"F1MIC": 60})
    found = metrics_of_numbers(Metric.Pearson, ["1.5", "2", "4"], ["3.0", "4", "8"])
    assert found == pytest.approx({"Pearson": 100})
    assert metrics_of_numbers(Metric.Spearman, ["1", "2", "0"], ["3", "4", "none"]) == pytest.approx({"Spearman": 100})
    # a fraction is the wrong class, whatever it is nearest to
    for metric in (Metric.MCC, Metric.F1MAC, Metric.F1MIC):
        fraction = metrics_of_numbers(metric, golds, ["1", "0.75", "0", "7", "1.0"])
        assert fraction == metrics_of_numbers(metric, golds, predictions)
        with pytest.raises(UserError, match=f"metric {metric.name} is for classes; found 3.8"):
            metrics_of_numbers(metric, ["1", "3.8"], ["1", "1"])
    with pytest.raises(UserError, match="MCC is of numbers; found the reference 'good'; accepted: ACC, EmF1, EmF12"):
        metrics_of_numbers(Metric.MCC, ["1", "good"], ["1", "1"])


def test_references_of_mt_dnns_files_are_read(data: Path, encoder: Path):
    task = model(data, encoder, task="mrc").network.tasks[0]
    one, two, no, answer = (5 + WORDS.index("one"), 5 + WORDS.index("two"), 13, 14)
    for sample, expected in (
        ({"answer": {"text": ["one", "two"]}}, "one"),
        ({"answer": {"text": []}}, ""),
        ({"answer": "no answer"}, ""),
        ({"label": [0, CLS, one, two, SEP, 0, 0]}, "one two"),
        ({"label": [0, CLS, no, answer, SEP]}, ""),
    ):
        assert task._reference(sample) == expected


# text


def test_token_files_hold_target_and_reference(data: Path):
    first, second = (json.loads(line) for line in (data / "mrc_dev.json").read_text().splitlines())
    ids = {word: 5 + place for place, word in enumerate([*WORDS, "no", "answer", ","])}
    assert first["label"] == [0, CLS, ids["one"], ids[","], ids["two"], SEP] and first["answer"] == "one, two"
    context = [ids[word] for word in ["red", "one", "blue", "two"]]
    assert first["token_id"] == [CLS, *context, SEP, ids["one"], SEP]
    assert second["label"] == [0, CLS, ids["no"], ids["answer"], SEP] and second["answer"] == ""


def test_an_example_without_a_text_is_one_to_predict_but_not_to_train_on(encoder: Path, tmp_path: Path):
    folder = write_task(tmp_path / "a", DEFINITION, {"toy_test": ["0\t\tred blue"]}, encoder)
    (line,) = (json.loads(line) for line in (folder / "toy_test.json").read_text().splitlines())
    assert "label" not in line and "answer" not in line
    scores, texts = model(folder, encoder).predict(Collater(0)([dataset(folder, "toy_test", "toy")[0]]))
    assert scores.shape == (1,) and len(texts) == 1
    with pytest.raises(DataError, match=r"toy_train.tsv.*found no text to learn"):
        write_task(tmp_path / "b", DEFINITION, {"toy_train": ["0\t\tred blue"]}, encoder)


# mistakes


def test_a_mistake_is_told_in_a_line(data: Path, encoder: Path, tmp_path: Path):
    for old, new, expected in (
        (
            "[ACC, EmF1]",
            "[AUC]",
            r"found \['AUC'\], accepted: a list of ACC, EmF1, EmF12, F1, .* for SeqenceGeneration",
        ),
        ("SeqenceGeneration,", "EncSeqenceGeneration,", "found EncSeqenceGeneration, a name without a model in MT-DNN"),
    ):
        (tmp_path / "tasks.yml").write_text(DEFINITION.replace(old, new, 1))
        with pytest.raises(TaskDefError, match=expected):
            TaskDefs(tmp_path / "tasks.yml")
    for data_format in ("CLUE_CLASSIFICATION", "CLUE_SEQ"):
        definition = DEFINITION.replace("CLUE_GEN", data_format)
        with pytest.raises(UserError, match=f"data_format {data_format} does not go with SeqenceGenerationMRC"):
            write_task(tmp_path / data_format, definition, {"mrc_dev": ["0\ta\tb\tc"]}, encoder)
    with pytest.raises(FlagError, match="--update_bert_opt: found 1, but generation trains no head"):
        model(data, encoder, *PROBE)
    with pytest.raises(FlagError, match="T5Stack has no injection point 'post_ln'; it has: pre_ln"):
        model(data, encoder, *SIFT)
    bert = write_small_encoder(tmp_path / "bert")
    with pytest.raises(DataError, match="bert has no decoder here, which generation needs"):
        model(data, bert)
    wrong, toy = tmp_path / "toy_dev.json", TaskDefs(data.parent / "tasks.yml").get_task_def("toy")
    for label, expected in (([5], "at least two token ids"), ([0, 99], "token id 99; the encoder's vocabulary has 16")):
        wrong.write_text(json.dumps({"uid": "0", "token_id": [2, 5, 3], "label": label, "answer": "a"}) + "\n")
        with pytest.raises(DataError, match=expected):
            check_fits_encoder(SingleTaskDataset(wrong, False, 0, toy), model(data, encoder).network.bert)


def test_unlabeled_texts_are_refused_before_a_file_is_read(data: Path, encoder: Path):
    """Without a label there is nothing for the decoder to read: T5 raises, BART compares scores of the source."""
    names = f"--task_def {data.parent / 'tasks.yml'} --data_dir {data / 'none'} --init_checkpoint {encoder}"
    flags = ("--train_datasets", "toy", "--test_datasets", "toy", *SMART, "--unlabeled_datasets", "toy")
    with pytest.raises(FlagError, match="--unlabeled_datasets: toy is of type SeqenceGeneration, whose decoder reads"):
        RunData(parse_args([*names.split(), *flags]))


def test_another_encoder_decoder_learns_and_writes(data: Path, encoder: Path, tmp_path: Path):
    """BART: its decoder starts with another token than padding, and its two embeddings are scaled."""
    folder = write_small_encoder(tmp_path / "bart", [*WORDS, "no", "answer", ","])
    layers = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = transformers.BartConfig(
        vocab_size=16, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, dropout=0.0,
        pad_token_id=0, bos_token_id=CLS, eos_token_id=SEP, decoder_start_token_id=SEP, scale_embedding=True, **layers,
    )  # fmt: skip
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    constant = ("--optimizer", "adamw", "--learning_rate", "1e-2", "--scheduler_type", "2", "--warmup", "0")
    own = model(data, folder, *constant, *SMART)
    toy = dataset(data, "toy_dev", "toy")
    batch = Collater(0)([toy[index] for index in range(6)])
    reports = [own.update(batch) for _ in range(30)]
    assert reports[0].adv_loss is not None and reports[0].adv_loss > 0
    assert reports[-1].task_loss < 0.5 * reports[0].task_loss
    assert all(set(text.split()) <= set(WORDS) for text in own.predict(batch)[1])
