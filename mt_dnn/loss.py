"""Criteria: task losses and divergences between two sets of logits, under MT-DNN's names.

Every criterion is called as `criterion(input, target, weight=None, ignore_index=-1)` and returns a scalar: the mean
over the B rows. In the divergences both arguments are logits of shape (B, C); P = softmax(input), Q = softmax(target),
and "detached" says through which argument no gradient flows. `weight` (B,) multiplies the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING_LOGIT = -1e4  # no probability, and finite in half precision


class LossCriterion(IntEnum):
    CeCriterion = 0
    MseCriterion = 1
    RankCeCriterion = 2
    SpanCeCriterion = 3
    SeqCeCriterion = 4
    MlmCriterion = 5
    KlCriterion = 6
    SymKlCriterion = 7
    NsKlCriterion = 8
    NsSymKlCriterion = 9
    JSCriterion = 10
    HLCriterion = 11


# What compares logits with labels that are classes, and what compares logits with logits.
OF_CLASSES = (
    LossCriterion.CeCriterion,
    LossCriterion.RankCeCriterion,
    LossCriterion.SeqCeCriterion,
    LossCriterion.MlmCriterion,
)
DIVERGENCES = (
    LossCriterion.MseCriterion,
    LossCriterion.KlCriterion,
    LossCriterion.SymKlCriterion,
    LossCriterion.NsKlCriterion,
    LossCriterion.NsSymKlCriterion,
    LossCriterion.JSCriterion,
    LossCriterion.HLCriterion,
)


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
        return self.alpha * rows.mean()

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        """The value of each example, shape (B,)."""
        raise TypeError(f"{type(self).__name__} is a base class")


class CeCriterion(Criterion):
    """Cross-entropy of logits (B, C) against class indices (B,); rows labelled `ignore_index` do not count.

    Args:
        class_weights: (C,), what the rows of each class are multiplied by. The value stays a mean over rows, where
            `F.cross_entropy(weight=…)` divides by the sum of the rows' weights: so it is that of the whole update,
            whatever batches and processes the rows are dealt out among.
    """

    class_weights: Tensor | None

    def __init__(self, alpha: float = 1.0, name: str | None = None, class_weights: Tensor | None = None):
        super().__init__(alpha, name)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -1) -> Tensor:
        rows = self.rows(input, target, ignore_index)
        if weight is not None:
            rows = rows * weight
        counted = (target != ignore_index).sum().clamp(min=1)
        return self.alpha * rows.sum() / counted

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        logits = _single(input)
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        return F.cross_entropy(logits, target, weights, ignore_index=ignore_index, reduction="none")


class RankCeCriterion(CeCriterion):
    """Cross-entropy of groups' scores (groups, candidates), as `grouped` gives them, against the golds' places."""


class SpanCeCriterion(Criterion):
    """½ (cross-entropy of the start + of the end), each a mean over the rows whose target is not `ignore_index`.

    Logits are a tuple: start and end (B, tokens), targets (B, 2). With a third part, log-odds (B,) that the row has an
    answer, and a third column of targets, 0 or 1, the binary cross-entropy is added.
    """

    def forward(self, input: Any, target: Tensor, weight: Tensor | None = None, ignore_index: int = -1) -> Tensor:
        start, end, *answerable = input
        by_token = CeCriterion()
        ends = [by_token(part, target[:, column], weight, ignore_index) for column, part in enumerate((start, end))]
        loss = sum(ends) / 2
        for log_odds in answerable:
            rows = F.binary_cross_entropy_with_logits(_single(log_odds), target[:, 2].to(torch.float32), weight)
            loss = loss + rows
        return self.alpha * loss


class SeqCeCriterion(CeCriterion):
    """Cross-entropy of tokens' logits (tokens, C) against labels (tokens,); those of `ignore_index` do not count."""


class MlmCriterion(CeCriterion):
    """Cross-entropy of masked tokens' logits (tokens, C) against the tokens that stood there (tokens,).

    MT-DNN's adds the loss of a next-sentence prediction, which is not trained here.
    """


class MseCriterion(Criterion):
    """Mean over B·C of (input − target)²; a column of outputs (B, 1) is compared with labels (B,)."""

    over_columns = True

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        difference = _single(input) - _single(target.view_as(input))
        return difference.square().flatten(1).mean(1) if difference.dim() > 1 else difference.square()


class KlCriterion(Criterion):
    """KL(Q‖P)/B; nothing detached."""

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return _kl(_log_softmax(target), _log_softmax(input))


class SymKlCriterion(Criterion):
    """[KL(Q‖P) + KL(P‖Q)]/B, the first distribution of each half detached.

    The value is the symmetrized divergence ℓ_s of SMART [Jiang et al. 2020, section 3.1].
    """

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        log_p, log_q = _log_softmax(input), _log_softmax(target)
        return _kl(log_q.detach(), log_p) + _kl(log_p.detach(), log_q)


class NsKlCriterion(Criterion):
    """(1/B) Σ 2·P·(r(P) − r(Q)) with r(p) = −log(1/(p + 1e-6) − 1 + 1e-6), both r detached.

    MT-DNN's "noisy stable" KL; no divergence, it can be negative.
    """

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return _stable_kl(input, target)


class NsSymKlCriterion(Criterion):
    """NsKl(input, target detached) + NsKl(target, input detached)."""

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return _stable_kl(input, target) + _stable_kl(target, input)


class JSCriterion(Criterion):
    """[KL(m‖P) + KL(m‖Q)]/B with m = (P + Q)/2 detached; without the customary factor ½."""

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        log_p, log_q = _log_softmax(input), _log_softmax(target)
        log_m = (torch.logaddexp(log_p, log_q) - math.log(2)).detach()
        return _kl(log_m, log_p) + _kl(log_m, log_q)


class HLCriterion(Criterion):
    """Mean over B·C of (√P − √Q)², the squared Hellinger distance up to a factor.

    The root is taken as exp(½ log P): the root of a softmax that underflows has no gradient.
    """

    over_columns = True

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        root_p, root_q = (_log_softmax(input) / 2).exp(), (_log_softmax(target) / 2).exp()
        return (root_p - root_q).square().mean(1)


def grouped(scores: Tensor, sizes: int | Sequence[int]) -> Tensor:
    """Scores of rows, (rows,) or (rows, 1), group by group: (groups, rows of the largest), others without probability.

    Args:
        sizes: rows a group, or of each group.
    """
    if isinstance(sizes, int):
        return scores.view(-1, sizes)
    parts = scores.flatten().split(list(sizes))
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=PADDING_LOGIT)


def _single(x: Tensor) -> Tensor:
    """`x` in single precision, or in its own where that is finer."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities (B, C)."""
    return F.log_softmax(_single(logits).reshape(-1, logits.size(-1)), dim=-1)


def _kl(log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL(first ‖ second) of each row, from log-probabilities (B, C)."""
    return F.kl_div(log_second, log_first, reduction="none", log_target=True).sum(-1)


def _stable_kl(input: Tensor, target: Tensor) -> Tensor:
    p, q = _log_softmax(input).exp(), _log_softmax(target).exp()
    return (2 * p * (_stable_log_odds(p) - _stable_log_odds(q))).sum(-1)


def _stable_log_odds(p: Tensor) -> Tensor:
    p = p.detach()
    return -(1.0 / (p + 1e-6) - 1 + 1e-6).log()


LOSS_REGISTRY: dict[LossCriterion, Callable[..., Criterion]] = {
    LossCriterion.CeCriterion: CeCriterion,
    LossCriterion.MseCriterion: MseCriterion,
    LossCriterion.RankCeCriterion: RankCeCriterion,
    LossCriterion.SpanCeCriterion: SpanCeCriterion,
    LossCriterion.SeqCeCriterion: SeqCeCriterion,
    LossCriterion.MlmCriterion: MlmCriterion,
    LossCriterion.KlCriterion: KlCriterion,
    LossCriterion.SymKlCriterion: SymKlCriterion,
    LossCriterion.NsKlCriterion: NsKlCriterion,
    LossCriterion.NsSymKlCriterion: NsSymKlCriterion,
    LossCriterion.JSCriterion: JSCriterion,
    LossCriterion.HLCriterion: HLCriterion,
}
