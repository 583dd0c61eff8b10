"""Spans of a text between its characters and its tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Offsets = Sequence[Sequence[int] | None]  # of each token the characters from and to, None outside the text


class Span(NamedTuple):
    """Characters `begin` to `end` (exclusive), and how well they answer; higher is better."""

    score: float
    begin: int
    end: int


def tokens_of(offsets: Offsets, begin: int, end: int) -> tuple[int, int] | None:
    """The first and the last token that hold some of the characters `begin` to `end`; None where none does."""
    touched = [place for place, own in enumerate(offsets) if own is not None and own[0] < end and own[1] > begin]
    return (touched[0], touched[-1]) if touched else None


def text_of(context: str, span: Span) -> str:
    """The span as the text has it, without blanks around it.

    Marks that stand behind the last character belong to it; tokenizers that strip accents leave them out.
    """
    end = span.end
    while end < len(context) and unicodedata.category(context[end]).startswith("M"):
        end += 1
    return context[span.begin : end].strip()


def best_spans(start: np.ndarray, end: np.ndarray, offsets: Offsets, longest: int, count: int) -> list[Span]:
    """The best spans of one window, all of them compared, best first; of equals the earlier and shorter one.

    Args:
        start, end: scores of each token as the first and as the last of the answer, (tokens,); a span's is their sum.
        offsets: of the tokens.
        longest: tokens of a span.
        count: how many spans, fewer where there are not so many.
    """
    places = [place for place, own in enumerate(offsets) if own is not None]
    first, last = start[places].astype(np.float64), end[places].astype(np.float64)
    total = np.full((len(places), longest), -np.inf)  # by first token and by further tokens
    for further in range(min(longest, len(places))):
        total[: len(places) - further, further] = first[: len(places) - further] + last[further:]
    order = np.argsort(-total, axis=None, kind="stable")[:count]
    chosen = [divmod(int(flat), longest) for flat in order if np.isfinite(total.flat[flat])]
    return [
        Span(float(total[begin, further]), offsets[places[begin]][0], offsets[places[begin + further]][1])  # type: ignore[index]
        for begin, further in chosen
    ]
