"""Criteria: task losses and divergences between two sets of logits, under MT-DNN's names.

Every criterion is called as `criterion(input, target, weight=None, ignore_index=-1)` and returns a scalar: the mean
over the B rows. In the divergences both arguments are logits of shape (B, C); P = softmax(input), Q = softmax(target),
and "detached" says through which argument no gradient flows. `weight` (B,) multiplies the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data_utils.task_def import DIVERGENCES, OF_CLASSES, LossCriterion
from mt_dnn.perturbation.divergences import (
    Criterion,
    HLCriterion,
    JSCriterion,
    KlCriterion,
    MseCriterion,
    NsKlCriterion,
    NsSymKlCriterion,
    SymKlCriterion,
    single_precision,
)

__all__ = [
    "DIVERGENCES",
    "LOSS_REGISTRY",
    "OF_CLASSES",
    "BceCriterion",
    "CeCriterion",
    "Criterion",
    "HLCriterion",
    "JSCriterion",
    "KlCriterion",
    "LossCriterion",
    "MlmCriterion",
    "MseCriterion",
    "NsKlCriterion",
    "NsSymKlCriterion",
    "RankCeCriterion",
    "SeqCeCriterion",
    "SpanCeCriterion",
    "SymKlCriterion",
    "WeightedCriterion",
]


class WeightedCriterion(Criterion):
    """Base of the losses of gold labels that `--class_weights` weighs.

    Args:
        class_weights: (C,), one a column of the logits; None weighs all alike.
    """

    class_weights: Tensor | None

    def __init__(self, alpha: float = 1.0, name: str | None = None, class_weights: Tensor | None = None):
        super().__init__(alpha, name)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def weights(self, logits: Tensor) -> Tensor | None:
        """The weights in the logits' precision."""
        return None if self.class_weights is None else self.class_weights.to(logits.dtype)


class CeCriterion(WeightedCriterion):
    """Cross-entropy of logits (B, C) against class indices (B,); rows labelled `ignore_index` do not count.

    Args:
        class_weights: (C,), what the rows of each class are multiplied by. The value stays a mean over rows, where
            `F.cross_entropy(weight=…)` divides by the sum of the rows' weights: so it is that of the whole update,
            whatever batches and processes the rows are dealt out among.
    """

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -1) -> Tensor:
        rows = self.rows(input, target, ignore_index)
        if weight is not None:
            rows = rows * weight
        counted = (target != ignore_index).sum().clamp(min=1)
        return self.alpha * rows.sum() / counted

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        logits = single_precision(input)
        return F.cross_entropy(logits, target, self.weights(logits), ignore_index=ignore_index, reduction="none")


class RankCeCriterion(CeCriterion):
    """Cross-entropy of groups' scores (groups, candidates), as `grouped` gives them, against the golds' places."""


class BceCriterion(WeightedCriterion):
    """Binary cross-entropy of logits (B, L) against the labels of each row (B, L), 0, 1 or between: mean over B·L.

    With p = σ(input) and the weight w of a label, a label adds −w·t·log p − (1 − t)·log(1 − p), computed from logits so
    that nothing overflows. `ignore_index` has no use.

    Args:
        class_weights: (L,), w: what the loss of a label is multiplied by where it holds (`pos_weight` in torch). The
            value stays a mean over B·L.
    """

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        logits = single_precision(input)
        by_label = F.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), reduction="none", pos_weight=self.weights(logits)
        )
        return by_label.mean(1)


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
            rows = F.binary_cross_entropy_with_logits(
                single_precision(log_odds), target[:, 2].to(torch.float32), weight
            )
            loss = loss + rows
        return self.alpha * loss


class SeqCeCriterion(CeCriterion):
    """Cross-entropy of tokens' logits (tokens, C) against labels (tokens,); those of `ignore_index` do not count."""


class MlmCriterion(CeCriterion):
    """Cross-entropy of masked tokens' logits (tokens, C) against the tokens that stood there (tokens,).

    MT-DNN's adds the loss of a next-sentence prediction, which is not trained here.
    """


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
    LossCriterion.BceCriterion: BceCriterion,
}
