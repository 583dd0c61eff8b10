"""transformers' Trainer with an adversarial regularizer."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

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
from mt_dnn.huggingface.unlabeled_rows import UnlabeledRows
from mt_dnn.perturbation import AdversarialPerturbation, ModelRegularizer
from mt_dnn.perturbation.noise import dropout_seed, example_seeds, forked_dropout
from mt_dnn.perturbation.outputs import LabeledOutput
from mt_dnn.perturbation.reading import IGNORED_LABEL, head_of, is_encoder_decoder, token_mask
from mt_dnn.perturbation.wrappers import REENTRANT, unwrapped
from mt_dnn.training.processes import ONE_PROCESS_A_DEVICE

# Trainers whose models encode several texts a batch, each a column of its own.
SEVERAL_TEXTS = "sentence_transformers"


class AdversarialMixin:
    """Adds α·R to the loss of a `transformers.Trainer`; for its subclasses: `class Mine(AdversarialMixin, Base)`.

    R's clean side is the forward from which the base trainer computes its loss, whatever else that runs; the perturbed
    passes get the same arguments. R is weighted as the task loss is. Where that is divided by the labels of the whole
    update (`num_items_in_batch`), R is the mean over the update too; where a model takes that number and ignores it, as
    transformers' classifiers do, Trainer adds up the means of the batches, and R is added up likewise. Noise and
    dropout of the perturbed passes depend on the seed, the update and the place of an example in it, so that α = 0 is
    the plain Trainer bit for bit and a resumed run goes on as if it had not stopped. FreeLB's R stands in the place of
    the task loss, without α. Evaluation is plain.

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
            `compute_loss` before this one that does not call it.
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
        self._refuse_bases()
        super().__init__(*args, **kwargs)
        self._refuse_settings()
        self.regularizer = ModelRegularizer(
            perturbation, self.model, task_type=task_type, pairwise=pairwise, task_loss=_loss_of
        )
        self.alpha = self.regularizer.alpha if alpha is None else alpha
        # Where hyperparameter_search puts its values.
        self.args.adv_alpha, self.args.adv_radius = self.alpha, perturbation.radius
        self._unlabeled = None
        if unlabeled_dataset is not None:
            if perturbation.needs_labels:
                raise ValueError(f"unlabeled_dataset: {perturbation.name} needs labels; accepted: methods that compare")
            self._unlabeled = UnlabeledRows.of(self, unlabeled_dataset)
        self._normalizes: bool | None = None
        self._place = (-1, 0)  # an update, and how many batches of it this process has met
        self._sides = 1  # rows a row of the dataset, such as a chosen and a rejected one
        self._met = False
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
        loss, outputs, forward = None, None, None
        if return_outputs or not (regularized and method.replaces_task_loss):
            with self.regularizer.clean(model), observed_forwards(model) as forwards:
                found = self._base_loss(model, inputs, return_outputs, num_items_in_batch)
            loss, outputs = found if return_outputs else (found, None)
            forward = self._only(forwards) if regularized else None
        if regularized:
            arguments = {**inputs, **({} if forward is None else forward.arguments)}
            adv_loss = self._regularize(model, inputs, arguments, forward, batch)
            weight = self._weight(model, inputs, arguments, forward, num_items_in_batch)
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
            raise ValueError(_unreached(type(self)))
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

    # what is refused when the trainer is made

    def _refuse_bases(self) -> None:
        kinds = type(self).__mro__
        for kind in kinds[: kinds.index(AdversarialMixin)]:
            own = vars(kind).get("compute_loss")
            code = getattr(own, "__code__", None)
            if own is not None and code is not None and "compute_loss" not in code.co_names:
                raise ValueError(_unreached(type(self)))
        if any(kind.__module__.partition(".")[0] == SEVERAL_TEXTS for kind in kinds):
            raise ValueError(
                f"{type(self).__name__}: sentence-transformers encodes the texts of a batch one after the other, which "
                "have no R together; accepted: transformers' Trainer and those that call a model once a batch"
            )

    def _refuse_settings(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(f"no perturbed passes with FSDP or DeepSpeed; {ONE_PROCESS_A_DEVICE}")
        if self.args.n_gpu > 1:
            raise ValueError(f"several GPUs in one process; {ONE_PROCESS_A_DEVICE}")
        settings = vars(self.args)
        for name in ("activation_checkpointing", "gradient_checkpointing"):  # the second is transformers' older name
            if settings.get(name) and (settings.get(f"{name}_kwargs") or {}).get("use_reentrant"):
                raise ValueError(REENTRANT)

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

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Within the block the base trainer counts on copies: its measures are those of the clean pass alone."""
        before = dict(vars(self))
        copies = {name: _copied(value) for name, value in before.items() if _is_count(value) and "dataset" not in name}
        vars(self).update(copies)
        try:
            yield
        finally:
            vars(self).update({name: before[name] for name in copies})

    # R

    def _regularize(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        arguments: Mapping[str, Any],
        forward: ObservedForward | None,
        batch: int,
    ) -> Tensor:
        counted = forward is not None  # else the base trainer counts what is in the first perturbed pass

        def with_loss(inner: nn.Module, _: Mapping[str, Any]) -> LabeledOutput:
            nonlocal counted
            with self._uncounted() if counted else nullcontext():
                output = self._with_loss(inner, inputs)
            counted = True
            return output

        def without_labels(inner: nn.Module, _: Mapping[str, Any]) -> Any:
            assert forward is not None
            return self._without_labels(inner, forward)

        needs_labels, logits = self.regularizer.perturbation.needs_labels, None
        if forward is not None:
            logits = forward.output if needs_labels else clean_logits(model, forward)
        adv_loss = self.regularizer(
            model,
            arguments,
            logits,
            noise_seeds=self._noise_seeds(arguments, batch),
            forward=with_loss if needs_labels else without_labels,
            measure_gain=self._is_logged(),
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
        with observed_forwards(model) as forwards:
            loss = self._base_loss(model, inputs, False, items)
        forward = self._only(forwards) if torch.is_grad_enabled() else forwards[0]
        output = without_loss(forward.output) if has_logits(forward.output) else forward.states.last_hidden_state
        return LabeledOutput(output, loss / self._process_factor(items))

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
        return self.regularizer.perturbation.begun(self.state.global_step, self.state.max_steps)

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

    def _weight(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        arguments: Mapping[str, Any],
        forward: ObservedForward | None,
        items: Tensor | int | None,
    ) -> Any:
        """What the mean loss of this batch is multiplied by, besides Trainer's division by the accumulation steps."""
        if items is None:
            scaled = getattr(self, "loss_is_scaled_for_ga", None)
            return self._share_of_a_mean(items) if scaled else 1.0
        if self._normalizes is None:
            self._normalizes = self._normalizes_by_items(model, inputs, forward, items)
        share = self._labels_in(model, arguments) / items if self._normalizes else 1.0
        return share * self._process_factor(items)

    def _share_of_a_mean(self, items: Tensor | int | None) -> float:
        """What a mean over this batch is multiplied by to be one over the update's batches once Trainer has divided."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        steps = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
        return 1.0 / steps if scaled else 1.0

    def _process_factor(self, items: Tensor | int | None) -> int:
        scaled = self.args.average_tokens_across_devices and items is not None
        return self.accelerator.num_processes if scaled else 1

    @torch.no_grad()
    def _normalizes_by_items(
        self, model: nn.Module, inputs: Mapping[str, Any], forward: ObservedForward | None, items: Any
    ) -> bool | None:
        """Whether the task loss is divided by the number of items it is given; None where this batch cannot tell.

        The loss is computed for two numbers, from what the encoder gave in the clean pass where that was seen.
        """
        seen = forward is not None and forward.states is not None
        inner, losses = unwrapped(model), []
        for number in (items, 2 * items):
            with (
                self._uncounted(),
                forked_dropout(token_mask(inputs).device, self.args.seed),
                replayed(inner, forward) if seen and forward is not None else nullcontext(),
            ):
                losses.append(self._base_loss(inner, inputs, False, number))
        one, half = losses
        return None if one == 0 or not one.isfinite() else bool(half.abs() < 0.75 * one.abs())

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
        if "counted" in read:
            return read["counted"].sum()
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


def _unreached(kind: type) -> str:
    return (
        f"{kind.__name__}: its compute_loss does not call AdversarialMixin's, so that no R is added; accepted: "
        "super().compute_loss(...) in it, or its class after the mixin: class Mine(AdversarialMixin, Base)"
    )


def _is_count(value: Any) -> bool:
    """Whether it is numbers, texts and tensors, or containers of such."""
    if isinstance(value, dict):
        return all(map(_is_count, value.values()))
    if isinstance(value, (list, tuple, set, deque)):
        return all(map(_is_count, value))
    return value is None or isinstance(value, (int, float, str, Tensor))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    new = copy.copy(value)
    if isinstance(value, dict):
        new.update({name: _copied(part) for name, part in value.items()})
    elif isinstance(value, (list, deque)):
        for place, part in enumerate(value):
            new[place] = _copied(part)
    return new
