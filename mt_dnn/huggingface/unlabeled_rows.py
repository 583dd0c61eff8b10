"""Unlabeled rows in a trainer: which of them a batch takes, by its number alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

LABELS = ("label", "labels", "label_ids")


class UnlabeledRows:
    """A dataset's rows in a random order of its own, epoch after epoch.

    Args:
        rows: with a length; labels among them are left out.
        collate: rows → a batch.
        batch_size: of a process.
        processes, process: how many share the rows, and which of them this is.
        seed: of the orders.
        labels: names of labels.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        collate: Callable[[list[Any]], dict[str, Any]],
        batch_size: int,
        processes: int = 1,
        process: int = 0,
        seed: int = 0,
        labels: Sequence[str] = (),
    ):
        if not hasattr(rows, "__len__") or not len(rows):
            raise ValueError("unlabeled_dataset: found no length; accepted: a dataset with rows that can be counted")
        self.rows = rows
        self.collate = collate
        self.batch_size = batch_size
        self.processes = processes
        self.process = process
        self.seed = seed
        self.labels = {*LABELS, *labels}
        self._order: tuple[int, list[int]] = (-1, [])

    @classmethod
    def of(cls, trainer: Any, dataset: Any) -> UnlabeledRows:
        """With the collator, batch size, seed and processes of a transformers' Trainer."""
        if hasattr(dataset, "column_names"):
            dataset = trainer._remove_unused_columns(dataset, "unlabeled")
        args, accelerator = trainer.args, trainer.accelerator
        place = (accelerator.num_processes, accelerator.process_index)
        return cls(dataset, trainer.data_collator, args.train_batch_size, *place, args.seed, trainer.label_names)

    def batch(self, number: int) -> tuple[list[int], dict[str, Any]]:
        """The places of the rows of this process's batch of that number, counted from 0, and the batch."""
        first = (number * self.processes + self.process) * self.batch_size
        places = [self._place(first + row) for row in range(self.batch_size)]
        rows = [{name: x for name, x in self.rows[place].items() if name not in self.labels} for place in places]
        batch = self.collate(rows)
        return places, {name: x for name, x in batch.items() if name not in self.labels}

    def _place(self, number: int) -> int:
        epoch, place = divmod(number, len(self.rows))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._order = (epoch, torch.randperm(len(self.rows), generator=generator).tolist())
        return self._order[1][place]
