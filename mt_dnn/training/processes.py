"""Devices and processes, as torchrun or `accelerate launch` set them up, and what of it is refused."""

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

# What `accelerate launch` puts into the environment for engines that cut parameters over processes.
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism_config",
}
ONE_PROCESS_A_DEVICE = "accepted: a process a device with DistributedDataParallel, by torchrun or accelerate launch"


def build_accelerator(config: Config) -> Accelerator:
    """The processes that were started, with mixed precision as the flags say.

    Raises:
        UserError: a launcher's setting that would be wrong or without effect here; a device that is not there.
    """
    training = config.training
    precision = "fp16" if training.fp16 else "bf16" if training.bf16 else "no"
    _check_launcher(precision)
    has_gpu = torch.cuda.is_available()
    if training.cuda and not has_gpu:
        raise FlagError("--cuda: no GPU is visible to torch; leave the flag out to run on the CPU")
    if training.fp16 and not has_gpu:
        raise FlagError("--fp16: needs a GPU, and none is visible to torch; accepted on the CPU: --bf16, or neither")
    # Accelerate keeps the first precision of a process; a later run in it may have another.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=not has_gpu,
        mixed_precision=precision,
        # A step runs one head of several, and the encoder's own pooler never.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)],
    )


def _check_launcher(precision: str) -> None:
    for variable, engine in SHARDING.items():
        if parse_flag_from_env(variable):
            raise UserError(
                f"{engine} ({variable}) cuts parameters over processes, and the search runs the whole encoder several "
                f"times within one forward; {ONE_PROCESS_A_DEVICE}"
            )
    asked = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        raise UserError(f"accelerate launch asks for mixed precision {asked!r}; accepted: train.py's --fp16 or --bf16")
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise UserError(
            f"accelerate launch asks for {steps} gradient accumulation steps; accepted: 1 there, and train.py's "
            "--grad_accumulation_step"
        )
