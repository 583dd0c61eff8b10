"""Random numbers of the perturbed passes: noise by example, dropout from a stream of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .philox import keys_of, normal, philox, uniform

NOISES = ("normal", "uniform")


def example_seeds(seed: int, update: int, uids: Sequence[str]) -> list[int]:
    """One seed an example, from the run's seed, the update and the example's uid alone.

    So an example's noise does not depend on its batch, on padding, or on the number of processes.
    """
    return [_digest(f"{seed}/{update}/{uid}") for uid in uids]


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
        seeds: one seed an example (`example_seeds`), which draws the same numbers whatever the batch, the padding and
            the device are; without them torch's default generator draws.
        kind: `normal` or `uniform`.
    """
    real = mask.bool()
    if seeds is None:
        empty = torch.empty(*mask.shape, hidden, dtype=dtype, device=mask.device)
        drawn = empty.normal_() if kind == "normal" else empty.uniform_(-1, 1)
        return drawn * real.unsqueeze(-1)
    if len(seeds) != len(mask):
        raise ValueError(f"found {len(seeds)} seeds, expected one for each of {len(mask)} examples")
    place = real.cumsum(1).unsqueeze(-1)
    block = torch.arange((hidden + 3) // 4, device=mask.device).expand(*mask.shape, -1)
    nothing = torch.zeros_like(block)
    counter = torch.stack([block, place.expand_as(block), nothing, nothing])
    words = philox(counter, keys_of(seeds, mask.device).view(2, -1, 1, 1))
    drawn = (normal if kind == "normal" else uniform)(words, dtype)
    drawn = drawn.movedim(0, -1).flatten(-2)[..., :hidden]
    return drawn.masked_fill(~real.unsqueeze(-1), 0)


def default_generator(device: torch.device) -> torch.Generator:
    """The generator from which dropout draws on this device."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()  # the one device, whose generator has no public name
    module = torch.get_device_module(device)
    return module.default_generators[module.current_device() if device.index is None else device.index]


@contextmanager
def forked_dropout(device: torch.device, start: int | Tensor | None) -> Iterator[None]:
    """Within the block dropout draws from `start`; after it the device's generator goes on as if nothing was drawn.

    Args:
        start: a seed; a generator state (`default_generator(device).get_state()`), which gives the masks drawn from
            there again; or None: no fork, the generator simply goes on.
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
