"""Outputs of a model read as distributions, and the comparison of perturbed with clean ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ball import is_finite
from .chunks import LogitRows, Rows, as_tensor, mean_in_chunks, selected_rows
from .divergences import (
    PADDING_LOGIT,
    MseCriterion,
    SymKlCriterion,
    at_least_single,
    grouped,
    is_mean_over_rows,
    over_labels,
)

Divergence = Callable[..., Tensor]
TaskLoss = Callable[[Any], Tensor]

# How logits are read as distributions ("view"), and the task types that are read this way.
VIEWS = {
    "classes": ("Classification",),
    "labels": ("MultiLabel",),
    "numbers": ("Regression",),
    "groups": ("Ranking",),
    "spans": ("SpanClassification", "SpanClassificationYN"),
    "tokens": ("SeqenceLabeling",),
    "masked_tokens": ("MaskLM",),
    "next_tokens": ("SeqenceGeneration",),
}
# Views with one distribution per token.
TOKENS = ("tokens", "masked_tokens", "next_tokens")


def view_of(task_type: Any) -> str:
    """The view with this name, or the view of this task type (MT-DNN's `TaskType`, or an enumeration with its names).

    Raises:
        ValueError: an unknown name or task type.
    """
    name = getattr(task_type, "name", task_type)
    for view, members in VIEWS.items():
        if name == view or name in members:
            return view
    raise ValueError(f"no perturbation for {name}; accepted: {', '.join(VIEWS)}, or MT-DNN's TaskType")


def default_divergence(task_type: Any) -> Divergence:
    """The default D of a task: the symmetrized KL divergence, for numbers the squared error."""
    return MseCriterion() if view_of(task_type) == "numbers" else SymKlCriterion()


class LabeledOutput(NamedTuple):
    """An output with its loss on the gold labels, for loops that compute both at once."""

    output: Any
    loss: Tensor


def logits_of(output: Any) -> tuple[Tensor, ...]:
    """The logits in a forward's output: a tensor, a tuple of tensors (start, end), a dictionary, or an output of
    transformers.

    Raises:
        ValueError: the output has no logits.
    """
    if isinstance(output, LabeledOutput):
        return logits_of(output.output)
    if isinstance(output, Tensor):
        return (output,)
    if isinstance(output, (tuple, list)):
        return tuple(output)
    values = output if isinstance(output, Mapping) else vars(output)
    for names in (("start_logits", "end_logits"), ("logits",)):
        if all(values.get(name) is not None for name in names):
            return tuple(values[name] for name in names)
    raise ValueError(f"{type(output).__name__} holds no logits; it has: {', '.join(values)}")


class Comparison:
    """Compares the perturbed outputs of a batch with its clean outputs, or with its labels.

    Args:
        clean: f(h), the output of the clean pass; None if the method does not need it.
        mask: (batch, tokens), 1 at real tokens.
        divergence: D of the task, called as D(perturbed, clean) on logits (rows, classes), a mean over rows. If it is
            `over_columns` (`Criterion`) and rows can have padding, it is called as D(perturbed, clean, row weights).
        task_loss: ℓ(·, y) of an output, a mean over examples, groups or tokens; None for a batch without labels.
        ascent_loss: what the ascent of adversarial training climbs instead, of an output.
        task_type: how logits are read as distributions, a key of `VIEWS` or a task type.
        pairwise: rows per group for ranking, or the number of rows of each group.
        loss_mask: (batch, tokens), true at the tokens whose distributions are compared; None selects real tokens. For
            views with a distribution per token only. Outputs are (batch, tokens, classes), (batch · tokens, classes),
            or (selected tokens, classes) if the model computes only those.

    Raises:
        ValueError: a task type that has no view.
    """

    def __init__(
        self,
        clean: Any,
        mask: Tensor,
        divergence: Divergence,
        task_loss: TaskLoss | None = None,
        *,
        task_type: Any = "classes",
        pairwise: int | Sequence[int] = 1,
        loss_mask: Tensor | None = None,
        ascent_loss: TaskLoss | None = None,
    ):
        self.mask = mask
        self.divergence = divergence
        self.task_loss = task_loss
        self.ascent_loss = ascent_loss
        self.view = view_of(task_type)
        self.pairwise = pairwise
        self.loss_mask = mask.bool() if loss_mask is None else loss_mask.bool()
        self.clean: tuple[LogitRows, ...] = () if clean is None else self.rows(clean)

    def rows(self, output: Any) -> tuple[LogitRows, ...]:
        """Logits with one distribution (or one number) per row, each (rows, classes).

        Those of selected tokens over a large vocabulary are `Rows`, which `distance` takes as it takes tensors.

        Spans have two: the distributions of start and end over the tokens of an example.
        """
        logits = self._logits(output)
        if self.view == "groups":
            return tuple(grouped(part, self.pairwise) for part in logits)
        if self.view == "spans":
            return tuple(part.masked_fill(self.mask == 0, PADDING_LOGIT) for part in logits)
        if self.view in TOKENS:
            return tuple(
                p if self._has_selected_only(p) else selected_rows(p.flatten(0, 1), self._selected) for p in logits
            )
        return logits

    @cached_property
    def _selected(self) -> Tensor:
        """Indices of the tokens in `loss_mask`. Cached: `nonzero` makes the host wait for the device."""
        return self.loss_mask.flatten().nonzero().squeeze(1)

    def _logits(self, output: Any) -> tuple[Tensor, ...]:
        """The logits that are compared; for spans without the log-odds that there is an answer."""
        logits = logits_of(output)
        if self.view in TOKENS:
            return tuple(self._by_token(part) for part in logits)
        if self.view == "spans":
            return logits[:2]
        return tuple(part.unsqueeze(-1) if part.dim() == 1 and self.view != "groups" else part for part in logits)

    def _by_token(self, part: Tensor) -> Tensor:
        """Logits as (batch, tokens, classes); those of the selected tokens only stay (selected tokens, classes).

        Raises:
            ValueError: the number of tokens is another one, for example because of learned prompts.
        """
        tokens = self.loss_mask.numel()
        if part.dim() == 2 and len(part) == tokens:
            return part.reshape(*self.loss_mask.shape, -1)
        if part.shape[:2] != self.loss_mask.shape and (part.dim() != 2 or len(part) != len(self._selected)):
            found, expected = (" x ".join(map(str, shape)) for shape in (part.shape[:-1], self.loss_mask.shape))
            raise ValueError(
                f"found logits of {found} tokens; accepted: of the batch's {expected}, of these in one dimension, or "
                f"of the {len(self._selected)} that the loss is over"
            )
        return part

    def _has_selected_only(self, part: Tensor) -> bool:
        """Whether logits per token are those of the selected tokens only, (selected tokens, classes)."""
        return part.dim() == 2

    def pairs(self, output: Any) -> list[tuple[LogitRows, LogitRows]]:
        """Perturbed and clean rows: one pair, for spans two."""
        return list(zip(self.rows(output), self.clean, strict=True))

    def distance(self, first: LogitRows, second: LogitRows, divergence: Divergence | None = None) -> Tensor:
        """D of two sets of logits from `rows`, (rows, classes): a mean over rows, and padding is in no mean; 0 if there
        are no rows.

        With several labels per row (`labels`), each label is a Bernoulli distribution and D is summed over the labels.

        Args:
            divergence: replaces the batch's D.
        """
        divergence = divergence or self.divergence
        if is_mean_over_rows(divergence) and (isinstance(first, Rows) or isinstance(second, Rows)):
            return mean_in_chunks(divergence, first, second)
        first, second = as_tensor(first), as_tensor(second)
        if len(first) == 0:
            return first.sum() + second.sum()  # zero, with a gradient
        if self.view == "labels" and not isinstance(divergence, MseCriterion):
            return over_labels(divergence, first, second)
        real = self._real_columns()
        if real is None or not getattr(divergence, "over_columns", False):
            in_chunks = is_mean_over_rows(divergence)
            return mean_in_chunks(divergence, first, second) if in_chunks else divergence(first, second)
        real = real.to(first.device, at_least_single(first.dtype))
        return divergence(first, second, first.size(-1) / real)

    def _real_columns(self) -> Tensor | None:
        """The number of columns of each row without padding, (rows,): an example's tokens, a group's candidates."""
        if self.view == "spans":
            return self.mask.sum(1)
        if self.view == "groups" and not isinstance(self.pairwise, int):
            return torch.tensor(self.pairwise)
        return None

    def labeled_loss(self, output: Any) -> Tensor:
        """ℓ(f(h + δ), y), a mean over examples, groups or selected tokens.

        Raises:
            ValueError: the caller gave no task loss.
        """
        if self.task_loss is None:
            raise ValueError("this method needs labels: give task_loss, the loss of an output")
        return self.task_loss(output)

    def loss_denominator(self, output: Any) -> int | Tensor:
        """The number of terms of the mean in `labeled_loss`: selected tokens, examples or groups."""
        return self.loss_mask.sum() if self.view in TOKENS else len(self.rows(output)[0])

    def finite(self, output: Any) -> Tensor:
        """Whether an example's logits are finite, (batch,); for views with a distribution per token, at `loss_mask`."""
        finite = []
        for part in self._logits(output):
            if self.view in TOKENS:
                usable = self._finite_tokens(part.detach())
            else:
                usable = is_finite(part.detach())
                usable = usable | (self.mask == 0) if self.view == "spans" else usable
            finite.append(usable.reshape(len(self.mask), -1).all(1))
        return finite[0] if len(finite) == 1 else torch.stack(finite).all(0)

    def _finite_tokens(self, logits: Tensor) -> Tensor:
        """Whether the logits of each token are finite, (batch, tokens); true where they are not compared.

        Looks at the least and the greatest logit of a token, so that no copy of all logits is made.
        """
        least, greatest = logits.aminmax(dim=-1)
        usable = is_finite(least) & is_finite(greatest)
        if self._has_selected_only(logits):
            return torch.ones_like(self.loss_mask).masked_scatter(self.loss_mask, usable)
        return usable | ~self.loss_mask
