"""Criteria: task losses and divergences between two sets of logits, under MT-DNN's names.

Every criterion is called as `criterion(input, target, weight=None, ignore_index=-1)` and returns a scalar: the mean
over the B rows. `weight` (B,) multiplies the rows. Divergences: `mt_dnn/perturbation/divergences.py`.
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
    """Base of the losses on gold labels that `--class_weights` applies to.

    Args:
        class_weights: (C,), one weight per column of the logits; None gives all the weight 1.
    """

    class_weights: Tensor | None

    def __init__(self, alpha: float = 1.0, name: str | None = None, class_weights: Tensor | None = None):
        super().__init__(alpha, name)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def weights(self, logits: Tensor) -> Tensor | None:
        """The weights in the logits' precision."""
        return None if self.class_weights is None else self.class_weights.to(logits.dtype)


class CeCriterion(WeightedCriterion):
    """Cross-entropy of logits (B, C) and class indices (B,), a mean over the rows whose label is not `ignore_index`.

    Args:
        class_weights: (C,), factors of the rows of each class. The sum is divided by the number of rows, not by the sum
            of weights as in `F.cross_entropy(weight=…)`, so that the loss of an update does not depend on how its rows
            are distributed over batches and processes.
    """

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -1) -> Tensor:
        rows = self.rows(input, target, ignore_index)
        if weight is not None:
            rows = rows * weight
        labeled = (target != ignore_index).sum().clamp(min=1)
        return self.alpha * rows.sum() / labeled

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        logits = single_precision(input)
        return F.cross_entropy(logits, target, self.weights(logits), ignore_index=ignore_index, reduction="none")


class RankCeCriterion(CeCriterion):
    """Cross-entropy of scores (groups, candidates), from `grouped`, and the index of each group's gold candidate."""


class BceCriterion(WeightedCriterion):
    """Binary cross-entropy of logits and labels (0, 1 or between), both (B, L): a mean over B·L.

    With p = σ(input), target t and weight w, a label adds −w·t·log p − (1 − t)·log(1 − p), computed from logits so that
    nothing overflows. `ignore_index` is ignored.

    Args:
        class_weights: (L,), w, the factor of the loss of a label that holds (`pos_weight` in torch). The value stays a
            mean over B·L.
    """

    def rows(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        logits = single_precision(input)
        by_label = F.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), reduction="none", pos_weight=self.weights(logits)
        )
        return by_label.mean(1)


class SpanCeCriterion(Criterion):
    """½ (cross-entropy of start + cross-entropy of end), means over the rows whose target is not `ignore_index`.

    Logits are a tuple, start and end (B, tokens); targets are (B, 2). If there are a third part of logits, the log-odds
    (B,) that the row has an answer, and a third column of targets, 0 or 1, their binary cross-entropy is added.
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
    """Cross-entropy of logits (tokens, C) and labels (tokens,), a mean over tokens not labelled `ignore_index`."""


class MlmCriterion(CeCriterion):
    """Cross-entropy of the logits of masked tokens (tokens, C) and the original tokens (tokens,).

    MT-DNN's criterion adds the loss of a next-sentence prediction, which this project does not train.
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
