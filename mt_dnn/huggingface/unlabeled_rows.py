"""Unlabeled rows in a trainer: the number of a batch decides which of them it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

LABELS = ("label", "labels", "label_ids")


class UnlabeledRows:
    """A dataset's rows in random order, reshuffled each epoch.

    Args:
        rows: a dataset with a length; labels in its rows are left out.
        collate: rows → a batch.
        batch_size: rows a process.
        processes, process: how many processes share the rows, and the number of this one.
        seed: of the orders.
        label_names: names of labels in addition to `LABELS`.

    Raises:
        ValueError: the dataset has no length, or no rows.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        collate: Callable[[list[Any]], dict[str, Any]],
        batch_size: int,
        processes: int = 1,
        process: int = 0,
        seed: int = 0,
        label_names: Sequence[str] = (),
    ):
        if not hasattr(rows, "__len__") or not len(rows):
            raise ValueError("unlabeled_dataset: found no length; accepted: a dataset with rows that can be counted")
        self.rows = rows
        self.collate = collate
        self.batch_size = batch_size
        self.processes = processes
        self.process = process
        self.seed = seed
        self.label_names = {*LABELS, *label_names}
        self._order: tuple[int, list[int]] = (-1, [])

    @classmethod
    def of(cls, trainer: Any, dataset: Any) -> UnlabeledRows:
        """The rows of a dataset for a `transformers.Trainer`: with its collator, batch size, seed and processes."""
        if hasattr(dataset, "column_names"):
            dataset = trainer._remove_unused_columns(dataset, "unlabeled")
        args, accelerator = trainer.args, trainer.accelerator
        return cls(
            dataset,
            trainer.data_collator,
            args.train_batch_size,
            accelerator.num_processes,
            accelerator.process_index,
            args.seed,
            trainer.label_names,
        )

    def batch(self, number: int) -> tuple[list[int], dict[str, Any]]:
        """This process's batch of that number, counted from 0: its rows' indices in the dataset, and the batch."""
        first = (number * self.processes + self.process) * self.batch_size
        indices = [self._index(first + row) for row in range(self.batch_size)]
        rows = [{name: x for name, x in self.rows[index].items() if name not in self.label_names} for index in indices]
        batch = self.collate(rows)
        return indices, {name: x for name, x in batch.items() if name not in self.label_names}

    def _index(self, number: int) -> int:
        """The index of the row that comes at that place of the endless sequence of epochs."""
        epoch, place = divmod(number, len(self.rows))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._order = (epoch, torch.randperm(len(self.rows), generator=generator).tolist())
        return self._order[1][place]
