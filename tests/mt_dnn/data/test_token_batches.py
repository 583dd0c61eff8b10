"""Batches bounded by tokens: within the bound, every example once, no length favoured, the same with any processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from data_utils.errors import FlagError
from mt_dnn.batcher import MultiTaskBatchSampler, SingleTaskDataset
from tests.mt_dnn.conftest import example
from tests.mt_dnn.data.test_batch_sampler import epoch, same_mean_at_all_positions

TOKENS = 150


def sampler(datasets: SingleTaskDataset | Sequence[SingleTaskDataset], max_tokens: int = TOKENS, **options):
    datasets = [datasets] if isinstance(datasets, SingleTaskDataset) else datasets
    return MultiTaskBatchSampler(datasets, 8, max_tokens=max_tokens, **{"seed": 2018, **options})


def padded(lengths: np.ndarray, batch: list[int]) -> int:
    return len(batch) * int(lengths[batch].max())


@pytest.mark.parametrize("group_by_length", [True, False])
@pytest.mark.parametrize("size", [1, 5, 403, 1500])  # a batch, a part of a pool, two pools, several
def test_every_example_once_and_no_batch_above_the_bound(corpus, size, group_by_length):
    data = corpus(size)
    batches = sampler(data, group_by_length=group_by_length)
    for number in range(3):
        order = epoch(batches, number)
        assert len(order) == len(batches) == batches.batches_in(number)
        assert sorted(index for _, batch in order for index in batch) == list(range(size))
        assert max(padded(data.lengths, batch) for _, batch in order) <= TOKENS


def test_batches_are_as_large_as_the_bound_lets_them(corpus):
    data = corpus(1500)
    for number in range(5):
        order = epoch(sampler(data), number)
        assert sum(padded(data.lengths, batch) for _, batch in order) < 1.06 * data.lengths.sum()
        assert len(order) < 1.15 * data.lengths.sum() / TOKENS  # what does not divide, and one rest


def test_the_number_of_batches_of_an_epoch_does_not_depend_on_what_was_read_before(corpus):
    data = [corpus(1500, file="main"), corpus(700, task_id=1, file="other")]
    counts = [sampler(data).batches_in(number) for number in range(8)]
    assert len(set(counts)) > 1  # else there is nothing to be wrong about
    went_through = sampler(data)
    assert [len(epoch(went_through, number)) for number in range(8)] == counts
    for number in (3, 0, 7):
        went_through.set_epoch(number)
        assert len(went_through) == counts[number]


def test_a_resumed_epoch_goes_on_where_it_stopped(corpus):
    data = [corpus(203, file="main"), corpus(131, task_id=1, file="other")]
    whole = epoch(sampler(data), 2)
    for position in (0, 1, len(whole) - 1, len(whole)):
        resumed = sampler(data)
        resumed.set_epoch(2)
        resumed.set_position(position)
        assert list(resumed) == whole[position:]
    with pytest.raises(ValueError, match="not in an epoch"):
        resumed.set_position(len(whole) + 1)


def test_position_and_length_are_independent(corpus):
    data = corpus(1500)
    batches = sampler(data)
    positions = min(batches.batches_in(number) for number in range(300))
    values = np.array([row[:positions] for row in map(lambda n: _means(batches, data.lengths, n), range(300))])
    assert values.std(1).mean() > 4  # batches differ in length, so that there is something to be biased
    assert same_mean_at_all_positions(values) > 0.001
    assert same_mean_at_all_positions(np.sort(values, axis=1)) < 1e-9


def _means(batches: MultiTaskBatchSampler, lengths: np.ndarray, number: int) -> list[float]:
    return [float(lengths[batch].mean()) for _, batch in epoch(batches, number)]


def test_who_shares_a_batch_changes_with_the_epoch_and_the_seed(dataset):
    data = dataset([example(uid, length=2 + uid // 3) for uid in range(600)])  # several pools, and one
    for max_tokens in (250, 3000):
        first = _pairs(epoch(sampler(data, max_tokens), 0))
        for other in (epoch(sampler(data, max_tokens), 1), epoch(sampler(data, max_tokens, seed=1), 0)):
            assert len(first & _pairs(other)) < 0.75 * len(first)


def _pairs(batches: list[tuple[int, list[int]]]) -> set[frozenset[int]]:
    return {frozenset((i, j)) for _, batch in batches for i in batch for j in batch if i < j}


def test_the_rest_favours_no_length(corpus):
    """The batch before the place where the cutting starts: its examples are those of the whole, in expectation.

    Where a rest was left at the end of every pool, it would hold the longest.
    """
    data = corpus(1500)
    batches = sampler(data, 600)
    weights = np.zeros(1500)
    for number in range(600):
        lengths = data.lengths
        order = batches._cut_by_tokens(lengths, np.random.default_rng(number))
        weights[order[-1]] += 1
    share = weights / 600
    thirds = np.array_split(np.argsort(data.lengths, kind="stable"), 3)
    means = np.array([share[third].mean() for third in thirds])
    # An example is in a rest with the probability of half a batch of all of them, whatever its length.
    expected = share.mean()
    errors = np.sqrt(expected * len(order[0]) / (600 * 500))  # a rest holds neighbours in length, about a batch of them
    assert (np.abs(means - expected) < 3.5 * errors).all()


def test_pools_meet_at_their_short_ends(corpus):
    """Each pool begins and ends with short examples, so that no batch holds the longest of one and shortest of another.

    Were both halves of a pool sorted upwards, two batches a pool would.
    """
    data = corpus(1500)
    assert data.lengths.sum() // (50 * TOKENS) == 2
    short, long = np.quantile(data.lengths, [0.3, 0.9])
    for number in range(20):
        for _, batch in epoch(sampler(data), number):
            assert data.lengths[batch].min() > short or data.lengths[batch].max() < long


def test_neighbouring_batches_are_not_alike(corpus):
    data = corpus(1500)
    products, variances = [], []
    for number in range(200):
        values = np.array(_means(sampler(data), data.lengths, number))
        values -= values.mean()
        products.append((values[1:] * values[:-1]).mean())
        variances.append(values.var())
    expected = -np.mean(variances) / (len(values) - 1)  # of a random permutation
    assert abs(np.mean(products) - expected) < 4 * np.std(products) / np.sqrt(200)


@pytest.mark.parametrize("processes", [2, 3])
def test_shards_make_up_the_batches_of_one_process(corpus, processes):
    data = [corpus(431, task_id=0, file="main"), corpus(205, task_id=1, file="other")]
    bound = int(max(d.lengths.max() for d in data))
    for number in range(5):
        whole = epoch(sampler(data, bound), number)
        shards = [
            epoch(sampler(data, bound, num_processes=processes, process_index=process), number)
            for process in range(processes)
        ]
        for (index, batch), *parts in zip(whole, *shards, strict=True):
            assert {part_index for part_index, _ in parts} == {index}
            assert sorted(example for _, part in parts for example in part) == sorted(batch)


def test_what_does_not_fit_is_refused_at_the_start(dataset):
    data = dataset([example(0, length=40), example(1, length=151), example(2, length=30)])
    with pytest.raises(FlagError, match=r"^--max_tokens_per_batch: found 150, but .*data.json holds an example of 151 "
                       r"tokens; accepted: at least 151$"):  # fmt: skip
        sampler(data)
    assert len(sampler(data, 453, num_processes=4)) == 1
    with pytest.raises(ValueError, match="drop_last"):
        sampler(data, 453, drop_last=True)


@pytest.mark.parametrize("mix_opt", [0, 1])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 9.0])
def test_tasks_are_mixed_as_with_a_batch_size(corpus, mix_opt, ratio):
    data = [corpus(203, task_id=0, file="main"), corpus(831, task_id=1, file="other")]
    batches = sampler(data, mix_opt=mix_opt, ratio=ratio)
    for number in range(5):
        order = [index for index, _ in epoch(batches, number)]
        main = order.count(0)
        assert main == sampler(data[0]).batches_in(number)
        everything = epoch(sampler(data), number)
        others = sum(index for index, _ in everything)
        assert order.count(1) == (others if ratio in (0, 9) else int(ratio * main))
        if mix_opt:
            assert order == [1] * (len(order) - main) + [0] * main
