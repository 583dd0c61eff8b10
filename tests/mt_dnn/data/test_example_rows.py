"""Examples of several sequences, of several labels, and with a teacher's scores: from the token file to the batch."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_utils.errors import DataError
from mt_dnn.batcher import Collater, MultiTaskBatchSampler, MultiTaskDataset, SingleTaskDataset
from mt_dnn.data import dataset as dataset_module
from tasks import Task
from tasks.definition import TaskDefs
from tests.mt_dnn.conftest import TASKS


class Candidates(Task):
    """Any number of sequences an example; a label for each."""

    many_rows = True
    many_labels = True
    accepted_labels = "a list of 0 and 1, one a sequence"  # type: ignore[assignment]

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        return isinstance(label, list) and len(label) == len(lengths) and set(label) <= {0, 1}

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        return torch.from_numpy(np.concatenate(labels))


LINES: list[dict[str, Any]] = [
    {
        "uid": "a",
        "label": [0, 1],
        "token_id": [[101, 7, 102, 0], [101, 8, 9, 102]],
        "type_id": [[0, 0, 0, 0], [0, 0, 1, 1]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
        "softlabel": [0.1, 0.2, 0.7, 0.3, 0.3, 0.4],
    },
    {"uid": "b", "label": [1], "token_id": [[101, 5, 102]], "softlabel": [1.0, 0, 0]},
    {"uid": "c", "label": [0, 0, 1], "token_id": [[101, 1, 1, 1, 1, 102], [101], [101, 3]], "softlabel": [0.0] * 9},
]


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "get_task", Candidates)


def read(folder: Path, lines: Sequence[dict[str, Any]] = LINES, **options: Any) -> SingleTaskDataset:
    (folder / "tasks.yml").write_text(TASKS)
    path = folder / "mnli_train.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(path, ns=(10**18, 10**18))
    task_def = TaskDefs(folder / "tasks.yml").get_task_def("mnli")
    return SingleTaskDataset(path, options.pop("is_train", True), 0, task_def, **options)


@pytest.mark.parametrize("again", [False, True])
def test_sequences_labels_and_scores_come_back(tmp_path: Path, again: bool) -> None:
    data = read(tmp_path)
    if again:
        data = pickle.loads(pickle.dumps(read(tmp_path)))  # from the cache, as another process gets it
    assert len(data) == 3 and data.widest == 3 and data.has_soft_labels
    assert data.lengths.tolist() == [4, 3, 6] and data.tokens.tolist() == [12, 9, 18]
    assert data.row_lengths.tolist() == [3, 4, 3, 6, 1, 2]
    assert [list(data.rows_of(index)) for index in range(3)] == [[0, 1], [2], [3, 4, 5]]
    for line, example in zip(LINES, data, strict=False):
        sequences = np.split(example["token_id"], np.cumsum(example["lengths"])[:-1])
        real = [[token for token in tokens if token] for tokens in line["token_id"]]
        assert [sequence.tolist() for sequence in sequences] == real
        assert example["label"].tolist() == line["label"]
        assert example["softlabel"] == pytest.approx(line["softlabel"])


def test_a_batch_has_a_row_a_sequence(tmp_path: Path) -> None:
    data = read(tmp_path)
    batch = Collater(0)([data[0], data[1]])
    assert batch.input_ids.tolist() == [[101, 7, 102, 0], [101, 8, 9, 102], [101, 5, 102, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert len(batch) == 2 and batch.groups == (2, 1) and batch.row_uids == ["a/0", "a/1", "b/0"]
    assert batch.labels is not None and batch.labels.tolist() == [0, 1, 1]
    expected = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [1, 0, 0]])
    torch.testing.assert_close(batch.soft_labels, expected)
    moved = batch.to("meta")
    assert moved.soft_labels is not None and moved.soft_labels.is_meta and moved.groups == (2, 1)


def test_examples_with_a_long_sequence_are_left_out_with_all_that_is_theirs(tmp_path: Path) -> None:
    data = read(tmp_path, max_seq_len=4)
    assert list(data.uids) == ["a", "b"] and data.widest == 2 and data.row_lengths.tolist() == [3, 4, 3]
    assert [sample["uid"] for sample in data.samples()] == ["a", "b"]
    short = read(tmp_path, max_seq_len=3)
    assert list(short.uids) == ["b"] and short[0]["softlabel"] == pytest.approx([1, 0, 0])
    assert short.labels[0].tolist() == [1]


def test_places_in_the_training_data_are_those_of_sequences(tmp_path: Path) -> None:
    data = read(tmp_path)
    together = MultiTaskDataset([data, data])
    second = Collater(0)(together[1, [0, 2]])
    assert second.positions == (6, 7, 9, 10, 11)


def test_a_bound_of_tokens_counts_all_sequences(tmp_path: Path) -> None:
    lines = [dict(LINES[0], uid=str(number)) for number in range(10)]  # two sequences of at most four tokens
    sampler = MultiTaskBatchSampler([read(tmp_path, lines)], 0, max_tokens=24, seed=0)
    assert sorted(len(examples) for _, examples in sampler) == [1, 3, 3, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_id": [101, 102]}, "token_id must be a list of at least one integer"),
        ({"token_id": []}, "token_id must be a list of at least one sequence"),
        ({"type_id": [[0, 0, 0, 0]]}, r"type_id must be a list of as many sequences as token_id has \(2\)"),
        ({"type_id": [[0], [0, 0, 1, 1]]}, r"type_id must be a list of as many integers as token_id has \(4\)"),
        ({"attention_mask": [[0, 1, 1, 1], [1, 1, 1, 1]]}, "attention_mask must be ones, then zeros"),
        ({"label": [0]}, r"label is \[0\]; accepted are a list of 0 and 1, one a sequence"),
        ({"softlabel": [0.5] * 5}, "softlabel must be a list of 6 finite numbers"),
        ({"softlabel": [float("nan")] * 6}, "softlabel must be a list of 6 finite numbers"),
        ({"softlabel": None}, "found no softlabel, but other lines have one"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    lines = [LINES[1], {**LINES[0], **change}]
    if change.get("softlabel", 0) is None:
        lines[1].pop("softlabel")
    with pytest.raises(DataError, match=rf"mnli_train.json, line 2: {message}"):
        read(tmp_path, lines)
