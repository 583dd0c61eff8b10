"""What processes with sharded parameters do, in one start of them; run by `test_sharding.py` under torchrun.

    torchrun --nproc_per_node 2 -m tests.mt_dnn.training.sharded_processes FOLDER RUN …

FOLDER/RUN/ddp and FOLDER/RUN/fsdp get the output of each run, FOLDER/found.json what else was found.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mt_dnn.data.run_data import RunData
from mt_dnn.model import MTDNNModel
from mt_dnn.training.sharding import local_part
from tests.mt_dnn.runs import tiny_config, tiny_run
from tests.mt_dnn.training.two_processes import HEADS, MIDDLE, resumable

FAMILIES = ("albert", "deberta_v3", "t5", "llama")
LARGE = "--adv_train --adv_projection project --adv_radius 1 --adv_step_size 0.5 --adv_noise_var 0.5"
ONE = "--epochs 1 --train_datasets mnli --test_datasets mnli_matched"
# With dropout, for each process draws the same masks with sharded parameters as without.
RUNS: dict[str, str] = {
    "sift": f"--epochs 1 {LARGE} --adv_norm_level post_ln --adv_k 2",
    "bregman": f"{ONE} {LARGE} --bregman_mu 2",
    "freelb": f"{ONE} {LARGE} --adv_opt freelb --adv_k 3",
    "accumulated": f"--epochs 1 {LARGE} --grad_accumulation_step 2 --max_tokens_per_batch 150 --grad_clipping 0.1 "
    "--global_grad_clipping 0.2",
    "recomputed": f"{ONE} {LARGE} --grad_checkpointing",
    "bf16": f"{ONE} {LARGE} --bf16",
    "free": f"--train_datasets mnli --test_datasets mnli_matched {LARGE} --adv_free --optimizer adamax",
    "masked_lm": f"--epochs 1 --task_def FOLDER/masked.yml --data_dir FOLDER --init_checkpoint FOLDER/bert {LARGE} "
    "--train_datasets masked --test_datasets masked",
    "plain": "--epochs 1",
    "frozen": f"{ONE} {LARGE} --update_bert_opt 1",
    "at": f"{ONE} {LARGE} --adv_opt at --adv_norm_level deberta",
    "layer": f"{ONE} {LARGE} --adv_opt vat --adv_norm_level hidden:0",
    "sgd": f"{ONE} --optimizer sgd --momentum 0.9",
    "adadelta": f"{ONE} --optimizer adadelta --learning_rate 1",
}
# Heads of other kinds, of `write_heads`; encoders whose layers share parameters, or whose modules are others.
RUNS |= {name: f"--epochs 1 {HEADS[name]}".replace("FOLDER", "FOLDER/heads") for name in ("ranking", "several")}
RUNS["san"] = f"--epochs 1 {HEADS['san']} --answer_weight_norm_on".replace("FOLDER", "FOLDER/heads")
TOY = "--epochs 1 --task_def FOLDER/toy/tasks.yml --data_dir FOLDER/toy --train_datasets toy --test_datasets toy"
RUNS |= {family: f"{TOY} --init_checkpoint FOLDER/{family} {LARGE}" for family in FAMILIES}
QUICK = list(RUNS)[: list(RUNS).index("plain")]  # the others are among the long tests


def recorded(folder: Path, *flags: str) -> None:
    with patch.object(Accelerator, "end_training"):  # the processes are needed for the next run
        tiny_run(folder, *flags)


def finite(folder: Path) -> list[bool]:
    """Whether each process finds all parameters finite, before and after the last one's share of a table is not."""
    config = tiny_config(folder, "--fsdp")
    model = MTDNNModel(config, RunData(config).task_defs)
    found = [model.is_finite()]
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        with torch.no_grad():
            local_part(model.network.bert.get_input_embeddings().weight).fill_(float("nan"))
    return gather_object([*found, model.is_finite()])


def main(folder: Path, *names: str) -> None:
    for name in names:
        flags = RUNS[name].replace("FOLDER", str(folder)).split()
        recorded(folder / name / "ddp", *flags)
        recorded(folder / name / "fsdp", *flags, "--fsdp")
    flags = resumable(folder)
    recorded(folder / "whole" / "fsdp", *flags, "--fsdp")
    resumed = ("--resume", "--model_ckpt", str(folder / "one" / MIDDLE))
    recorded(folder / "one_to_sharded", *flags, *resumed, "--fsdp")
    answers = finite(folder / "finite")
    if torch.distributed.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps({"finite": answers}))
    # The models of runs whose end was put off hold the group; what the interpreter's end would do with its threads may
    # abort the process.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
