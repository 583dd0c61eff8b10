"""Linear layers by way of oneDNN: the values and gradients of `nn.Linear`, the parameters left as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import module.linear
from module.linear import OnednnLinear, choose_linears
from tests.encoders import tiny_encoder


def results(layer: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output and the gradients of input, weight and bias."""
    output = layer(x)
    return [output, *torch.autograd.grad(output, [x, *layer.parameters()], upstream)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 7, 48), (1, 7, 48), (4, 1, 48), (5, 48), (2, 3, 5, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_a_linear_layer(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 32, bias=bias, dtype=dtype)
    fast = copy.deepcopy(plain)
    choose_linears(fast, "onednn")
    assert type(fast) is OnednnLinear
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    upstream = torch.randn(*shape[:-1], 32, dtype=dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    for found, expected in zip(results(fast, x, upstream), results(plain, x, upstream), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=10 * tolerance)


def test_an_input_that_lies_otherwise_in_memory() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(16, 8)
    fast = copy.deepcopy(plain)
    choose_linears(fast, "onednn")
    x = torch.randn(5, 16, 3).transpose(1, 2)
    torch.testing.assert_close(fast(x), plain(x), rtol=2e-6, atol=2e-6)


def test_mixed_precision_is_that_of_a_linear_layer() -> None:
    plain = nn.Linear(16, 8)
    fast = copy.deepcopy(plain)
    choose_linears(fast, "onednn")
    x = torch.randn(5, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), plain(x))
        assert fast(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("engine", "amd", "fast"), [("auto", True, True), ("auto", False, False), ("mkl", True, False)]
)
def test_the_processor_decides_unless_it_is_told(
    monkeypatch: pytest.MonkeyPatch, engine: str, amd: bool, fast: bool
) -> None:
    monkeypatch.setattr(module.linear, "_is_amd", lambda: amd)
    network = tiny_encoder("bert")
    names = list(network.state_dict())
    choose_linears(network, "onednn")
    choose_linears(network, engine)
    kinds = {type(part) for part in network.modules() if isinstance(part, nn.Linear)}
    assert kinds == {OnednnLinear if fast and torch.backends.mkldnn.is_available() else nn.Linear}
    assert list(network.state_dict()) == names
