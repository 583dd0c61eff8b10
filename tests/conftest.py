"""Set-up of all tests: one thread, for the models are tiny, and the helpers beside this file importable."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))
torch.set_num_threads(1)
