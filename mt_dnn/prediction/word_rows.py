"""Tables with a word a row: sentences to predict, and their answers as a cell a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.values import NO_ANSWER, Answer


def answers_of_words(answers: Sequence[Answer], places: Sequence[Sequence[int]], count: int) -> list[Answer]:
    """An answer for each of `count` rows.

    Args:
        answers: of the sentences, lists with an item a word.
        places: of each sentence the places of its words' rows; rows without a word have none, and get no answer.
    """
    found = [NO_ANSWER] * count
    for answer, own in zip(answers, places, strict=True):
        parts = [_items(part, len(own)) for part in (answer.label, answer.probability, answer.probabilities)]
        for place, label, probability, probabilities in zip(own, *parts, strict=True):
            found[place] = Answer(label, probability, probabilities)
    return found


def _items(values: Any, count: int) -> Sequence[Any]:
    return values if isinstance(values, list) else [None] * count
