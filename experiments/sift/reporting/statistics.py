"""Is one method better than another? Comparisons paired over seeds and examples, corrected for their number.

Seeds and test examples are crossed samples: every seed is tested on every example. With d_s the difference of two
methods' measures at seed s, the mean over S seeds has the variance

    var(d) / S  +  c

var(d): the variance of the d_s, divisor S - 1, which has what differs between seeds; c: the covariance between seeds
over draws of the examples, since all seeds have the same ones [Obuchowski & Rockette 1995, Communications in Statistics
24, for readers and cases]. c is estimated by bootstrap: examples are resampled, the same ones for both methods and all
seeds, the measure is recomputed, and the covariances of the d_s are averaged over pairs of seeds. Seeds need no
resampling: the bootstrap's variance of a mean is known, var(d) (S - 1) / S², and too small by the factor (S - 1) / S,
which is corrected here.

The 95 % interval is ± sqrt(t² var(d) / S + z² c), with the quantiles t of Student's distribution with S - 1 degrees of
freedom and z of the normal distribution; its coverage is at least nominal [Banerjee 1960, Sankhyā 22]. It is never
narrower than ± z sqrt(e), e being the bootstrap's variance of the mean over these seeds: few seeds may agree by chance,
mostly if a measure has few values, and var(d) is then too small. p is the level at which the interval ends at zero.
tests/experiments/sift/reporting/test_statistics.py checks all this by simulation.

(The percentiles of a bootstrap over seeds and examples at once, in the same simulations, reject a true null hypothesis
in 0 to 11 % of cases with 10 seeds and 0.5 to 23 % with 3: too often if seeds differ much, because few seeds have too
small a variance and no normal quantiles; too rarely otherwise, because noise of one seed and example counts three
times.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from data_utils.metrics import Metric

RESAMPLES = 2000
CONFIDENCE = 0.95
SIGNIFICANT = 0.05
SMALLEST_P = 1e-12


@dataclass(frozen=True)
class Sample:
    """A measure of a method on one test set, in percent: seeds (S,), values (S,), resampled (resamples, S)."""

    seeds: tuple[int, ...]
    values: np.ndarray
    resampled: np.ndarray

    def at(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values (seeds,) and resampled values (resamples, seeds) for some of the seeds."""
        columns = [self.seeds.index(seed) for seed in seeds]
        return self.values[columns], self.resampled[:, columns]


class Difference(NamedTuple):
    """One method minus another in points: the mean over seeds, its 95 % interval, the two-sided p-value.

    seeds: how many seeds both methods have.
    """

    estimate: float
    low: float
    high: float
    p: float
    seeds: int


def sample(
    metric: Metric, seeds: Sequence[int], golds: np.ndarray, predictions: np.ndarray, resamples: int = RESAMPLES
) -> Sample:
    """ACC, MCC, Pearson or Spearman of every seed, on the examples and on bootstrap resamples of them.

    Args:
        golds: (examples,), class numbers; for correlations, numbers.
        predictions: (seeds, examples), of the same kind.
        resamples: how many. They depend only on the number of examples, so that methods are paired.
    """
    if metric in (Metric.Pearson, Metric.Spearman):
        correlation = _pearson if metric == Metric.Pearson else _spearman
        values = 100 * correlation(_counts(len(golds), resamples).astype(np.float64), golds, predictions)
        return Sample(tuple(seeds), values[0], values[1:])
    classes = int(max(golds.max(), predictions.max())) + 1
    cells = np.eye(classes**2, dtype=np.float32)[golds * classes + predictions]  # (seeds, examples, cells)
    flat = cells.transpose(1, 0, 2).reshape(len(golds), -1)
    counts = _counts(len(golds), resamples) @ flat
    confusion = counts.reshape(resamples + 1, len(seeds), classes, classes).astype(np.float64)
    values = 100 * _of_confusion(metric, confusion)
    return Sample(tuple(seeds), values[0], values[1:])


@lru_cache(maxsize=4)
def _counts(examples: int, resamples: int) -> np.ndarray:
    """How often each example counts, (1 + resamples, examples): once in the first row, as resampled in the others."""
    generator = np.random.default_rng(examples)
    counts = np.ones((1 + resamples, examples), dtype=np.float32)
    for row in counts[1:]:
        row[:] = np.bincount(generator.integers(examples, size=examples), minlength=examples)
    return counts


def _pearson(counts: np.ndarray, golds: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Pearson's correlation (0 where undefined), (draws, seeds).

    Args: counts (draws, examples), how often each counts; golds (examples,); predictions (seeds, examples).
    """
    ours, theirs = predictions - predictions.mean(axis=1, keepdims=True), golds - golds.mean()  # for precision
    total = counts.sum(axis=1, keepdims=True)
    our_mean, their_mean = counts @ ours.T / total, counts @ theirs[:, None] / total
    covariance = counts @ (ours * theirs).T / total - our_mean * their_mean
    our_variance = counts @ (ours**2).T / total - our_mean**2
    their_variance = counts @ (theirs**2)[:, None] / total - their_mean**2
    spreads = np.maximum(our_variance, 0) * np.maximum(their_variance, 0)
    return np.divide(covariance, np.sqrt(spreads), out=np.zeros_like(covariance), where=spreads > 0)


def _spearman(counts: np.ndarray, golds: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Spearman's correlation (0 where undefined), (draws, seeds): Pearson's, of the ranks within each draw.

    Args: as in `_pearson`.
    """
    total, theirs = counts.sum(axis=1), _ranks(counts, golds)
    by_seed = []
    for row in predictions:
        ours = _ranks(counts, row)
        covariance, our_square, their_square = (
            (counts * first * second).sum(axis=1) / total
            for first, second in ((ours, theirs), (ours, ours), (theirs, theirs))
        )
        spreads = np.maximum(our_square * their_square, 0)
        by_seed.append(np.divide(covariance, np.sqrt(spreads), out=np.zeros_like(covariance), where=spreads > 0))
    return np.stack(by_seed, axis=1)


def _ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Ranks of values (examples,) in each draw, less the draw's mean rank, (draws, examples); equal values share one.

    Args: counts (draws, examples), how often each counts.
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = np.add.reduceat(counts[:, order], np.flatnonzero(np.diff(group[order], prepend=-1)), axis=1)
    ranks = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    return ranks[:, group] - (counts.sum(axis=1, keepdims=True) + 1) / 2


def _of_confusion(metric: Metric, confusion: np.ndarray) -> np.ndarray:
    """ACC or MCC (0 where undefined) of confusion counts (..., gold, predicted).

    MCC of several classes: Gorodkin 2004, equation 8.
    """
    total, right = confusion.sum(axis=(-2, -1)), np.trace(confusion, axis1=-2, axis2=-1)
    if metric == Metric.ACC:
        return right / total
    golds, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    covariance = right * total - (golds * predicted).sum(axis=-1)
    spreads = (total**2 - (golds**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    return np.divide(covariance, np.sqrt(spreads), out=np.zeros_like(covariance), where=spreads > 0)


def compare(ours: Sequence[Sample], theirs: Sequence[Sample]) -> Difference | None:
    """The mean difference over test sets; None with fewer than two seeds that both have in all of them.

    Args:
        ours, theirs: a sample for each test set, in the same order; the test sets share no examples.
    """
    seeds = sorted(set.intersection(*(set(found.seeds) for found in (*ours, *theirs))))
    if len(seeds) < 2:
        return None
    differences, common, alone = np.zeros(len(seeds)), 0.0, 0.0
    for our, their in zip(ours, theirs, strict=True):
        (our_values, our_resampled), (their_values, their_resampled) = our.at(seeds), their.at(seeds)
        differences += (our_values - their_values) / len(ours)
        resampled = our_resampled - their_resampled
        common += _mean_covariance(resampled) / len(ours) ** 2
        alone += float(resampled.mean(axis=1).var(ddof=1)) / len(ours) ** 2
    return _difference(differences, max(common, 0.0), alone)


def _mean_covariance(resampled: np.ndarray) -> float:
    """The mean covariance over pairs of columns of (resamples, seeds)."""
    covariance, count = np.cov(resampled, rowvar=False), resampled.shape[1]
    return float((covariance.sum() - np.trace(covariance)) / (count * (count - 1)))


def _difference(differences: np.ndarray, common: float, alone: float) -> Difference:
    """The difference from the d_s, c (`common`) and e (`alone`)."""
    count, estimate = len(differences), float(differences.mean())
    between = float(differences.var(ddof=1)) / count

    def half_width(p: float) -> float:
        t, z = float(stats.t.isf(p / 2, count - 1)), float(stats.norm.isf(p / 2))
        return math.sqrt(max(t**2 * between + z**2 * common, z**2 * alone))

    half = half_width(1 - CONFIDENCE)
    if abs(estimate) <= half_width(1.0):  # 0, but before scipy 1.17 a quantile of 1/2 is 0 to rounding alone
        p = 1.0
    elif half_width(SMALLEST_P) <= abs(estimate):
        p = SMALLEST_P
    else:
        p = float(brentq(lambda level: half_width(level) - abs(estimate), SMALLEST_P, 1.0, xtol=1e-15, rtol=1e-10))
    return Difference(estimate, estimate - half, estimate + half, p, count)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by the step-down procedure of Holm 1979, in the same order."""
    order = np.argsort(p_values, kind="stable")
    weights = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * weights), 1.0)
    corrected = np.empty(len(p_values))
    corrected[order] = adjusted
    return corrected.tolist()
