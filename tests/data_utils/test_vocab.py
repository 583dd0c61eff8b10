import pytest

from data_utils.vocab import Vocabulary


def test_labels_are_numbered_in_their_order():
    vocabulary = Vocabulary.from_labels(["contradiction", "neutral", "entailment"])
    assert [vocabulary[label] for label in ("contradiction", "neutral", "entailment")] == [0, 1, 2]
    assert vocabulary.ind2tok == {0: "contradiction", 1: "neutral", 2: "entailment"}
    assert len(vocabulary) == 3 and "neutral" in vocabulary and "nothing" not in vocabulary


def test_adding_twice_keeps_the_index():
    vocabulary = Vocabulary(neat=True)
    assert [vocabulary.add(token) for token in ("a", "b", "a")] == [0, 1, 0]
    assert len(vocabulary) == 2


def test_an_unknown_token_fails_where_only_labels_are_known():
    with pytest.raises(KeyError):
        Vocabulary.from_labels(["a"])["b"]


def test_an_unknown_token_has_the_unknown_index_elsewhere():
    vocabulary = Vocabulary()
    known = vocabulary.add("a")
    assert vocabulary["never seen"] == vocabulary["<UNK>"] != known
