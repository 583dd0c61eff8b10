"""Divergences between two sets of logits, and the base class of all criteria. Needs torch only.

Logits have shape (B, C): B rows, C columns. P = softmax(input), Q = softmax(target). No gradient flows through what is
called "detached". `weight` (B,) multiplies the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING_LOGIT = -1e4  # its probability is 0, and it is finite in half precision


class Criterion(nn.Module):
    """Base of all criteria: `alpha` times the mean of `rows` over the batch.

    Args:
        alpha: factor of the value.
        name: shown in logs.

    Attributes:
        over_columns: a row's value is a mean over its C columns, not a sum.
    """

    over_columns = False

    def __init__(self, alpha: float = 1.0, name: str | None = None):
        super().__init__()
        self.alpha = alpha
        self.name = name or type(self).__name__

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -1) -> Tensor:
        rows = self.rows(input, target, ignore_index)
        if weight is not None:
            rows = rows * weight
        mean = rows.mean()
        is_one = isinstance(self.alpha, int | float) and self.alpha == 1  # the default, which needs no product
        return mean if is_one else self.alpha * mean

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        """The value of each row, shape (B,)."""
        raise TypeError(f"{type(self).__name__} is a base class")


def is_mean_over_rows(divergence: Callable[..., Tensor]) -> bool:
    """Whether D is known to be a mean over rows without parameters, so that it can be computed in chunks of rows.

    A custom function is not: it is called once with all rows, whatever their number.
    """
    return (
        isinstance(divergence, Criterion)
        and type(divergence).forward is Criterion.forward
        and next(divergence.parameters(), None) is None
    )


class MseCriterion(Criterion):
    """Mean over B·C of (input − target)²; a column of outputs (B, 1) is compared with labels (B,)."""

    over_columns = True

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        difference = single_precision(input) - single_precision(target.view_as(input))
        return difference.square().flatten(1).mean(1) if difference.dim() > 1 else difference.square()


class KlCriterion(Criterion):
    """KL(Q‖P)/B; nothing is detached."""

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return _kl(_log_softmax(target), _log_softmax(input))


class SymKlCriterion(Criterion):
    """[KL(Q‖P) + KL(P‖Q)]/B; the first distribution of each term is detached.

    The value is the symmetrized divergence ℓ_s of SMART [Jiang et al. 2020, section 3.1].
    """

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        log_p, log_q = _log_softmax(input), _log_softmax(target)
        return _kl(log_q.detach(), log_p) + _kl(log_p.detach(), log_q)


class NsKlCriterion(Criterion):
    """(1/B) Σ 2·P·(r(P) − r(Q)) with r(p) = −log(1/(p + 1e-6) − 1 + 1e-6); both r are detached.

    MT-DNN's "noisy stable" KL. It can be negative, so it is not a divergence.
    """

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return _stable_kl(input, target)


class NsSymKlCriterion(Criterion):
    """NsKl(input, target detached) + NsKl(target, input detached)."""

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return _stable_kl(input, target) + _stable_kl(target, input)


class JSCriterion(Criterion):
    """[KL(m‖P) + KL(m‖Q)]/B with m = (P + Q)/2 detached; without the usual factor ½."""

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        log_p, log_q = _log_softmax(input), _log_softmax(target)
        log_m = (torch.logaddexp(log_p, log_q) - math.log(2)).detach()
        return _kl(log_m, log_p) + _kl(log_m, log_q)


class HLCriterion(Criterion):
    """Mean over B·C of (√P − √Q)², the squared Hellinger distance up to a factor.

    √P is computed as exp(½ log P), because the root of a softmax that underflows has no gradient.
    """

    over_columns = True

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        root_p, root_q = (_log_softmax(input) / 2).exp(), (_log_softmax(target) / 2).exp()
        return (root_p - root_q).square().mean(1)


def grouped(scores: Tensor, sizes: int | Sequence[int]) -> Tensor:
    """Scores of rows, (rows,) or (rows, 1), as a matrix (groups, rows of the largest group).

    Smaller groups are padded with `PADDING_LOGIT`.

    Args:
        sizes: rows per group, or the number of rows of each group.
    """
    if isinstance(sizes, int):
        return scores.view(-1, sizes)
    parts = scores.flatten().split(list(sizes))
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=PADDING_LOGIT)


def single_precision(x: Tensor) -> Tensor:
    """`x` in single precision, or in double precision if it has that."""
    return x.to(at_least_single(x.dtype))


@cache
def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Single precision, or a wider type that is given."""
    return torch.promote_types(dtype, torch.float32)


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities (B, C)."""
    rows = single_precision(logits)
    return F.log_softmax(rows if rows.dim() == 2 else rows.reshape(-1, rows.size(-1)), dim=-1)


def _kl(log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL(first ‖ second) of each row, from log-probabilities (B, C)."""
    return F.kl_div(log_second, log_first, reduction="none", log_target=True).sum(-1)


def _stable_kl(input: Tensor, target: Tensor) -> Tensor:
    p, q = _log_softmax(input).exp(), _log_softmax(target).exp()
    return (2 * p * (_stable_log_odds(p) - _stable_log_odds(q))).sum(-1)


def _stable_log_odds(p: Tensor) -> Tensor:
    p = p.detach()
    return -(1.0 / (p + 1e-6) - 1 + 1e-6).log()


def over_labels(divergence: Callable[..., Tensor], input: Tensor, target: Tensor) -> Tensor:
    """A divergence of independent Bernoulli distributions, one per label: a sum over labels, a mean over rows.

    Args:
        divergence: D of distributions over two classes, logits (rows, 2), a mean over rows.
        input, target: logits z of p = σ(z), (rows, labels).
    """
    return divergence(_two_classes(input), _two_classes(target)) * input.size(-1)


def _two_classes(logits: Tensor) -> Tensor:
    """Logits z of Bernoulli distributions, (rows, labels), as logits 0 and z of two classes: (rows · labels, 2)."""
    return F.pad(logits.reshape(-1, 1), (1, 0))


class BernoulliKlCriterion(Criterion):
    """KL(Q‖P) of independent Bernoulli distributions, from logits (B, labels): a sum over labels, a mean over rows.

    With p = σ(input) and q = σ(target), a label adds q (log q − log p) + (1 − q)(log(1 − q) − log(1 − p)). Nothing is
    detached.
    """

    label_criterion: type[Criterion] = KlCriterion

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        by_label = self.label_criterion().rows(_two_classes(input), _two_classes(target), ignore_index)
        return by_label.view(input.shape).sum(-1)


class BernoulliSymKlCriterion(BernoulliKlCriterion):
    """KL(Q‖P) + KL(P‖Q) of independent Bernoulli distributions; the first one of each term is detached.

    Its value is Σ (p − q)(input − target) over the labels.
    """

    label_criterion = SymKlCriterion
