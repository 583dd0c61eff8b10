"""Batches: what a dataset holds, padding, and what a loader gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_utils.errors import DataError
from mt_dnn.batcher import Batch, Collater, MultiTaskBatchSampler, MultiTaskDataset, evaluation_batches
from tests.mt_dnn.conftest import example


class TestDataset:
    def test_holds_what_the_file_holds(self, dataset):
        lines = [example(uid, label=uid % 3, length=3 + uid) for uid in range(5)]
        data = dataset(lines, task_id=2)
        assert len(data) == 5
        assert list(data.uids) == ["0", "1", "2", "3", "4"]
        assert data.lengths.tolist() == [3, 4, 5, 6, 7]
        assert data.labels.tolist() == [0, 1, 2, 0, 1]
        for line, item in zip(lines, (data[index] for index in range(5)), strict=True):
            assert item["token_id"].tolist() == line["token_id"]
            assert item["type_id"].tolist() == line["type_id"]
            assert (item["uid"], item["label"], item["task_id"]) == (line["uid"], line["label"], 2)

    def test_padding_in_the_file_is_no_token(self, dataset):
        line = example(0, length=6)
        padded = {key: value + [0] * 10 if isinstance(value, list) else value for key, value in line.items()}
        kept = dataset([padded], max_seq_len=6)[0]
        assert kept["token_id"].tolist() == line["token_id"]
        assert kept["type_id"].tolist() == line["type_id"]

    def test_type_ids_and_mask_may_be_missing(self, dataset):
        line = {"uid": 7, "label": 0, "token_id": [5, 6, 7]}
        item = dataset([line])[0]
        assert item["type_id"].tolist() == [0, 0, 0]
        assert item["uid"] == "7"

    def test_training_leaves_long_examples_out_and_evaluation_keeps_them(self, dataset, caplog):
        lines = [example(uid, length=length) for uid, length in enumerate([8, 9, 3, 12])]
        with caplog.at_level("INFO", logger="mt_dnn.data.dataset"):
            assert list(dataset(lines, max_seq_len=8).uids) == ["0", "2"]
        assert len(caplog.records) == 1 and "2 examples; 2 longer than 8 tokens" in caplog.text
        assert list(dataset(lines, max_seq_len=8, is_train=False).uids) == ["0", "1", "2", "3"]

    def test_evaluation_may_have_no_labels(self, dataset):
        lines = [example(0), example(1)]
        for line in lines:
            del line["label"]
        data = dataset(lines, is_train=False)
        assert data.labels is None
        assert Collater(0)([data[0], data[1]]).labels is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"label": 3}, "label is 3; accepted are the integers 0 to 2"),
            ({"label": -1}, "label is -1; accepted are the integers 0 to 2"),
            ({"label": 1.0}, "label is 1.0; accepted are the integers 0 to 2"),
            ({"label": True}, "label is True; accepted are the integers 0 to 2"),
            ({"label": "neutral"}, "label is 'neutral'; accepted are the integers 0 to 2"),
            ({"label": None}, "found no label; a training example needs one"),
            ({"token_id": [1, -5, 2, 3]}, "accepted are 0 to 4294967295 and 0 to 255"),
            ({"type_id": [0, 0, 256, 0]}, "accepted are 0 to 4294967295 and 0 to 255"),
            ({"attention_mask": [0, 1, 1, 1]}, "attention_mask must be ones, then zeros"),
            ({"attention_mask": [1, 1, 2, 0]}, "attention_mask must be ones, then zeros"),
            ({"attention_mask": [0, 0, 0, 0]}, "attention_mask must be ones, then zeros"),
        ],
    )
    def test_an_unusable_line_is_named(self, dataset, change, message):
        with pytest.raises(DataError) as error:
            dataset([example(0), example(1), {**example(2), **change}, example(3)])
        assert "data.json, line 3: " in str(error.value)
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("label", [float("nan"), float("inf"), 1e300, 10**400, "3.5"])
    def test_a_regression_label_is_a_finite_number(self, dataset, label):
        with pytest.raises(DataError, match="line 2: label is .* accepted are finite numbers"):
            dataset([example(0, label=2), {**example(1), "label": label}], task="stsb")

    def test_a_missing_uid_is_named(self, dataset):
        line = example(1)
        del line["uid"]
        with pytest.raises(DataError, match="line 2: .*uid"):
            dataset([example(0), line])

    def test_labels_are_on_all_lines_or_on_none(self, dataset):
        with pytest.raises(DataError, match="line 2: found no label, but other lines have one"):
            dataset([example(0), example(1, label=None), example(2)], is_train=False)

    def test_a_file_must_leave_an_example(self, dataset):
        with pytest.raises(DataError, match="data.json: found no examples"):
            dataset([])
        with pytest.raises(DataError, match="data.json: all 2 examples are longer than 3 tokens"):
            dataset([example(0), example(1)], max_seq_len=3)


class TestCollater:
    def test_pads_on_the_right(self, dataset):
        data = dataset([example(0, label=2, length=3), example(1, label=0, length=5)], task_id=1)
        batch = Collater(pad_token_id=9, type_pad=3)([data[0], data[1]])
        assert batch.input_ids.tolist() == [[101, 1000, 1001, 9, 9], [101, 1001, 1002, 1003, 1004]]
        assert batch.token_type_ids.tolist() == [[0, 0, 1, 3, 3], [0, 0, 0, 1, 1]]
        assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
        assert batch.labels is not None and batch.labels.tolist() == [2, 0]
        assert (batch.task_id, batch.uids, len(batch)) == (1, ("0", "1"), 2)
        for tensor in (batch.input_ids, batch.token_type_ids, batch.attention_mask, batch.labels):
            assert tensor.dtype == torch.int64

    def test_regression_labels_are_single_precision(self, dataset):
        data = dataset([example(0, label=3.8), example(1, label=5)], task="stsb")
        labels = Collater(0)([data[0], data[1]]).labels
        assert labels is not None and labels.dtype == torch.float32
        assert torch.equal(labels, torch.tensor([3.8, 5.0]))

    def test_do_padding_pads_to_max_seq_len_and_cuts_nothing(self, dataset):
        data = dataset([example(0, length=3), example(1, length=12)])
        collater = Collater(pad_token_id=0, do_padding=True, max_seq_len=8)
        assert collater([data[0]]).input_ids.shape == (1, 8)
        assert collater([data[0]]).attention_mask.sum() == 3
        assert collater([data[0], data[1]]).input_ids.shape == (2, 12)

    def test_moving_a_batch_moves_all_its_tensors(self, dataset, monkeypatch):
        data = dataset([example(0), example(1)], task_id=4)
        batch = Collater(0)([data[0], data[1]])
        moved = batch.to("meta")
        assert {t.device.type for t in (moved.input_ids, moved.attention_mask, moved.token_type_ids, moved.labels)} == {
            "meta"
        }
        assert (moved.task_id, moved.uids) == (4, ("0", "1"))
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 1000)  # needs a device otherwise
        assert torch.equal(batch.pin_memory().input_ids, batch.input_ids + 1000)


def same(first: Batch, second: Batch) -> bool:
    assert first.labels is not None and second.labels is not None
    return (
        torch.equal(first.input_ids, second.input_ids)
        and torch.equal(first.attention_mask, second.attention_mask)
        and torch.equal(first.token_type_ids, second.token_type_ids)
        and torch.equal(first.labels, second.labels)
        and (first.task_id, first.uids) == (second.task_id, second.uids)
    )


def test_a_loader_with_workers_gives_the_sampler_s_batches(corpus):
    data = [corpus(23, task_id=0, file="main"), corpus(11, task_id=1, file="other", task="stsb")]
    batches = MultiTaskBatchSampler(data, 4, seed=2018)
    collater = Collater(pad_token_id=0)
    expected = [collater([data[index][number] for number in numbers]) for index, numbers in batches]
    for workers in (0, 2):
        loader = DataLoader(
            MultiTaskDataset(data), sampler=batches, batch_size=None, collate_fn=collater, num_workers=workers
        )
        assert len(loader) == len(batches)
        assert all(same(first, second) for first, second in zip(loader, expected, strict=True))
    assert len(MultiTaskDataset(data)) == 34


def test_evaluation_takes_every_example_once_longest_first(corpus):
    data = corpus(43, is_train=False)
    batches = evaluation_batches(data, 8)
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 3]
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(43))
    assert (np.diff(data.lengths[order]) <= 0).all()
    loader = DataLoader(data, batch_sampler=batches, collate_fn=Collater(0))
    assert [batch.uids for batch in loader] == [tuple(str(index) for index in batch) for batch in batches]
