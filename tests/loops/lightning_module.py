"""A LightningModule that holds a model of transformers, with R in its training step."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from tests.hf import ALPHA
from tests.loops.by_hand import regularizer


class Module(lightning.LightningModule):
    """Trains on batches `(inputs, seeds of the rows)`; plain descent at rate 0, so that all updates are of one model.

    Args:
        bound_to: `self`, or `model`, the one inside: what the regularizer is made with and called with.
        alone: R is the loss, as FreeLB's.
    """

    def __init__(self, model: Any, name: str, level: str, k: int, bound_to: str = "self", alone: bool = False) -> None:
        super().__init__()
        self.model, self.alone, self.bound_to = model, alone, bound_to
        self.regularizer = regularizer(name, self if bound_to == "self" else model, level, k)
        self.logits: list[Tensor] = []
        self.values: list[Tensor] = []
        self.found: dict[str, Tensor] = {}

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def training_step(self, given: Any, _: int) -> Tensor:
        batch, seeds = given
        called = self if self.bound_to == "self" else self.model
        if self.alone:
            value = self.regularizer(called, batch, None, noise_seeds=seeds)
            self.values.append(value.detach())
            return value
        with self.regularizer.clean(called):
            output = self(**batch)
        value = self.regularizer(called, batch, output, noise_seeds=seeds)
        self.values.append(value.detach())
        self.logits.append(output.logits.detach())
        total: Tensor = output.loss + ALPHA * value
        return total

    def on_before_optimizer_step(self, _: Any) -> None:
        self.found = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(**options: Any) -> lightning.Trainer:
    quiet: dict[str, Any] = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    return lightning.Trainer(accelerator="cpu", max_steps=1, logger=False, **quiet, **{"devices": 1, **options})
