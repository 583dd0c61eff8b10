"""Seeds of the noise in a trainer: one a row, by the row's place in the update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mt_dnn.perturbation.noise import example_seeds
from mt_dnn.perturbation.reading import token_mask


class RowSeeds:
    """Counts a trainer's batches and names their rows, so that noise is the same for any number of processes.

    Args:
        trainer: a `transformers.Trainer`.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._update = -1
        self._batches = 0
        self._sides = 1  # texts a row of the dataset, such as a chosen and a rejected one

    def next_batch(self) -> int:
        """The number of the next batch in the current update, counted from 0 in this process."""
        update = self._trainer.state.global_step
        batch = self._batches if update == self._update else 0
        self._update, self._batches = update, batch + 1
        return batch

    def of(self, arguments: Mapping[str, Any], batch: int, sides: int | None = None) -> list[int]:
        """One seed a row of the mask.

        Args:
            arguments: of the model, `input_ids` (texts, tokens) among them.
            batch: its number, as `next_batch` returned it.
            sides: texts a row of the dataset; by default the largest number that the batches so far show.
        """
        trainer = self._trainer
        rows, texts = len(token_mask(arguments)), len(arguments["input_ids"])
        size = trainer.args.train_batch_size
        self._sides = sides or max(self._sides, -(-texts // size))
        first = (batch * trainer.accelerator.num_processes + trainer.accelerator.process_index) * size
        # All chosen texts of a batch come before all rejected ones; the choices of a row follow one another.
        per_side, choices = max(1, texts // self._sides), rows // texts
        names = []
        for row in range(rows):
            side, place = divmod(row // choices, per_side)
            number = str((first + place) * choices + row % choices)
            names.append(f"{number}/{side}" if side else number)
        return example_seeds(trainer.args.seed, trainer.state.global_step, names)
