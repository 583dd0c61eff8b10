"""Spans of a text: from characters to tokens and back."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Offsets = Sequence[Sequence[int] | None]  # first and end character of each token; None outside the text


class Span(NamedTuple):
    """Characters `begin` to `end` (exclusive) of a text, and their score; higher is better."""

    score: float
    begin: int
    end: int


def tokens_of(offsets: Offsets, begin: int, end: int) -> tuple[int, int] | None:
    """The first and the last token that overlap the characters `begin` to `end`; None if none does."""
    touched = [place for place, own in enumerate(offsets) if own is not None and own[0] < end and own[1] > begin]
    return (touched[0], touched[-1]) if touched else None


def text_of(context: str, span: Span) -> str:
    """The text of a span without white space around it.

    Combining marks after the last character are included; tokenizers that strip accents leave them out.
    """
    end = span.end
    while end < len(context) and unicodedata.category(context[end]).startswith("M"):
        end += 1
    return context[span.begin : end].strip()


def best_spans(start: np.ndarray, end: np.ndarray, offsets: Offsets, longest: int, count: int) -> list[Span]:
    """The best spans of a window among all, best first; of equal ones the earlier and shorter first.

    Args:
        start, end: scores of each token as the answer's first and last one, (tokens,); a span's score is their sum.
        offsets: of the tokens.
        longest: tokens of a span, at most.
        count: how many spans to return, at most.
    """
    places = [place for place, own in enumerate(offsets) if own is not None]
    first, last = start[places].astype(np.float64), end[places].astype(np.float64)
    total = np.full((len(places), longest), -np.inf)  # by first token and number of further tokens
    for further in range(min(longest, len(places))):
        total[: len(places) - further, further] = first[: len(places) - further] + last[further:]
    order = np.argsort(-total, axis=None, kind="stable")[:count]
    chosen = [divmod(int(flat), longest) for flat in order if np.isfinite(total.flat[flat])]
    return [
        Span(float(total[begin, further]), offsets[places[begin]][0], offsets[places[begin + further]][1])  # type: ignore[index]
        for begin, further in chosen
    ]
