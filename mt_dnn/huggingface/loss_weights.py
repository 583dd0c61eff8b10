"""How a trainer weights the loss of a batch, so that R gets the same weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt_dnn.perturbation.reading import IGNORED_LABEL, head_of, is_encoder_decoder

SAME = 1e-3  # two losses differ where their relative difference is larger


class LossScaling(NamedTuple):
    """How a trainer scales a loss for which it was given a number of items.

    by_items: divides by that number; by_processes: multiplies by the number of processes.
    """

    by_items: bool
    by_processes: bool


class LossWeights:
    """The weights of a batch's mean loss in a trainer's update.

    Args:
        trainer: a regularized trainer.

    Attributes:
        scaling: how the trainer scales its loss; None while that is not known.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self.scaling: LossScaling | None = None

    def of_batch(self, model: nn.Module, arguments: Mapping[str, Any], items: Tensor | int | None) -> Any:
        """The factor of this batch's mean loss, apart from Trainer's own division by the accumulation steps.

        Args:
            arguments: of the model.
            items: labels of the whole update; None where Trainer does not count them.
        """
        weight: Any = self.of_mean(items) if getattr(self._trainer, "loss_is_scaled_for_ga", None) else 1.0
        if items is None:
            return weight
        if self.scaling and self.scaling.by_items:
            weight = self.label_count(model, arguments) / items
        return weight * self.process_factor()

    def of_mean(self, items: Tensor | int | None) -> float:
        """The factor that turns the sum of the batches' means into the mean over the update's batches."""
        trainer = self._trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None
        steps = getattr(trainer, "current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
        return 1.0 / steps if scaled else 1.0

    def process_factor(self) -> int:
        """What the base trainer multiplies a loss by for which it was given a number of items."""
        trainer = self._trainer
        averaged = trainer.args.average_tokens_across_devices and (self.scaling is None or self.scaling.by_processes)
        return trainer.accelerator.num_processes if averaged else 1

    @torch.no_grad()
    def find_scaling(self, loss: Callable[[Any], Tensor], items: Tensor | int) -> None:
        """Find how the base trainer scales its loss, with the same answer on every process; once that is known, return.

        The loss is computed for two numbers of items, and without the factor of several processes. Where it is 0 or
        not finite on every process, nothing is found.

        Args:
            loss: number of items → the base trainer's loss of a batch.
            items: labels of the whole update.
        """
        if self.scaling is not None:
            return
        args = self._trainer.args
        averaged = args.average_tokens_across_devices
        try:
            given, doubled = loss(items), loss(2 * items)
            args.average_tokens_across_devices = False
            alone = loss(items)
        finally:
            args.average_tokens_across_devices = averaged
        differs = [(given - other).abs() > SAME * given.abs() for other in (doubled, alone)]
        usable = given.isfinite() & (given != 0)
        answers = torch.stack([usable, *(usable & answer for answer in differs)])[None].int()
        known, by_items, by_processes = self._trainer.accelerator.gather(answers).amax(0).bool().tolist()
        if known:
            self.scaling = LossScaling(by_items, by_processes)

    def label_count(self, model: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
        """How many labels of a batch have a loss."""
        if "shift_labels" in arguments:
            return (arguments["shift_labels"] != IGNORED_LABEL).sum()
        labels = arguments["labels"]
        task_type = self._trainer.regularizer.read["task_type"]
        if task_type == "next_tokens" and not is_encoder_decoder(head_of(model)):
            labels = labels[..., 1:]
        return (labels != IGNORED_LABEL).sum()
