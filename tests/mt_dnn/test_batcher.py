"""Batches: what a dataset holds, what an epoch's order promises, and padding."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader

from data_utils.errors import DataError, FlagError
from experiments.exp_def import TaskDefs
from mt_dnn.batcher import (
    Batch,
    Collater,
    MultiTaskBatchSampler,
    MultiTaskDataset,
    SingleTaskDataset,
    evaluation_batches,
)

TASKS = """
mnli: {data_format: PremiseAndOneHypothesis, task_type: Classification, n_class: 3, metric_meta: [ACC],
       loss: CeCriterion}
stsb: {data_format: PremiseAndOneHypothesis, task_type: Regression, n_class: 1, metric_meta: [Pearson],
       loss: MseCriterion}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batcher")
    (path / "tasks.yml").write_text(TASKS)
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Callable[..., SingleTaskDataset]:
    """Makes a dataset of the given lines: dataset(lines, task="mnli", is_train=True, …)."""
    task_defs = TaskDefs(folder / "tasks.yml")

    def make(
        lines: Sequence[dict[str, Any]], task: str = "mnli", is_train: bool = True, file: str = "data", **options
    ) -> SingleTaskDataset:
        path = folder / f"{file}.json"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return SingleTaskDataset(path, is_train, options.pop("task_id", 0), task_defs.get_task_def(task), **options)

    return make


@pytest.fixture(scope="module")
def corpus(dataset: Callable[..., SingleTaskDataset]) -> Callable[..., SingleTaskDataset]:
    """Makes a dataset of `size` examples of skewed lengths (mean 12, some of 40 and more), sorted in the file."""

    def make(size: int, **options) -> SingleTaskDataset:
        lengths = np.sort(np.random.default_rng(size).gamma(3, 4, size).astype(int) + 2)
        return dataset([example(uid, length=int(length)) for uid, length in enumerate(lengths)], **options)

    return make


def example(uid: int, label: object = 1, length: int = 4) -> dict[str, Any]:
    second = length // 2
    return {
        "uid": str(uid),
        "label": label,
        "token_id": [101, *range(1000 + uid, 1000 + uid + length - 1)],
        "type_id": [0] * (length - second) + [1] * second,
        "attention_mask": [1] * length,
    }


def sampler(datasets: SingleTaskDataset | Sequence[SingleTaskDataset], batch_size: int = 4, **options):
    datasets = [datasets] if isinstance(datasets, SingleTaskDataset) else datasets
    return MultiTaskBatchSampler(datasets, batch_size, **{"seed": 2018, **options})


def epoch(batches: MultiTaskBatchSampler, number: int) -> list[tuple[int, list[int]]]:
    batches.set_epoch(number)
    return list(batches)


def by_position(batches: MultiTaskBatchSampler, lengths: np.ndarray, epochs: int) -> np.ndarray:
    """Mean length of the batch at each position of each epoch: (epochs, positions)."""
    return np.array([[lengths[batch].mean() for _, batch in epoch(batches, number)] for number in range(epochs)])


def same_mean_at_all_positions(values: np.ndarray) -> float:
    """P-value of "the mean does not depend on the position", for values (epochs, positions).

    Σz² of the positions' means is χ² with one degree less than positions; the factor corrects for values that are a
    permutation of the same ones in every epoch.
    """
    epochs, positions = values.shape
    z = (values.mean(0) - values.mean()) / (values.std() / np.sqrt(epochs))
    return float(stats.chi2.sf((z**2).sum() * (positions - 1) / positions, positions - 1))


class TestDataset:
    def test_holds_what_the_file_holds(self, dataset):
        lines = [example(uid, label=uid % 3, length=3 + uid) for uid in range(5)]
        data = dataset(lines, task_id=2)
        assert len(data) == 5
        assert data.uids == ["0", "1", "2", "3", "4"]
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
        with caplog.at_level("INFO", logger="mt_dnn.batcher"):
            assert dataset(lines, max_seq_len=8).uids == ["0", "2"]
        assert len(caplog.records) == 1 and "2 examples; 2 longer than 8 tokens" in caplog.text
        assert dataset(lines, max_seq_len=8, is_train=False).uids == ["0", "1", "2", "3"]

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


class TestEpoch:
    @pytest.mark.parametrize("group_by_length", [True, False])
    @pytest.mark.parametrize("size", [3, 4, 203, 403])  # less than a batch, one, more than one pool, two
    def test_every_example_once(self, corpus, size, group_by_length):
        batches = sampler(corpus(size), group_by_length=group_by_length)
        for number in range(3):
            sizes = Counter(len(batch) for _, batch in epoch(batches, number))
            assert sizes == Counter({4: size // 4, size % 4: 1}) - Counter({0: 1})
            assert sorted(index for _, batch in batches for index in batch) == list(range(size))
            assert len(batches) == sum(sizes.values())

    def test_batches_hold_examples_of_similar_length(self, corpus):
        data = corpus(403)

        def padding(**options) -> float:
            lengths = [data.lengths[batch] for _, batch in sampler(data, **options)]
            return sum(len(part) * part.max() - part.sum() for part in lengths) / data.lengths.sum()

        assert padding(group_by_length=False) > 0.3
        assert padding() < 0.05

    def test_position_and_length_are_independent(self, corpus):
        data = corpus(403)
        values = by_position(sampler(data), data.lengths, 300)
        assert values.std(1).mean() > 4  # batches differ in length, so that there is something to be biased
        assert same_mean_at_all_positions(values) > 0.01
        # The same test refuses sorted batches, and epochs of which only every fifth is sorted.
        assert same_mean_at_all_positions(np.sort(values, axis=1)) < 1e-9
        partly = np.where(np.arange(300)[:, None] % 5 == 0, np.sort(values, axis=1), values)
        assert same_mean_at_all_positions(partly) < 1e-9

    def test_neighbouring_batches_are_not_alike(self, corpus):
        data = corpus(403)
        values = by_position(sampler(data), data.lengths, 300)
        values -= values.mean(1, keepdims=True)
        epochs, positions = values.shape
        products = (values[:, 1:] * values[:, :-1]).mean(1) / values.var()
        expected = -1 / (positions - 1)  # of a random permutation
        assert abs(products.mean() - expected) < 4 * products.std() / np.sqrt(epochs)

    def test_the_batch_that_is_not_full_favours_no_length(self, corpus):
        data = corpus(302)  # a pool of 50 batches and one of 26
        batches = sampler(data)
        means = [data.lengths[batch].mean() for n in range(400) for _, batch in epoch(batches, n) if len(batch) == 2]
        assert len(means) == 400
        z = (np.mean(means) - data.lengths.mean()) / (np.std(means) / np.sqrt(400))
        assert abs(z) < 3.5

    def test_drop_last_drops_other_examples_each_epoch_and_no_length_more_often(self, corpus):
        data = corpus(402)
        batches = sampler(data, drop_last=True)
        dropped = []
        for number in range(400):
            order = [index for _, batch in epoch(batches, number) for index in batch]
            assert {len(batch) for _, batch in batches} == {4}
            assert len(set(order)) == len(order) == 400
            dropped += sorted(set(range(402)) - set(order))
        assert len(set(dropped)) > 300  # 800 draws from 402 hit about 347 of them
        z = (data.lengths[dropped].mean() - data.lengths.mean()) / (data.lengths.std() / np.sqrt(800))
        assert abs(z) < 3.5

    def test_who_shares_a_batch_changes_with_the_epoch_and_the_seed(self, dataset):
        data = dataset([example(uid, length=2 + uid) for uid in range(400)])
        first = {frozenset(batch) for _, batch in epoch(sampler(data), 0)}
        assert len(first & {frozenset(batch) for _, batch in epoch(sampler(data), 1)}) < 5
        assert len(first & {frozenset(batch) for _, batch in epoch(sampler(data, seed=1), 0)}) < 5

    def test_order_depends_on_seed_and_epoch_alone(self, corpus):
        data = corpus(103)
        went_through = sampler(data)
        for number in range(3):
            epoch(went_through, number)
        np.random.seed(1)
        torch.manual_seed(1)
        assert epoch(went_through, 3) == epoch(sampler(data), 3)

    def test_a_resumed_epoch_goes_on_where_it_stopped(self, corpus):
        data = [corpus(43, task_id=0, file="main"), corpus(31, task_id=1, file="other")]
        whole = epoch(sampler(data), 2)
        for position in range(len(whole) + 1):
            resumed = sampler(data)
            resumed.set_epoch(2)
            resumed.set_position(position)
            assert list(resumed) == whole[position:]
            assert len(resumed) == len(whole)
            assert epoch(resumed, 3) == epoch(sampler(data), 3)  # the next one starts at its beginning

    @pytest.mark.parametrize("position", [-1, 12])
    def test_a_position_outside_the_epoch_is_refused(self, corpus, position):
        with pytest.raises(ValueError, match="not in an epoch of 11 batches"):
            sampler(corpus(43)).set_position(position)


class TestProcesses:
    @pytest.mark.parametrize("processes", [2, 3])
    def test_shards_make_up_the_batches_of_one_process(self, corpus, processes):
        data = [corpus(83, task_id=0, file="main"), corpus(39, task_id=1, file="other")]  # both leave a rest of 3
        whole = epoch(sampler(data, mix_opt=0), 1)
        shards = [
            epoch(sampler(data, num_processes=processes, process_index=process), 1) for process in range(processes)
        ]
        for (dataset_index, batch), *parts in zip(whole, *shards, strict=True):
            assert parts == [(dataset_index, batch[process::processes]) for process in range(processes)]
            assert min(len(part) for _, part in parts) >= 1

    def test_a_rest_too_small_for_all_processes_joins_another_batch(self, corpus):
        data = corpus(81, task_id=0)  # 20 batches of 4 and 1 example
        shards = [sampler(data, num_processes=3, process_index=process) for process in range(3)]
        assert {len(shard) for shard in shards} == {20}
        parts = [[batch for _, batch in epoch(shard, 0)] for shard in shards]
        sizes = Counter(sum(map(len, batch)) for batch in zip(*parts, strict=True))
        assert sizes == {4: 19, 5: 1}
        assert min(len(part) for shard in parts for part in shard) >= 1
        assert sorted(index for shard in parts for part in shard for index in part) == list(range(81))

    def test_too_few_examples_for_all_processes(self, corpus):
        with pytest.raises(FlagError, match="--batch_size is 4; accepted are at least 5"):
            sampler(corpus(40), num_processes=5)
        with pytest.raises(DataError, match="data.json: holds 2 examples; a batch needs at least 3"):
            sampler(corpus(2), num_processes=3)
        with pytest.raises(DataError, match="data.json: holds 3 examples; a batch needs at least 4"):
            sampler(corpus(3), drop_last=True)


@pytest.fixture(scope="module")
def data(corpus) -> list[SingleTaskDataset]:
    """Two datasets of task 0 (5 and 3 batches) and between them one of task 1 (20 batches)."""
    return [
        corpus(20, task_id=0, file="main"),
        corpus(80, task_id=1, file="other"),
        corpus(12, task_id=0, file="third"),
    ]


class TestMixing:
    def test_all_batches_in_one_random_order(self, data):
        batches = sampler(data)
        assert len(batches) == 28
        of_main_task = []
        for number in range(200):
            order = [dataset_index for dataset_index, _ in epoch(batches, number)]
            assert Counter(order) == {0: 5, 1: 20, 2: 3}
            of_main_task.append([index != 1 for index in order])
        assert same_mean_at_all_positions(np.array(of_main_task, dtype=float)) > 0.01

    def test_main_task_last(self, data):
        for number in range(20):
            order = [dataset_index for dataset_index, _ in epoch(sampler(data, mix_opt=1), number)]
            assert order[:20] == [1] * 20
            assert Counter(order[20:]) == {0: 5, 2: 3}
        first_others = [tuple(epoch(sampler(data, mix_opt=1), number)[0][1]) for number in range(20)]
        assert len(set(first_others)) > 15

    @pytest.mark.parametrize(("ratio", "others"), [(0.1, 0), (0.5, 4), (1.0, 8), (1.99, 15), (2.5, 20), (9.0, 20)])
    @pytest.mark.parametrize("mix_opt", [0, 1])
    def test_ratio_counts_batches_of_the_main_task(self, data, ratio, others, mix_opt):
        batches = sampler(data, ratio=ratio, mix_opt=mix_opt)
        order = [dataset_index for dataset_index, _ in epoch(batches, 0)]
        assert Counter(order) == Counter({0: 5, 1: others, 2: 3}) - Counter({1: 0})
        assert len(batches) == 8 + others
        if mix_opt == 1:
            assert order[:others] == [1] * others

    def test_ratio_mixes_at_random(self, data):
        batches = sampler(data, ratio=1.0)
        is_other = [[index == 1 for index, _ in epoch(batches, number)] for number in range(200)]
        assert same_mean_at_all_positions(np.array(is_other, dtype=float)) > 0.01

    def test_ratio_draws_every_example_equally_often(self, data):
        batches = sampler(data, ratio=1.0, group_by_length=False)  # so that examples are drawn almost independently
        counts = np.zeros(80)
        for number in range(300):
            for index, batch in epoch(batches, number):
                counts[batch] += index == 1
        assert counts.sum() == 300 * 8 * 4
        z = (counts - 300 * 0.4) / np.sqrt(300 * 0.4 * 0.6)  # 8 of 20 batches an epoch
        assert 0.001 < stats.chi2.sf((z**2).sum(), 79) < 0.999

    def test_ratio_without_other_tasks_changes_nothing(self, data):
        assert epoch(sampler(data[0], ratio=0.5), 0) == epoch(sampler(data[0]), 0)


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
    batches = sampler(data)
    collater = Collater(pad_token_id=0)
    expected = [collater([data[index][number] for number in numbers]) for index, numbers in epoch(batches, 0)]
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
