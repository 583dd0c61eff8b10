"""Random numbers of the perturbed passes: noise seeded per example, dropout from a separate stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .ball import check_name
from .philox import keys_of, normal, philox, uniform

NOISES = ("normal", "uniform")


@dataclass(frozen=True)
class InitialNoise:
    """The distribution of δ before the first ascent step.

    Args:
        distribution: `normal`, N(0, σ²), or `uniform`, U(−σ, σ).
        sigma: σ, at least 0.
        clamp: clamp the noise to ±2σ, as DeBERTa's release does.

    Raises:
        ValueError: an unknown distribution.
    """

    distribution: str = "normal"
    sigma: float = 1e-5
    clamp: bool = False

    def __post_init__(self) -> None:
        check_name("noise", self.distribution, NOISES)

    def draw(self, mask: Tensor, hidden: int, dtype: torch.dtype, seeds: Sequence[int] | None = None) -> Tensor:
        """Noise with σ = 1; arguments and shape as in `standard_noise`."""
        noise = standard_noise(mask, hidden, dtype, seeds, self.distribution)
        return noise.clamp(-2, 2) if self.clamp else noise


def example_seeds(seed: int, update: int, uids: Sequence[str]) -> list[int]:
    """One seed per example, a function of the run's seed, the update and the example's uid alone.

    An example's noise therefore does not depend on its batch, on padding, or on the number of processes.
    """
    return [_digest(f"{seed}/{update}/{uid}") for uid in uids]


def place_seeds(seeds: Sequence[int] | None, place: int) -> Sequence[int] | None:
    """The seeds of the examples at one of several places: those given at the first, place 0, and others at each other.

    None, without seeds, stays None.
    """
    if seeds is None or place == 0:
        return seeds
    return [_digest(f"place/{place}/{seed}") for seed in seeds]


def dropout_seed(seeds: Sequence[int], perturbed_pass: int) -> int:
    """The seed of one perturbed pass over a batch, from the seeds of its examples."""
    return _digest(f"dropout/{perturbed_pass}/{','.join(map(str, seeds))}")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def standard_noise(
    mask: Tensor, hidden: int, dtype: torch.dtype, seeds: Sequence[int] | None = None, kind: str = "normal"
) -> Tensor:
    """Noise N(0, 1) or U(−1, 1) at real tokens, zero at padding: (batch, tokens, hidden).

    Args:
        mask: (batch, tokens), 1 at real tokens.
        hidden: size of the last dimension.
        dtype: floating type of the noise.
        seeds: one seed per example (`example_seeds`). With them the noise of an example is the same in any batch, with
            any padding and on any device; without them torch's default generator draws it.
        kind: `normal` or `uniform`.

    Raises:
        ValueError: the number of seeds is not the number of examples.
    """
    real = mask.bool()
    if seeds is None:
        empty = torch.empty(*mask.shape, hidden, dtype=dtype, device=mask.device)
        drawn = empty.normal_() if kind == "normal" else empty.uniform_(-1, 1)
        return drawn * real.unsqueeze(-1)
    if len(seeds) != len(mask):
        raise ValueError(f"found {len(seeds)} seeds, expected one for each of {len(mask)} examples")
    position = real.cumsum(1).unsqueeze(-1)
    block = torch.arange((hidden + 3) // 4, device=mask.device).expand(*mask.shape, -1)
    zero = torch.zeros_like(block)
    counter = torch.stack([block, position.expand_as(block), zero, zero])
    words = philox(counter, keys_of(seeds, mask.device).view(2, -1, 1, 1))
    drawn = (normal if kind == "normal" else uniform)(words, dtype)
    drawn = drawn.movedim(0, -1).flatten(-2)[..., :hidden]
    return drawn.masked_fill(~real.unsqueeze(-1), 0)


def default_generator(device: torch.device) -> torch.Generator:
    """The generator from which dropout draws on this device."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()  # there is one device; its generator has no public name
    module = torch.get_device_module(device)
    return module.default_generators[module.current_device() if device.index is None else device.index]


@contextmanager
def forked_dropout(device: torch.device, start: int | Tensor | None) -> Iterator[None]:
    """Dropout in the block draws from `start`; after it the device's generator continues as if nothing was drawn.

    Args:
        start: a seed; or a generator state (`default_generator(device).get_state()`), which repeats the masks that were
            drawn from it; or None, which changes nothing.
    """
    if start is None:
        yield
        return
    generator = default_generator(device)
    before = generator.get_state()
    try:
        if isinstance(start, int):
            generator.manual_seed(start)
        else:
            generator.set_state(start)
        yield
    finally:
        generator.set_state(before)
