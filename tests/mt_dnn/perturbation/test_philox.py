"""The counter-based random number generator."""

from __future__ import annotations

import math

import pytest
import torch

from mt_dnn.perturbation.philox import WORD, keys_of, normal, philox, uniform

CPU = torch.device("cpu")
# Counter, key and words of Random123's file of known answers, philox4x32 with 10 rounds [Salmon et al. 2011].
KNOWN = (
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
)


def words_of(text: str) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in text.split()])


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_words_are_those_of_the_published_generator(counter: str, key: str, expected: str) -> None:
    assert torch.equal(philox(words_of(counter), words_of(key)), words_of(expected))


def test_many_counters_and_keys_at_once_give_what_each_gives_alone() -> None:
    counters, keys, expected = (torch.stack([words_of(row[place]) for row in KNOWN], 1) for place in range(3))
    assert torch.equal(philox(counters, keys), expected)
    every = philox(counters.unsqueeze(2).expand(4, 3, 3), keys.unsqueeze(1))
    assert torch.equal(every.diagonal(dim1=1, dim2=2), expected)


def test_a_key_is_a_seed_of_64_bits() -> None:
    seeds = [0, 1, 2**32, 2**64 - 1, -1, 0x123456789ABCDEF0]
    expected = [[0, 1, 0, WORD, WORD, 0x9ABCDEF0], [0, 0, 1, WORD, WORD, 0x12345678]]
    assert keys_of(seeds, CPU).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_and_the_largest_words_give_finite_numbers(dtype: torch.dtype) -> None:
    words = torch.tensor([[0, 0, WORD, WORD], [0, WORD, 0, WORD]]).repeat_interleave(2, 0)
    assert uniform(words, dtype).abs().max() <= 1
    drawn = normal(words, dtype)
    assert drawn.isfinite().all()
    assert 6.5 < drawn.abs().max() < 6.8  # the root of −2 ln 2⁻³³


def test_both_types_have_the_same_numbers_to_rounding() -> None:
    words = philox(torch.arange(4000).view(4, -1), keys_of([5], CPU))
    for draw, error in ((uniform, 2e-7), (normal, 1e-5)):
        torch.testing.assert_close(draw(words, torch.float32).double(), draw(words, torch.float64), rtol=0, atol=error)


def test_a_uniform_draw_is_uniform() -> None:
    """Its moments, and its ten equal parts by the statistic of χ² with 9 degrees of freedom, at 4.5 standard errors."""
    counter = torch.stack([torch.arange(50_000), *torch.zeros(3, 50_000, dtype=torch.int64)])
    drawn = uniform(philox(counter, keys_of([7], CPU)), torch.float64).flatten()
    n = drawn.numel()
    assert abs(drawn.mean().item()) < 4.5 / math.sqrt(3 * n)
    assert abs(drawn.square().mean().item() - 1 / 3) < 4.5 * math.sqrt(4 / 45 / n)
    parts = torch.histc(drawn, 10, -1, 1)
    assert (parts - n / 10).square().sum() / (n / 10) < 9 + 4.5 * math.sqrt(18)


def test_the_four_words_of_a_counter_and_neighbouring_counters_are_uncorrelated() -> None:
    counter = torch.stack([torch.arange(20_000), *torch.zeros(3, 20_000, dtype=torch.int64)])
    drawn = normal(philox(counter, keys_of([7], CPU)), torch.float64)
    rows = torch.cat([drawn[:, :-1], drawn[:, 1:]])
    assert (torch.corrcoef(rows) - torch.eye(8)).abs().max() < 5 / math.sqrt(20_000)
