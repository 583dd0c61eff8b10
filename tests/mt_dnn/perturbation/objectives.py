"""Common to the tests of the methods' objectives: gold labels, a loss on them, the model under a given perturbation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt_dnn.perturbation.injection import NoiseInjection
from tests.encoders import Classifier, TokenBatch

LABELS = torch.tensor([0, 2, 1])
SIZES: dict[str, Any] = {"noise_var": 0.05, "step_size": 0.05, "radius": 0.1}


def gold_loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS)


def with_noise(model: Classifier, batch: TokenBatch, level: str, delta: Tensor) -> Tensor:
    with NoiseInjection(model.bert, level).add(delta):
        logits: Tensor = model(*batch)
    return logits


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def assert_same_gradients(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=1e-8, atol=tolerance)
    assert max(float(gradient.abs().max()) for gradient in first.values()) > 1e-3
