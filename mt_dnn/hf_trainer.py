"""transformers' Trainer with an adversarial regularizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from mt_dnn.perturbation import AdversarialPerturbation, ModelRegularizer
from mt_dnn.perturbation.noise import example_seeds, forked_dropout
from mt_dnn.perturbation.outputs import LabeledOutput
from mt_dnn.perturbation.regularizer import IGNORED_LABEL, token_mask, unwrapped
from mt_dnn.processes import ONE_PROCESS_A_DEVICE


class AdversarialMixin:
    """Adds α·R to the loss of a `transformers.Trainer`; for its subclasses: `class Mine(AdversarialMixin, Base)`.

    R is weighted as Trainer weighs the task loss. Where that is divided by the labels of the whole update
    (`num_items_in_batch`), R is the mean over the update too; where a model takes that number and ignores it, as
    transformers' classifiers do, Trainer adds up the means of the batches, and R is added up likewise. Noise and
    dropout of the perturbed passes depend on the seed, the update and the place of an example in it, so that α = 0 is
    the plain Trainer bit for bit and a resumed run goes on as if it had not stopped. FreeLB's R stands in the place of
    the task loss, without α. The log has `adv_loss`, the mean of R over the batches since the last entry; `loss` is
    the whole objective. Evaluation is plain.

    Args:
        perturbation: the method; `SiftPerturbation.with_defaults()`, for one.
        alpha: α, the weight of R; None: the weight measured for this method and level.
        *args, **kwargs: of `Trainer`.

    Raises:
        UnsupportedLevelError: the model has no injection point of the method's level.
        ValueError: several labels an example; parameters cut over processes; several GPUs in one process.
    """

    # What the mixin uses of Trainer.
    model: Any
    args: Any
    state: Any
    accelerator: Any
    label_names: list[str]
    model_accepts_loss_kwargs: bool
    compute_loss_func: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool

    def __init__(
        self, *args: Any, perturbation: AdversarialPerturbation, alpha: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(f"no perturbed passes with FSDP or DeepSpeed; {ONE_PROCESS_A_DEVICE}")
        if self.args.n_gpu > 1:
            raise ValueError(f"several GPUs in one process; {ONE_PROCESS_A_DEVICE}")
        self.regularizer = ModelRegularizer(perturbation, self.model, forward=self._perturbed, task_loss=_loss_of)
        self.alpha = self.regularizer.alpha if alpha is None else alpha
        self._normalizes: bool | None = None
        self._place = (-1, 0)  # an update, and how many batches of it this process has regularized
        self._adv_sum: Any = 0.0
        self._adv_count = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's loss, and α·R while the model trains (not in the plain part of a curriculum)."""
        if not model.training:
            return self._plain_loss(model, inputs, return_outputs, num_items_in_batch)
        regularized, replaces = self._regularized(), self.regularizer.perturbation.replaces_task_loss
        loss, outputs = None, None
        if return_outputs or not (regularized and replaces):
            with self.regularizer.clean(model):
                loss, outputs = self._plain_loss(model, inputs, True, num_items_in_batch)
        if regularized:
            weight = self._weight(model, inputs, num_items_in_batch)
            adv_loss = self.regularizer(model, inputs, outputs, noise_seeds=self._noise_seeds(inputs))
            self._adv_sum, self._adv_count = self._adv_sum + adv_loss.detach(), self._adv_count + 1
            loss = weight * adv_loss if replaces else loss + self.alpha * weight * adv_loss
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's log, with the mean of R over batches and processes since the last entry."""
        if self._adv_count and "loss" in logs:
            mean = self.accelerator.reduce(self._adv_sum / self._adv_count, reduction="mean")
            logs["adv_loss"] = float(mean)
            self._adv_sum, self._adv_count = 0.0, 0
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _plain_loss(self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool, items: Any) -> Any:
        # A copy, for Trainer takes the labels out of it under label smoothing.
        return super().compute_loss(  # type: ignore[misc]
            model, dict(inputs), return_outputs=return_outputs, num_items_in_batch=items
        )

    def _perturbed(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """The forward of the perturbed passes; the labels go along where the method needs the loss on them."""
        if not self.regularizer.perturbation.needs_labels:
            return model(**{name: value for name, value in inputs.items() if name not in self.label_names})
        counted = "labels" in inputs and (self.model_accepts_loss_kwargs or self.compute_loss_func is not None)
        items = self._labels_in(inputs).clamp(min=1) if counted else None
        loss, outputs = self._plain_loss(model, inputs, True, items)
        return LabeledOutput(outputs, loss / self._process_factor(items))

    def _regularized(self) -> bool:
        return self.regularizer.perturbation.begun(self.state.global_step, self.state.max_steps)

    def _noise_seeds(self, inputs: Mapping[str, Any]) -> list[int]:
        """A seed a row, by its place in the update: the same however many processes share the update's batches."""
        update, done = self.state.global_step, 0
        if self._place[0] == update:
            done = self._place[1]
        self._place = (update, done + 1)
        rows = len(token_mask(inputs))
        batch = done * self.accelerator.num_processes + self.accelerator.process_index
        first = batch * self.args.train_batch_size * rows // len(inputs["input_ids"])
        return example_seeds(self.args.seed, update, [str(first + row) for row in range(rows)])

    def _weight(self, model: nn.Module, inputs: Mapping[str, Any], items: Tensor | int | None) -> Any:
        """What Trainer multiplies the mean loss of this batch by, beside its division by the accumulation steps."""
        if items is None:
            return 1.0
        if self._normalizes is None:
            self._normalizes = self._normalizes_by_items(unwrapped(model), inputs, items)
        share = self._labels_in(inputs) / items if self._normalizes else 1.0
        return share * self._process_factor(items)

    def _process_factor(self, items: Tensor | int | None) -> int:
        scaled = self.args.average_tokens_across_devices and items is not None
        return self.accelerator.num_processes if scaled else 1

    @torch.no_grad()
    def _normalizes_by_items(self, model: nn.Module, inputs: Mapping[str, Any], items: Any) -> bool | None:
        """Whether the task loss is divided by the number of items it is given; None where this batch cannot tell."""
        losses = []
        for number in (items, 2 * items):
            with forked_dropout(token_mask(inputs).device, self.args.seed):
                losses.append(self._plain_loss(model, inputs, False, number))
        one, half = losses
        return None if one == 0 or not one.isfinite() else bool(half.abs() < 0.75 * one.abs())

    def _labels_in(self, inputs: Mapping[str, Any]) -> Tensor:
        """How many labels of this batch Trainer counts."""
        labels = inputs["labels"]
        if "shift_labels" in inputs:
            labels = inputs["shift_labels"]
        elif getattr(self, "_loss_shifts_labels", False):
            labels = labels[..., 1:]
        return (labels != IGNORED_LABEL).sum()


class AdversarialTrainer(AdversarialMixin, Trainer):
    """`transformers.Trainer` with an adversarial regularizer, for every model with a head; see `AdversarialMixin`.

    Examples:
        >>> trainer = AdversarialTrainer(
        ...     model=AutoModelForSequenceClassification.from_pretrained("microsoft/deberta-v3-base"),
        ...     args=TrainingArguments("out"), train_dataset=dataset, perturbation=SiftPerturbation.with_defaults(),
        ... )
    """


def _loss_of(output: LabeledOutput) -> Tensor:
    return output.loss
