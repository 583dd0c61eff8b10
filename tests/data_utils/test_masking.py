from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_utils.masking import Masker
from data_utils.tokenizer import load_tokenizer
from tests.tasks.learning import write_small_encoder

VOCABULARY = ["play", "##ing", "##s", *(f"w{number}" for number in range(89))]  # after five special tokens
PLAY, ING, S = 5, 6, 7
WORDS = 97


@pytest.fixture(scope="module")
def masker(tmp_path_factory: pytest.TempPathFactory) -> Masker:
    folder = write_small_encoder(tmp_path_factory.mktemp("masking") / "small", VOCABULARY)
    # the encoder's table has more rows than the tokenizer has tokens
    return Masker(load_tokenizer(str(folder)), WORDS + 10, 0.15, 128)


def sequence(length: int, seed: int) -> np.ndarray:
    words = np.random.default_rng(seed).integers(8, WORDS, length - 2)
    return np.concatenate([[2], words, [3]])


def test_of_the_chosen_tokens_eight_in_ten_are_masked_and_one_kept(masker: Masker):
    kinds = []
    for seed in range(300):
        tokens = sequence(100, seed)
        seen, places = masker(tokens, np.random.default_rng(seed))
        assert len(places) == 15 and places.tolist() == sorted(set(places.tolist()))
        untouched = np.setdiff1d(np.arange(100), places)
        assert (seen[untouched] == tokens[untouched]).all()
        kinds += [
            0 if new == 4 else 1 if new == old else 2 for new, old in zip(seen[places], tokens[places], strict=True)
        ]
        replaced = seen[places][(seen[places] != 4) & (seen[places] != tokens[places])]
        assert ((replaced >= PLAY) & (replaced < WORDS)).all()  # no special token and none without a name
    shares = np.bincount(kinds) / len(kinds)
    # 4,500 draws: standard deviation 0.6 % and 0.45 %; a replacement is the old token in one of 92
    np.testing.assert_allclose(shares, [0.8, 0.1 + 0.1 / 92, 0.1 - 0.1 / 92], atol=0.02)


def test_every_place_is_chosen_alike_and_special_tokens_never(masker: Masker):
    counts = np.zeros(20)
    for seed in range(2000):
        counts[masker(sequence(20, 0), np.random.default_rng(seed))[1]] += 1
    assert counts[0] == counts[-1] == 0
    np.testing.assert_allclose(counts[1:-1] / 2000, 3 / 18, atol=0.04)  # round(0.15 · 20) of 18


def test_words_are_chosen_whole(masker: Masker):
    tokens = np.array([2, PLAY, ING, S, 20, 21, PLAY, ING, 22, 23, 24, 25, 26, 3] * 2)
    chosen = set()
    for seed in range(200):
        places = masker(tokens, np.random.default_rng(seed))[1].tolist()
        assert 1 <= len(places) <= 4
        for word in ([1, 2, 3], [6, 7], [15, 16, 17], [20, 21]):
            assert set(places) >= set(word) or not set(places) & set(word)
            chosen |= {tuple(word)} if set(places) >= set(word) else set()
    assert len(chosen) == 4


def test_one_token_at_least_is_chosen_even_of_a_word_that_is_too_long(masker: Masker):
    seen, places = masker(np.array([2, PLAY, ING, S, 3]), np.random.default_rng(0))
    assert places.tolist() == [1]
    seen, places = masker(np.array([2, 3]), np.random.default_rng(0))
    assert places.tolist() == [] and seen.tolist() == [2, 3]


def test_the_draw_decides(masker: Masker):
    tokens = sequence(60, 0)
    first, again, other = (masker(tokens, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert len(first[1]) == len(other[1]) and (first[1] != other[1]).any()


def test_at_most_so_many_are_chosen(tmp_path: Path):
    tokenizer = load_tokenizer(str(write_small_encoder(tmp_path / "small", VOCABULARY)))
    for most in (1, 5):
        assert len(Masker(tokenizer, WORDS, 0.9, most)(sequence(60, 0), np.random.default_rng(0))[1]) == most
