"""A number for a sentence or a pair of sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from data_utils.errors import DataError
from data_utils.metrics import NUMBER_METRICS
from data_utils.prepro import Split
from data_utils.task_def import LossCriterion
from tasks.base import Task
from tasks.interfaces import Batch
from tasks.registry import register_task
from tasks.values import Values

LARGEST_LABEL = float(np.finfo(np.float32).max)


@register_task("Regression")
class RegressionTask(Task):
    """One output, which is the score. The predictions of a score file are all 0, as in MT-DNN."""

    default_loss = LossCriterion.MseCriterion
    losses = (LossCriterion.MseCriterion,)
    metrics = NUMBER_METRICS
    default_adv_loss = LossCriterion.MseCriterion
    label_type = np.float32
    distils = True
    view = "numbers"

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        n_class = entry.get("n_class")
        wrong = type(n_class) is int and n_class != 1
        return [f"key 'n_class': found {n_class}, accepted: 1 for Regression"] if wrong else []

    def parse_label(self, split: Split, number: int, text: str) -> float:
        try:
            label = float(text)
        except ValueError:
            label = math.nan
        if not abs(label) <= LARGEST_LABEL:  # NaN too
            raise DataError(f"found the label {text!r}; accepted: a finite number", split.path, number)
        return label

    @property
    def accepted_labels(self) -> str:
        return "finite numbers"

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        return type(label) in (int, float) and abs(label) <= LARGEST_LABEL  # false for NaN too

    def soft_label(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def taught_label(self, scores: np.ndarray) -> float:
        return float(scores[0])

    def predict(self, logits: Tensor, batch: Batch) -> tuple[Values, Values]:
        scores = logits.float().cpu().numpy()
        return scores, scores.argmax(-1)

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """The outputs themselves."""
        return np.asarray(scores).reshape(-1).tolist()
