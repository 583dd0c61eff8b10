"""Metrics of several labels an example, against scikit-learn's own and by hand."""

import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from data_utils.errors import UserError
from data_utils.metrics import LABEL_METRICS, Metric, calc_label_metrics, labels_without_area

# Of label 0: 1 true positive, 1 false positive; of label 1: 1 false negative; of label 2 nothing, right all along.
GOLDS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
PREDICTIONS = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
SCORES = np.array([[0.9, 0.1, 0.2], [0.6, 0.3, 0.1], [0.2, 0.3, 0.3], [0.1, 0.4, 0.1]])


def test_values_by_hand() -> None:
    values = calc_label_metrics(LABEL_METRICS, GOLDS, PREDICTIONS, SCORES)
    assert list(values) == ["F1MIC", "F1MAC", "ACC", "AUC"] and all(type(own) is float for own in values.values())
    assert values["F1MIC"] == pytest.approx(100 * 2 * 1 / (2 * 1 + 1 + 1))
    assert values["F1MAC"] == pytest.approx(100 * (2 / 3 + 0 + 0) / 3)
    assert values["ACC"] == pytest.approx(75.0)
    # label 0: above all 3; label 1: above one, equal to one, below one; label 2 has no positive
    assert values["AUC"] == pytest.approx(100 * (1 + 1.5 / 3) / 2)
    assert labels_without_area(GOLDS) == [2]


@pytest.mark.parametrize("seed", range(5))
def test_values_are_scikit_learns(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.random((40, 5))
    golds = (draw.random((40, 5)) < scores).astype(int)
    predictions = (scores >= 0.5).astype(int)
    values = calc_label_metrics(LABEL_METRICS, golds, predictions, scores)
    expected = {
        "F1MIC": f1_score(golds, predictions, average="micro"),
        "F1MAC": f1_score(golds, predictions, average="macro"),
        "ACC": accuracy_score(golds, predictions),
        "AUC": roc_auc_score(golds, scores, average="macro"),
    }
    assert values == pytest.approx({name: 100 * own for name, own in expected.items()})


def test_of_one_label_f1_is_that_of_its_positives() -> None:
    """scikit-learn takes a matrix of one column for classes 0 and 1, whose micro average is the accuracy."""
    values = calc_label_metrics(LABEL_METRICS, GOLDS[:, :1], PREDICTIONS[:, :1], SCORES[:, :1])
    assert values == pytest.approx({"F1MIC": 200 / 3, "F1MAC": 200 / 3, "ACC": 75.0, "AUC": 100.0})


def test_what_has_no_value_is_0_without_a_warning() -> None:
    golds = np.array([[1, 0], [1, 0]])
    assert labels_without_area(golds) == [0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = calc_label_metrics(LABEL_METRICS, golds, 0 * golds, 0.1 * golds)
        assert values == pytest.approx({"F1MIC": 0.0, "F1MAC": 0.0, "ACC": 0.0, "AUC": math.nan}, nan_ok=True)
        not_finite = np.where(SCORES > 0.8, np.nan, SCORES)
        assert calc_label_metrics([Metric.AUC], GOLDS, PREDICTIONS, not_finite) == pytest.approx(
            {"AUC": math.nan}, nan_ok=True
        )


@pytest.mark.parametrize(
    ("metric", "rows", "said"),
    [
        (Metric.MCC, 4, "metric MCC is not one of several labels; accepted: F1MIC, F1MAC, ACC, AUC"),
        (Metric.ACC, 3, "found labels, predictions and scores of 4 x 3, 3 x 3, 3 x 3; they must be equally many"),
    ],
)
def test_mistakes_are_reported(metric: Metric, rows: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        calc_label_metrics([metric], GOLDS, PREDICTIONS[:rows], SCORES[:rows])
    with pytest.raises(UserError, match="found no examples"):
        calc_label_metrics([metric], GOLDS[:0], PREDICTIONS[:0], SCORES[:0])
