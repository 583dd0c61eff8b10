"""Which examples make up which batch, and the order of an epoch's batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from data_utils.errors import DataError, FlagError
from mt_dnn.data.dataset import SingleTaskDataset

POOL_BATCHES = 50  # batches whose examples are sorted by length together
EVALUATION_TOKENS = 1024  # of a batch in evaluation, padding included; more are slower on a CPU


class MultiTaskBatchSampler(Sampler[tuple[int, list[int]]]):
    """The batches of an epoch: pairs of a dataset's index and the indices of its examples in the batch.

    Every dataset is shuffled and cut into batches. With `group_by_length`, the shuffled examples of about 50 batches at
    a time, a pool, are sorted by length before they are cut, so that a batch has little padding. Then the batches are
    mixed: where a batch stands in an epoch says nothing about its lengths.

    A batch is `batch_size` examples (which of a dataset's batches is the one that is not full is drawn at random) or,
    with `max_tokens`, as many as fit: examples x tokens of the longest. Then one random half of a pool rises in length
    and the other falls, so that pools meet at short examples and none needs a rest of its own; the cutting starts
    anywhere, so that the dataset's one rest favours no length.

    The order depends on `seed` and the epoch alone. With several processes each batch is divided among them (process
    p takes examples p, p + N, p + 2N, ... of it), so the batches are those of one process; of a batch that has fewer
    examples than there are processes, some have none.

    Args:
        datasets: those to train on; the task of the first is the main task.
        batch_size: examples of a batch, over all processes.
        max_tokens: bounds a batch, over all processes, in place of `batch_size`; 0: it does not.
        mix_opt: 0 puts all batches in one random order, 1 the other tasks' batches first, then the main task's.
        ratio: 0 takes all batches; r > 0 takes r times the main task's number of batches from the other tasks (at most
            all of them), drawn again each epoch.
        seed: not negative.
        group_by_length: make batches of examples of similar length.
        num_processes: N, how many processes share each batch.
        process_index: which of them this one is.
        drop_last: leave out a dataset's last batch where it has fewer than `batch_size` examples (others each epoch).

    Raises:
        FlagError: batches too small for the number of processes or for the longest example.
        DataError: a dataset too small for one full batch, with `drop_last`.
    """

    def __init__(
        self,
        datasets: Sequence[SingleTaskDataset],
        batch_size: int,
        *,
        max_tokens: int = 0,
        mix_opt: int = 0,
        ratio: float = 0.0,
        seed: int,
        group_by_length: bool = True,
        num_processes: int = 1,
        process_index: int = 0,
        drop_last: bool = False,
    ):
        if max_tokens and drop_last:
            raise ValueError("drop_last has no meaning with max_tokens, under which no batch is full")
        self.datasets = datasets
        self.max_tokens = max_tokens
        self.mix_opt = mix_opt
        self.ratio = ratio
        self.seed = seed
        self.group_by_length = group_by_length
        self.num_processes = num_processes
        self.process_index = process_index
        self.epoch = 0
        self.position = 0
        self._sizes: list[np.ndarray] = []
        if max_tokens:
            for dataset in datasets:
                _check_fits(dataset, max_tokens)
        elif batch_size < num_processes:
            raise FlagError(f"--batch_size is {batch_size}; accepted are at least {num_processes}, one a process")
        else:
            self._sizes = [_batch_sizes(dataset, batch_size, drop_last) for dataset in datasets]
        self._is_main = [dataset.task_id == datasets[0].task_id for dataset in datasets]
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        """Batches of the whole epoch that `set_epoch` chose."""
        return self.batches_in(self.epoch)

    def batches_in(self, epoch: int) -> int:
        """Batches of an epoch: the same number in every one, but for `max_tokens`."""
        like = epoch if self.max_tokens else 0
        if like not in self._counts:
            self._counts[like] = len(self._epoch_batches(like))
        return self._counts[like]

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of epoch number `epoch`, counted from 0."""
        self.epoch = epoch
        self.position = 0

    def set_position(self, batches_done: int) -> None:
        """Start iterations after the epoch's first `batches_done` batches, where a resumed run goes on."""
        if not 0 <= batches_done <= len(self):
            raise ValueError(f"position {batches_done} is not in an epoch of {len(self)} batches")
        self.position = batches_done

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        rest = self._epoch_batches(self.epoch)[self.position :]
        return ((dataset, batch[self.process_index :: self.num_processes].tolist()) for dataset, batch in rest)

    def _epoch_batches(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """All batches of an epoch in their order, each with its dataset's index, for all processes together."""
        generator = np.random.default_rng([self.seed, epoch])
        main: list[tuple[int, np.ndarray]] = []
        others: list[tuple[int, np.ndarray]] = []
        for index, dataset in enumerate(self.datasets):
            part = main if self._is_main[index] else others
            if self.max_tokens:
                batches = self._cut_by_tokens(dataset.tokens, generator)
            else:
                batches = self._cut_by_size(dataset.lengths, self._sizes[index], generator)
            part += [(index, batch) for batch in batches]
        n_others = min(int(self.ratio * len(main)), len(others)) if self.ratio > 0 else len(others)
        main = _shuffled(main, generator)
        others = _shuffled(others, generator)[:n_others]
        return others + main if self.mix_opt > 0 else _shuffled(others + main, generator)

    def _cut_by_size(self, lengths: np.ndarray, sizes: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Indices of a dataset's examples in batches of the given sizes."""
        order = generator.permutation(len(lengths))[: sizes.sum()]
        ends = generator.permutation(sizes).cumsum()
        if self.group_by_length:
            for pool in np.split(order, ends[POOL_BATCHES - 1 : -1 : POOL_BATCHES]):
                pool[:] = pool[np.argsort(lengths[pool], kind="stable")]  # views: sorts `order`
        return np.split(order, ends[:-1])

    def _cut_by_tokens(self, lengths: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Indices of a dataset's examples in batches of at most `max_tokens`."""
        order = generator.permutation(len(lengths))
        if self.group_by_length:
            pools = max(1, int(lengths.sum()) // (POOL_BATCHES * self.max_tokens))
            for pool in np.array_split(order, pools):
                ranked = pool[np.argsort(lengths[pool], kind="stable")]
                rises = generator.random(len(pool)) < 0.5
                pool[:] = np.concatenate([ranked[rises], ranked[~rises][::-1]])
            # A place among the tokens, not the examples: then every batch is as likely to be the one cut short.
            tokens = lengths[order].cumsum()
            order = np.roll(order, -int(np.searchsorted(tokens, generator.integers(tokens[-1]), side="right")))
        return np.split(order, _cuts(lengths[order], self.max_tokens))


def _check_fits(dataset: SingleTaskDataset, max_tokens: int) -> None:
    longest = int(dataset.tokens.max())
    if longest > max_tokens:
        raise FlagError(
            f"--max_tokens_per_batch: found {max_tokens}, but {dataset.path} holds an example of {longest} tokens; "
            f"accepted: at least {longest}"
        )


def _cuts(lengths: np.ndarray, max_tokens: int) -> list[int]:
    """Where to cut examples, taken in their order, so that each batch is as large as fits."""
    cuts, start, longest = [], 0, 0
    for index, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if (index + 1 - start) * longest > max_tokens:
            cuts.append(index)
            start, longest = index, length
    return cuts


def _batch_sizes(dataset: SingleTaskDataset, batch_size: int, drop_last: bool) -> np.ndarray:
    """Sizes of a dataset's batches: full ones and the rest, unless that is dropped."""
    if drop_last and len(dataset) < batch_size:
        raise DataError(f"holds {len(dataset)} examples; a batch needs at least {batch_size}", dataset.path)
    full, rest = divmod(len(dataset), batch_size)
    sizes = np.full(full, batch_size)
    return np.append(sizes, rest) if rest and not drop_last else sizes


def _shuffled(batches: list[tuple[int, np.ndarray]], generator: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_batches(dataset: SingleTaskDataset, batch_size: int | None = None) -> list[list[int]]:
    """All examples once, in batches of similar length, longest first; the caller restores the file's order.

    Args:
        batch_size: examples a batch; by default as many as make up `EVALUATION_TOKENS`, one at least.
    """
    return batches_by_length(dataset.tokens, batch_size)


def batches_by_length(
    lengths: np.ndarray, batch_size: int | None = None, tokens: int = EVALUATION_TOKENS
) -> list[list[int]]:
    """The same for examples of these lengths, (examples,), wherever they come from; by default of `tokens` tokens."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = batch_size or max(1, tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size].tolist())
        start += size
    return batches
