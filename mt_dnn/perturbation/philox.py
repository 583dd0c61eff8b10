"""A counter-based random number generator: Philox4x32-10 [Salmon et al. 2011] in torch operations.

The generator has no state: four 32-bit words are a function of a key and a counter. The numbers are the same on every
device, and a batch whose examples have different keys takes as many operations as one example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xCD9E8D57, 0xD2511F53)  # of words 2 and 0, in that order
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def keys_of(seeds: Sequence[int], device: torch.device) -> Tensor:
    """The two 32-bit words of each seed modulo 2^64: (2, seeds) int64."""
    return _to_device([[seed & WORD for seed in seeds], [seed >> 32 & WORD for seed in seeds]], device)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Four words of 32 bits for each counter and key.

    Args:
        counter: (4, …) int64, each number below 2^32.
        key: (2, …) int64, each number below 2^32, broadcastable to `counter[:2]`.

    Returns:
        (4, …) int64, each number below 2^32.
    """
    steps = [[number * step & WORD for step in KEY_STEPS] for number in range(ROUNDS)]
    constants = _to_device([MULTIPLIERS, *steps], counter.device).view(ROUNDS + 1, 2, *[1] * (counter.dim() - 1))
    multipliers, round_keys = constants[0], key + constants[1:]
    # A round multiplies words 2 and 0. The int64 product has the same 64 bits as the unsigned one: the low half is the
    # new word 1 or 3, the high half goes into word 0 or 2. The mask cuts words to 32 bits before the next product.
    factors, others = counter[0::2].flip(0), counter[1::2]
    for round_key in round_keys.unbind():
        products = factors * multipliers
        factors = (products >> 32).bitwise_xor_(others).bitwise_xor_(round_key).bitwise_and_(WORD).flip(0)
        others = products
    return torch.stack([factors.flip(0), others & WORD], dim=1).flatten(0, 1)


def uniform(words: Tensor, dtype: torch.dtype) -> Tensor:
    """U(−1, 1), one number per word: (4, …)."""
    return _unit_interval(words, dtype) * 2 - 1


def normal(words: Tensor, dtype: torch.dtype) -> Tensor:
    """N(0, 1), two numbers from each two words [Box & Muller 1958]: (4, …)."""
    lengths, angles = _unit_interval(words, dtype).chunk(2)
    lengths, angles = (-2 * lengths.log()).sqrt(), 2 * math.pi * angles
    return torch.cat([lengths * angles.cos(), lengths * angles.sin()])


def _unit_interval(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Words as numbers above 0 and at most 1."""
    return (words.to(dtype) + 0.5) * 2.0**-32


def _to_device(numbers: object, device: torch.device) -> Tensor:
    """Integers as a tensor on a device; the host does not wait for the copy."""
    return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)
