"""A method bound to a model that is called on a dictionary of tensors: for loops other than this project's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .injection import NoiseInjection, find_encoder
from .noise import default_generator, example_seeds
from .outputs import TaskLoss, logits_of, view_of

if TYPE_CHECKING:
    from .base import AdversarialPerturbation, Regularization

IGNORED_LABEL = -100  # transformers' mark of tokens without a label
# In the class names of models whose logits are for the token that comes next.
NEXT_TOKEN_MODELS = ("CausalLM", "LMHead", "ConditionalGeneration")

Forward = Callable[[nn.Module, Mapping[str, Any]], Any]


class ModelRegularizer:
    """R of a batch in any training loop; made by `AdversarialPerturbation.for_model`.

    Noise and dropout of the perturbed passes come from seeds of their own: the generator of the clean passes is not
    moved, so that a plain run and a regularized one of the same seed see the same dropout there.

    Args:
        perturbation: the method.
        model: a model of transformers, or any module that holds an encoder with `get_input_embeddings()`.
        task_type: how logits are viewed as distributions; None: as the model's class and configuration say.
        pairwise: rows a group, for ranking.
        forward: runs the model on a batch and returns logits or an output of transformers; None: `model(**batch)`.
        task_loss: ℓ of what `forward` returns, for methods that need labels; None: its `.loss`.

    Attributes:
        alpha: the measured weight of R for this method and level.
        calls: how many batches have taken their noise from the regularizer's own seeds; set it to go on with a run.
        last: what the last call found.

    Raises:
        UnsupportedLevelError: the encoder has no injection point of the method's level.
        ValueError: the model gives each example several labels, which are no distribution.

    Examples:
        >>> regularizer = SiftPerturbation.for_model(model, radius=0.03)
        >>> output = model(**batch)
        >>> loss = output.loss + regularizer.alpha * regularizer(model, batch, output.logits)
    """

    def __init__(
        self,
        perturbation: AdversarialPerturbation,
        model: nn.Module,
        *,
        task_type: Any = None,
        pairwise: int | Sequence[int] = 1,
        forward: Forward | None = None,
        task_loss: TaskLoss | None = None,
    ):
        NoiseInjection(find_encoder(model), perturbation.level)
        if perturbation.needs_clean and task_type is None:
            _refuse_several_labels(_innermost(model))
        self.perturbation = perturbation
        self.task_type = None if task_type is None else view_of(task_type)
        self.pairwise = pairwise
        self.forward = forward or _call
        self.task_loss = task_loss or _own_loss
        self.alpha: float = perturbation.measured_alpha
        self.calls = 0
        self.last: Regularization | None = None
        self._seed = torch.initial_seed()
        self._clean_state: Tensor | None = None

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Any], logits: Any, *, noise_seeds: Sequence[int] | None = None
    ) -> Tensor:
        """R, a scalar with gradient.

        Args:
            model: the model, wrapped for several processes or not; the perturbed passes run on the model inside,
                except where they stand in the place of the clean pass (FreeLB).
            batch: the model's arguments, `input_ids` (batch, tokens) and `attention_mask` among them.
            logits: the clean pass on this batch: logits, a tuple of them, or an output of transformers. None where
                the method needs no clean pass.
            noise_seeds: one seed a row of the mask (`noise.example_seeds`); None: by torch's seed when the regularizer
                was made, the number of calls, the process and the row.

        Raises:
            ValueError: the method needs logits, or a clean pass within `clean`, and was given none; it climbs, and
                gradients are switched off.
        """
        perturbation = self.perturbation
        if perturbation.ascent_steps and not torch.is_grad_enabled():
            raise ValueError(f"{perturbation.name} searches by gradients: call it within `with torch.enable_grad():`")
        if perturbation.needs_clean and logits is None:
            raise ValueError(f"{perturbation.name} compares with the clean pass: give its logits")
        clean_state, self._clean_state = self._clean_state, None
        if clean_state is None and self._needs_block:
            where = "same_dropout" if perturbation.same_dropout else f"level {perturbation.level!r}"
            raise ValueError(f"{where}: run the clean pass of each batch within `with regularizer.clean(model):`")
        # A wrapper synchronizes gradients by its forward: where there is no clean pass, by that of the perturbed ones.
        inner = model if perturbation.replaces_task_loss else unwrapped(model)
        mask = token_mask(batch)
        found = perturbation.regularize(
            lambda: self.forward(inner, batch),
            find_encoder(inner),
            logits,
            mask,
            **self._view(inner, batch, logits),
            noise_seeds=self._next_seeds(len(mask)) if noise_seeds is None else noise_seeds,
            dropout_state=clean_state,
            task_loss=self.task_loss,
        )
        self.last = found
        return found.loss

    @contextmanager
    def clean(self, model: nn.Module) -> Iterator[None]:
        """The clean pass belongs in this block at level `deberta` and with `same_dropout`; it is optional elsewhere."""
        self._clean_state = default_generator(next(model.parameters()).device).get_state()
        with NoiseInjection(find_encoder(unwrapped(model)), self.perturbation.level).clean():
            yield

    @property
    def _needs_block(self) -> bool:
        method = self.perturbation
        return not method.replaces_task_loss and (method.level == "deberta" or method.same_dropout)

    def _next_seeds(self, rows: int) -> list[int]:
        seeds = example_seeds(self._seed, self.calls, [f"{_process()}/{row}" for row in range(rows)])
        self.calls += 1
        return seeds

    def _view(self, model: nn.Module, batch: Mapping[str, Any], logits: Any) -> dict[str, Any]:
        method, task_type = self.perturbation, self.task_type
        if task_type is None:
            task_type = task_type_of(model, logits) if method.needs_clean else _type_of_labels(model, batch)
        view: dict[str, Any] = {"task_type": task_type, "pairwise": self.pairwise}
        # The loss of a label a token is a mean over the labels, which some real tokens lack.
        by_label = method.needs_labels and task_type == "tokens"
        if by_label or task_type in ("next_tokens", "masked_tokens"):
            view["counted"] = _counted(batch, shifted=task_type == "next_tokens")
        return view


def task_type_of(model: nn.Module, output: Any) -> str:
    """The task type of a model of transformers, by its output's shape, its configuration and its class.

    Raises:
        ValueError: several labels an example, which are no distribution; an output that is no logits.
    """
    inner = _innermost(model)
    logits = logits_of(output)
    if any(part.dim() < 2 for part in logits):
        raise ValueError("a number among the logits: a forward's tuple begins with its loss, give what comes after it")
    if len(logits) == 2:
        return "spans"
    if logits[0].dim() == 3:
        return _type_over_tokens(inner)
    _refuse_several_labels(inner)
    problem = getattr(getattr(inner, "config", None), "problem_type", None)
    return "numbers" if problem == "regression" or logits[0].size(-1) == 1 else "classes"


def _type_over_tokens(inner: nn.Module) -> str:
    names = " ".join(kind.__name__ for kind in type(inner).__mro__)
    if any(mark in names for mark in NEXT_TOKEN_MODELS):
        return "next_tokens"
    return "masked_tokens" if "MaskedLM" in names else "tokens"


def _type_of_labels(model: nn.Module, batch: Mapping[str, Any]) -> str:
    """The task type where there is no clean pass to tell it: whether each token has a class as label."""
    labels, ids = batch.get("labels"), batch.get("input_ids")
    if labels is None or ids is None or labels.shape != ids.shape or labels.is_floating_point():
        return "classes"
    return _type_over_tokens(_innermost(model))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a wrapper for several devices or processes."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return unwrapped(model.module) if isinstance(model, wrappers) else model


def token_mask(batch: Mapping[str, Any]) -> Tensor:
    """(rows, tokens): 1 at real tokens; the choices of an example, where it has several, are rows of their own."""
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    return mask.reshape(-1, mask.size(-1))


def _counted(batch: Mapping[str, Any], shifted: bool) -> Tensor:
    """The tokens whose distribution counts: those with a label, where logits come one token earlier if `shifted`."""
    labels = batch.get("labels")
    real = token_mask(batch) != 0
    counted = real if labels is None else labels != IGNORED_LABEL
    if not shifted:
        return counted
    following = torch.zeros_like(counted)
    following[:, :-1] = counted[:, 1:]
    return following & real if labels is None else following


def _innermost(model: nn.Module) -> nn.Module:
    """The model of transformers inside wrappers and adapters (PEFT)."""
    inner: Any = unwrapped(model)
    while hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return inner


def _refuse_several_labels(model: Any) -> None:
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem == "multi_label_classification":
        accepted = "single_label_classification, regression"
        raise ValueError(f"{type(model).__name__}: no divergence for {problem}; accepted: {accepted}")


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
