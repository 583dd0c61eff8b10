"""Unlabeled batches: for each labeled batch of a task, a batch of the same task's unlabeled data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mt_dnn.batcher import Batch, Collater, MultiTaskBatchSampler, MultiTaskDataset, SingleTaskDataset


class UnlabeledBatches:
    """Reads the unlabeled datasets again and again, each time in another order.

    Args:
        datasets: unlabeled datasets; those of the same task are mixed.
        collater: pads the batches.
        batch_size, max_tokens, seed, group_by_length, num_processes, process_index: as for the labeled batches
            (`MultiTaskBatchSampler`).
    """

    def __init__(
        self,
        datasets: Sequence[SingleTaskDataset],
        collater: Collater,
        batch_size: int,
        *,
        max_tokens: int = 0,
        seed: int,
        group_by_length: bool = True,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.collater = collater
        self._streams: dict[int, _Stream] = {}
        for task_id in sorted({dataset.task_id for dataset in datasets}):
            own = [dataset for dataset in datasets if dataset.task_id == task_id]
            sampler = MultiTaskBatchSampler(
                own,
                batch_size,
                max_tokens=max_tokens,
                seed=seed,
                group_by_length=group_by_length,
                num_processes=num_processes,
                process_index=process_index,
            )
            self._streams[task_id] = _Stream(own, sampler)

    def next(self, task_id: int) -> Batch | None:
        """The task's next batch; None if it has no unlabeled data."""
        stream = self._streams.get(task_id)
        return None if stream is None else self.collater(stream.next())

    def position(self) -> dict[int, int]:
        """How many batches were returned so far, by task id; a checkpoint keeps it."""
        return {task_id: stream.returned for task_id, stream in self._streams.items()}

    def go_to(self, position: Mapping[int, int]) -> None:
        """Continue after the batches that `position` counts."""
        for task_id, stream in self._streams.items():
            stream.go_to(position.get(task_id, 0))


class _Stream:
    """The batches of one task, without end."""

    def __init__(self, datasets: Sequence[SingleTaskDataset], sampler: MultiTaskBatchSampler):
        self.dataset = MultiTaskDataset(datasets)
        self.sampler = sampler
        self.go_to(0)

    def go_to(self, returned: int) -> None:
        self.returned = returned
        epoch, position = 0, returned
        while position >= self.sampler.batches_in(epoch):
            position -= self.sampler.batches_in(epoch)
            epoch += 1
        self.batches: Iterator[tuple[int, list[int]]] = self._from(epoch, position)

    def next(self) -> list:
        self.returned += 1
        return self.dataset[next(self.batches)]

    def _from(self, epoch: int, position: int) -> Iterator[tuple[int, list[int]]]:
        while True:
            self.sampler.set_epoch(epoch)
            self.sampler.set_position(position)
            yield from self.sampler
            epoch, position = epoch + 1, 0
