from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import prepro_std
from data_utils.errors import DataError, TaskDefError
from data_utils.metrics import Metric
from data_utils.readers import read_score_file
from data_utils.storage.text_files import write_lines
from mt_dnn.batcher import SingleTaskDataset
from tasks import get_task
from tasks.definition import TaskDefs
from tasks.span_labeling import spans_of
from tests.tasks.learning import PROBE, SIFT, SMART, WORDS, learned, write_small_encoder, write_task
from tests.tasks.long_texts import byte_tokenizer, long_text

DEFINITION = """
toy:
  data_format: CLUE_SPAN
  task_type: SpanSeqenceLabeling
  n_class: 3
  labels: [O, B-ANS, I-ANS]
  metric_meta: [ACC]
"""
CUT = ("--max_seq_len", "8", "--max_query_len", "1", "--doc_stride", "2")  # windows of four words


def lines(count: int, seed: int) -> Iterator[str]:
    """The question is a word, the answers are the text's words of its kind, colours or numbers."""
    draw = random.Random(seed)
    for number in range(count):
        words, asked = draw.sample(WORDS, 5), draw.choice(WORDS)
        context = " ".join(words)
        right = [word for word in words if (WORDS.index(word) < 4) == (WORDS.index(asked) < 4)]
        yield f"{number}\t{right}\t{[context.index(word) for word in right]}\t{context}\t{asked}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"toy_train": lines(800, 1), "toy_dev": lines(100, 2)}
    return write_task(tmp_path_factory.mktemp("spans"), DEFINITION, splits, encoder, *CUT)


def test_a_linear_probe_does_not_learn_it(data: Path, encoder: Path, tmp_path: Path):
    assert learned(data, encoder, tmp_path, "toy", "ACC", *PROBE, "--epochs", "2") < 80


@pytest.mark.parametrize("method", [(), SMART, SIFT])
def test_it_learns_to_find_all_answers(data: Path, encoder: Path, tmp_path: Path, method: tuple[str, ...]):
    assert learned(data, encoder, tmp_path, "toy", "ACC", *method, "--epochs", "2") > 97
    found = read_score_file(tmp_path / "toy_dev_scores_epoch_1.json")
    right = [json.loads(line.split("\t")[1].replace("'", '"')) for line in lines(100, 2)]
    assert np.mean([own == wanted for own, wanted in zip(found["predictions"], right, strict=True)]) > 0.95


def test_labels_to_answers():
    offsets = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
    found = spans_of(np.array([2, 2, 0, 1, 1, 2]), offsets)
    assert [span[1:] for span in found] == [(0, 3), (6, 7), (8, 11)]
    assert spans_of(np.zeros(6, int), offsets) == []


def prepare(root: Path, model: str, rows: list[str], *flags: str) -> SingleTaskDataset:
    (root / "tasks.yml").write_text(DEFINITION)
    write_lines(root / "toy_dev.tsv", rows)
    prepro_std.main(["--model", model, "--root_dir", str(root), "--task_def", str(root / "tasks.yml"), *flags])
    task_def = TaskDefs(root / "tasks.yml").get_task_def("toy")
    return SingleTaskDataset(root / Path(model).name / "toy_dev.json", False, 0, task_def)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("pieces", ("--max_seq_len", "48", "--max_query_len", "2", "--doc_stride", "24")),
        ("bytes", ("--max_seq_len", "200", "--max_query_len", "8", "--doc_stride", "100")),
    ],
)
def test_all_answers_of_a_long_text_are_given_back(tmp_path: Path, kind: str, flags: tuple[str, ...]):
    """By labels that are right but near the edges of windows, where there is nothing to see around."""
    model = "embedded-minilm" if kind == "pieces" else byte_tokenizer(tmp_path / "bytes")
    context, words, starts = long_text()
    pairs = [(first, first + 1) for first in range(0, 58, 4)] + [(first, first) for first in range(2, 60, 4)]
    ends = sorted((starts[first], starts[last] + len(words[last])) for first, last in pairs)
    texts = [context[begin:end] for begin, end in ends]
    rows = [
        "\t".join(["1", json.dumps(texts), str([begin for begin, _ in ends]), context, "Which?"]),
        f"2\t[]\t[]\t{context}\tNone?",
    ]
    dataset = prepare(tmp_path, model, rows, *flags)
    assert len(dataset) > 10
    scores = []
    last_of = {sample["uid"]: number for number, sample in enumerate(dataset.samples())}
    for number, sample in enumerate(dataset.samples()):
        own = np.eye(3)[dataset.labels[number]]
        places = [place for place, offset in enumerate(sample["offset_mapping"]) if offset is not None]
        if sample["window_start"] > 0:
            own[places[:4]] = (0.0, 1.0, 0.0)
        if number != last_of[sample["uid"]]:
            own[places[-4:]] = (0.0, 1.0, 0.0)
        scores.append(own)
    task = get_task(dataset.task_def)
    found = task.evaluate(dataset, [Metric.ACC], scores, [])
    assert found.uids == ["1", "2"]
    assert found.predictions == [texts, []]
    assert found.metrics == {"ACC": 100.0}


def test_of_answers_that_overlap_the_first_counts(tmp_path: Path):
    rows = ["1\t['red car', 'car', 'sun']\t[2, 6, 10]\ta red car sun\tWhich?"]
    dataset = prepare(tmp_path, "embedded-minilm", rows)
    sample = next(dataset.samples())
    assert [label for label, own in zip(sample["label"], sample["offset_mapping"], strict=True) if own] == [0, 1, 2, 1]
    found = get_task(dataset.task_def).evaluate(dataset, [], [np.eye(3)[dataset.labels[0]]], [])
    assert found.predictions == [["red car", "sun"]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_class: 3", "n_class: 5", "key 'n_class': found 5, accepted: 3 for SpanSeqenceLabeling"),
        ("[O, B-ANS, I-ANS]", "[B-ANS, I-ANS, O]", "key 'labels': found .*, accepted: outside, begin and inside"),
    ],
)
def test_definitions_that_do_not_fit(tmp_path: Path, old: str, new: str, message: str):
    (tmp_path / "tasks.yml").write_text(DEFINITION.replace(old, new))
    with pytest.raises(TaskDefError, match=message):
        TaskDefs(tmp_path / "tasks.yml")


def test_a_token_file_that_lacks_what_evaluation_needs_is_told(data: Path, tmp_path: Path):
    sample = json.loads((data / "toy_dev.json").read_text().splitlines()[0])
    del sample["window_start"]
    write_lines(tmp_path / "toy_dev.json", [json.dumps(sample)])
    task_def = TaskDefs(data.parent / "tasks.yml").get_task_def("toy")
    dataset = SingleTaskDataset(tmp_path / "toy_dev.json", False, 0, task_def)
    with pytest.raises(DataError, match="toy_dev.json: 0: found no window_start"):
        get_task(task_def).evaluate(dataset, [], [np.zeros((int(dataset.lengths[0]), 3))], [])
    write_lines(tmp_path / "toy_dev.json", [json.dumps(sample | {"window_start": 0})] * 2)
    twice = SingleTaskDataset(tmp_path / "toy_dev.json", False, 0, task_def)
    with pytest.raises(DataError, match="toy_dev.json: 0: two questions have this uid; accepted: one"):
        get_task(task_def).evaluate(twice, [], [np.zeros((int(twice.lengths[0]), 3))] * 2, [])
