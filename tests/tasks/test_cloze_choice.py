from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_utils.errors import DataError
from data_utils.metrics import Metric
from data_utils.readers import read_score_file
from mt_dnn.batcher import SingleTaskDataset
from tasks import get_task
from tasks.definition import TaskDefs
from tests.tasks.learning import PROBE, SIFT, SMART, WORDS, learned, write_small_encoder, write_task

DEFINITION = """
toy:
  data_format: ClozeChoice
  task_type: ClozeChoice
  n_class: 1
  metric_meta: [EmF1, ACC]
  loss: RankCeCriterion
"""


def lines(count: int, seed: int) -> Iterator[str]:
    """The gap is filled by the one word of the premise that is among the choices."""
    draw = random.Random(seed)
    for number in range(count):
        words = draw.sample(WORDS, 7)
        premise, gold, others = words[:3], words[0], words[3:]
        choices = [gold, *others[: draw.randint(1, 3)]]
        draw.shuffle(premise)
        draw.shuffle(choices)
        relevances = [int(choice == gold) for choice in choices]
        # as MT-DNN writes lists: as Python shows them
        yield "\t".join([str(number), str(choices), str([gold]), str(relevances), " ".join(premise), *choices])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"toy_train": lines(800, 1), "toy_dev": lines(100, 2)}
    return write_task(tmp_path_factory.mktemp("cloze"), DEFINITION, splits, encoder)


def test_a_linear_probe_does_not_learn_it(data: Path, encoder: Path, tmp_path: Path):
    assert learned(data, encoder, tmp_path, "toy", "EmF1", *PROBE) < 65


@pytest.mark.parametrize("method", [(), SMART, SIFT])
def test_it_learns_to_fill_a_gap(data: Path, encoder: Path, tmp_path: Path, method: tuple[str, ...]):
    assert learned(data, encoder, tmp_path, "toy", "EmF1", *method) > 90
    found = read_score_file(tmp_path / "toy_dev_scores_epoch_4.json")
    # each choice is one word, so a partial match is a match
    assert found["metrics"]["EmF1"] == found["metrics"]["EmF1_exact"] == found["metrics"]["ACC"]
    assert len(found["uids"]) == 100 and set(found["predictions"]) <= set(WORDS)


def test_a_submission_has_the_chosen_texts(data: Path):
    task = get_task(TaskDefs(data.parent / "tasks.yml").get_task_def("toy"))
    assert task.answers(np.zeros((2, 2)), ["red", "two"]) == ["red", "two"]


# text


def converted(root: Path, encoder: Path, line: str, split: str = "train") -> dict[str, Any]:
    folder = write_task(root, DEFINITION, {f"toy_{split}": [line]}, encoder)
    return json.loads((folder / f"toy_{split}.json").read_text())


def test_lists_stay_as_they_stand(encoder: Path, tmp_path: Path):
    example = converted(tmp_path, encoder, "7\t['one', \"two's\"]\t[\"two's\"]\t[0, 1]\tred\tone blue\ttwo")
    assert example == {
        "uid": "7",
        "label": 1,
        "token_id": [[2, 5, 3, 9, 6, 3], [2, 5, 3, 10, 3]],
        "type_id": [[0] * 6, [0] * 5],
        "attention_mask": [[1] * 6, [1] * 5],
        "choice": "['one', \"two's\"]",
        "answer": '["two\'s"]',
        "olabel": [0.0, 1.0],
    }
    without = converted(tmp_path, encoder, '7\t["one"]\t[]\t\tred\tone', split="test")
    assert "label" not in without and without["choice"] == '["one"]'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("7\t['a']\t['a']\t1,0\tred\tone\ttwo", "expected as many choices as hypotheses, found 1 and 2"),
        ("7\t['a', 'b']\t['a']\t1\tred\tone\ttwo", "expected as many relevances as hypotheses, found 1 and 2"),
        ("7\tprint('a')\t['a']\t1\tred\tone", "choice: found .*accepted: a list of texts"),
        ("7\t['a']\t{'a'}\t1\tred\tone", "answer: found .*accepted: a list of texts"),
        ("7\t['a']\t['a']\t1\tred", "expected at least 6 tab-separated columns .* found 5"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(encoder: Path, tmp_path: Path, line: str, words: str):
    with pytest.raises(DataError, match=words) as caught:
        converted(tmp_path, encoder, line)
    assert str(caught.value).startswith(f"{tmp_path / 'toy_train.tsv'}, line 1: ")


# evaluation


def evaluated(folder: Path, questions: list[dict[str, Any]], scores: list[list[float]], *metrics: Metric) -> Any:
    (folder / "tasks.yml").write_text(DEFINITION)
    lines = [
        json.dumps({"uid": str(number), "token_id": [[2, 3]] * len(own), **question})
        for number, (question, own) in enumerate(zip(questions, scores, strict=True))
    ]
    (folder / "toy_dev.json").write_text("\n".join(lines) + "\n")
    task_def = TaskDefs(folder / "tasks.yml").get_task_def("toy")
    dataset = SingleTaskDataset(folder / "toy_dev.json", False, 0, task_def)
    arrays = [np.array(own) for own in scores]
    best = [np.eye(len(own), dtype=int)[own.argmax()] for own in arrays]
    return dataset.task.evaluate(dataset, metrics, arrays, best)


def test_metrics_by_hand(tmp_path: Path):
    questions = [
        {"choice": "['The Alps', 'Rome']", "answer": "['Alps']", "label": 0, "olabel": [1, 0]},
        {"choice": "['Rome', 'Milan', 'New York City']", "answer": "['York', 'Paris']", "label": 1},
        {"choice": '["Rome", "Milan"]', "answer": '["Rome"]', "label": 0, "olabel": [1.0, 0.0]},
        {"choice": "['A. Smith', 'Smith']", "answer": "['Smith']", "label": 1, "olabel": [1, 1]},
    ]
    scores = [[0.9, 0.1], [0.1, 0.3, 0.6], [0.4, 0.6], [0.7, 0.3]]
    found = evaluated(tmp_path, questions, scores, Metric.EmF1, Metric.ACC)
    assert found.predictions == ["The Alps", "New York City", "Milan", "A. Smith"]
    assert [right for right, _ in found.golds] == [["Alps"], ["York", "Paris"], ["Rome"], ["Smith"]]
    assert list(found.uids) == ["0", "1", "2", "3"]
    # matches: the first, and the last, whose "A." is an article without its point; one of three words of the second
    assert found.metrics == pytest.approx({"EmF1": 100 * 2.5 / 4, "EmF1_exact": 50.0, "ACC": 50.0})


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"choice": "['a']", "answer": "['a']"}, "choice must be a list of as many texts as token_id has sequences"),
        ({"answer": "['a']"}, "choice: found 'None'"),
        ({"choice": "['a', 'b']", "answer": "open('x')"}, "answer: found"),
    ],
)
def test_a_token_file_that_cannot_be_used_is_told(tmp_path: Path, question: dict[str, Any], words: str):
    with pytest.raises(DataError, match=words) as caught:
        evaluated(tmp_path, [{"label": 0, **question}], [[0.1, 0.9]], Metric.EmF1)
    assert str(caught.value).startswith(f"{tmp_path / 'toy_dev.json'}, line 1: ")
