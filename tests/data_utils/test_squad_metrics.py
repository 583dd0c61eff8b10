"""SQuAD's metrics against values worked out by hand from the definition in the public evaluation scripts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from data_utils.squad_metrics import best_threshold, exact, f1, f1_squad_v2, normalized, squad_v1, squad_v2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, and an\tOwl!", "cat and owl"),
        ("a.b.c", "abc"),  # punctuation goes before articles, and leaves no space
        ("the-theme", "thetheme"),
        ("Anna and Theo", "anna and theo"),  # articles are whole words
        ("« Élan »", "« élan »"),  # other punctuation than ASCII's stays
        ("The", ""),
    ],
)
def test_normalization(text: str, expected: str):
    assert normalized(text) == expected


def test_f1_counts_a_repeated_word_as_often_as_both_have_it():
    # precision 2/3, recall 2/4: 2 · (2/3 · 1/2) / (2/3 + 1/2) = 4/7
    assert f1("red red blue", "red red red green") == pytest.approx(4 / 7)
    assert f1("the Red", "red!") == 1.0
    assert f1("red", "blue") == 0.0


def test_where_nothing_is_left_the_two_versions_differ():
    assert exact("The", "an") == 1.0
    assert (f1("The", "an"), f1_squad_v2("The", "an")) == (0.0, 1.0)
    assert f1_squad_v2("", "red") == f1_squad_v2("red", "") == 0.0


def test_version_1_takes_the_best_of_the_right_answers():
    golds = [["blue sea", "the sea"], ["one", "two three"], ["four"]]
    found = squad_v1(golds, ["Sea", "three", "five"])
    # exact: 1, 0, 0; F1: 1, 2/3 (precision 1, recall 1/2), 0
    assert found == pytest.approx({"EmF1": 100 * (1 + 2 / 3) / 3, "EmF1_exact": 100 / 3})


def test_version_2_with_its_two_parts():
    golds = [["red car"], ["blue"], [], []]
    found = squad_v2(golds, ["red", "", "", "green"])
    # with an answer: F1 2/3 and 0, exact 0 and 0; without: 1 and 0
    assert found == pytest.approx(
        {
            "EmF12": 100 * (2 / 3 + 1) / 4,
            "EmF12_HasAns_f1": 100 / 3,
            "EmF12_NoAns_f1": 50,
            "EmF12_exact": 25,
            "EmF12_HasAns_exact": 0,
            "EmF12_NoAns_exact": 50,
        }
    )


def test_a_part_without_questions_is_left_out():
    assert set(squad_v2([["red"]], ["red"])) == {
        "EmF12", "EmF12_HasAns_f1", "EmF12_exact", "EmF12_HasAns_exact",
    }  # fmt: skip


def test_best_threshold_by_hand():
    # by null score: right (-2), unanswerable (-1), right (0), wrong (1): answering the first three gains 1 - 1 + 1
    values, answerable = np.array([1.0, 0.0, 1.0, 0.0]), np.array([True, False, True, True])
    assert best_threshold(values, answerable, np.array([-2.0, -1.0, 0.0, 1.0])) == (50.0, -2.0)
    # questions with equal null scores stand or fall together
    assert best_threshold(values[:2], answerable[:2], np.array([3.0, 3.0])) == (50.0, 2.0)


def test_best_threshold_is_the_best_of_all():
    draw = np.random.default_rng(0)
    for _ in range(20):
        answerable = draw.random(12) < 0.6
        values = np.where(answerable, draw.random(12), 0.0)
        null_scores = draw.integers(-4, 5, 12).astype(float)

        def total(threshold: float, values=values, answerable=answerable, null_scores=null_scores) -> float:
            return float(np.where(null_scores > threshold, ~answerable, values).mean() * 100)

        best, threshold = best_threshold(values, answerable, null_scores)
        assert best == pytest.approx(total(threshold))
        assert best == pytest.approx(max(map(total, range(-6, 6))))


def test_the_best_thresholds_are_of_the_answers_that_were_withheld():
    found = squad_v2([["red"], []], ["", ""], ["red", "blue"], [1.0, 5.0])
    assert found["EmF12"] == 50
    assert (found["EmF12_best_f1"], found["EmF12_best_f1_thresh"]) == (100, 1.0)
    assert (found["EmF12_best_exact"], found["EmF12_best_exact_thresh"]) == (100, 1.0)


def test_order_of_questions_does_not_matter():
    golds, predictions = [["a red car"], ["blue"], []], ["red", "blue", "x"]
    results = [
        squad_v2([golds[i] for i in order], [predictions[i] for i in order])
        for order in itertools.permutations(range(3))
    ]
    assert all(found == pytest.approx(results[0]) for found in results)
