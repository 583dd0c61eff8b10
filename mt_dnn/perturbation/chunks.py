"""Divergences over large vocabularies, computed a few rows at a time, so that memory does not grow with the rows.

A divergence of (rows, classes) logits makes several copies of them in single precision: log-probabilities,
probabilities, their products. Over a vocabulary of 150,000 entries each copy of 4,096 tokens takes 2.5 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_NUMBERS = 2**22  # logits that are compared at once; a copy of them takes 16 MiB in single precision

Divergence = Callable[[Tensor, Tensor], Tensor]


class Rows:
    """Some rows of large logits, selected without a copy; `mean_in_chunks` copies a few of them at a time.

    Args:
        logits: (all rows, classes).
        index: the selected rows, each once, (rows,).
    """

    def __init__(self, logits: Tensor, index: Tensor):
        self.logits = logits
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def size(self, dim: int) -> int:
        return (len(self), self.logits.size(-1))[dim]

    def detach(self) -> Rows:
        return Rows(self.logits.detach(), self.index)

    def tensor(self) -> Tensor:
        """A copy of the selected rows, (rows, classes)."""
        return self.logits[self.index]


LogitRows = Tensor | Rows  # logits with one distribution per row


def as_tensor(rows: LogitRows) -> Tensor:
    """The logits of these rows, (rows, classes), copied if they are selected ones."""
    return rows.tensor() if isinstance(rows, Rows) else rows


def selected_rows(logits: Tensor, index: Tensor) -> LogitRows:
    """The rows of logits (all rows, classes) at these indices; `Rows` if there are so many that chunks are compared."""
    if len(index) == len(logits):
        return logits
    return logits[index] if len(index) <= _chunk_rows(logits) else Rows(logits, index)


def mean_in_chunks(divergence: Divergence, first: LogitRows, second: LogitRows) -> Tensor:
    """D of two sets of logits, a mean over rows; large ones are compared in chunks of rows.

    The means of the chunks, weighted by their rows, add up to the mean of all rows. The backward pass computes each
    chunk again instead of keeping what the forward pass made [Chen et al. 2016, arXiv 1604.06174].

    Args:
        divergence: called as D(first, second) on logits (rows, classes), a mean over rows.
        first, second: (rows, classes).
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor) and len(first) <= _chunk_rows(first):
        return divergence(first, second)
    logits, indices = zip(*map(_logits_and_index, (first, second)), strict=True)
    found: Tensor = _MeanInChunks.apply(divergence, *logits, *indices)
    return found


def _logits_and_index(rows: LogitRows) -> tuple[Tensor, Tensor]:
    if isinstance(rows, Rows):
        return rows.logits, rows.index
    return rows, torch.arange(len(rows), device=rows.device)


def _chunk_rows(logits: Tensor) -> int:
    return max(1, CHUNK_NUMBERS // max(1, logits.size(-1)))


def _chunks(first: Tensor, indices: Sequence[Tensor]) -> Iterator[tuple[tuple[Tensor, ...], float]]:
    """Of each chunk the rows of both sets of logits, and its share of all rows."""
    parts = [index.split(_chunk_rows(first)) for index in indices]
    for places in zip(*parts, strict=True):
        yield places, len(places[0]) / len(indices[0])


class _MeanInChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, divergence: Divergence, first: Tensor, second: Tensor, *indices: Tensor) -> Tensor:
        ctx.divergence = divergence
        ctx.save_for_backward(first, second, *indices)
        chunks = _chunks(first, indices)
        return torch.stack([share * divergence(first[p], second[q]) for (p, q), share in chunks]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, Tensor | None, None, None]:
        first, second, *indices = ctx.saved_tensors
        both, needed = (first, second), ctx.needs_input_grad[1:3]
        found = [torch.zeros_like(logits) if needs else None for logits, needs in zip(both, needed, strict=True)]
        for places, share in _chunks(first, indices):
            leaves = [
                logits[place].detach().requires_grad_(needs)
                for logits, place, needs in zip(both, places, needed, strict=True)
            ]
            with torch.enable_grad():
                value = share * gradient * ctx.divergence(*leaves)
            if not value.requires_grad:  # the divergence detaches the only one that has a gradient
                continue
            parts = zip(found, places, leaves, strict=True)
            wanted = [(whole, place, leaf) for whole, place, leaf in parts if whole is not None]
            gradients = torch.autograd.grad(value, [leaf for _, _, leaf in wanted], materialize_grads=True)
            for (whole, place, _), part in zip(wanted, gradients, strict=True):
                whole[place] = part
        return None, found[0], found[1], None, None
