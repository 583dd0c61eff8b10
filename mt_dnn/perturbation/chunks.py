"""Divergences over large vocabularies, computed a few rows at a time, so that memory does not grow with the rows.

A divergence of (rows, classes) logits makes several copies of them in single precision: log-probabilities,
probabilities, their products. Over a vocabulary of 150,000 entries each copy of 4,096 tokens takes 2.5 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_NUMBERS = 2**22  # logits that are compared at once; a copy of them takes 16 MiB in single precision

Divergence = Callable[[Tensor, Tensor], Tensor]


def mean_in_chunks(divergence: Divergence, first: Tensor, second: Tensor) -> Tensor:
    """D of two sets of logits, a mean over rows; large ones are compared in chunks of rows.

    The means of the chunks, weighted by their rows, add up to the mean of all rows. The backward pass computes each
    chunk again instead of keeping what the forward pass made [Chen et al. 2016, arXiv 1604.06174].

    Args:
        divergence: called as D(first, second) on logits (rows, classes), a mean over rows.
        first, second: (rows, classes).
    """
    if len(first) <= _chunk_rows(first):
        return divergence(first, second)
    found: Tensor = _MeanInChunks.apply(divergence, first, second)
    return found


def _chunk_rows(logits: Tensor) -> int:
    return max(1, CHUNK_NUMBERS // max(1, logits.size(-1)))


def _chunks(first: Tensor, second: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, float]]:
    """The place of each chunk, its logits, and its share of the rows."""
    rows = _chunk_rows(first)
    for start in range(0, len(first), rows):
        place = slice(start, start + rows)
        yield place, first[place], second[place], len(first[place]) / len(first)


class _MeanInChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, divergence: Divergence, first: Tensor, second: Tensor) -> Tensor:
        ctx.divergence = divergence
        ctx.save_for_backward(first, second)
        return torch.stack([share * divergence(p, q) for _, p, q, share in _chunks(first, second)]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        found = [torch.empty_like(logits) if needs else None for logits, needs in zip(saved, needed, strict=True)]
        for place, *parts, share in _chunks(*saved):
            leaves = [part.detach().requires_grad_(needs) for part, needs in zip(parts, needed, strict=True)]
            with torch.enable_grad():
                value = share * gradient * ctx.divergence(*leaves)
            wanted = [(whole, leaf) for whole, leaf in zip(found, leaves, strict=True) if whole is not None]
            gradients = torch.autograd.grad(value, [leaf for _, leaf in wanted], materialize_grads=True)
            for (whole, _), part in zip(wanted, gradients, strict=True):
                whole[place] = part
        return None, found[0], found[1]
