from __future__ import annotations

import numpy as np

from data_utils.spans import Span, best_spans, text_of, tokens_of

OFFSETS = [None, None, (0, 3), (4, 6), (6, 9), (10, 12), None]


def test_tokens_that_hold_characters():
    assert tokens_of(OFFSETS, 4, 9) == (3, 4)
    assert tokens_of(OFFSETS, 5, 7) == (3, 4)  # parts of tokens
    assert tokens_of(OFFSETS, 3, 4) is None  # a blank
    assert tokens_of([(0, 1), (1, 1), (1, 2), (1, 2)], 1, 2) == (2, 3)  # two tokens of one character


def test_best_spans_are_those_of_all_pairs():
    draw = np.random.default_rng(0)
    start, end = draw.normal(size=(2, len(OFFSETS)))
    for longest in (1, 2, 9):
        pairs = [(first, last) for first in range(2, 6) for last in range(first, min(6, first + longest))]
        ranked = sorted(pairs, key=lambda pair: -(start[pair[0]] + end[pair[1]]))
        expected = [
            Span(float(start[first] + end[last]), OFFSETS[first][0], OFFSETS[last][1])  # type: ignore[index]
            for first, last in ranked
        ]
        found = best_spans(start, end, OFFSETS, longest, 5)
        assert len(found) == min(5, len(pairs))
        for span, wanted in zip(found, expected, strict=False):
            assert span[1:] == wanted[1:]
            assert abs(span.score - wanted.score) < 1e-12


def test_of_equals_the_earlier_and_shorter_comes_first():
    found = best_spans(np.zeros(7), np.zeros(7), OFFSETS, 2, 3)
    assert [span[1:] for span in found] == [(0, 3), (0, 6), (4, 6)]


def test_no_text_no_span():
    assert best_spans(np.zeros(2), np.zeros(2), [None, None], 3, 5) == []


def test_text_of_a_span_takes_the_marks_behind_it_along():
    context = "un cafe\u0301 noir"
    assert text_of(context, Span(0.0, 3, 7)) == "cafe\u0301"
    assert text_of(context, Span(0.0, 2, 9)) == "cafe\u0301"
