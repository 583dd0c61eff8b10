"""The device of the tests marked `cuda`: a GPU, or with TEST_DEVICE=cpu the CPU, to try the tests themselves."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
NEEDS_DEVICE = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="needs a GPU")
NEEDS_GPU = pytest.mark.skipif(not (ON_GPU and torch.cuda.is_available()), reason="needs a GPU")
NEEDS_TWO_GPUS = pytest.mark.skipif(not ON_GPU or torch.cuda.device_count() < 2, reason="needs two GPUs")
