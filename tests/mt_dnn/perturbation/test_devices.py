"""Every method at every level on a GPU, in every precision, beside float32 on the CPU: `pytest -m cuda`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from mt_dnn.perturbation import PERTURBATIONS
from tests.device import DEVICE, NEEDS_DEVICE
from tests.hf import collate, examples, tiny_model
from tests.loops.by_hand import LEVELS, SEEDS, regularizer

pytestmark = [pytest.mark.cuda, NEEDS_DEVICE]

# How far R and its gradient may be from float32's on the CPU, as a share of them.
PRECISIONS: dict[str, tuple[torch.dtype | None, float]] = {
    "float32": (None, 1e-3),
    "float16": (torch.float16, 0.03),
    "bfloat16": (torch.bfloat16, 0.2),
}


def found(name: str, level: str, device: str, dtype: torch.dtype | None) -> tuple[float, dict[str, torch.Tensor]]:
    """R of a batch, and its gradient of every parameter, on the CPU."""
    model = tiny_model("classification", dtype=torch.float32).to(device)
    batch = {key: values.to(device) for key, values in collate(examples("classification")).items()}
    bound: Any = regularizer(name, model, level, k=2, norm_p="l2", radius=0.8, step_size=0.4, noise_var=0.3)
    block: AbstractContextManager[Any] = nullcontext() if dtype is None else torch.autocast(device, dtype)
    with block:
        with bound.clean(model):
            output = model(**batch)
        value = bound(model, batch, output, noise_seeds=SEEDS[: len(batch["labels"])])
    value.backward()
    return value.item(), gradients(model)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.grad.cpu() for name, x in model.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_r_and_its_gradient_are_those_of_the_cpu(name: str, level: str, precision: str) -> None:
    dtype, share = PRECISIONS[precision]
    expected, wanted = found(name, level, "cpu", None)
    value, gradient = found(name, level, DEVICE, dtype)
    assert expected > 5e-4
    assert abs(value - expected) < share * expected
    assert gradient.keys() == wanted.keys()
    whole = torch.cat([x.flatten() for x in wanted.values()])
    difference = torch.cat([(gradient[key] - x).flatten() for key, x in wanted.items()])
    assert difference.norm() < share * whole.norm()
