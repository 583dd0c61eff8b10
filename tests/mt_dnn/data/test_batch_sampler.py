"""The order of an epoch: every example once, no bias, the same on any number of processes and after a resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
import torch
from scipy import stats

from data_utils.errors import DataError, FlagError
from mt_dnn.batcher import Collater, MultiTaskBatchSampler, MultiTaskDataset, SingleTaskDataset
from tests.mt_dnn.conftest import example


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
        assert same_mean_at_all_positions(values) > 0.001
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

    def test_of_a_rest_too_small_for_all_processes_some_have_none(self, corpus):
        data = corpus(81, task_id=0)  # 20 batches of 4 and 1 example
        whole = epoch(sampler(data), 0)
        shards = [epoch(sampler(data, num_processes=3, process_index=process), 0) for process in range(3)]
        parts = [[shard[position][1] for shard in shards] for position in range(len(whole))]
        assert [sorted(chain(*batch)) for batch in parts] == [sorted(batch) for _, batch in whole]
        assert sorted(sum(len(part) == 0 for part in batch) for batch in parts) == [0] * 20 + [2]

    def test_a_process_without_a_share_gets_an_example_that_counts_nothing(self, corpus):
        data = corpus(5, task_id=0)
        batch = Collater(0)(MultiTaskDataset([data])[0, []])
        assert (len(batch), batch.counted, batch.task_id) == (1, 0, 0)
        assert batch.to("cpu").stands_in
        assert Collater(0)(MultiTaskDataset([data])[0, [1, 2]]).counted == 2

    def test_a_batch_too_small_for_all_processes_is_refused(self, corpus):
        with pytest.raises(FlagError, match="--batch_size is 4; accepted are at least 5"):
            sampler(corpus(40), num_processes=5)
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
        assert same_mean_at_all_positions(np.array(of_main_task, dtype=float)) > 0.001

    def test_main_task_last(self, data):
        batches = sampler(data, mix_opt=1)
        for number in range(20):
            order = [dataset_index for dataset_index, _ in epoch(batches, number)]
            assert order[:20] == [1] * 20
            assert Counter(order[20:]) == {0: 5, 2: 3}

    def test_main_task_last_but_each_part_in_random_order(self, data):
        batches = sampler(data, mix_opt=1)
        lengths = np.array(
            [[data[index].lengths[batch].mean() for index, batch in epoch(batches, number)] for number in range(200)]
        )
        assert same_mean_at_all_positions(lengths[:, :20]) > 0.001
        assert same_mean_at_all_positions(lengths[:, 20:]) > 0.001
        from_third = [[index == 2 for index, _ in epoch(batches, number)[20:]] for number in range(200)]
        assert same_mean_at_all_positions(np.array(from_third, dtype=float)) > 0.001

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
        assert same_mean_at_all_positions(np.array(is_other, dtype=float)) > 0.001

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
