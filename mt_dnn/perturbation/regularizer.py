"""A method bound to a model, for training loops other than this project's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .injection import NoiseInjection, find_encoder
from .levels import has_layers, levels_of
from .method import Method, Regularization, check_ascent_loss
from .noise import default_generator, example_seeds
from .outputs import TOKENS, TaskLoss, logits_of, view_of
from .places import bases_of_one_pass, clean_pass, find_places
from .reading import PACKED, is_packed, loss_mask_of, token_mask, view_of_labels, view_of_output
from .wrappers import (
    check_wrappers,
    has_fabric_wrapper,
    is_compiled,
    is_fabric_output,
    never_compiled,
    run_in_wrapper_precision,
    uncompiled,
    unwrapped,
)

Forward = Callable[[nn.Module, Mapping[str, Any]], Any]


class CleanPass(NamedTuple):
    """What the perturbed passes reuse of a clean pass.

    Attributes:
        dropout_state: the generator's state before the pass; before the entire block if R is computed from a loss.
        bases: h at each place, (batch, tokens, hidden), if the block had one forward with gradients.
    """

    dropout_state: Tensor
    bases: Sequence[Tensor] | None


class ModelRegularizer:
    """R of a batch in any training loop; `AdversarialPerturbation.for_model` makes it.

    Noise and dropout of the perturbed passes have their own seeds and do not advance torch's generator, so that a plain
    and a regularized run with the same seed have the same dropout in the clean passes. The model may be wrapped
    (DistributedDataParallel, torch.compile, Fabric) or have adapters; the perturbed passes of a compiled model run
    uncompiled.

    Args:
        perturbation: the method.
        model: a model of transformers, or any module that contains an encoder with `get_input_embeddings()`.
        task_type: how logits are read as distributions, a key of `outputs.VIEWS` or a `TaskType` of MT-DNN; by default
            the model's class, its configuration and the labels of a batch determine it.
        pairwise: rows per group, for ranking.
        forward: runs the model on a batch and returns logits or an output of transformers; by default `model(**batch)`.
        task_loss: ℓ of what `forward` returns, for methods that need labels; by default its `.loss`.
        ascent_loss: what the ascent of `AdversarialTraining` climbs instead, of what `forward` returns; its scale
            matters only without the projection `project`.

    Attributes:
        alpha: the measured weight of R for this method and level.
        calls: the number of batches whose noise seeds the regularizer chose; set it to resume a run.
        last: the result of the last call.
        read: how the last call's logits were read, see `view`.

    Raises:
        UnsupportedLevelError: the encoder has no injection point at the method's level.
        ValueError: perturbed passes through this model would not produce gradients (`check_wrappers`); or
            `ascent_loss` with a method that has no ascent on another loss.

    Examples:
        >>> regularizer = SiftPerturbation.for_model(model, radius=0.03)
        >>> output = model(**batch)
        >>> loss = output.loss + regularizer.alpha * regularizer(model, batch, output.logits)
    """

    def __init__(
        self,
        perturbation: Method,
        model: nn.Module,
        *,
        task_type: Any = None,
        pairwise: int | Sequence[int] = 1,
        forward: Forward | None = None,
        task_loss: TaskLoss | None = None,
        ascent_loss: TaskLoss | None = None,
    ):
        if isinstance(perturbation, type):
            raise ValueError(f"{perturbation.__name__} is a class; accepted: {perturbation.__name__}.with_defaults()")
        find_places(find_encoder(unwrapped(model)), perturbation.level)
        check_ascent_loss(perturbation, ascent_loss)
        check_wrappers(model, several_graphs=perturbation.replaces_task_loss and perturbation.k > 1)
        self.perturbation = perturbation
        self.task_type = None if task_type is None else view_of(task_type)
        self.pairwise = pairwise
        self.forward = forward or _call_model
        self.task_loss = task_loss or _loss_of
        self.ascent_loss = ascent_loss
        self.alpha: float = perturbation.measured_alpha
        self.calls = 0
        self.last: Regularization | None = None
        self.read: dict[str, Any] = {}
        self._seed = torch.initial_seed()
        self._clean: CleanPass | None = None
        self._in_clean_block = False
        self._checked_model: nn.Module | None = None
        self._last_view: str | None = None

    @never_compiled
    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        logits: Any,
        *,
        noise_seeds: Sequence[int] | None = None,
        forward: Forward | None = None,
        task_loss: TaskLoss | None = None,
        ascent_loss: TaskLoss | None = None,
        noise_mask: Tensor | None = None,
        measure_gain: bool = False,
    ) -> Tensor:
        """R, a scalar with gradient.

        Args:
            model: the model as the loop calls it, wrapped or not. The perturbed passes run on the model inside, in the
                precision of its wrapper; passes that replace the clean pass run the wrapper.
            batch: the model's arguments, with `input_ids` (batch, tokens) and `attention_mask`.
            logits: the clean pass on this batch: logits, a tuple of them, or an output of transformers. None if the
                method needs no clean pass and the loop runs none.
            noise_seeds: one seed per row of δ (`noise.example_seeds`); by default a function of torch's seed at
                the time the regularizer was made, the number of calls, the process and the row.
            forward, task_loss, ascent_loss: replace the regularizer's for this batch.
            noise_mask: (rows, tokens), 1 at the tokens that get noise, such as those of a prompt; by default all real
                tokens. If the batch has n times as many rows, its rows i, i + rows, … share a δ: prompts, for example,
                each with a safe answer, then all with a harmful one, as TRL's preference data is.
            measure_gain: measure the ascent gain too, at the cost of three forwards.

        Raises:
            ValueError: the call is within the `clean` block; the logits lack a gradient that the method needs; the
                clean pass had to run within `clean`; the method searches and gradients are switched off; it is unclear
                how the logits are read; norms are over sentences and the rows of the batch contain several texts; or
                rows that share a δ have different tokens where it lies.
        """
        method = self.perturbation
        if self._in_clean_block:
            raise ValueError("R within its own `clean` block, whose pass has not ended; accepted: after the block")
        self._check_model(model)
        clean, self._clean = self._clean, None
        self._check_clean(clean, model, logits)
        mask = token_mask(batch)
        if method.scope == "sentence" and is_packed(batch):
            raise ValueError(PACKED)
        skips_words = batch.get("input_ids") is None and batch.get("inputs_embeds") is not None
        if skips_words and "pre_ln" in levels_of(method.level):
            raise ValueError(
                "inputs_embeds skip the words, where the noise of level 'pre_ln' enters; accepted: input_ids"
            )
        check_ascent_loss(method, ascent_loss)
        if noise_mask is not None:
            _check_shared_tokens(noise_mask, batch.get("input_ids"))
        self.read = self.view(model, batch, logits)
        rows = len(mask if noise_mask is None else noise_mask)
        places = self._places(model)
        with uncompiled(model, *(place.module for place in places)):
            result = method.regularize(
                self._evaluation(model, batch, logits, forward or self.forward),
                places,
                logits,
                mask,
                **self.read,
                noise_seeds=self._next_seeds(rows) if noise_seeds is None else noise_seeds,
                dropout_state=None if clean is None else clean.dropout_state,
                base=None if clean is None else clean.bases,
                task_loss=task_loss or self.task_loss,
                ascent_loss=ascent_loss or self.ascent_loss,
                noise_mask=noise_mask,
                measure_gain=measure_gain,
                check_base=self.last is None and method.needs_clean,
            )
        self.last = result
        return result.loss

    def _evaluation(
        self, model: nn.Module, batch: Mapping[str, Any], logits: Any, forward: Forward
    ) -> Callable[[], Any]:
        """The forward of the perturbed passes.

        A wrapper synchronizes gradients in its forward; if no clean pass runs it, the passes that give R do.
        """
        method, inner, passes = self.perturbation, unwrapped(model), 0

        def evaluate() -> Any:
            nonlocal passes
            passes += 1
            if method.replaces_task_loss or (logits is None and passes == method.ascent_steps + 1):
                return forward(model, batch)
            output = run_in_wrapper_precision(model, partial(forward, inner), batch)
            if method.needs_clean:
                _check_precision(output, logits)
            return output

        return evaluate

    @contextmanager
    def clean(self, model: nn.Module) -> Iterator[None]:
        """The block in which the clean pass of a batch runs.

        Needed at the levels `deberta` and `hidden:N`, at several places, with `same_dropout`, and if the model itself
        draws noise at its words (NEFTune). The perturbed passes then share h with the clean pass, and so that noise, or
        the dropout of the layers up to N. Optional otherwise.
        """
        state = default_generator(next(model.parameters()).device).get_state()
        self._clean = CleanPass(state, None)
        self._in_clean_block = True
        try:
            places = self._places(model)
            points = [place.module for place in places]
            if is_compiled(model, *points) and len(places) == 1 and not self._needs_block(model):
                yield
                return
            with (
                uncompiled(model, *points),
                clean_pass(places) as recorded,
                _dropout_states(unwrapped(model)) as states,
            ):
                yield
        except BaseException:
            self.forget_clean()
            raise
        finally:
            self._in_clean_block = False
        one_pass = self.perturbation.needs_clean and len(states) == 1
        self._clean = CleanPass(states[0] if one_pass else state, bases_of_one_pass(recorded))

    def forget_clean(self) -> None:
        """Forget the last clean pass, if no R of its batch follows; R of another batch would start from it."""
        self._clean = None

    def view(self, model: nn.Module, batch: Mapping[str, Any], logits: Any) -> dict[str, Any]:
        """How the logits of a batch are read: `task_type`, `pairwise` and `loss_mask` of a `Comparison`.

        A batch without labels, such as unlabeled data, is read as the labeled batches before it.

        Raises:
            ValueError: it is unclear.
        """
        method, view = self.perturbation, self.task_type
        if view is None:
            try:
                view = self._last_view = (
                    view_of_output(model, batch, logits) if method.needs_clean else view_of_labels(model, batch)
                )
            except ValueError:
                if self._last_view is None or batch.get("labels") is not None:
                    raise
                view = self._last_view
        options: dict[str, Any] = {"task_type": view, "pairwise": self.pairwise}
        # For "tokens" R is over all real tokens; a loss on labels is over the tokens that have one.
        if view in TOKENS and (view != "tokens" or method.needs_labels):
            options["loss_mask"] = loss_mask_of(model, batch, view)
        return options

    def _places(self, model: nn.Module) -> tuple[NoiseInjection, ...]:
        """The injection points of the model's encoder."""
        return find_places(find_encoder(unwrapped(model)), self.perturbation.level)

    def _check_model(self, model: nn.Module) -> None:
        """Check the wrappers of a model that the regularizer has not seen yet."""
        if self._checked_model is not model:
            method = self.perturbation
            check_wrappers(model, several_graphs=method.replaces_task_loss and method.k > 1)
            self._checked_model = model

    def _check_clean(self, clean: CleanPass | None, model: nn.Module, logits: Any) -> None:
        method = self.perturbation
        if method.ascent_steps and not torch.is_grad_enabled():
            raise ValueError(f"{method.name} searches by gradients: call it within `with torch.enable_grad():`")
        if method.needs_clean and logits is None:
            raise ValueError(f"{method.name} compares with the clean pass: give its logits")
        if method.needs_clean and any(map(is_fabric_output, logits_of(logits))) and not has_fabric_wrapper(model):
            raise ValueError("the clean logits are Fabric's; accepted: the model as fabric.setup returned it")
        reason = self._needs_block(model)
        if reason and clean is None:
            raise ValueError(f"{reason}: run the clean pass of each batch within `with regularizer.clean(model):`")
        if method.learns_from_clean and not _has_gradient(logits) and _is_training(model):
            raise ValueError(
                f"the clean logits have no gradient, and half of {method.name}'s would be lost; accepted: logits of "
                "the forward that gives the loss, not of a forward under no_grad"
            )

    def _needs_block(self, model: nn.Module) -> str | None:
        """Why the clean pass has to run within `clean`; None if it does not have to."""
        method = self.perturbation
        if method.replaces_task_loss:
            return None
        levels = levels_of(method.level)
        if "deberta" in levels or (method.needs_clean and (len(levels) > 1 or has_layers(method.level))):
            return f"level {method.level!r}"
        if method.same_dropout:
            return "same_dropout"
        neftune = any("neftune_noise_alpha" in vars(module) for module in model.modules())
        return "NEFTune draws noise in every forward" if neftune and method.needs_clean else None

    def _next_seeds(self, rows: int) -> list[int]:
        seeds = example_seeds(self._seed, self.calls, [f"{_process()}/{row}" for row in range(rows)])
        self.calls += 1
        return seeds


@contextmanager
def _dropout_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yields the generator's states before the model's forwards in this block.

    If gradients are enabled at entry, forwards under `no_grad` are left out.
    """
    generator, enabled = default_generator(next(model.parameters()).device), torch.is_grad_enabled()
    states: list[Tensor] = []

    def record(*_: Any) -> None:
        if torch.is_grad_enabled() == enabled:
            states.append(generator.get_state())

    handle = model.register_forward_pre_hook(record)
    try:
        yield states
    finally:
        handle.remove()


def _check_shared_tokens(noise_mask: Tensor, ids: Tensor | None) -> None:
    """Check that rows which share a δ have the same tokens where it lies; with padding on the left they may not.

    Args:
        noise_mask: (rows, tokens).
        ids: `input_ids`, (n · rows, tokens); other shapes are refused by the search.

    Raises:
        ValueError: they do not.
    """
    rows = len(noise_mask)
    if ids is None or noise_mask.shape[1:] != ids.shape[1:] or rows in (0, len(ids)) or len(ids) % rows:
        return
    copies = ids.view(-1, *noise_mask.shape)
    if bool(((copies != copies[0]) & (noise_mask != 0)).any()):
        raise ValueError(
            "noise_mask: rows that share a δ have different tokens there; accepted: the same tokens at the same "
            "places, as prompts have with padding on the right"
        )


def _check_precision(perturbed: Any, clean: Any) -> None:
    """Check that clean and perturbed passes have the same precision, so that rounding is no part of R.

    Raises:
        ValueError: the clean pass ran in half precision and the perturbed one did not.
    """
    for one, other in zip(logits_of(perturbed), logits_of(clean), strict=False):
        if other.dtype in (torch.float16, torch.bfloat16) and one.dtype != other.dtype:
            raise ValueError(
                f"the clean logits are {other.dtype}, the perturbed ones {one.dtype}; accepted: the clean pass and the "
                "regularizer within the same `with torch.autocast(...):`"
            )


def _is_training(model: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in model.parameters())


def _has_gradient(logits: Any) -> bool:
    return any(part.requires_grad for part in logits_of(logits) if isinstance(part, Tensor))


def _process() -> int:
    """The rank of this process; 0 without torch.distributed."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if distributed else 0


def _call_model(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    return model(**batch)


def _loss_of(output: Any) -> Tensor:
    loss = getattr(output, "loss", None)
    if loss is None:
        raise ValueError("this method needs labels: give labels in the batch, or task_loss, the loss of an output")
    return loss
