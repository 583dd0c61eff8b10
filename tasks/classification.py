"""Classification of a sentence or a pair of sentences."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tasks.base import Task, register_task


@register_task("Classification")
class ClassificationTask(Task):
    """One of `n_class` classes; scores are probabilities."""

    def predict(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        scores = logits.float().softmax(-1).cpu().numpy()
        return scores, scores.argmax(-1)
