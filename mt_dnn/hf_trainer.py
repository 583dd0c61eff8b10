"""transformers' Trainer with an adversarial regularizer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from mt_dnn.perturbation import AdversarialPerturbation, ModelRegularizer
from mt_dnn.perturbation.outputs import LabeledOutput
from mt_dnn.perturbation.regularizer import IGNORED_LABEL


class AdversarialMixin:
    """Adds α·R to the loss of a `transformers.Trainer`; for its subclasses: `class Mine(AdversarialMixin, Base)`.

    R is a mean over examples (over tokens, where each has a distribution), weighted as Trainer weighs its own loss:
    with gradient accumulation, and over processes, it is the mean over the whole update. The log has R, as `adv_loss`,
    beside the whole objective, as `loss`. Evaluation is plain.

    Args:
        perturbation: the method; `SiftPerturbation.with_defaults()`, for one.
        alpha: α, the weight of R; None: the weight measured for this method and level.
        *args, **kwargs: of `Trainer`.

    Raises:
        UnsupportedLevelError: the model has no injection point of the method's level.
    """

    # What the mixin uses of Trainer.
    model: Any
    args: Any
    state: Any
    accelerator: Any
    model_accepts_loss_kwargs: bool
    compute_loss_func: Any

    def __init__(
        self, *args: Any, perturbation: AdversarialPerturbation, alpha: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.regularizer = ModelRegularizer(perturbation, self.model, forward=self._perturbed, task_loss=_loss_of)
        self.alpha = self.regularizer.alpha if alpha is None else alpha
        self._adv_losses: list[Tensor] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's loss, and α·R while the model trains (not in the plain part of a curriculum)."""
        if not (model.training and self._regularized()):
            return self._plain_loss(model, inputs, return_outputs, num_items_in_batch)
        share = self._share(inputs, num_items_in_batch)
        if self.regularizer.perturbation.replaces_task_loss and not return_outputs:
            loss, outputs = 0.0, None
            weight = share
        else:
            with self._clean_pass(model):
                loss, outputs = self._plain_loss(model, inputs, True, num_items_in_batch)
            weight = self.alpha * share
        adv_loss = self.regularizer(model, inputs, outputs)
        self._adv_losses.append(adv_loss.detach())
        total = loss + weight * adv_loss
        return (total, outputs) if return_outputs else total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's log, with the mean R since the last entry."""
        if self._adv_losses and "loss" in logs:
            logs["adv_loss"] = float(torch.stack(self._adv_losses).float().mean())
            self._adv_losses.clear()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _plain_loss(self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool, items: Any) -> Any:
        # A copy, for Trainer takes the labels out of it under label smoothing.
        return super().compute_loss(model, dict(inputs), return_outputs, items)  # type: ignore[misc]

    def _perturbed(self, model: nn.Module, inputs: Mapping[str, Any]) -> LabeledOutput:
        loss, outputs = self._plain_loss(model, inputs, True, None)
        return LabeledOutput(outputs, loss)

    def _clean_pass(self, model: nn.Module) -> AbstractContextManager[None]:
        return self.regularizer.clean(model)

    def _regularized(self) -> bool:
        start = self.regularizer.perturbation.start_ratio
        return start == 0 or self.state.global_step >= start * self.state.max_steps

    def _share(self, inputs: Mapping[str, Any], items: Tensor | int | None) -> Any:
        """This batch's share of what Trainer normalizes an update's loss by; 1 where it takes the batch's own mean."""
        normalized = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if items is None or not normalized or "labels" not in inputs:
            return 1.0
        labels = inputs["labels"]
        if getattr(self, "_loss_shifts_labels", False):
            labels = labels[..., 1:]
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return (labels != IGNORED_LABEL).sum() * processes / items


class AdversarialTrainer(AdversarialMixin, Trainer):
    """`transformers.Trainer` with an adversarial regularizer, for every model with a head; see `AdversarialMixin`.

    Example:
        >>> trainer = AdversarialTrainer(
        ...     model=AutoModelForSequenceClassification.from_pretrained("microsoft/deberta-v3-base"),
        ...     args=TrainingArguments("out"), train_dataset=dataset, perturbation=SiftPerturbation.with_defaults(),
        ... )
    """


def _loss_of(output: LabeledOutput) -> Tensor:
    return output.loss
