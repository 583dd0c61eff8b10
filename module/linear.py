"""Linear layers on the CPU: which library multiplies the matrices of a network in training.

torch gives single-precision products to MKL, which runs its fast kernels on Intel's processors alone; on AMD's it
reaches half of what oneDNN does (docs/performance.md). torch has no switch between the two, but gives its convolutions
to oneDNN, and a linear layer is a convolution with a window of one token.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OnednnLinear(nn.Linear):
    """A linear layer whose product over a batch of tokens, (examples, tokens, features), oneDNN computes.

    Values and gradients are those of `nn.Linear` to rounding. What oneDNN has no kernel for (other types, mixed
    precision, one example) goes the ordinary way.
    """

    def forward(self, input: Tensor) -> Tensor:
        mixed = torch.is_autocast_enabled(input.device.type)
        if input.dim() != 3 or len(input) == 1 or input.dtype != torch.float32 or input.is_cuda or mixed:
            return super().forward(input)
        # (examples, features, tokens, 1) with the features of a token side by side in memory, as oneDNN likes them
        image = input.unsqueeze(2).permute(0, 3, 1, 2)
        output = F.conv2d(image, self.weight.unsqueeze(-1).unsqueeze(-1), self.bias)
        return output.permute(0, 2, 3, 1).flatten(1, 2)


def choose_linears(network: nn.Module, engine: str) -> None:
    """Let a library compute the linear layers of a network; parameters and their names stay what they are.

    Args:
        engine: `mkl` (or whatever torch was built with), `onednn`, or `auto`: `onednn` on AMD's processors. The choice
            depends on the processor and on no measurement, so that a run gives the same numbers every time.
    """
    fast = engine == "onednn" or (engine == "auto" and _is_amd() and torch.backends.mkldnn.is_available())
    for module in network.modules():
        if type(module) in (nn.Linear, OnednnLinear):
            module.__class__ = OnednnLinear if fast else nn.Linear


@cache
def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "AuthenticAMD" in platform.processor()
