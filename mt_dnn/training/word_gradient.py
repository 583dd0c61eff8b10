"""The gradient of the word-embedding table, of which an update touches few rows."""

from __future__ import annotations

from functools import cached_property

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class WordGradient:
    """Collects the table's gradient by rows, on the CPU: there the whole table takes longer than half a layer.

    No backward fills a whole table, and no whole table goes to other processes. Backward passes leave a sparse
    gradient; `finish` copies its rows into a table of zeros. Clipping and optimizer see the usual dense gradient.

    Args:
        model: will be wrapped by DistributedDataParallel, which ignores the table.
        embedding: the word embeddings; nothing else may use their weight.
        accelerator: its processes.
    """

    def __init__(self, model: nn.Module, embedding: nn.Embedding, accelerator: Accelerator):
        embedding.sparse = True
        self.weight = embedding.weight
        self.accelerator = accelerator
        self.rows = torch.empty(0, dtype=torch.long)
        names = [name for name, parameter in model.named_parameters() if parameter is self.weight]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        broadcast(self.weight.data)

    @classmethod
    def of(cls, model: nn.Module, embedding: nn.Module, accelerator: Accelerator) -> WordGradient | None:
        """For embeddings whose gradient can be collected and where that is faster; otherwise None.

        Not with a gradient scaler: when it skips a step, clipping has changed the rows that should stay zero.
        """
        if accelerator.device.type != "cpu" or accelerator.scaler is not None:
            return None
        if not isinstance(embedding, nn.Embedding) or not embedding.weight.requires_grad:
            return None
        uses = sum(parameter is embedding.weight for _, parameter in model.named_parameters(remove_duplicate=False))
        return cls(model, embedding, accelerator) if uses == 1 else None

    @cached_property
    def table(self) -> Tensor:
        """The dense gradient, zero except in the rows of this update; created at the first update."""
        return torch.zeros_like(self.weight)

    @torch.no_grad()
    def finish(self) -> None:
        """Make the gradient of an update dense, and average it over processes."""
        if self.weight.grad is None:
            return
        gradient = self.weight.grad
        self.rows = gradient._indices()[0]
        # index_add_ sums in the order of a dense backward; coalesce() would not.
        self.table.index_add_(0, self.rows, gradient._values())
        if self.accelerator.num_processes > 1:
            self.rows = self._rows_of_all()
            self.table[self.rows] = self.accelerator.reduce(self.table[self.rows], "mean")
        self.weight.grad = self.table

    def _rows_of_all(self) -> Tensor:
        touched = torch.zeros(len(self.table))
        touched[self.rows] = 1
        return self.accelerator.reduce(touched, "sum").nonzero()[:, 0]

    def clear(self) -> None:
        """Set the gradient to zero, after the step."""
        self.weight.grad = None
        self.table[self.rows] = 0
