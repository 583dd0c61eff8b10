"""The attack against classifiers that are known: bags of words."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

import numpy as np
import pytest

from experiments.sift.attacks.characters import NEIGHBOURS, WORD, AttackResult, attack_texts, edits


class BagOfWords:
    """P(class 1) = logistic(b + Σ weight of each known word); notes what it was asked."""

    def __init__(self, weights: Mapping[str, float], bias: float = -0.5) -> None:
        self.weights = weights
        self.bias = bias
        self.asked: list[str] = []
        self.calls = 0

    def __call__(self, texts: list[str]) -> np.ndarray:
        assert texts
        self.asked += texts
        self.calls += 1
        margins = [sum(self.weights.get(word.lower(), 0.0) for word in WORD.findall(text)) for text in texts]
        positive = 1 / (1 + np.exp(-(self.bias + np.array(margins))))
        return np.stack([1 - positive, positive], 1)


def attack(text: str, gold: int, scorer: BagOfWords, queries: int = 100, **options: float) -> AttackResult:
    (found,) = attack_texts([text], [gold], scorer, queries=queries, **options)  # type: ignore[arg-type]
    return found


def changed_words(before: str, after: str) -> list[tuple[str, str]]:
    """Pairs of words that differ; the texts agree between the words."""
    assert WORD.split(before) == WORD.split(after)
    pairs = zip(WORD.findall(before), WORD.findall(after), strict=True)
    return [(old, new) for old, new in pairs if old != new]


def test_the_decisive_word_is_found_and_the_attack_stops_there():
    text = "What a truly wonderful evening, with friends and music!"
    scorer = BagOfWords({"wonderful": 2.0, "friends": 0.1, "evening": 0.2})
    found = attack(text, 1, scorer)
    assert (found.clean, found.correct) == (True, False)
    assert [old for old, _ in changed_words(text, found.text)] == ["wonderful"]
    # the text, each of the 7 words of four letters and more taken out, four edits of the first in order
    assert found.queries == len(scorer.asked) == 1 + 7 + 4
    assert scorer([found.text])[0].argmax() == 0


def test_words_are_changed_in_the_order_of_their_importance_until_the_class_changes():
    text = "lovely lunch beside great gardens under splendid skies"
    scorer = BagOfWords({"lovely": 1.0, "great": 3.0, "splendid": 2.0}, bias=-1.5)
    found = attack(text, 1, scorer, largest_share=1.0)
    assert not found.correct
    assert [old for old, _ in changed_words(text, found.text)] == ["great", "splendid"]


def test_at_most_a_share_of_the_words_is_changed_but_one_always():
    text = "lovely lunch beside great gardens under splendid skies"
    scorer = BagOfWords({"lovely": 1.0, "great": 3.0, "splendid": 2.0}, bias=-1.5)
    for share, allowed in ((0.25, 2), (0.24, 1), (0.0, 1)):
        found = attack(text, 1, scorer, largest_share=share)
        assert len(changed_words(text, found.text)) == allowed
        assert found.correct == (allowed == 1)


def test_an_edit_that_does_not_lower_the_probability_is_not_kept():
    text = "nothing here matters whatever they write"
    found = attack(text, 1, BagOfWords({}, bias=1.0), largest_share=1.0)
    assert (found.text, found.clean, found.correct) == (text, True, True)


@pytest.mark.parametrize("queries", [1, 2, 3, 7, 20, 50])
def test_the_budget_is_kept(queries: int):
    text = "lovely lunch beside great gardens under splendid skies " * 5
    scorer = BagOfWords({"lovely": 1.0, "great": 3.0, "splendid": 2.0}, bias=-10.0)
    found = attack(text, 1, scorer, queries=queries, largest_share=1.0)
    assert found.queries == len(scorer.asked) <= queries
    assert found.queries > queries - 4 or queries < 3  # and used up: only the last word's edits may find no room


def test_a_text_that_is_misclassified_is_scored_once():
    scorer = BagOfWords({"wonderful": 2.0})
    assert attack("a wonderful day", 0, scorer) == AttackResult("a wonderful day", False, False, 1)
    assert scorer.asked == ["a wonderful day"]


@pytest.mark.parametrize("text", ["", "😀 👍🏽 … 42!", "a an the", "   \t ", "٣٤ ___ ##", "e\u0301 o\u0302"])
def test_a_text_without_a_word_to_change_stays_as_it_is(text: str):
    assert attack(text, 1, BagOfWords({}, bias=1.0)) == AttackResult(text, True, True, 1)


def test_all_but_letters_of_words_survives():
    text = "@someone: «GORGEOUS» 😀👍🏽\u2028 naïve прекрасный 素晴らしい映画 http://t.co/x_1 don't\xa0stop…  100% "
    weights = {word.lower(): 1.0 for word in WORD.findall(text)}
    found = attack(text, 1, BagOfWords(weights, bias=-1.5), largest_share=1.0)
    changed = changed_words(text, found.text)
    assert {old for old, _ in changed} >= {"GORGEOUS", "прекрасный", "素晴らしい映画"}
    for old, new in changed:
        assert (old[0], old[-1]) == (new[0], new[-1]) and abs(len(old) - len(new)) <= 1
    assert dict(changed)["GORGEOUS"].isupper()
    found.text.encode()


def test_the_result_depends_on_seed_and_text_alone():
    texts = ["a splendid evening with friendly neighbours", "what a dreadful waste of precious time", "fine by me"]
    weights = {word: 0.6 for text in texts for word in text.split()}
    together = attack_texts(texts, [1, 1, 1], BagOfWords(weights, -1.0), queries=60, largest_share=1.0)
    assert together == [attack(text, 1, BagOfWords(weights, -1.0), 60, largest_share=1.0) for text in texts]
    others = [
        attack_texts(texts, [1, 1, 1], BagOfWords(weights, -1.0), queries=60, largest_share=1.0, seed=seed)
        for seed in range(1, 4)
    ]
    assert all(other != together for other in others)


def test_what_all_attacks_ask_for_is_scored_together():
    texts = ["a splendid evening with friendly neighbours"] * 20
    weights = {word: 0.6 for word in texts[0].split()}
    alone, together = BagOfWords(weights, -1.0), BagOfWords(weights, -1.0)
    attack_texts(texts[:1], [1], alone, queries=60)
    attack_texts(texts, [1] * 20, together, queries=60)
    assert together.calls == alone.calls and len(together.asked) == 20 * len(alone.asked)


def test_no_texts_are_no_calls():
    scorer = BagOfWords({})
    assert attack_texts([], [], scorer, queries=5) == [] and scorer.calls == 0


def test_of_several_classes_the_edit_that_changes_the_prediction_is_taken():
    """It need not be the one that lowers the gold probability most."""

    def probabilities(texts: list[str]) -> np.ndarray:
        rows = {"abcdef": [0.5, 0.3, 0.2]}
        flips = [0.45, 0.55, 0.0]
        return np.array([rows.get(text, flips if len(text) > 6 else [0.4, 0.3, 0.3]) for text in texts])

    (found,) = attack_texts(["abcdef"], [0], probabilities, queries=20)
    assert not found.correct and len(found.text) == 7


@pytest.mark.parametrize("word", ["good", "wonderful", "ABCdef", "aaaa"])
def test_edits_are_one_of_each_kind_within_the_word(word: str):
    kinds = set()
    for seed in range(200):
        for edit in edits(word, random.Random(seed)):
            assert edit != word or word == "aaaa"
            assert (edit[0], edit[-1]) == (word[0], word[-1])
            kinds.add(kind(word, edit))
    assert kinds == {"insertion", "deletion", "neighbour"} | ({"swap"} if len(set(word[1:-1])) > 1 else set())


def kind(word: str, edit: str) -> str:
    if len(edit) != len(word):
        longer, shorter = (edit, word) if len(edit) > len(word) else (word, edit)
        assert any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer)))
        return "insertion" if len(edit) > len(word) else "deletion"
    places = [i for i in range(len(word)) if word[i] != edit[i]]
    if len(places) == 1:
        (place,) = places
        assert edit[place].lower() in NEIGHBOURS[word[place].lower()]
        assert edit[place].isupper() == word[place].isupper()
        return "neighbour"
    first, second = places
    assert second == first + 1 and (word[first], word[second]) == (edit[second], edit[first])
    return "swap"


def test_letters_without_a_key_are_swapped_and_deleted_alone():
    assert all(sorted(map(len, edits("прекрасный", random.Random(seed)))) == [9, 10] for seed in range(20))


def test_keys_know_their_neighbours():
    assert {letter: "".join(sorted(NEIGHBOURS[letter])) for letter in "qghp"} == {
        "q": "aw", "g": "bfhtvy", "h": "bgjnuy", "p": "lo",
    }  # fmt: skip
    assert all(letter in NEIGHBOURS[other] for letter in NEIGHBOURS for other in NEIGHBOURS[letter])
    assert re.fullmatch("[a-z]{26}", "".join(sorted(NEIGHBOURS)))
