"""Metrics of a dataset, in percent, by scikit-learn, SciPy and seqeval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef, roc_auc_score

from data_utils.errors import UserError


class Metric(IntEnum):
    """Names and numbers as in MT-DNN."""

    ACC = 0
    F1 = 1
    MCC = 2
    Pearson = 3
    Spearman = 4
    AUC = 5
    SeqEval = 7
    EmF1 = 8
    F1MAC = 9
    F1MIC = 10
    CMAT = 11
    EmF12 = 12
    SeqEvalList = 13


TWO_CLASS_METRICS = (Metric.F1, Metric.AUC)
CLASS_METRICS = (Metric.ACC, Metric.MCC, Metric.F1MAC, Metric.F1MIC, Metric.CMAT, *TWO_CLASS_METRICS)
NUMBER_METRICS = (Metric.Pearson, Metric.Spearman)
# Of examples with several labels each.
LABEL_METRICS = (Metric.F1MIC, Metric.F1MAC, Metric.ACC, Metric.AUC)
BUILT_METRICS = tuple(sorted((*CLASS_METRICS, *NUMBER_METRICS)))


def metrics_of_classes(n_class: int) -> tuple[Metric, ...]:
    """Those of a task with so many classes."""
    return tuple(metric for metric in CLASS_METRICS if n_class == 2 or metric not in TWO_CLASS_METRICS)


def calc_metrics(
    metrics: Sequence[Metric], golds: ArrayLike, predictions: ArrayLike, scores: ArrayLike
) -> dict[str, float]:
    """Metrics of a classification or regression dataset of N examples.

    Args:
        metrics: which, in the order of the answer.
        golds: gold labels, (N,): class indices, or numbers for regression.
        predictions: predicted classes, (N,).
        scores: class probabilities (N, C), or a regression's outputs (N,) or (N, 1).

    Returns:
        Percentages by the metric's name. Pearson, Spearman and AUC use the scores, the others the predictions.
        F1 is that of class 1 of two, F1MAC and F1MIC its macro and micro average over classes. CMAT, the confusion
        matrix, gives one entry `CMAT_gold_predicted` a cell: the share of all examples.
        F1 without positives and MCC of a constant are 0, as in scikit-learn. A correlation of a constant and AUC with
        one class are not defined, nor with scores that are not finite: nan (`undefined` says so in words).

    Raises:
        UserError: no examples; sizes that differ; a metric that does not fit the labels.
    """
    golds, predictions, scores = np.asarray(golds), np.asarray(predictions), np.asarray(scores, dtype=np.float64)
    if not len(golds):
        raise UserError("metrics: found no examples; at least one is needed")
    if not len(golds) == len(predictions) == len(scores):
        raise UserError(
            f"metrics: found {len(golds)} gold labels, {len(predictions)} predictions and {len(scores)} rows of "
            "scores; they must be equally many"
        )
    values: dict[str, float] = {}
    for metric in metrics:
        if metric in CLASS_METRICS:
            _require_classes(metric, golds, predictions)
        if metric == Metric.CMAT:
            values.update(_confusion(golds, predictions))
        else:
            values[metric.name] = 100.0 * float(_value(metric, golds, predictions, scores))
    return values


def calc_label_metrics(
    metrics: Sequence[Metric], golds: np.ndarray, predictions: np.ndarray, scores: np.ndarray
) -> dict[str, float]:
    """Metrics of N examples that have any number of L labels.

    Args:
        metrics: some of `LABEL_METRICS`, in the order of the answer.
        golds, predictions: 1 where an example has a label, else 0, (N, L).
        scores: the probability of each label, (N, L).

    Returns:
        Percentages by the metric's name. F1MIC is F1 over all cells of the matrix, F1MAC the mean of the labels' F1, in
        which a label that neither occurs nor is predicted counts 0. ACC is the share of examples with no label wrong
        (subset accuracy). AUC is the mean of the labels' areas; labels without one (`labels_without_area`) are in no
        mean. Without any, or with scores that are not finite, it is nan.

    Raises:
        UserError: no examples; shapes that differ; another metric.
    """
    if not len(golds):
        raise UserError("metrics: found no examples; at least one is needed")
    if not golds.shape == predictions.shape == scores.shape:
        found = ", ".join(" x ".join(map(str, own.shape)) for own in (golds, predictions, scores))
        raise UserError(f"metrics: found labels, predictions and scores of {found}; they must be equally many")
    return {
        metric.name: 100.0 * float(_label_value(metric, golds, predictions, scores.astype(np.float64)))
        for metric in metrics
    }


WHY_UNDEFINED = {
    Metric.AUC.name: "all examples are of one class",
    Metric.Pearson.name: "all labels or all predictions are the same",
    Metric.Spearman.name: "all labels or all predictions are the same",
}


def undefined(values: Mapping[str, float]) -> list[str]:
    """What a reader should know of metrics without a value, a line each."""
    return [
        f"{name} is not defined here: {WHY_UNDEFINED.get(name, 'no example has what it measures')}, or scores are not "
        "finite"
        for name, value in values.items()
        if math.isnan(value)
    ]


def labels_without_area(golds: np.ndarray) -> list[int]:
    """The labels that all examples have, or none has: no area under a curve is defined for them. `golds` as above."""
    return np.flatnonzero(np.ptp(golds, axis=0) == 0).tolist()


def _label_value(metric: Metric, golds: np.ndarray, predictions: np.ndarray, scores: np.ndarray) -> float:
    # column by column, for scikit-learn takes a matrix of one column for classes 0 and 1
    columns = range(golds.shape[1])
    match metric:
        case Metric.F1MIC:
            return f1_score(golds.ravel(), predictions.ravel(), zero_division=0)
        case Metric.F1MAC:
            return np.mean([f1_score(golds[:, own], predictions[:, own], zero_division=0) for own in columns])
        case Metric.ACC:
            return (golds == predictions).all(1).mean()
        case Metric.AUC:
            defined = sorted(set(columns) - set(labels_without_area(golds)))
            if not defined or not np.isfinite(scores).all():
                return math.nan
            return np.mean([roc_auc_score(golds[:, own], scores[:, own]) for own in defined])
    accepted = ", ".join(built.name for built in LABEL_METRICS)
    raise UserError(f"metric {metric.name} is not one of several labels; accepted: {accepted}")


def _value(metric: Metric, golds: np.ndarray, predictions: np.ndarray, scores: np.ndarray) -> float:
    match metric:
        case Metric.ACC:
            return accuracy_score(golds, predictions)
        case Metric.F1:
            _require_two_classes(metric, np.concatenate([golds, predictions]))
            return f1_score(golds, predictions, pos_label=1, zero_division=0)
        case Metric.F1MAC:
            return f1_score(golds, predictions, average="macro", zero_division=0)
        case Metric.F1MIC:
            return f1_score(golds, predictions, average="micro", zero_division=0)
        case Metric.MCC:
            constant = np.ptp(golds) == 0 or np.ptp(predictions) == 0
            return 0.0 if constant else matthews_corrcoef(golds, predictions)
        case Metric.AUC:
            return _area_under_curve(golds, scores)
        case Metric.Pearson:
            return _correlation(pearsonr, golds, scores)
        case Metric.Spearman:
            return _correlation(spearmanr, golds, scores)
    accepted = ", ".join(built.name for built in BUILT_METRICS)
    raise UserError(f"metric {metric.name} is not one of classes or numbers; accepted: {accepted}")


def _correlation(correlate: Callable[..., Any], golds: np.ndarray, scores: np.ndarray) -> float:
    scores = scores.reshape(len(golds), -1)
    if scores.shape[1] != 1:
        raise UserError(f"correlation: found {scores.shape[1]} scores an example; a regression has one")
    scores = scores[:, 0]
    if not np.isfinite(scores).all() or np.ptp(scores) == 0 or np.ptp(golds) == 0:
        return math.nan
    return correlate(golds, scores).statistic


def _area_under_curve(golds: np.ndarray, scores: np.ndarray) -> float:
    _require_two_classes(Metric.AUC, golds)
    if scores.ndim != 2 or scores.shape[1] != 2:
        raise UserError(f"metric AUC: found scores of shape {scores.shape}; accepted is one column a class, of two")
    if np.ptp(golds) == 0 or not np.isfinite(scores).all():
        return math.nan
    return roc_auc_score(golds, scores[:, 1])


def _confusion(golds: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    classes = np.union1d(golds, predictions).tolist()
    shares = 100.0 * confusion_matrix(golds, predictions, labels=classes, normalize="all")
    return {
        f"{Metric.CMAT.name}_{gold}_{predicted}": float(shares[row, column])
        for row, gold in enumerate(classes)
        for column, predicted in enumerate(classes)
    }


def _require_classes(metric: Metric, *labels: np.ndarray) -> None:
    for own in labels:
        numbers = own[own % 1 != 0] if np.issubdtype(own.dtype, np.floating) else []
        if len(numbers):
            accepted = ", ".join(known.name for known in NUMBER_METRICS)
            raise UserError(f"metric {metric.name} is for classes; found {numbers[0]:g}; {accepted} take numbers")


def _require_two_classes(metric: Metric, labels: np.ndarray) -> None:
    if not np.isin(labels, (0, 1)).all():
        found = ", ".join(str(label) for label in np.unique(labels).tolist()[:5])
        raise UserError(f"metric {metric.name} is for the classes 0 and 1; found {found}; F1MAC and F1MIC take more")


def entity_f1(golds: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> float:
    """F1 of the entities of all sentences together, in percent; 0 where there is none to find and none found.

    An entity is found where one of the same type has the same first and last word. Tags are read as the evaluation of
    CoNLL reads them, which is seqeval's default mode [Tjong Kim Sang and De Meulder 2003]: an `I-` after `O` or after
    another type begins an entity too.

    Args:
        golds, predictions: of each sentence a tag a word, such as B-PER, I-PER or O.
    """
    return 100.0 * float(seqeval_f1(_lists(golds), _lists(predictions), zero_division=0))


def mean_entity_f1(golds: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> float:
    """The mean over sentences of each one's `entity_f1`; 100 for a sentence without entities in which none is found."""
    sentences = zip(_lists(golds), _lists(predictions), strict=True)
    values = [
        entity_f1([gold], [found]) if get_entities(gold) or get_entities(found) else 100.0 for gold, found in sentences
    ]
    return float(np.mean(values))


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of a sentence: type, first and last word; none where tags are not such as O and B-PER."""
    if not all(tag == "O" or tag[1:2] == "-" for tag in tags):
        return []
    return list(get_entities(list(tags)))


ENTITY_METRICS = {Metric.SeqEval: entity_f1, Metric.SeqEvalList: mean_entity_f1}


def _lists(sentences: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(tags) for tags in sentences]
