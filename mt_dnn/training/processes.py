"""Devices and processes as torchrun or `accelerate launch` set them up, and launcher settings that are refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, parse_choice_from_env, parse_flag_from_env

from data_utils.errors import FlagError, UserError

if TYPE_CHECKING:
    from mt_dnn.configuration.config import Config

# Environment variables of `accelerate launch` for engines that shard parameters over processes.
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism_config",
}


def build_accelerator(config: Config, use_gpu: bool = True) -> Accelerator:
    """The accelerator of the processes that were started, with the mixed precision that the flags choose.

    Args:
        use_gpu: whether to use a GPU where there is one.

    Raises:
        UserError: a launcher setting that would be wrong or ignored here, or a device that is missing.
    """
    training = config.training
    precision = "fp16" if training.fp16 else "bf16" if training.bf16 else "no"
    _check_launcher(precision)
    has_gpu = use_gpu and torch.cuda.is_available()
    if training.cuda and not has_gpu:
        raise FlagError("--cuda: no GPU is visible to torch; leave the flag out to run on the CPU")
    if training.fp16 and not has_gpu:
        raise FlagError("--fp16: needs a GPU, and none is visible to torch; accepted on the CPU: --bf16, or neither")
    # accelerate keeps the first precision of a process; a later run in it may choose another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=not has_gpu,
        mixed_precision=precision,
        # A step runs one of several heads, and never the encoder's own pooler.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)],
    )
    if training.fsdp and accelerator.num_processes == 1:
        raise FlagError("--fsdp: found one process; accepted: several, by torchrun or accelerate launch")
    return accelerator


def _check_launcher(precision: str) -> None:
    for variable, engine in SHARDING.items():
        if parse_flag_from_env(variable):
            raise UserError(
                f"{engine} ({variable}) is not used here; accepted: train.py's --fsdp, or one process per device with "
                "DistributedDataParallel, by torchrun or accelerate launch without it"
            )
    requested = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    if requested not in ("no", precision):
        raise UserError(f"accelerate launch sets mixed precision {requested!r}; accepted: train.py's --fp16 or --bf16")
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise UserError(
            f"accelerate launch sets {steps} gradient accumulation steps; accepted: 1 there, and train.py's "
            "--grad_accumulation_step"
        )
