"""Linear layers on the CPU: select the library that multiplies the matrices of a network in training.

torch uses MKL for single-precision products. MKL uses AVX-512 on Intel processors only: on AMD processors with
full-width AVX-512 it is half as fast as oneDNN, on other AMD processors it is the faster of the two
(docs/performance.md). torch has no switch between them. But it uses oneDNN for convolutions, and a linear layer is a
convolution with a window of one token.
"""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils.errors import FlagError

CPUINFO = Path("/proc/cpuinfo")  # Linux; elsewhere the platform module names vendor and family
# AMD's first family with AVX-512 twice as wide as AVX2, but for its notebooks' chips. Zen 4 computes it in two halves.
ZEN_5 = 26


class OnednnLinear(nn.Linear):
    """A linear layer that computes products over (examples, tokens, features) with oneDNN.

    Values and gradients equal those of `nn.Linear` up to rounding. Inputs that oneDNN has no kernel for (other types,
    mixed precision, one example) are computed by `nn.Linear`.
    """

    def forward(self, input: Tensor) -> Tensor:
        mixed = torch.is_autocast_enabled(input.device.type)
        if input.dim() != 3 or len(input) == 1 or input.dtype != torch.float32 or input.is_cuda or mixed:
            return super().forward(input)
        # (examples, features, tokens, 1), with the features of a token contiguous in memory, which oneDNN prefers
        image = input.unsqueeze(2).permute(0, 3, 1, 2)
        output = F.conv2d(image, self.weight.unsqueeze(-1).unsqueeze(-1), self.bias)
        return output.permute(0, 2, 3, 1).flatten(1, 2)


def choose_linears(network: nn.Module, engine: str) -> None:
    """Select the library for the linear layers of a network, in place; parameters and their names do not change.

    Args:
        engine: `mkl` (or the library that torch was built with), `onednn`, or `auto`: `onednn` on AMD processors with
            AVX-512 of full width (Zen 5) if torch was built with both libraries, otherwise `mkl`. `auto` looks at the
            processor and the build and measures nothing, so that a run gives the same numbers every time.

    Raises:
        FlagError: `onednn`, but torch was built without it.
    """
    if engine == "onednn" and not torch.backends.mkldnn.is_available():
        raise FlagError("--cpu_linear: found 'onednn', which this build of torch lacks, accepted: auto, mkl")
    fast = engine == "onednn" or (engine == "auto" and _onednn_is_preferred())
    for module in network.modules():
        if type(module) in (nn.Linear, OnednnLinear):
            module.__class__ = OnednnLinear if fast else nn.Linear


def _onednn_is_preferred() -> bool:
    """Whether MKL would leave half of an AMD processor unused, and torch was built with both MKL and oneDNN.

    torch reports the capability of its own kernels: with ATEN_CPU_CAPABILITY=avx2 it reports no AVX-512.
    """
    built_with_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return built_with_both and torch.backends.cpu.get_cpu_capability() == "AVX512" and _amd_family() >= ZEN_5


@cache
def _amd_family() -> int:
    """The processor's family by AMD's numbers; 0 for other vendors'."""
    try:
        text = CPUINFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = platform.processor()
    family = re.search(r"family\s*:?\s*(\d+)", text, re.IGNORECASE)
    return int(family[1]) if family and "AuthenticAMD" in text else 0
