"""A batch's outputs as distributions, and what perturbed ones are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ball import is_finite
from .divergences import PADDING_LOGIT, MseCriterion, SymKlCriterion, grouped, over_labels

Divergence = Callable[..., Tensor]
TaskLoss = Callable[[Any], Tensor]

# How logits are viewed as distributions, and the names of MT-DNN's `TaskType` for it.
VIEWS = {
    "classes": ("Classification",),
    "labels": (),
    "numbers": ("Regression",),
    "groups": ("Ranking",),
    "spans": ("SpanClassification", "SpanClassificationYN"),
    "tokens": ("SeqenceLabeling",),
    "masked_tokens": ("MaskLM",),
    "next_tokens": ("SeqenceGeneration",),
}
# One distribution a token.
TOKENS = ("tokens", "masked_tokens", "next_tokens")


def view_of(task_type: Any) -> str:
    """The view of that name, or of that task type of MT-DNN's (an enumeration with its names).

    Raises:
        ValueError: there is none.
    """
    name = getattr(task_type, "name", task_type)
    for view, members in VIEWS.items():
        if name == view or name in members:
            return view
    raise ValueError(f"no perturbation for {name}; accepted: {', '.join(VIEWS)}, or MT-DNN's TaskType")


def default_divergence(task_type: Any) -> Divergence:
    """D where a task names none: the symmetrized KL divergence, of numbers the squared error."""
    return MseCriterion() if view_of(task_type) == "numbers" else SymKlCriterion()


class LabeledOutput(NamedTuple):
    """An output together with its loss on the gold labels, for loops that compute both at once."""

    output: Any
    loss: Tensor


def logits_of(output: Any) -> tuple[Tensor, ...]:
    """The logits in what a forward returns: a tensor, a tuple of tensors (start, end), a dictionary, or an output of
    transformers.

    Raises:
        ValueError: there are none in it.
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
    """What the perturbed outputs of one batch are held against.

    Args:
        clean: f(h), the output of the clean pass; None where the method needs none.
        mask: (batch, tokens), 1 at real tokens.
        divergence: D of the task, called as D(perturbed, clean) on logits (rows, classes), mean over rows; where
            it is `over_columns` (`Criterion`) and rows can have padding, as D(perturbed, clean, weights of rows).
        task_loss: ℓ(·, y) of an output, a mean over examples, groups or tokens that count; None where the batch has no
            labels.
        task_type, pairwise: how logits are viewed as distributions; ranking has `pairwise` rows a group, or as many as
            it says for each.
        counted: (batch, tokens), true at the tokens that count where each token has a distribution; None: real ones.
            Outputs are (batch, tokens, classes) or (batch · tokens, classes), or (counted tokens, classes) where the
            rest was not computed.

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
        counted: Tensor | None = None,
    ):
        self.mask = mask
        self.divergence = divergence
        self.task_loss = task_loss
        self.view = view_of(task_type)
        self.pairwise = pairwise
        self.counted = mask.bool() if counted is None else counted.bool()
        self.clean = () if clean is None else self.rows(clean)

    def rows(self, output: Any) -> tuple[Tensor, ...]:
        """Logits with one distribution (or one number) a row, each (rows, classes).

        Spans give two: where they start and where they end, over the tokens of an example.
        """
        logits = self._compared(output)
        if self.view == "groups":
            return tuple(grouped(part, self.pairwise) for part in logits)
        if self.view == "spans":
            return tuple(part.masked_fill(self.mask == 0, PADDING_LOGIT) for part in logits)
        if self.view in TOKENS:
            return tuple(p if self._is_counted_alone(p) else p.flatten(0, 1)[self._places] for p in logits)
        return logits

    @cached_property
    def _places(self) -> Tensor:
        """Of the tokens that count, among all in a row; the first pass alone makes the host wait for their number."""
        return self.counted.flatten().nonzero().squeeze(1)

    def _compared(self, output: Any) -> tuple[Tensor, ...]:
        """The logits that count; of spans not those that say whether there is an answer."""
        logits = logits_of(output)
        if self.view in TOKENS:
            return tuple(self._by_token(part) for part in logits)
        if self.view == "spans":
            return logits[:2]
        return tuple(part.unsqueeze(-1) if part.dim() == 1 and self.view != "groups" else part for part in logits)

    def _by_token(self, part: Tensor) -> Tensor:
        """Logits as (batch, tokens, classes), as which flat ones of all tokens count too, or of the counted ones alone.

        Raises:
            ValueError: they are of other tokens, such as those that learned prompts add.
        """
        tokens = self.counted.numel()
        if part.dim() == 2 and len(part) == tokens:
            return part.reshape(*self.counted.shape, -1)
        if part.shape[:2] != self.counted.shape and (part.dim() != 2 or len(part) != len(self._places)):
            found = " x ".join(map(str, part.shape[:-1]))
            raise ValueError(
                f"found logits of {found} tokens; accepted: of the batch's {' x '.join(map(str, self.counted.shape))}, "
                f"of these in a row, or of the {len(self._places)} that count"
            )
        return part

    def _is_counted_alone(self, part: Tensor) -> bool:
        """Whether logits of tokens are those of the counted ones alone, (counted tokens, classes)."""
        return part.dim() == 2

    def pairs(self, output: Any) -> list[tuple[Tensor, Tensor]]:
        """Perturbed and clean rows, part by part."""
        return list(zip(self.rows(output), self.clean, strict=True))

    def distance(self, first: Tensor, second: Tensor, divergence: Divergence | None = None) -> Tensor:
        """D of rows of logits (rows, classes), as `rows` gives them, a mean over rows; padding is in no mean.

        Args:
            divergence: another than the batch's; several labels a row: it is summed over the labels, each a Bernoulli.
        """
        divergence = divergence or self.divergence
        if self.view == "labels" and not isinstance(divergence, MseCriterion):
            return over_labels(divergence, first, second)
        real = self._real_columns()
        if real is None or not getattr(divergence, "over_columns", False):
            return divergence(first, second)
        real = real.to(first.device, torch.promote_types(first.dtype, torch.float32))
        return divergence(first, second, first.size(-1) / real)

    def _real_columns(self) -> Tensor | None:
        """How many columns of each row are no padding, (rows,): an example's tokens, a group's candidates."""
        if self.view == "spans":
            return self.mask.sum(1)
        if self.view == "groups" and not isinstance(self.pairwise, int):
            return torch.tensor(self.pairwise)
        return None

    def labeled_loss(self, output: Any) -> Tensor:
        """ℓ(f(h + δ), y), a mean over the `units` of the batch.

        Raises:
            ValueError: the caller gave no task loss.
        """
        if self.task_loss is None:
            raise ValueError("this method needs labels: give task_loss, the loss of an output")
        return self.task_loss(output)

    def units(self, output: Any) -> int | Tensor:
        """How many a mean is over: tokens that count where each has a distribution, else examples or groups."""
        return self.counted.sum() if self.view in TOKENS else len(self.rows(output)[0])

    def finite(self, output: Any) -> Tensor:
        """Whether an example's logits are finite, (batch,); of tokens' logits, those that count."""
        found = []
        for part in self._compared(output):
            usable = is_finite(part.detach())
            if self.view == "spans":
                usable = usable | (self.mask == 0)
            elif self.view in TOKENS and self._is_counted_alone(part):
                usable = torch.ones_like(self.counted).masked_scatter(self.counted, usable.all(-1))
            elif self.view in TOKENS:
                usable = usable | ~self.counted.unsqueeze(-1)
            found.append(usable.reshape(len(self.mask), -1).all(1))
        return found[0] if len(found) == 1 else torch.stack(found).all(0)
