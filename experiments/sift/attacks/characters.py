"""A character-level black-box attack on a text classifier: it sees only the probabilities.

After DeepWordBug [Gao et al. 2018, "Black-box Generation of Adversarial Text Sequences to Evade Deep Learning
Classifiers", https://arxiv.org/abs/1801.04354]: words are changed in the order of their importance, one edit for each
word, until the prediction changes. What differs from the paper, or is not specified there:
- A word is a sequence of letters; its importance is how much the gold class's probability falls without it.
- An edit swaps two neighbouring letters, inserts a letter, deletes one, or replaces one by a neighbour on the keyboard
  (QWERTY), at a random position. Each kind is tried once for a word, and the edit that lowers the gold probability most
  is applied, if any lowers it.
- The first and the last letter are not changed, as in Pruthi et al. 2019 (https://arxiv.org/abs/1905.11268), nor are
  words of fewer than `SHORTEST` letters, so that a reader still recognizes the word.
- At most a share of the text's words is changed, and the number of times that a text may be scored is limited.
An edit can give another word of the dictionary ("good", "god"); the attack does not consider meaning.

TextAttack has this attack too, but does not work with transformers 5: its release 0.3.11 needs flair, whose latest
release, 0.15.1, needs transformers below 5.
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
RANKED_SHARE = 0.5  # of the queries, at most, to find the importance of words
WORD = re.compile(r"[^\W\d_]+")

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """The neighbours of each letter on the keyboard; each row is shifted by half a key against the one above."""
    places = {letter: (y, x + y / 2) for y, row in enumerate(_ROWS) for x, letter in enumerate(row)}
    return {
        letter: "".join(other for other, (v, u) in places.items() if other != letter and abs(y - v) + abs(x - u) <= 1.5)
        for letter, (y, x) in places.items()
    }


NEIGHBOURS = _neighbours()


class AttackResult(NamedTuple):
    """The attack's result for a text.

    text: after the edits; clean, correct: whether the prediction was right before and after them; queries: how many
    texts were scored.
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
) -> list[AttackResult]:
    """Attack each text; a result depends only on the text, the seed and the classifier.

    The texts that the attacks need next are scored together, so that the classifier can batch them.

    Args:
        texts, golds: the examples and their classes.
        probabilities: texts → (texts, classes).
        queries: how often a text and its changed forms may be scored, at least 1.
        largest_share: of a text's words that may be changed; one word always may.
        seed: of the positions and letters of the edits.
    """
    attacks = [_attack(text, int(gold), queries, largest_share, seed) for text, gold in zip(texts, golds, strict=True)]
    requests = {number: next(attack) for number, attack in enumerate(attacks)}
    results: dict[int, AttackResult] = {}
    while requests:
        scores = probabilities([text for texts in requests.values() for text in texts])
        answers = iter(np.split(scores, np.cumsum([len(texts) for texts in requests.values()])[:-1]))
        waiting, requests = list(requests), {}
        for number, answer in zip(waiting, answers, strict=True):
            try:
                requests[number] = attacks[number].send(answer)
            except StopIteration as end:
                results[number] = end.value
    return [results[number] for number in range(len(attacks))]


def _attack(
    text: str, gold: int, queries: int, largest_share: float, seed: int
) -> Generator[list[str], np.ndarray, AttackResult]:
    """The attack on one text: yields texts to score, is sent their probabilities (texts, classes), returns a result."""
    (scores,) = yield [text]
    used = 1
    if scores.argmax() != gold:
        return AttackResult(text, False, False, used)
    current, probability = text, scores[gold]
    words = [match.span() for match in WORD.finditer(text)]
    changes_left = max(1, math.floor(largest_share * len(words)))
    changeable = [(start, end) for start, end in words if end - start >= SHORTEST]
    ranked = _ranked_words(changeable, int(RANKED_SHARE * (queries - used)), f"{seed}/{text}")
    if not ranked:
        return AttackResult(text, True, True, used)
    without = yield [text[:start] + text[end:] for start, end in ranked]
    used += len(ranked)
    moved: list[tuple[int, int]] = []  # of the changed words: original start, change of length
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
            return AttackResult(candidates[best], True, False, used)
        if scores[best, gold] >= probability:
            continue
        current, probability = candidates[best], scores[best, gold]
        moved.append((start, len(variants[best]) - (end - start)))
        changes_left -= 1
        if not changes_left:
            break
    return AttackResult(current, True, True, used)


def _ranked_words(words: Sequence[tuple[int, int]], count: int, seed: str) -> list[tuple[int, int]]:
    """The words whose importance is computed: all, or a random sample of `count`."""
    if len(words) <= count:
        return list(words)
    return sorted(random.Random(seed).sample(words, count))


def edits(word: str, generator: random.Random) -> list[str]:
    """The word after one edit of each kind that its inner letters allow: swap, insertion, deletion, keyboard neighbour.

    Letters that are not on a QWERTY keyboard are only swapped and deleted.
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
