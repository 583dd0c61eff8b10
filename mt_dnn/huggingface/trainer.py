"""transformers' Trainer with an adversarial regularizer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Trainer

from mt_dnn.huggingface.observed_forward import (
    ObservedForward,
    clean_logits,
    for_logits,
    has_logits,
    observed_forwards,
    replayed,
    without_loss,
)
from mt_dnn.huggingface.regularizer_log import RegularizerLog
from mt_dnn.huggingface.trainer_checks import refuse_bases, refuse_method, refuse_settings, unreached
from mt_dnn.huggingface.uncounted import uncounted
from mt_dnn.huggingface.unlabeled_rows import UnlabeledRows
from mt_dnn.perturbation import AdversarialPerturbation, ModelRegularizer
from mt_dnn.perturbation.noise import dropout_seed, example_seeds, forked_dropout
from mt_dnn.perturbation.outputs import LabeledOutput
from mt_dnn.perturbation.reading import IGNORED_LABEL, head_of, is_encoder_decoder, token_mask
from mt_dnn.perturbation.wrappers import unwrapped


class LossScaling(NamedTuple):
    """How a trainer scales the loss of a batch: divided by the items of the update, multiplied by the processes."""

    by_items: bool
    by_processes: bool


class AdversarialMixin:
    """Adds α·R to the loss of a `transformers.Trainer`; for its subclasses: `class Mine(AdversarialMixin, Base)`.

    R's clean side is the forward from which the base trainer computes its loss, whatever else that runs; the perturbed
    passes get the same arguments. R is weighted as the task loss is. Where that is divided by the labels of the whole
    update (`num_items_in_batch`), R is the mean over the update too; where a model takes that number and ignores it, as
    transformers' classifiers do, Trainer adds up the means of the batches, and R is added up likewise. Noise and
    dropout of the perturbed passes depend on the seed, the update and the place of an example in it, so that α = 0 is
    the plain Trainer bit for bit and a resumed run goes on as if it had not stopped. FreeLB's R stands in the place of
    the task loss, without α. Evaluation is plain. What the base trainer counts itself, such as tokens and accuracy, is
    that of the clean pass alone (of FreeLB, which has none, that of its first pass).

    The log has `adv_loss`, the mean of R over the examples (or tokens) since the last entry, and what the search found:
    see `RegularizerLog`; `loss` is the whole objective. `hyperparameter_search` sets α and the radius where its space
    has `adv_alpha` and `adv_radius`.

    Args:
        perturbation: the method; `SiftPerturbation.with_defaults()`, for one.
        alpha: α, the weight of R; None: the weight measured for this method and level.
        task_type, pairwise: how logits are read where the model does not say, see `ModelRegularizer`.
        unlabeled_dataset: rows without labels; each batch adds α·R of one batch of them. For methods that compare.
        *args, **kwargs: of `Trainer`.

    Raises:
        UnsupportedLevelError: the model has no injection point of the method's level.
        ValueError: parameters cut over processes; several GPUs in one process; what `check_wrappers` refuses; a
            `compute_loss` before this one that does not call it; a method that needs the loss on the labels, in a
            trainer whose loss is something else; norms over sentences with rows that hold several.
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
        self,
        *args: Any,
        perturbation: AdversarialPerturbation,
        alpha: float | None = None,
        task_type: Any = None,
        pairwise: int = 1,
        unlabeled_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        refuse_bases(type(self), AdversarialMixin)
        super().__init__(*args, **kwargs)
        refuse_settings(self)
        self.regularizer = ModelRegularizer(
            perturbation, self.model, task_type=task_type, pairwise=pairwise, task_loss=_loss_of
        )
        refuse_method(self, perturbation)
        self.alpha = self.regularizer.alpha if alpha is None else alpha
        # Where hyperparameter_search puts its values.
        self.args.adv_alpha, self.args.adv_radius = self.alpha, perturbation.radius
        self._unlabeled = None
        if unlabeled_dataset is not None:
            if perturbation.needs_labels:
                raise ValueError(f"unlabeled_dataset: {perturbation.name} needs labels; accepted: methods that compare")
            self._unlabeled = UnlabeledRows.of(self, unlabeled_dataset)
        self._scaling: LossScaling | None = None
        self._place = (-1, 0)  # an update, and how many batches of it this process has met
        self._sides = 1  # rows a row of the dataset, such as a chosen and a rejected one
        self._met = False
        self._counts = False  # whether the next perturbed pass is the one that the base trainer counts
        self._found = RegularizerLog()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The base trainer's loss, and α·R while the model trains (not in the plain part of a curriculum)."""
        self._met = True
        if not model.training:
            return self._base_loss(model, inputs, return_outputs, num_items_in_batch)
        method = self.regularizer.perturbation
        regularized, batch = self._regularized(), self._next_batch()
        if regularized and method.replaces_task_loss and "input_ids" not in inputs:
            raise ValueError(
                f"{method.name} has no clean pass to see the model's arguments in, and the batches of "
                f"{type(self).__name__} have {', '.join(inputs)}; accepted: batches with input_ids, or another method"
            )
        loss, outputs, forward = None, None, None
        self._counts = regularized and method.replaces_task_loss and not return_outputs
        if return_outputs or not (regularized and method.replaces_task_loss):
            with self.regularizer.clean(model), observed_forwards(model) as forwards:
                found = self._base_loss(model, inputs, return_outputs, num_items_in_batch)
            loss, outputs = found if return_outputs else (found, None)
            forward = self._only(forwards) if regularized else None
        if regularized:
            arguments = {**inputs, **({} if forward is None else forward.arguments)}
            if num_items_in_batch is not None and self._scaling is None:
                self._scaling = self._found_scaling(model, inputs, forward, num_items_in_batch)
            adv_loss = self._regularize(model, inputs, arguments, forward, batch)
            weight = self._weight(model, arguments, num_items_in_batch)
            weighted = weight * adv_loss
            loss = weighted if method.replaces_task_loss else loss + self.alpha * weighted
            if self._unlabeled is not None:
                loss = loss + self.alpha * self._share_of_a_mean(num_items_in_batch) * self._of_unlabeled(model, batch)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base trainer's step.

        Raises:
            ValueError: it did not come by this class's `compute_loss`, so that the loss has no R.
        """
        self._met = False
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not self._met:
            raise ValueError(unreached(type(self)))
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The base trainer's log, with what the regularizer found since the last entry."""
        if "loss" in logs:
            logs |= self._found.entry(self.accelerator)
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
        # A copy, for Trainer takes the labels out of it under label smoothing.
        return super().compute_loss(  # type: ignore[misc]
            model, dict(inputs), return_outputs=return_outputs, num_items_in_batch=items
        )

    def _only(self, forwards: list[ObservedForward]) -> ObservedForward:
        """The one forward that gave the loss.

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
        forward: ObservedForward | None,
        batch: int,
    ) -> Tensor:
        method = self.regularizer.perturbation
        logits, run = None, lambda inner, _: self._with_loss(inner, inputs)
        if method.needs_labels and "labels" not in inputs:
            # The loss is a mean over rows: the labels of the forward, such as DPO's, are not what it counts.
            arguments = {name: value for name, value in arguments.items() if name != "labels"}
        if not method.needs_labels:
            assert forward is not None
            logits, run = clean_logits(model, forward), lambda inner, _: self._without_labels(inner, forward)
        elif forward is not None and has_logits(forward.output):
            logits = without_loss(forward.output)
        seeds = self._noise_seeds(arguments, batch)
        adv_loss = self.regularizer(
            model, arguments, logits, noise_seeds=seeds, forward=run, measure_gain=self._is_logged()
        )
        if method.needs_clean and self.regularizer.read["task_type"] == "next_tokens" and not _has_labels(arguments):
            raise ValueError(
                f"{type(self).__name__}.compute_loss gives its forward no labels, so that it is not known which tokens "
                "R compares; accepted: labels in the batch, or in the forward that gives the loss"
            )
        self._found.add(self.regularizer.last, self._counted(arguments))
        return adv_loss

    def _without_labels(self, model: nn.Module, forward: ObservedForward) -> Any:
        """A perturbed pass: the arguments of the clean one, without the labels where they are no input."""
        if is_encoder_decoder(head_of(model)):
            return without_loss(model(**forward.arguments))
        return model(**for_logits(forward.arguments, tuple(self.label_names)))

    def _with_loss(self, model: nn.Module, inputs: Mapping[str, Any]) -> LabeledOutput:
        """A perturbed pass with the base trainer's loss, a mean over what counts in this batch."""
        counted = "labels" in inputs and (self.model_accepts_loss_kwargs or self.compute_loss_func is not None)
        items = self._labels_in(model, inputs).clamp(min=1) if counted else None
        counts, self._counts = self._counts, False
        with nullcontext() if counts else uncounted(self), observed_forwards(model) as forwards:
            loss = self._base_loss(model, inputs, False, items)
        forward = self._only(forwards) if torch.is_grad_enabled() else forwards[0]
        output = without_loss(forward.output) if has_logits(forward.output) else forward.states.last_hidden_state
        return LabeledOutput(output, loss if items is None else loss / self._process_factor())

    def _of_unlabeled(self, model: nn.Module, batch: int) -> Tensor:
        """R of a batch without labels, whose dropout does not move that of the labeled ones."""
        assert self._unlabeled is not None
        places, rows = self._unlabeled.batch(self.state.global_step * self.args.gradient_accumulation_steps + batch)
        inputs = self._prepare_inputs(rows)  # type: ignore[attr-defined]
        seeds = example_seeds(self.args.seed, self.state.global_step, [f"unlabeled/{place}" for place in places])
        with forked_dropout(token_mask(inputs).device, dropout_seed(seeds, -1)):
            with self.regularizer.clean(model), observed_forwards(model) as forwards:
                model(**inputs)
            forward = self._only(forwards)
            return self.regularizer(
                model,
                inputs,
                clean_logits(model, forward),
                noise_seeds=seeds,
                forward=lambda inner, _: self._without_labels(inner, forward),
            )

    def _regularized(self) -> bool:
        return self.regularizer.perturbation.is_active(self.state.global_step, self.state.max_steps)

    def _is_logged(self) -> bool:
        """Whether this update ends with an entry in the log, as far as the steps tell."""
        done = self.state.global_step + 1
        every = getattr(self.state, "logging_steps", 0)
        by_steps = self.args.logging_strategy == "steps" and every and done % every == 0
        return bool(by_steps) or (self.args.logging_first_step and done == 1)

    # places and weights

    def _next_batch(self) -> int:
        """The number of this batch in its update, among those of this process."""
        update, batch = self.state.global_step, 0
        if self._place[0] == update:
            batch = self._place[1]
        self._place = (update, batch + 1)
        return batch

    def _noise_seeds(self, arguments: Mapping[str, Any], batch: int) -> list[int]:
        """A seed a row, by its place in the update: the same however many processes share the update's batches."""
        rows, ids = len(token_mask(arguments)), len(arguments["input_ids"])
        size = self.args.train_batch_size
        self._sides = max(self._sides, -(-ids // size))
        first = (batch * self.accelerator.num_processes + self.accelerator.process_index) * size
        # Sides of a row, such as a chosen and a rejected text, follow one another; choices of a row stand together.
        a_side, choices = max(1, ids // self._sides), rows // ids
        names = []
        for row in range(rows):
            side, place = divmod(row // choices, a_side)
            number = str((first + place) * choices + row % choices)
            names.append(f"{number}/{side}" if side else number)
        return example_seeds(self.args.seed, self.state.global_step, names)

    def _weight(self, model: nn.Module, arguments: Mapping[str, Any], items: Tensor | int | None) -> Any:
        """What the mean loss of this batch is multiplied by, besides Trainer's division by the accumulation steps."""
        mean = self._share_of_a_mean(items) if getattr(self, "loss_is_scaled_for_ga", None) else 1.0
        if items is None:
            return mean
        share = self._labels_in(model, arguments) / items if self._scaling and self._scaling.by_items else mean
        return share * self._process_factor()

    def _share_of_a_mean(self, items: Tensor | int | None) -> float:
        """What a mean over this batch is multiplied by to be one over the update's batches once Trainer has divided."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        steps = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
        return 1.0 / steps if scaled else 1.0

    def _process_factor(self) -> int:
        """What the base trainer multiplies a loss by that it was given a number of items for."""
        averaged = self.args.average_tokens_across_devices and (self._scaling is None or self._scaling.by_processes)
        return self.accelerator.num_processes if averaged else 1

    @torch.no_grad()
    def _found_scaling(
        self, model: nn.Module, inputs: Mapping[str, Any], forward: ObservedForward | None, items: Any
    ) -> LossScaling | None:
        """How the base trainer scales its loss, the same answer on every process; None where no batch of them tells.

        The loss is computed for two numbers of items, and without the factor of several processes, from what the
        encoder gave in the clean pass where that was seen.
        """
        seen = forward is not None and forward.states is not None
        inner, averaged = unwrapped(model), self.args.average_tokens_across_devices

        def loss(number: Any, average: bool) -> Tensor:
            self.args.average_tokens_across_devices = average
            with (
                uncounted(self),
                forked_dropout(token_mask(inputs).device, self.args.seed),
                replayed(inner, forward) if seen and forward is not None else nullcontext(),
            ):
                found: Tensor = self._base_loss(inner, inputs, False, number)
            return found

        try:
            one, half, alone = loss(items, averaged), loss(2 * items, averaged), loss(items, False)
        finally:
            self.args.average_tokens_across_devices = averaged
        differs = [(one - other).abs() > 1e-3 * one.abs() for other in (half, alone)]
        tells = one.isfinite() & (one != 0)
        answers = self.accelerator.gather(torch.stack([tells, *(tells & answer for answer in differs)])[None].int())
        told, by_items, by_processes = answers.amax(0).bool().tolist()
        return LossScaling(by_items, by_processes) if told else None

    def _labels_in(self, model: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
        """How many labels of this batch have a loss."""
        if "shift_labels" in arguments:
            return (arguments["shift_labels"] != IGNORED_LABEL).sum()
        labels = arguments["labels"]
        if self.regularizer.read["task_type"] == "next_tokens" and not is_encoder_decoder(head_of(model)):
            labels = labels[..., 1:]
        return (labels != IGNORED_LABEL).sum()

    def _counted(self, arguments: Mapping[str, Any]) -> Tensor | int:
        """How many distributions the R of this batch is a mean over."""
        read = self.regularizer.read
        if "loss_mask" in read:
            return read["loss_mask"].sum()
        return token_mask(arguments).sum() if read["task_type"] == "tokens" else len(arguments["input_ids"])


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


def _has_labels(arguments: Mapping[str, Any]) -> bool:
    return any(arguments.get(name) is not None for name in ("labels", "shift_labels"))
