"""A character-level attack on a text classifier of which nothing is known but its probabilities.

After DeepWordBug [Gao et al. 2018, "Black-box Generation of Adversarial Text Sequences to Evade Deep Learning
Classifiers", https://arxiv.org/abs/1801.04354]: words are changed in the order of their importance, one edit a word,
until the prediction changes. What differs from the paper, or is left open there:
- A word is a run of letters; its importance is by how much the gold class's probability falls when it is taken out.
- An edit swaps two neighbouring letters, inserts a letter, deletes one, or replaces one by a neighbour on the keyboard
  (QWERTY), at a random place. Each kind is tried once a word and the one that lowers the gold probability most is
  kept, if one lowers it.
- The first and the last letter stay, as in Pruthi et al. 2019 (https://arxiv.org/abs/1905.11268), and words of fewer
  than `SHORTEST` letters are left alone, so that a reader still knows the word.
- At most a share of the text's words is changed, and a text may be scored a limited number of times.
One edit can make another word of the dictionary ("good", "god"); the attack does not see meaning.

TextAttack has this attack too and does not go with transformers 5: its release 0.3.11 needs flair, and flair's newest,
0.15.1, needs transformers below 5.
"""

from __future__ import annotations

import math
import random
import re
import string
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np

Probabilities = Callable[[list[str]], np.ndarray]

SHORTEST = 4  # letters of a word that may be changed
LARGEST_SHARE = 0.25  # of a text's words
RANKED_SHARE = 0.5  # of the queries, at most, for the importance of words
WORD = re.compile(r"[^\W\d_]+")

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """For each letter those beside it; a row of keys is shifted by half a key against the one above."""
    places = {letter: (y, x + y / 2) for y, row in enumerate(_ROWS) for x, letter in enumerate(row)}
    return {
        letter: "".join(other for other, (v, u) in places.items() if other != letter and abs(y - v) + abs(x - u) <= 1.5)
        for letter, (y, x) in places.items()
    }


NEIGHBOURS = _neighbours()


class Attacked(NamedTuple):
    """What the attack did to a text.

    text: as changed so far; clean, correct: whether the prediction was right before and after; queries: texts scored.
    """

    text: str
    clean: bool
    correct: bool
    queries: int


def attack_texts(
    texts: Sequence[str],
    golds: Sequence[int],
    probabilities: Probabilities,
    *,
    queries: int,
    largest_share: float = LARGEST_SHARE,
    seed: int = 0,
) -> list[Attacked]:
    """Attack each text; what is found depends on the text, the seed and the classifier alone.

    The texts that all attacks ask for next are scored together, so that a classifier can batch them.

    Args:
        texts, golds: the examples and their classes.
        probabilities: texts → (texts, classes).
        queries: how often a text and its changed forms may be scored, at least 1.
        largest_share: of a text's words that may be changed; one may be always.
        seed: of the places and letters of the edits.
    """
    attacks = [_attack(text, int(gold), queries, largest_share, seed) for text, gold in zip(texts, golds, strict=True)]
    asked = {number: next(attack) for number, attack in enumerate(attacks)}
    found: dict[int, Attacked] = {}
    while asked:
        scores = probabilities([text for wanted in asked.values() for text in wanted])
        answers = iter(np.split(scores, np.cumsum([len(wanted) for wanted in asked.values()])[:-1]))
        waiting, asked = list(asked), {}
        for number, answer in zip(waiting, answers, strict=True):
            try:
                asked[number] = attacks[number].send(answer)
            except StopIteration as end:
                found[number] = end.value
    return [found[number] for number in range(len(attacks))]


def _attack(
    text: str, gold: int, queries: int, largest_share: float, seed: int
) -> Generator[list[str], np.ndarray, Attacked]:
    """The attack on one text: yields what it wants scored, is sent (texts, classes), returns what it did."""
    (scores,) = yield [text]
    used = 1
    if scores.argmax() != gold:
        return Attacked(text, False, False, used)
    current, probability = text, scores[gold]
    words = [match.span() for match in WORD.finditer(text)]
    changes_left = max(1, math.floor(largest_share * len(words)))
    changeable = [(start, end) for start, end in words if end - start >= SHORTEST]
    ranked = _ranked_words(changeable, int(RANKED_SHARE * (queries - used)), f"{seed}/{text}")
    if not ranked:
        return Attacked(text, True, True, used)
    without = yield [text[:start] + text[end:] for start, end in ranked]
    used += len(ranked)
    moved: list[tuple[int, int]] = []  # of the words changed: where they began, how much longer they became
    for index in np.argsort(without[:, gold], kind="stable"):
        start, end = ranked[index]
        variants = edits(text[start:end], random.Random(f"{seed}/{start}/{text}"))[: queries - used]
        if not variants:
            continue
        shift = sum(longer for begin, longer in moved if begin < start)
        candidates = [current[: start + shift] + variant + current[end + shift :] for variant in variants]
        scores = yield candidates
        used += len(candidates)
        right = scores.argmax(1) == gold
        best = int(np.lexsort((scores[:, gold], right))[0])
        if not right[best]:
            return Attacked(candidates[best], True, False, used)
        if scores[best, gold] >= probability:
            continue
        current, probability = candidates[best], scores[best, gold]
        moved.append((start, len(variants[best]) - (end - start)))
        changes_left -= 1
        if not changes_left:
            break
    return Attacked(current, True, True, used)


def _ranked_words(words: Sequence[tuple[int, int]], count: int, seed: str) -> list[tuple[int, int]]:
    """The words whose importance is asked for: all, or as many as `count` drawn at random."""
    if len(words) <= count:
        return list(words)
    return sorted(random.Random(seed).sample(words, count))


def edits(word: str, generator: random.Random) -> list[str]:
    """One edit of each kind that the word's inner letters allow: swap, insertion, deletion, keyboard neighbour.

    Letters that no key of QWERTY has are swapped and deleted alone.
    """
    inner = range(1, len(word) - 1)
    swaps = [i for i in inner[:-1] if word[i] != word[i + 1]]
    keys = [i for i in inner if word[i].lower() in NEIGHBOURS]
    found = []
    if swaps:
        i = generator.choice(swaps)
        found.append(word[:i] + word[i + 1] + word[i] + word[i + 2 :])
    if keys:
        i = generator.choice(keys)
        found.append(word[:i] + _cased(generator.choice(string.ascii_lowercase), word[i]) + word[i:])
    if inner:
        i = generator.choice(inner)
        found.append(word[:i] + word[i + 1 :])
    if keys:
        i = generator.choice(keys)
        found.append(word[:i] + _cased(generator.choice(NEIGHBOURS[word[i].lower()]), word[i]) + word[i + 1 :])
    return found


def _cased(letter: str, like: str) -> str:
    return letter.upper() if like.isupper() else letter
