"""A number for a sentence or a pair of sentences."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mt_dnn.loss import LossCriterion
from tasks.base import Task, register_task


@register_task("Regression")
class RegressionTask(Task):
    """One output; it is the score, and the predictions of a score file are all 0, as MT-DNN's are."""

    default_loss = LossCriterion.MseCriterion

    def predict(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        scores = logits.float().cpu().numpy()
        return scores, scores.argmax(-1)

    def answers(self, scores: np.ndarray, predictions: np.ndarray) -> list[str | int | float]:
        """The outputs themselves."""
        return scores.reshape(-1).tolist()
