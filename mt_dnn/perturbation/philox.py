"""Random numbers by counter: Philox4x32-10 [Salmon et al. 2011] in torch's operations, the same on every device.

A generator without a state: four words are a function of a key and a counter alone. So the numbers of all examples of a
batch, each with a key of its own, take as many operations as those of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xCD9E8D57, 0xD2511F53)  # of words 2 and 0
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def keys_of(seeds: Sequence[int], device: torch.device) -> Tensor:
    """The two words of each seed, which is taken modulo 2^64: (2, seeds) int64."""
    return _on([[seed & WORD for seed in seeds], [seed >> 32 & WORD for seed in seeds]], device)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Four words of 32 bits for each counter and key.

    Args:
        counter: (4, …) int64, each number below 2^32.
        key: (2, …) int64, likewise, that `counter[:2]` can be multiplied with.

    Returns:
        (4, …) int64, each number below 2^32.
    """
    steps = [[number * step & WORD for step in KEY_STEPS] for number in range(ROUNDS)]
    constants = _on([MULTIPLIERS, *steps], counter.device).view(ROUNDS + 1, 2, *[1] * (counter.dim() - 1))
    multipliers, own_keys = constants[0], key + constants[1:]
    # A round multiplies words 2 and 0. A product of int64 keeps the 64 bits of one without a sign: below lies a new
    # word 1 or 3, above what the others come from. What stands above 32 bits is cut off before the next product.
    factors, others = counter[0::2].flip(0), counter[1::2]
    for own_key in own_keys.unbind():
        products = factors * multipliers
        factors = (products >> 32).bitwise_xor_(others).bitwise_xor_(own_key).bitwise_and_(WORD).flip(0)
        others = products
    return torch.stack([factors.flip(0), others & WORD], dim=1).flatten(0, 1)


def uniform(words: Tensor, dtype: torch.dtype) -> Tensor:
    """U(−1, 1) of words, each of its own: (4, …)."""
    return _share(words, dtype) * 2 - 1


def normal(words: Tensor, dtype: torch.dtype) -> Tensor:
    """N(0, 1) of words, two of two [Box & Muller 1958]: (4, …)."""
    lengths, angles = _share(words, dtype).chunk(2)
    lengths, angles = (-2 * lengths.log()).sqrt(), 2 * math.pi * angles
    return torch.cat([lengths * angles.cos(), lengths * angles.sin()])


def _share(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Words as numbers above 0 and at most 1."""
    return (words.to(dtype) + 0.5) * 2.0**-32


def _on(numbers: object, device: torch.device) -> Tensor:
    """Whole numbers on a device, for which the host does not wait."""
    return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)
