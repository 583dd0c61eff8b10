"""A method bound to a model that is called on a dictionary of tensors: for loops other than this project's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .injection import NoiseInjection, find_encoder
from .method import Method, Regularization
from .noise import default_generator, example_seeds
from .outputs import TOKENS, TaskLoss, logits_of, view_of
from .reading import PACKED, counted_tokens, is_packed, token_mask, view_of_labels, view_of_output
from .wrappers import (
    came_by_fabric,
    check_wrappers,
    in_fabric,
    is_compiled,
    never_compiled,
    run_as_wrapped,
    uncompiled,
    unwrapped,
)

Forward = Callable[[nn.Module, Mapping[str, Any]], Any]


class CleanPass(NamedTuple):
    """What the perturbed passes take over from a clean one.

    dropout_state: the generator's state before it, or before all of the block where R is computed by a loss; words: h,
    the tensor at the injection point, of every forward with gradients, (batch, tokens, hidden).
    """

    dropout_state: Tensor
    words: list[Tensor]


class ModelRegularizer:
    """R of a batch in any training loop; made by `AdversarialPerturbation.for_model`.

    Noise and dropout of the perturbed passes come from seeds of their own: the generator of the clean passes is not
    moved, so that a plain run and a regularized one of the same seed see the same dropout there. Wrappers of the model
    (DistributedDataParallel, torch.compile, Fabric) and adapters are seen through; of a compiled model the perturbed
    passes run uncompiled.

    Args:
        perturbation: the method.
        model: a model of transformers, or any module that holds an encoder with `get_input_embeddings()`.
        task_type: how logits are viewed as distributions, a name in `outputs.VIEWS` or a `TaskType` of MT-DNN's; None:
            as the model's class, its configuration and the labels of a batch say.
        pairwise: rows a group, for ranking.
        forward: runs the model on a batch and returns logits or an output of transformers; None: `model(**batch)`.
        task_loss: ℓ of what `forward` returns, for methods that need labels; None: its `.loss`.

    Attributes:
        alpha: the measured weight of R for this method and level.
        calls: how many batches have taken their noise from the regularizer's own seeds; set it to go on with a run.
        last: what the last call found.
        read: how the last call's logits were read, as `view` gives it.

    Raises:
        UnsupportedLevelError: the encoder has no injection point of the method's level.
        ValueError: perturbed passes would not give their gradients in this model (`check_wrappers`).

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
    ):
        if isinstance(perturbation, type):
            raise ValueError(f"{perturbation.__name__} is a class; accepted: {perturbation.__name__}.with_defaults()")
        NoiseInjection(find_encoder(unwrapped(model)), perturbation.level)
        check_wrappers(model, several_graphs=perturbation.replaces_task_loss and perturbation.k > 1)
        self.perturbation = perturbation
        self.task_type = None if task_type is None else view_of(task_type)
        self.pairwise = pairwise
        self.forward = forward or _call
        self.task_loss = task_loss or _own_loss
        self.alpha: float = perturbation.measured_alpha
        self.calls = 0
        self.last: Regularization | None = None
        self.read: dict[str, Any] = {}
        self._seed = torch.initial_seed()
        self._clean: CleanPass | None = None
        self._checked: nn.Module | None = None
        self._known: str | None = None

    @never_compiled
    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        logits: Any,
        *,
        noise_seeds: Sequence[int] | None = None,
        forward: Forward | None = None,
        measure_gain: bool = False,
    ) -> Tensor:
        """R, a scalar with gradient.

        Args:
            model: the model as the loop calls it, wrapped or not. The perturbed passes run on the model inside, in the
                precision of its wrapper; those that replace the clean pass run the wrapper.
            batch: the model's arguments, `input_ids` (batch, tokens) and `attention_mask` among them.
            logits: the clean pass on this batch: logits, a tuple of them, or an output of transformers. None where
                the method needs no clean pass and the loop runs none.
            noise_seeds: one seed a row of the mask (`noise.example_seeds`); None: by torch's seed when the regularizer
                was made, the number of calls, the process and the row.
            forward: another than the regularizer's own, for this batch.
            measure_gain: measure the ascent gain too, at the cost of three forwards.

        Raises:
            ValueError: the method needs logits with a gradient, or a clean pass within `clean`, and was given none; it
                climbs, and gradients are switched off; it is not known how the logits are read; its norms are of
                sentences, and rows of the batch hold several.
        """
        method = self.perturbation
        self._check_model(model)
        clean, self._clean = self._clean, None
        self._check_clean(clean, model, logits)
        mask = token_mask(batch)
        if method.scope == "sentence" and is_packed(batch):
            raise ValueError(PACKED)
        if method.level == "pre_ln" and batch.get("input_ids") is None and batch.get("inputs_embeds") is not None:
            raise ValueError(
                "inputs_embeds skip the words, where the noise of level 'pre_ln' enters; accepted: input_ids"
            )
        self.read = self.view(model, batch, logits)
        injection = NoiseInjection(find_encoder(unwrapped(model)), method.level)
        with uncompiled(model, injection.module):
            found = method.regularize(
                self._evaluation(model, batch, logits, forward or self.forward),
                injection,
                logits,
                mask,
                **self.read,
                noise_seeds=self._next_seeds(len(mask)) if noise_seeds is None else noise_seeds,
                dropout_state=None if clean is None else clean.dropout_state,
                base=clean.words[0] if clean is not None and len(clean.words) == 1 else None,
                task_loss=self.task_loss,
                measure_gain=measure_gain,
                verify=self.last is None and method.needs_clean,
            )
        self.last = found
        return found.loss

    def _evaluation(
        self, model: nn.Module, batch: Mapping[str, Any], logits: Any, forward: Forward
    ) -> Callable[[], Any]:
        """The forward of the perturbed passes.

        A wrapper synchronizes gradients by its forward. So where no clean pass does, R's own passes run the wrapper.
        """
        method, inner, passes = self.perturbation, unwrapped(model), 0

        def evaluate() -> Any:
            nonlocal passes
            passes += 1
            if method.replaces_task_loss or (logits is None and passes == method.ascent_steps + 1):
                return forward(model, batch)
            output = run_as_wrapped(model, partial(forward, inner), batch)
            if method.needs_clean:
                _check_precision(output, logits)
            return output

        return evaluate

    @contextmanager
    def clean(self, model: nn.Module) -> Iterator[None]:
        """The block for the clean pass of a batch: needed at level `deberta`, with `same_dropout`, and where the model
        draws noise of its own at its words (NEFTune), which the perturbed passes then share; optional elsewhere."""
        state = default_generator(next(model.parameters()).device).get_state()
        self._clean = CleanPass(state, [])
        injection = NoiseInjection(find_encoder(unwrapped(model)), self.perturbation.level)
        if is_compiled(model, injection.module) and not self._needs_block(model):
            yield
            return
        with (
            uncompiled(model, injection.module),
            injection.clean() as words,
            _dropout_states(unwrapped(model)) as states,
        ):
            yield
        one_pass = self.perturbation.needs_clean and len(states) == 1
        self._clean = CleanPass(states[0] if one_pass else state, words)

    def view(self, model: nn.Module, batch: Mapping[str, Any], logits: Any) -> dict[str, Any]:
        """How the logits of a batch are compared: `task_type`, `pairwise` and `counted` of a `Comparison`.

        A batch without labels, such as unlabeled data, is read as the labeled ones before it.

        Raises:
            ValueError: it is not known.
        """
        method, view = self.perturbation, self.task_type
        if view is None:
            try:
                view = self._known = (
                    view_of_output(model, batch, logits) if method.needs_clean else view_of_labels(model, batch)
                )
            except ValueError:
                if self._known is None or batch.get("labels") is not None:
                    raise
                view = self._known
        options: dict[str, Any] = {"task_type": view, "pairwise": self.pairwise}
        # The loss of a label a token is a mean over the labels, which some real tokens lack.
        if view in TOKENS and (view != "tokens" or method.needs_labels):
            options["counted"] = counted_tokens(model, batch, view)
        return options

    def _check_model(self, model: nn.Module) -> None:
        """See once that this model, wrapped or changed since the regularizer was made, gives its gradients."""
        if self._checked is not model:
            method = self.perturbation
            check_wrappers(model, several_graphs=method.replaces_task_loss and method.k > 1)
            self._checked = model

    def _check_clean(self, clean: CleanPass | None, model: nn.Module, logits: Any) -> None:
        method = self.perturbation
        if method.ascent_steps and not torch.is_grad_enabled():
            raise ValueError(f"{method.name} searches by gradients: call it within `with torch.enable_grad():`")
        if method.needs_clean and logits is None:
            raise ValueError(f"{method.name} compares with the clean pass: give its logits")
        if method.needs_clean and any(map(came_by_fabric, logits_of(logits))) and not in_fabric(model):
            raise ValueError("the clean logits are Fabric's; accepted: the model as fabric.setup returned it")
        reason = self._needs_block(model)
        if reason and clean is None:
            raise ValueError(f"{reason}: run the clean pass of each batch within `with regularizer.clean(model):`")
        if method.learns_from_clean and not _has_gradient(logits) and _learns(model):
            raise ValueError(
                f"the clean logits have no gradient, and half of {method.name}'s would be lost; accepted: those of the "
                "forward that gives the loss, not of one under no_grad"
            )

    def _needs_block(self, model: nn.Module) -> str | None:
        """Why the clean pass has to run within `clean`; None where it need not."""
        method = self.perturbation
        if method.replaces_task_loss:
            return None
        if method.level == "deberta":
            return f"level {method.level!r}"
        if method.same_dropout:
            return "same_dropout"
        drawn = any("neftune_noise_alpha" in vars(module) for module in model.modules())
        return "NEFTune draws noise in every forward" if drawn and method.needs_clean else None

    def _next_seeds(self, rows: int) -> list[int]:
        seeds = example_seeds(self._seed, self.calls, [f"{_process()}/{row}" for row in range(rows)])
        self.calls += 1
        return seeds


@contextmanager
def _dropout_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, the generator's states before the model's forwards, without those under `no_grad` where it is
    entered with gradients."""
    generator, enabled = default_generator(next(model.parameters()).device), torch.is_grad_enabled()
    states: list[Tensor] = []

    def keep(*_: Any) -> None:
        if torch.is_grad_enabled() == enabled:
            states.append(generator.get_state())

    handle = model.register_forward_pre_hook(keep)
    try:
        yield states
    finally:
        handle.remove()


def _check_precision(perturbed: Any, clean: Any) -> None:
    """See that the passes do not differ by what is rounded alone.

    Raises:
        ValueError: the clean pass ran in half precision and the perturbed one does not.
    """
    for one, other in zip(logits_of(perturbed), logits_of(clean), strict=False):
        if other.dtype in (torch.float16, torch.bfloat16) and one.dtype != other.dtype:
            raise ValueError(
                f"the clean logits are {other.dtype}, the perturbed ones {one.dtype}; accepted: the clean pass and the "
                "regularizer within the same `with torch.autocast(...):`"
            )


def _learns(model: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in model.parameters())


def _has_gradient(logits: Any) -> bool:
    return any(part.requires_grad for part in logits_of(logits) if isinstance(part, Tensor))


def _process() -> int:
    """The number of this process among those that train together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if distributed else 0


def _call(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    return model(**batch)


def _own_loss(output: Any) -> Tensor:
    loss = getattr(output, "loss", None)
    if loss is None:
        raise ValueError("this method needs labels: give labels in the batch, or task_loss, the loss of an output")
    return loss
