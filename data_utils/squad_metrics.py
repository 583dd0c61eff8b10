"""Exact match and F1 of answers, as the public evaluation scripts of SQuAD define them.

Source: Rajpurkar et al. 2016, section 6.1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from data_utils.metrics import Metric

Score = Callable[[str, str], float]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """In lower case, without ASCII punctuation and English articles, one space between words."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(prediction: str, gold: str) -> float:
    """1 where both are the same after normalization, else 0."""
    return float(normalized(prediction) == normalized(gold))


def f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall over words, 0 to 1; 0 where no word is in both, as in SQuAD 1.1."""
    words, gold_words = normalized(prediction).split(), normalized(gold).split()
    common = (Counter(words) & Counter(gold_words)).total()
    return 2 * common / (len(words) + len(gold_words)) if common else 0.0


def squad_v1(golds: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """SQuAD 1.1's metrics of N questions.

    Args:
        golds: the right answers of each question; the best match counts.
        predictions: an answer each.

    Returns:
        In percent, `EmF1` (the F1) and `EmF1_exact`.
    """
    name = Metric.EmF1.name
    return {name: _mean(_matches(f1, golds, predictions)), f"{name}_exact": _mean(_matches(exact, golds, predictions))}


def _matches(score: Score, golds: Sequence[Sequence[str]], predictions: Sequence[str]) -> np.ndarray:
    """Of each question the score against the gold answer that fits best, (N,)."""
    pairs = zip(golds, predictions, strict=True)
    return np.array([max(score(prediction, gold) for gold in own or [""]) for own, prediction in pairs])


def _mean(values: np.ndarray) -> float:
    return 100 * float(values.mean())
