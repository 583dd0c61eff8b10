import math
import warnings

import numpy as np
import pytest

from data_utils.errors import UserError
from data_utils.metrics import BUILT_METRICS, Metric, calc_metrics, entity_f1, mean_entity_f1, undefined

# Of class 1: 2 true positives, 1 false positive, 1 false negative; 4 true negatives.
GOLDS = np.array([1, 1, 1, 0, 0, 0, 0, 0])
PREDICTIONS = np.array([1, 1, 0, 1, 0, 0, 0, 0])
SCORES = np.stack([1 - PREDICTIONS * 0.5, PREDICTIONS * 0.5], axis=1)


def value(metric: Metric, golds, predictions, scores) -> float:
    return calc_metrics([metric], golds, predictions, scores)[metric.name]


def test_numbers_are_those_of_mt_dnn():
    assert {metric.name: metric.value for metric in Metric} == {
        "ACC": 0, "F1": 1, "MCC": 2, "Pearson": 3, "Spearman": 4, "AUC": 5, "SeqEval": 7, "EmF1": 8, "F1MAC": 9,
        "F1MIC": 10, "CMAT": 11, "EmF12": 12, "SeqEvalList": 13,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (Metric.ACC, 75.0),
        (Metric.F1, 100 * 2 / 3),
        (Metric.F1MIC, 75.0),
        (Metric.F1MAC, 100 * (2 / 3 + 4 / 5) / 2),
        # (TP·TN − FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN))
        (Metric.MCC, 100 * (2 * 4 - 1) / 15),
        # of the 15 pairs of a positive and a negative, 2·4 are in order and 2·1 + 1·4 equal
        (Metric.AUC, 100 * (8 + 0.5 * 6) / 15),
    ],
)
def test_values_by_hand(metric: Metric, expected: float):
    assert value(metric, GOLDS, PREDICTIONS, SCORES) == pytest.approx(expected, abs=1e-9)


def test_correlations_use_the_scores():
    golds = np.array([0.0, 1.0, 2.0, 3.0])
    scores = np.array([[0.0], [1.0], [8.0], [27.0]])
    values = calc_metrics([Metric.Pearson, Metric.Spearman], golds, np.zeros(4), scores)
    assert list(values) == ["Pearson", "Spearman"]
    assert values["Spearman"] == pytest.approx(100.0)
    # sums of products of the deviations (-1.5, -0.5, 0.5, 1.5) and (-9, -8, -1, 18)
    assert values["Pearson"] == pytest.approx(100 * 44 / np.sqrt(5 * 470), abs=1e-9)


def test_confusion_matrix_is_the_share_of_each_cell():
    values = calc_metrics([Metric.CMAT], GOLDS, PREDICTIONS, SCORES)
    assert values == {"CMAT_0_0": 50.0, "CMAT_0_1": 12.5, "CMAT_1_0": 12.5, "CMAT_1_1": 25.0}


def test_values_are_plain_floats():
    values = calc_metrics(BUILT_METRICS[:3], GOLDS, PREDICTIONS, SCORES)
    assert all(type(number) is float for number in values.values())


@pytest.mark.parametrize(
    ("metric", "expected"),
    [(Metric.F1, 0.0), (Metric.MCC, 0.0), (Metric.AUC, None), (Metric.Pearson, None), (Metric.Spearman, None)],
)
def test_constants_give_zero_or_no_value_and_no_warning(metric: Metric, expected: float | None):
    """As scikit-learn and SciPy have it, with a line in place of their warnings."""
    constant = np.zeros(4, dtype=int)
    scores = np.zeros(4) if metric in (Metric.Pearson, Metric.Spearman) else np.zeros((4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = calc_metrics([metric], constant, constant, scores)
    assert found == {metric.name: pytest.approx(math.nan if expected is None else expected, nan_ok=True)}
    said = undefined(found)
    assert len(said) == (expected is None) and all(own.startswith(f"{metric.name} is not defined") for own in said)


def test_scores_that_are_not_finite_give_no_correlation():
    assert math.isnan(value(Metric.Pearson, np.array([0.0, 1.0]), np.zeros(2), np.array([np.nan, 1.0])))


@pytest.mark.parametrize(
    ("metric", "golds", "scores", "words"),
    [
        (Metric.SeqEval, [0, 1], np.zeros((2, 2)), "SeqEval is not one of classes"),
        (Metric.F1, [0, 2], np.zeros((2, 3)), "F1MAC"),
        (Metric.AUC, [0, 1], np.zeros((2, 3)), "AUC"),
        (Metric.ACC, [], np.zeros((0, 2)), "no examples"),
        (Metric.ACC, [0, 1], np.zeros((3, 2)), "3 rows of scores"),
        (Metric.Pearson, [0.0, 1.0], np.zeros((2, 3)), "a regression has one"),
        (Metric.MCC, [0.5, 1.0], np.zeros((2, 1)), "MCC is for classes; found 0.5; Pearson, Spearman take numbers"),
        (Metric.CMAT, [1.5, 2.5], np.zeros((2, 1)), "CMAT is for classes; found 1.5"),
    ],
)
def test_what_cannot_be_evaluated_is_reported_in_one_line(metric: Metric, golds, scores, words: str):
    with pytest.raises(UserError, match=words) as caught:
        calc_metrics([metric], np.array(golds), np.zeros(len(golds), dtype=int), scores)
    assert "\n" not in str(caught.value)


# Entities, written as seqeval's documentation and the evaluation of CoNLL-2003 define them: (type, first, last word).


@pytest.mark.parametrize(
    ("gold", "found", "expected"),
    [
        # gold PER 0-1, LOC 3-3; found PER 0-1, LOC 3-4: one of two and one of two
        ("B-PER I-PER O B-LOC O", "B-PER I-PER O B-LOC I-LOC", 50.0),
        # gold PER 0-1, LOC 3-3; found PER 0-1: precision 1, recall 1/2
        ("B-PER I-PER O B-LOC", "B-PER I-PER O O", 100 * 2 / 3),
        # the right words under another type
        ("B-PER I-PER O", "B-LOC I-LOC O", 0.0),
        # half of an entity is none: gold ORG 0-2; found ORG 0-0 and ORG 1-2
        ("B-ORG I-ORG I-ORG", "B-ORG B-ORG I-ORG", 0.0),
        # an I- begins an entity after O and after another type: gold PER 1-1, LOC 2-2
        ("O I-PER I-LOC", "O B-PER B-LOC", 100.0),
        ("O O", "O O", 0.0),
        ("O O", "O B-PER", 0.0),
    ],
)
def test_entities_by_hand(gold: str, found: str, expected: float):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert entity_f1([gold.split()], [found.split()]) == pytest.approx(expected)


def test_entities_are_counted_over_sentences_or_in_each():
    golds = [["B-PER", "O"], ["B-LOC", "B-PER", "B-ORG"], ["O"], ["O"], []]
    found = [["B-PER", "O"], ["B-LOC", "O", "O"], ["O"], ["B-PER"], []]
    # 2 of 4 gold ones and 2 of 3 found ones are right
    assert entity_f1(golds, found) == pytest.approx(100 * 2 * 2 / (4 + 3))
    # sentence by sentence: 1, 2 * 1 / (3 + 1), none and none found, one found where there is none, no words
    assert mean_entity_f1(golds, found) == pytest.approx(100 * (1 + 0.5 + 1 + 0 + 1) / 5)


def test_an_entity_does_not_go_on_in_the_next_sentence():
    assert entity_f1([["B-PER"], ["I-PER"]], [["B-PER"], ["O"]]) == pytest.approx(100 * 2 / 3)
