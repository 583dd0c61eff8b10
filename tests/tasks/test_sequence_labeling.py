from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score as seqeval_f1

from data_utils.errors import DataError, UserError
from data_utils.metrics import Metric
from data_utils.prepro import (
    CUT_ENTITIES,
    CUT_WORDS,
    EMPTY_WORDS,
    Losses,
    Split,
    Tokenization,
    TokenizerSpec,
    parse_list,
)
from data_utils.prepro import WORDS as ALL_WORDS
from mt_dnn.batcher import Collater, SingleTaskDataset
from tasks import get_task
from tasks.definition import TaskDefs
from tasks.sequence_labeling import CUT_LABEL
from tests.encoder_folder import write_encoder
from tests.tasks.learning import PROBE, SIFT, SMART, WORDS, learned, write_small_encoder, write_task

DEFINITION = """
toy:
  data_format: Seqence
  task_type: SeqenceLabeling
  n_class: 5
  metric_meta: [ACC]
  labels: [same, other, X, CLS, SEP]
"""


def lines(count: int, seed: int) -> Iterator[str]:
    """A word's label says whether it is of the kind of the first word, a colour or a number."""
    draw = random.Random(seed)
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(3, 9))
        kinds = [WORDS.index(word) < 4 for word in words]
        labels = ["same" if kind == kinds[0] else "other" for kind in kinds]
        yield f"{number}\t{labels}\t{words}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"toy_train": lines(800, 1), "toy_dev": lines(100, 2)}
    return write_task(tmp_path_factory.mktemp("labels"), DEFINITION, splits, encoder)


@pytest.fixture
def dev(data: Path) -> SingleTaskDataset:
    task_def = TaskDefs(data.parent / "tasks.yml").get_task_def("toy")
    return SingleTaskDataset(data / "toy_dev.json", False, 0, task_def)


def test_a_linear_probe_does_not_learn_it(data: Path, encoder: Path, tmp_path: Path):
    assert learned(data, encoder, tmp_path, "toy", "ACC", *PROBE) < 85


@pytest.mark.parametrize("method", [(), SMART, SIFT])
def test_it_learns_what_words_say_together(data: Path, encoder: Path, tmp_path: Path, method: tuple[str, ...]):
    assert learned(data, encoder, tmp_path, "toy", "ACC", *method) > 95


def test_padding_has_no_label_and_no_part_in_the_loss(dev: SingleTaskDataset):
    batch = Collater(0)([dev[0], dev[1], dev[2]])
    assert batch.labels is not None
    assert torch.equal(batch.labels == -1, batch.attention_mask == 0) and (batch.attention_mask == 0).any()
    logits = torch.randn(*batch.labels.shape, 5)
    task = get_task(dev.task_def)
    from mt_dnn.loss import SeqCeCriterion

    loss = task.loss(SeqCeCriterion(), logits, batch)
    real = batch.attention_mask.bool()
    expected = -logits.log_softmax(-1)[real, batch.labels[real]].mean()
    torch.testing.assert_close(loss, expected)
    logits[~real] = 100.0
    torch.testing.assert_close(task.loss(SeqCeCriterion(), logits, batch), expected)


ENTITIES = """
toy:
  data_format: Seqence
  task_type: SeqenceLabeling
  n_class: 6
  metric_meta: [SeqEval, ACC, SeqEvalList]
"""


def entities_found(folder: Path, predictions: list[list[int]], more: str = "") -> dict[str, float]:
    """Of two sentences: "Ann Lee-Ray" of a B-PER and an I-PER of two pieces, then O; and O O."""
    (folder / "tasks.yml").write_text(ENTITIES + more)
    lines = [([4, 1, 2, 3, 0, 5], "first"), ([4, 0, 0, 5], "second")]
    text = [json.dumps({"uid": uid, "label": label, "token_id": [7] * len(label)}) + "\n" for label, uid in lines]
    (folder / "toy_dev.json").write_text("".join(text))
    task_def = TaskDefs(folder / "tasks.yml").get_task_def("toy")
    dataset = SingleTaskDataset(folder / "toy_dev.json", False, 0, task_def)
    scores = [np.eye(6)[own] for own in predictions]
    metrics = task_def.metric_meta
    return dataset.task.evaluate(dataset, metrics, scores, [np.array(own) for own in predictions]).metrics


NAMES = "  labels: [O, B-PER, I-PER, X, CLS, SEP]"


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        # what is predicted for later pieces and special tokens does not count
        ([[1, 1, 2, 1, 0, 2], [1, 0, 0, 1]], {"SeqEval": 100.0, "ACC": 100.0, "SeqEvalList": 100.0}),
        # PER 0-0 in place of PER 0-1
        ([[4, 1, 0, 3, 0, 5], [4, 0, 0, 5]], {"SeqEval": 0.0, "ACC": 80.0, "SeqEvalList": 50.0}),
        # a word taken for a later piece or a special token is in no entity
        ([[4, 1, 2, 3, 4, 5], [4, 3, 5, 5]], {"SeqEval": 100.0, "ACC": 40.0, "SeqEvalList": 100.0}),
        # PER 0-1 found, and one more
        ([[4, 1, 2, 3, 0, 5], [4, 0, 1, 5]], {"SeqEval": 100 * 2 / 3, "ACC": 80.0, "SeqEvalList": 50.0}),
    ],
)
def test_entities_are_made_of_words(tmp_path: Path, predictions: list[list[int]], expected: dict[str, float]):
    found = entities_found(tmp_path, predictions, NAMES)
    assert list(found) == list(expected) and found == pytest.approx(expected)


def test_an_output_without_a_name_is_in_no_entity(tmp_path: Path):
    found = entities_found(tmp_path, [[4, 1, 2, 3, 3, 5], [4, 3, 0, 5]], "  labels: [O, B-PER, I-PER]")
    assert found["SeqEval"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("names", "expected"), [("", "[4, 1, 5]"), ("  labels: [O, B-PER, I-PER, X, CLS]", '["CLS", "B-PER", 5]')]
)
def test_a_submission_has_an_example_s_labels_in_a_cell(tmp_path: Path, names: str, expected: str):
    (tmp_path / "tasks.yml").write_text(ENTITIES + names)
    task = get_task(TaskDefs(tmp_path / "tasks.yml").get_task_def("toy"))
    assert task.answers([], [np.array([4, 1, 5])]) == [expected]


def test_entities_need_names(tmp_path: Path):
    with pytest.raises(UserError, match="metric SeqEval needs the labels' names"):
        entities_found(tmp_path, [[4, 1, 2, 3, 0, 5], [4, 0, 0, 5]])


@pytest.mark.parametrize("text", ['["\\ud800"]', "['\\ud800']", "[" * 10_000, "['" + "a" * (1 << 18) + "']", "[[]]"])
def test_what_is_no_list_of_texts_is_refused(text: str):
    split = Split(Path("a.tsv"), None, True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a.tsv, line 3: premise: found .*accepted: a list of texts"):
        parse_list(split, 3, "premise", text)


# words that no token stands for


def tokenized(folder: Path, encoder: Path, words: list[str], tags: list[str], longest: int) -> tuple[dict, Losses]:
    (folder / "tasks.yml").write_text(ENTITIES + NAMES)
    task = get_task(TaskDefs(folder / "tasks.yml").get_task_def("toy"))
    text = Tokenization(TokenizerSpec(str(encoder), max_seq_len=longest))
    line = (3, {"uid": "0", "label": json.dumps(tags), "premise": json.dumps(words)})
    (example,) = task.tokenize(Split(Path("a.tsv"), task, True), [line], text)
    return example, text.losses


def test_a_word_without_a_token_has_the_unknown_one(tmp_path: Path):
    encoder = write_encoder(tmp_path / "bert")  # whose tokenizer drops a blank, as others one of no width
    example, losses = tokenized(tmp_path, encoder, ["good", "\u3000", "bad"], ["O", "B-PER", "I-PER"], 16)
    unknown = Tokenization(TokenizerSpec(str(encoder))).tokenizer.unk_token_id
    assert example["label"] == [4, 0, 1, 2, 5] and example["token_id"][2] == unknown and CUT_LABEL not in example
    assert losses.counts[EMPTY_WORDS] == 1 and losses.first[EMPTY_WORDS] == 3


def test_words_and_entities_that_are_cut_are_counted(encoder: Path, tmp_path: Path):
    words, tags = ["red"] * 6, ["B-PER", "O", "B-PER", "I-PER", "O", "B-PER"]
    example, losses = tokenized(tmp_path, encoder, words, tags, 5)
    assert example["label"] == [4, 1, 0, 1, 5] and example[CUT_LABEL] == [2, 0, 1]
    assert dict(losses.counts) == {ALL_WORDS: 6, CUT_WORDS: 3, CUT_ENTITIES: 2} and losses.first[CUT_WORDS] == 3
    assert CUT_LABEL not in tokenized(tmp_path, encoder, words, tags, 8)[0]


def test_entities_that_were_cut_count_as_missed(encoder: Path, tmp_path: Path):
    """Against seqeval on the whole sentence, in which nothing is found beyond the cut."""
    words, tags = ["red"] * 6, ["B-PER", "O", "B-PER", "I-PER", "O", "B-PER"]
    example, _ = tokenized(tmp_path, encoder, words, tags, 5)
    path = tmp_path / "toy_dev.json"
    path.write_text(json.dumps(example) + "\n" + json.dumps({"uid": "1", "label": [4, 1, 5], "token_id": [1, 2, 3]}))
    task_def = TaskDefs(tmp_path / "tasks.yml").get_task_def("toy")
    dataset = SingleTaskDataset(path, False, 0, task_def)
    predictions = [np.array(example["label"]), np.array([4, 1, 5])]
    scores = [np.eye(6)[own] for own in predictions]
    found = dataset.task.evaluate(dataset, [Metric.SeqEval, Metric.ACC], scores, predictions).metrics
    missed = [["B-PER", "O", "B-PER", "O", "O", "O"], ["B-PER"]]
    assert found["SeqEval"] == pytest.approx(100 * seqeval_f1([tags, ["B-PER"]], missed))
    assert found["SeqEval"] < 60  # and not 100, which it were without the words that are cut
    assert found["ACC"] == pytest.approx(100 * 5 / 7)
    batch = Collater(0)([dataset[0], dataset[1]])
    assert batch.labels is not None and batch.labels.tolist() == [[4, 1, 0, 1, 5], [4, 1, 5, -1, -1]]
    with pytest.raises(ValueError, match="accepted: 5 labels"):
        dataset.task.shapes_of_scores([[0] * 8], [dataset.labels[0]])


@pytest.mark.parametrize("cut", [[6], [-1], [True], "O"])
def test_labels_of_cut_words_that_are_none_are_refused(cut: object, tmp_path: Path):
    (tmp_path / "tasks.yml").write_text(ENTITIES + NAMES)
    line = {"uid": "0", "label": [4, 0, 5], "token_id": [1, 2, 3], CUT_LABEL: cut}
    (tmp_path / "toy_dev.json").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match="toy_dev.json, line 1: cut_label must be a list of integers from 0 to 5"):
        SingleTaskDataset(tmp_path / "toy_dev.json", False, 0, TaskDefs(tmp_path / "tasks.yml").get_task_def("toy"))
