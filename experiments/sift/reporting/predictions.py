"""Predictions of a run on a test set, and the measures computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_utils.metrics import Metric, calc_metrics

CLASSIFIED = (Metric.ACC, Metric.F1MAC, Metric.MCC)
CORRELATED = (Metric.Pearson, Metric.Spearman)
BINS = 15


@dataclass(frozen=True)
class Predictions:
    """Predictions of a classification: golds (examples,), class numbers; probabilities (examples, classes)."""

    golds: np.ndarray
    probabilities: np.ndarray

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class of each example, (examples,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def measures(self) -> dict[str, float]:
        """ACC, F1MAC, MCC and ECE in percent, and Brier, from 0 to 1."""
        return {
            **calc_metrics(CLASSIFIED, self.golds, self.predicted, self.probabilities),
            "ECE": 100 * calibration_error(self.golds, self.probabilities),
            "Brier": brier_score(self.golds, self.probabilities),
        }


@dataclass(frozen=True)
class PredictedNumbers:
    """Predictions of a regression: golds and predicted, numbers (examples,)."""

    golds: np.ndarray
    predicted: np.ndarray

    @cached_property
    def measures(self) -> dict[str, float]:
        """Pearson's and Spearman's correlation in percent."""
        return calc_metrics(CORRELATED, self.golds, self.predicted, self.predicted)


def calibration_error(golds: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error [Guo et al. 2017, equation 3], from 0 to 1.

    The gap between accuracy and mean probability in each bin, weighted by the bin's share of examples. Bins of the most
    probable class's probability have equal width, and are open below and closed above.

    Args: golds (examples,), probabilities (examples, classes).
    """
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == golds
    bins = np.clip(np.ceil(top * BINS).astype(int) - 1, 0, BINS - 1)
    return float(np.abs(np.bincount(bins, weights=right - top, minlength=BINS)).sum() / len(golds))


def brier_score(golds: np.ndarray, probabilities: np.ndarray) -> float:
    """Half the squared distance to the gold distribution, the mean over examples [Brier 1950]; from 0 to 1.

    With the factor 1/2 it is (p₁ - y)² for two classes. Args: golds (examples,), probabilities (examples, classes).
    """
    gold = np.eye(probabilities.shape[1])[golds]
    return float(0.5 * ((probabilities - gold) ** 2).sum(axis=1).mean())
