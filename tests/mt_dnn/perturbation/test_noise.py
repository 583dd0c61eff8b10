"""Noise seeded per example, and dropout from a separate stream."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mt_dnn.perturbation.noise import default_generator, dropout_seed, example_seeds, forked_dropout, standard_noise

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def test_a_seed_depends_on_seed_update_and_uid_alone() -> None:
    base = example_seeds(13, 4, ["a", "b", "c"])
    assert len(set(base)) == 3
    assert example_seeds(13, 4, ["c", "a"]) == [base[2], base[0]]
    assert example_seeds(13, 4, ["b"]) == [base[1]]
    assert not set(base) & set(example_seeds(14, 4, ["a", "b", "c"]))
    assert not set(base) & set(example_seeds(13, 5, ["a", "b", "c"]))


def test_seeds_do_not_collide() -> None:
    """Where digits of one part could be read as another's, and over many examples and updates."""
    assert example_seeds(1, 23, ["4"]) != example_seeds(12, 3, ["4"])
    assert example_seeds(1, 2, ["34"]) != example_seeds(1, 23, ["4"])
    uids = [str(number) for number in range(1000)]
    seeds = [s for seed, update in itertools.product(range(2), range(10)) for s in example_seeds(seed, update, uids)]
    assert len(set(seeds)) == len(seeds)


def test_a_seed_is_the_same_in_another_process() -> None:
    """Python's own hash of a text differs from process to process."""
    code = "from mt_dnn.perturbation.noise import example_seeds; print(example_seeds(2018, 7, ['tweet-1', 'ü']))"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert printed.stdout.strip() == str(example_seeds(2018, 7, ["tweet-1", "ü"]))


def test_noise_of_an_example_depends_on_neither_padding_nor_batch() -> None:
    seeds = example_seeds(0, 0, ["x", "y"])
    narrow = standard_noise(torch.tensor([[1, 1, 1], [1, 1, 0]]), 8, torch.float32, seeds)
    wide = standard_noise(torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]), 8, torch.float32, seeds)
    assert torch.equal(wide[:, :3], narrow)
    swapped = standard_noise(torch.tensor([[1, 1, 0], [1, 1, 1]]), 8, torch.float32, seeds[::-1])
    assert torch.equal(swapped.flip(0), narrow)
    alone = standard_noise(torch.tensor([[1, 1]]), 8, torch.float32, seeds[1:])
    assert torch.equal(alone[0], narrow[1, :2])


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("hidden", [1, 3, 8, 10])
def test_a_number_depends_on_seed_token_and_place_alone(kind: str, hidden: int) -> None:
    """Not on how many numbers a token has, either."""
    seeds = example_seeds(0, 0, ["x", "y"])
    all_of_it = standard_noise(torch.ones(2, 4), 12, torch.float64, seeds, kind)
    assert all_of_it.unique().numel() == all_of_it.numel()
    part = standard_noise(torch.tensor([[0, 1, 0, 1, 1]]), hidden, torch.float64, seeds[1:], kind)
    assert torch.equal(part[0, [1, 3, 4]], all_of_it[1, :3, :hidden])


def test_every_example_has_a_seed() -> None:
    with pytest.raises(ValueError, match="found 1 seeds, expected one for each of 2 examples"):
        standard_noise(torch.ones(2, 3), 4, torch.float32, [1])


def test_noise_takes_as_many_operators_for_many_examples_as_for_one() -> None:
    def operators(examples: int, tokens: int) -> int:
        class Counting(TorchDispatchMode):
            calls = 0

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                self.calls += 1
                return func(*args, **(kwargs or {}))

        with Counting() as counting:
            standard_noise(torch.ones(examples, tokens), 8, torch.float32, range(examples))
        return counting.calls

    assert operators(1, 2) == operators(30, 17)


def test_noise_does_not_depend_on_the_side_of_the_padding() -> None:
    seeds = example_seeds(0, 0, ["x"])
    right = standard_noise(torch.tensor([[1, 1, 1, 0, 0]]), 8, torch.float32, seeds)
    left = standard_noise(torch.tensor([[0, 0, 1, 1, 1]]), 8, torch.float32, seeds)
    assert torch.equal(left[0, 2:], right[0, :3])


@pytest.mark.parametrize("seeded", [True, False])
def test_noise_is_zero_at_padding_and_has_the_requested_type(seeded: bool) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    seeds = example_seeds(0, 0, ["x", "y"]) if seeded else None
    for dtype in (torch.float32, torch.float64):
        noise = standard_noise(mask, 6, dtype, seeds)
        assert noise.shape == (2, 3, 6)
        assert noise.dtype == dtype
        assert torch.equal(noise == 0, (mask == 0).unsqueeze(-1).expand_as(noise))


@pytest.mark.parametrize("seeded", [True, False])
def test_noise_is_standard_normal(seeded: bool) -> None:
    """Moments and tails within 4.5 standard errors of N(0, 1), over examples and within them."""
    examples, tokens, hidden = 400, 10, 50
    torch.manual_seed(0)
    seeds = example_seeds(1, 2, [str(i) for i in range(examples)]) if seeded else None
    noise = standard_noise(torch.ones(examples, tokens), hidden, torch.float64, seeds)
    n = noise.numel()
    assert abs(noise.mean().item()) < 4.5 / math.sqrt(n)
    assert abs(noise.square().mean().item() - 1) < 4.5 * math.sqrt(2 / n)
    assert abs(noise.pow(3).mean().item()) < 4.5 * math.sqrt(15 / n)
    assert abs(noise.pow(4).mean().item() - 3) < 4.5 * math.sqrt(96 / n)
    beyond = (noise.abs() > 2).double().mean().item()
    assert abs(beyond - 0.0455003) < 4.5 * math.sqrt(0.0455 * 0.9545 / n)
    # the mean of one example is N(0, 1/m): so is that of entry (0, 0) over examples
    m = tokens * hidden
    assert abs(noise.mean((1, 2)).square().mean().item() * m - 1) < 4.5 * math.sqrt(2 / examples)
    assert abs(noise.mean(0).square().mean().item() * examples - 1) < 4.5 * math.sqrt(2 / m)


def test_noise_of_two_examples_two_updates_and_two_tokens_is_uncorrelated() -> None:
    hidden = 20_000
    mask = torch.ones(2, 2)
    first = standard_noise(mask, hidden, torch.float64, example_seeds(0, 0, ["0", "1"]))
    second = standard_noise(mask, hidden, torch.float64, example_seeds(0, 1, ["0", "1"]))
    rows = torch.cat([first, second]).flatten(0, 1)
    correlation = rows @ rows.T / hidden - torch.eye(8, dtype=torch.float64)
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(hidden)


def test_drawing_by_seeds_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    standard_noise(torch.ones(2, 3), 4, torch.float32, [1, 2])
    assert torch.equal(torch.get_rng_state(), before)


def test_without_seeds_the_global_generator_draws() -> None:
    torch.manual_seed(3)
    first = standard_noise(torch.ones(2, 3), 4, torch.float32)
    second = standard_noise(torch.ones(2, 3), 4, torch.float32)
    torch.manual_seed(3)
    assert torch.equal(standard_noise(torch.ones(2, 3), 4, torch.float32), first)
    assert not torch.equal(first, second)


def test_default_generator_is_the_one_that_dropout_draws_from() -> None:
    generator = default_generator(CPU)
    before = generator.get_state()
    torch.nn.functional.dropout(torch.ones(50))
    assert not torch.equal(generator.get_state(), before)


def test_a_fork_draws_from_its_seed_and_leaves_no_trace() -> None:
    torch.manual_seed(9)
    expected = torch.rand(4)
    torch.manual_seed(9)
    with forked_dropout(CPU, 123):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with forked_dropout(CPU, 123):
        assert torch.equal(torch.rand(4), inside)
    with forked_dropout(CPU, 124):
        assert not torch.equal(torch.rand(4), inside)


def test_a_fork_repeats_a_state() -> None:
    torch.manual_seed(9)
    state = default_generator(CPU).get_state()
    clean = torch.rand(4)
    after = torch.get_rng_state()
    for _ in range(2):
        with forked_dropout(CPU, state):
            assert torch.equal(torch.rand(4), clean)
        assert torch.equal(torch.get_rng_state(), after)


def test_without_a_start_there_is_no_fork() -> None:
    torch.manual_seed(9)
    expected = torch.rand(8)
    torch.manual_seed(9)
    with forked_dropout(CPU, None):
        first = torch.rand(4)
    assert torch.equal(torch.cat([first, torch.rand(4)]), expected)


def test_a_fork_ends_with_an_exception_too() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    with pytest.raises(KeyError), forked_dropout(CPU, 5):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_every_pass_and_every_batch_has_different_dropout() -> None:
    seeds = example_seeds(0, 0, ["a", "b"])
    other = example_seeds(0, 1, ["a", "b"])
    drawn = {dropout_seed(s, i) for s in (seeds, other) for i in range(4)}
    assert len(drawn) == 8
    assert dropout_seed(list(seeds), 2) == dropout_seed(tuple(seeds), 2)


def test_on_a_mac_a_fork_is_of_the_generator_of_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator of the CPU stands in for that of the GPU, which torch.mps keeps to itself."""
    generator = torch.Generator().manual_seed(9)
    monkeypatch.setattr(torch.mps, "_get_default_mps_generator", lambda: generator)
    mps = torch.device("mps")
    state = default_generator(mps).get_state()
    expected, seeded = (torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (9, 5))
    with forked_dropout(mps, 5):
        assert torch.equal(torch.rand(4, generator=generator), seeded)
    assert torch.equal(torch.rand(4, generator=generator), expected)
    with forked_dropout(mps, state):
        assert torch.equal(torch.rand(4, generator=generator), expected)
    assert not torch.equal(torch.rand(4, generator=generator), expected)
