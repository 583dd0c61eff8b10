"""Exact match and F1 of answers, as the public evaluation scripts of SQuAD define them.

Sources: Rajpurkar et al. 2016 (1.1), section 6.1; Rajpurkar et al. 2018 (2.0), section 5.
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
    """The text in lower case, without ASCII punctuation and English articles, with single spaces between words."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(prediction: str, gold: str) -> float:
    """1 if both are the same after normalization, else 0."""
    return float(normalized(prediction) == normalized(gold))


def f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall over words, 0 to 1; 0 if they share no word, as in SQuAD 1.1."""
    words, gold_words = normalized(prediction).split(), normalized(gold).split()
    common = (Counter(words) & Counter(gold_words)).total()
    return 2 * common / (len(words) + len(gold_words)) if common else 0.0


def f1_squad_v2(prediction: str, gold: str) -> float:
    """`f1`, but 1 if neither has a word, as in SQuAD 2.0."""
    return f1(prediction, gold) if normalized(prediction) or normalized(gold) else 1.0


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


def squad_v2(
    golds: Sequence[Sequence[str]],
    predictions: Sequence[str],
    texts: Sequence[str] = (),
    null_scores: Sequence[float] | np.ndarray = (),
) -> dict[str, float]:
    """SQuAD 2.0's metrics of N questions, some without an answer.

    Args:
        golds: the right answers of each question; empty for a question without an answer.
        predictions: an answer each; empty for "no answer".
        texts: the best non-empty answer of each question, for the best thresholds.
        null_scores: scores of "no answer", to which a threshold is applied.

    Returns:
        In percent, `EmF12` (the F1) and `EmF12_exact`, both also for the questions with (`HasAns`) and without an
        answer (`NoAns`); with null scores also the best value over all thresholds, and that threshold (`…_thresh`, in
        the unit of the scores).
    """
    name = Metric.EmF12.name
    answerable = np.array([bool(own) for own in golds])
    gold_texts = [[gold for gold in own if normalized(gold)] or [""] for own in golds]
    found = {}
    for score, shown in ((f1_squad_v2, "f1"), (exact, "exact")):
        values = _matches(score, gold_texts, predictions)
        found[name if shown == "f1" else f"{name}_{shown}"] = _mean(values)
        for part, which in (("HasAns", answerable), ("NoAns", ~answerable)):
            if which.any():
                found[f"{name}_{part}_{shown}"] = _mean(values[which])
        if len(null_scores):
            values = _matches(score, gold_texts, texts)
            best, threshold = best_threshold(values, answerable, np.asarray(null_scores, dtype=np.float64))
            found |= {f"{name}_best_{shown}": best, f"{name}_best_{shown}_thresh": threshold}
    return found


def best_threshold(values: np.ndarray, answerable: np.ndarray, null_scores: np.ndarray) -> tuple[float, float]:
    """The highest mean over all thresholds on the null scores, in percent, and the lowest threshold that gives it.

    A question with a null score above the threshold gets no answer, which is right if it has none.

    Args:
        values: of each question's answer, 0 to 1, (N,).
        answerable: whether it has one, (N,).
        null_scores: (N,).
    """
    order = np.argsort(null_scores, kind="stable")
    # what each further answered question adds, compared with answering none
    gains = np.where(answerable, values, values - 1)[order]
    totals = np.concatenate([[0.0], np.cumsum(gains)]) + (~answerable).sum()
    ranked = null_scores[order]
    thresholds = np.concatenate([[ranked[0] - 1], ranked])
    apart = np.append(thresholds[:-1] != thresholds[1:], True)  # equal null scores are on the same side
    best = np.flatnonzero(apart)[totals[apart].argmax()]
    return 100 * float(totals[best]) / len(values), float(thresholds[best])


def _matches(score: Score, golds: Sequence[Sequence[str]], predictions: Sequence[str]) -> np.ndarray:
    """The score of each question against its best matching gold answer, (N,)."""
    pairs = zip(golds, predictions, strict=True)
    return np.array([max(score(prediction, gold) for gold in own or [""]) for own, prediction in pairs])


def _mean(values: np.ndarray) -> float:
    return 100 * float(values.mean())
