"""Linear layers computed by oneDNN: values and gradients of `nn.Linear`, unchanged parameters."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import module.linear
from data_utils.errors import FlagError
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


# (AMD's family, what torch reports, built with MKL, built with oneDNN): whether `auto` takes oneDNN
PROCESSORS = {
    "AMD, AVX-512 of full width": (26, "AVX512", True, True, True),
    "AMD, AVX-512 in halves": (25, "AVX512", True, True, False),
    "AMD, AVX2 alone": (25, "AVX2", True, True, False),
    "AMD, older than AVX2": (21, "DEFAULT", True, True, False),
    "Intel, AVX-512": (0, "AVX512", True, True, False),
    "Intel, AVX2 alone": (0, "AVX2", True, True, False),
    "ARM": (0, "SVE256", False, True, False),
    "ARM of Apple": (0, "DEFAULT", False, False, False),
    "AMD, torch without MKL": (26, "AVX512", False, True, False),
    "AMD, torch without oneDNN": (26, "AVX512", True, False, False),
}


def pretend(
    monkeypatch: pytest.MonkeyPatch, family: int = 26, capability: str = "AVX512", mkl: bool = True, onednn: bool = True
) -> None:
    """Another processor, another build of torch."""
    monkeypatch.setattr(module.linear, "_amd_family", lambda: family)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)


def kinds_of_linears(network: nn.Module) -> set[type[nn.Module]]:
    return {type(part) for part in network.modules() if isinstance(part, nn.Linear)}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processor_and_build_decide_unless_a_library_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    family, capability, mkl, onednn, fast = PROCESSORS[name]
    network = tiny_encoder("bert")
    names = list(network.state_dict())
    choose_linears(network, "onednn")
    pretend(monkeypatch, family, capability, mkl, onednn)
    choose_linears(network, "auto")
    assert kinds_of_linears(network) == {OnednnLinear if fast else nn.Linear}
    choose_linears(network, "mkl")
    assert kinds_of_linears(network) == {nn.Linear}
    assert list(network.state_dict()) == names


def test_onednn_is_refused_by_a_torch_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, onednn=False)
    with pytest.raises(FlagError, match="--cpu_linear: found 'onednn', which this build of torch lacks"):
        choose_linears(nn.Linear(2, 2), "onednn")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names the kernels of x86-64")
def test_torchs_limit_of_kernels_counts_as_the_processors() -> None:
    code = "from module.linear import _onednn_is_preferred; print(_onednn_is_preferred())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("cpuinfo", "family"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n", 26),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n", 0),
        ("vendor_id\t: AuthenticAMD\n", 0),
        (None, 25),
    ],
)
def test_vendor_and_family_are_read_from_linux_or_from_the_processors_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, family: int
) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(module.linear, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD")
    assert module.linear._amd_family.__wrapped__() == family
