from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_utils.errors import DataError, UserError
from data_utils.prepro import Split, parse_list
from mt_dnn.batcher import Collater, SingleTaskDataset
from tasks import get_task
from tasks.definition import TaskDefs
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
