"""transformers' Trainer with an adversarial regularizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Trainer

from mt_dnn.huggingface.frozen_counters import frozen_counters
from mt_dnn.huggingface.loss_weights import LossWeights
from mt_dnn.huggingface.recorded_forward import (
    RecordedForward,
    clean_logits,
    has_logits,
    recorded_forwards,
    replayed_body,
    without_labels,
    without_loss,
)
from mt_dnn.huggingface.regularizer_log import RegularizerLog, distribution_count
from mt_dnn.huggingface.row_seeds import RowSeeds
from mt_dnn.huggingface.trainer_checks import (
    UNSUPPORTED,
    refuse_arguments,
    refuse_bases,
    refuse_losses,
    refuse_method,
    refuse_settings,
    refuse_unlabeled_tokens,
    unreached,
)
from mt_dnn.huggingface.unlabeled_rows import UnlabeledRows
from mt_dnn.perturbation import AdversarialPerturbation, ModelRegularizer
from mt_dnn.perturbation.noise import dropout_seed, example_seeds, forked_dropout
from mt_dnn.perturbation.outputs import LabeledOutput
from mt_dnn.perturbation.reading import head_of, is_encoder_decoder, token_mask
from mt_dnn.perturbation.wrappers import unwrapped

BatchLoss = Callable[[Any, Mapping[str, Any]], Tensor]  # output of the model, batch → a scalar


class AdversarialMixin:
    """Adds α·R to the loss of a `transformers.Trainer`: `class Mine(AdversarialMixin, Base)`.

    R compares with the forward from which the base trainer computes its loss, and the perturbed passes get the same
    arguments as that forward. Evaluation is plain.

    R has the weight of the task loss. Where that is divided by the labels of the whole update (`num_items_in_batch`),
    R is the mean over the update too. Where a model accepts that number and ignores it, as transformers' classifiers
    do, Trainer adds up the means of the batches, and the Rs are added up in the same way. FreeLB's R replaces the task
    loss and has no α.

    Noise and dropout of the perturbed passes depend on the seed, the update and the row's place in it. So α = 0 is the
    plain Trainer bit for bit, and a resumed run continues as if it had not stopped. The base trainer's own counters,
    such as tokens and accuracy, count the clean pass alone (with FreeLB, which has none, its first pass).

    The log has `loss`, the whole objective, and what `RegularizerLog` lists, `adv_loss` among them.
    `hyperparameter_search` sets α and the radius if its space has `adv_alpha` and `adv_radius`.

    Args:
        perturbation: the method, such as `SiftPerturbation.with_defaults()`.
        alpha: α, the weight of R; None: the weight measured for this method and level.
        task_type, pairwise: how logits are read where the model does not say, see `ModelRegularizer`.
        unlabeled_dataset: rows without labels; each batch adds α·R of one batch of them. For methods that compare.
        task_loss, ascent_loss: for `AdversarialTraining`, called with the model's output and the trainer's batch; each
            returns a scalar, a mean over the batch. The first is R, by default the base trainer's loss; the second is
            what the ascent climbs, by default R. For a targeted attack it is minus the loss of the target.
        noise_mask: the trainer's batch, or one of unlabeled rows → (rows, tokens), 1 at the tokens that get noise; by
            default all real ones. See `ModelRegularizer`.
        *args, **kwargs: of `Trainer`.

    Raises:
        UnsupportedLevelError: the model has no injection point of the method's level.
        ValueError: version 1 of FSDP, DeepSpeed or tensor parallelism; several GPUs in one process; a model that
            `check_wrappers` refuses; a `compute_loss` of a subclass that does not call this one; a method that needs
            the loss on the labels, in a trainer whose loss is something else; norms over sentences with rows that hold
            several.
    """

    # Modules whose trainers are refused, and why.
    _unsupported: ClassVar[Mapping[str, str]] = UNSUPPORTED

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
        self,
        *args: Any,
        perturbation: AdversarialPerturbation,
        alpha: float | None = None,
        task_type: Any = None,
        pairwise: int = 1,
        unlabeled_dataset: Any = None,
        task_loss: BatchLoss | None = None,
        ascent_loss: BatchLoss | None = None,
        noise_mask: Callable[[Mapping[str, Any]], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_bases(type(self), AdversarialMixin, self._unsupported)
        super().__init__(*args, **kwargs)
        refuse_settings(self)
        self.regularizer = ModelRegularizer(
            perturbation, self.model, task_type=task_type, pairwise=pairwise, task_loss=attrgetter("loss")
        )
        refuse_method(self, perturbation, unlabeled_dataset)
        refuse_losses(perturbation, task_loss, ascent_loss)
        self._task_loss, self._ascent_loss, self._noise_mask = task_loss, ascent_loss, noise_mask
        self.alpha = self.regularizer.alpha if alpha is None else alpha
        # hyperparameter_search writes its values there.
        self.args.adv_alpha, self.args.adv_radius = self.alpha, perturbation.radius
        self._unlabeled_rows = None if unlabeled_dataset is None else UnlabeledRows.of(self, unlabeled_dataset)
        self._loss_weights = LossWeights(self)
        self._row_seeds = RowSeeds(self)
        self._regularizer_log = RegularizerLog()
        self._loss_computed = False  # by this class, in the current step
        self._count_next_pass = False  # whether the base trainer's counters count the next perturbed pass

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The base trainer's loss, plus α·R in training; during the plain start of a curriculum without R.

        Returns:
            the loss, a scalar; with `return_outputs` the loss and the clean pass's output.

        Raises:
            ValueError: the base trainer computes its loss from no forward of the model, or from several; the batch
                does not say what the method needs.
        """
        self._loss_computed = True
        if not model.training:
            return self._base_loss(model, inputs, return_outputs, num_items_in_batch)
        method, batch = self.regularizer.perturbation, self._row_seeds.next_batch()
        if not method.is_active(self.state.global_step, self.state.max_steps):
            with self.regularizer.clean(model):
                result = self._base_loss(model, inputs, return_outputs, num_items_in_batch)
            self.regularizer.forget_clean()
            return result
        return self._regularized_loss(model, inputs, return_outputs, num_items_in_batch, batch)

    def _regularized_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool,
        num_items_in_batch: Tensor | int | None,
        batch: int,
    ) -> Any:
        """`compute_loss` of a batch that has R."""
        method = self.regularizer.perturbation
        refuse_arguments(self, inputs)
        loss, outputs, forward = None, None, None
        if return_outputs or not method.replaces_task_loss:
            with self.regularizer.clean(model), recorded_forwards(model) as forwards:
                result = self._base_loss(model, inputs, return_outputs, num_items_in_batch)
            loss, outputs = result if return_outputs else (result, None)
            forward = self._only(forwards)
        if num_items_in_batch is not None:
            self._loss_weights.find_scaling(
                lambda items: self._loss_of(model, inputs, forward, items), num_items_in_batch
            )
        arguments = {**inputs, **(forward.arguments if forward else {})}
        adv_loss = self._regularize(model, inputs, arguments, forward, batch)
        weighted = self._loss_weights.of_batch(model, arguments, num_items_in_batch) * adv_loss
        loss = weighted if method.replaces_task_loss else loss + self.alpha * weighted
        if self._unlabeled_rows is not None:
            weight = self.alpha * self._loss_weights.of_mean(num_items_in_batch)
            loss = loss + weight * self._regularize_unlabeled(model, batch)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base trainer's step.

        Raises:
            ValueError: it did not call this class's `compute_loss`, so the loss has no R.
        """
        self._loss_computed = False
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not self._loss_computed:
            raise ValueError(unreached(type(self)))
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The base trainer's log; training entries get the regularizer's values since the last one."""
        if "loss" in logs:
            logs |= self._regularizer_log.entry(self.accelerator)
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)  # type: ignore[misc]
        if trial is None:
            return
        self.alpha, radius = self.args.adv_alpha, self.args.adv_radius
        if radius != self.regularizer.perturbation.radius:
            self.regularizer.perturbation.set_radius(radius)

    # the base trainer's loss

    def _base_loss(self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool, items: Any) -> Any:
        # A copy, because Trainer takes the labels out of it under label smoothing.
        return super().compute_loss(  # type: ignore[misc]
            model, dict(inputs), return_outputs=return_outputs, num_items_in_batch=items
        )

    def _loss_of(
        self, model: nn.Module, inputs: Mapping[str, Any], forward: RecordedForward | None, items: Any
    ) -> Tensor:
        """The base trainer's loss for a number of items, from the body's output in the clean pass if there is one."""
        inner = unwrapped(model)
        with (
            frozen_counters(self),
            forked_dropout(token_mask(inputs).device, self.args.seed),
            replayed_body(inner, forward) if forward and forward.body_output is not None else nullcontext(),
        ):
            loss: Tensor = self._base_loss(inner, inputs, False, items)
        return loss

    def _only(self, forwards: list[RecordedForward]) -> RecordedForward:
        """The one forward from which the loss was computed.

        Raises:
            ValueError: there was none, or several.
        """
        if len(forwards) != 1:
            raise ValueError(
                f"{type(self).__name__}.compute_loss ran {len(forwards)} forwards with gradients; accepted: "
                "one, whose output R compares"
            )
        return forwards[0]

    # R

    def _regularize(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        arguments: Mapping[str, Any],
        forward: RecordedForward | None,
        batch: int,
    ) -> Tensor:
        """R of a batch, a scalar; adds it to the log."""
        needs_labels = self.regularizer.perturbation.needs_labels

        def perturbed_pass(inner: nn.Module, _: Any) -> Any:
            if forward is None or (needs_labels and self._task_loss is None):
                return self._pass_with_loss(inner, inputs)
            return self._pass_without_labels(inner, forward)

        self._count_next_pass = forward is None
        if needs_labels and "labels" not in inputs:
            # The loss is a mean over rows: labels that the trainer gives the model itself (DPO) are not what it counts.
            arguments = {name: value for name, value in arguments.items() if name != "labels"}
        logits = None
        if forward is not None and (has_logits(forward.output) or not needs_labels):
            logits = clean_logits(model, forward)
        adv_loss = self.regularizer(
            model,
            arguments,
            logits,
            forward=perturbed_pass,
            task_loss=_of_output(self._task_loss, inputs),
            ascent_loss=_of_output(self._ascent_loss, inputs),
            measure_gain=self._is_logged(),
            **self._noise_of(inputs, self._row_seeds.of(arguments, batch)),
        )
        refuse_unlabeled_tokens(self, arguments)
        self._regularizer_log.add(self.regularizer.last, distribution_count(arguments, self.regularizer.read))
        return adv_loss

    def _pass_without_labels(self, model: nn.Module, forward: RecordedForward) -> Any:
        """A perturbed pass with the clean pass's arguments; labels are left out unless they are the decoder's input."""
        if is_encoder_decoder(head_of(model)):
            return without_loss(model(**forward.arguments))
        return model(**without_labels(forward.arguments, tuple(self.label_names)))

    def _pass_with_loss(self, model: nn.Module, inputs: Mapping[str, Any]) -> LabeledOutput:
        """A perturbed pass with the base trainer's loss, the mean over the labels (or rows) of this batch."""
        weights = self._loss_weights
        by_labels = "labels" in inputs and (self.model_accepts_loss_kwargs or self.compute_loss_func is not None)
        items = weights.label_count(model, inputs).clamp(min=1) if by_labels else None
        is_counted, self._count_next_pass = self._count_next_pass, False
        with nullcontext() if is_counted else frozen_counters(self), recorded_forwards(model) as forwards:
            loss = self._base_loss(model, inputs, False, items)
        forward = self._only(forwards) if torch.is_grad_enabled() else forwards[0]
        if has_logits(forward.output):
            output = without_loss(forward.output)
        else:
            needs_logits = self._ascent_loss is not None
            output = clean_logits(model, forward) if needs_logits else forward.body_output.last_hidden_state
        return LabeledOutput(output, loss if items is None else loss / weights.process_factor())

    def _regularize_unlabeled(self, model: nn.Module, batch: int) -> Tensor:
        """R of a batch without labels, a scalar. Its dropout is drawn apart: labeled rows draw as without it."""
        assert self._unlabeled_rows is not None
        number = self.state.global_step * self.args.gradient_accumulation_steps + batch
        indices, rows = self._unlabeled_rows.batch(number)
        inputs = self._prepare_inputs(rows)  # type: ignore[attr-defined]
        seeds = example_seeds(self.args.seed, self.state.global_step, [f"unlabeled/{index}" for index in indices])
        with forked_dropout(token_mask(inputs).device, dropout_seed(seeds, -1)):
            with self.regularizer.clean(model), recorded_forwards(model) as forwards:
                model(**inputs)
            forward = self._only(forwards)
            return self.regularizer(
                model,
                inputs,
                clean_logits(model, forward),
                forward=lambda inner, _: self._pass_without_labels(inner, forward),
                **self._noise_of(inputs, seeds),
            )

    def _noise_of(self, inputs: Mapping[str, Any], seeds: list[int]) -> dict[str, Any]:
        """Arguments of the regularizer: the tokens of a batch that get noise, and one seed per row of δ."""
        if self._noise_mask is None:
            return {"noise_seeds": seeds}
        noise_mask = self._noise_mask(inputs)
        return {"noise_mask": noise_mask, "noise_seeds": seeds[: len(noise_mask)]}

    def _is_logged(self) -> bool:
        """Whether the log gets an entry after this update, as far as the number of steps tells."""
        done = self.state.global_step + 1
        every = getattr(self.state, "logging_steps", 0)
        by_steps = self.args.logging_strategy == "steps" and every and done % every == 0
        return bool(by_steps) or (self.args.logging_first_step and done == 1)


def _of_output(loss: BatchLoss | None, batch: Mapping[str, Any]) -> Callable[[Any], Tensor] | None:
    """A loss of the model's output alone, for one batch."""
    if loss is None:
        return None
    return lambda output: loss(output.output if isinstance(output, LabeledOutput) else output, batch)


class AdversarialTrainer(AdversarialMixin, Trainer):
    """`transformers.Trainer` with an adversarial regularizer, for every model with a head; see `AdversarialMixin`.

    Examples:
        >>> trainer = AdversarialTrainer(
        ...     model=AutoModelForSequenceClassification.from_pretrained("microsoft/deberta-v3-base"),
        ...     args=TrainingArguments("out"), train_dataset=dataset, perturbation=SiftPerturbation.with_defaults(),
        ... )
    """
