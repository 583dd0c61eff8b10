"""What two processes do, in one start of them; run by `test_processes.py` under torchrun.

    torchrun --nproc_per_node 2 -m tests.mt_dnn.training.two_processes FOLDER

writes to FOLDER what it found, beside the checkpoints of runs; FOLDER/one holds a run of one process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor

from data_utils.readers import read_token_json
from data_utils.storage.text_files import write_lines
from mt_dnn.batcher import Batch, Collater, MultiTaskDataset, SingleTaskDataset
from mt_dnn.data.run_data import RunData
from mt_dnn.model import MTDNNModel, UpdateReport
from mt_dnn.perturbation import PERTURBATIONS
from tests.mt_dnn.runs import RUN, tiny_config, tiny_run

BASE = "--train_datasets mnli --test_datasets mnli_matched --dropout_p 0 --bert_dropout_p 0 --bregman_mu 2"
# Large noise, so that a wrong mean of R shows beside the task loss.
LARGE = "--adv_train --adv_projection project --adv_radius 1 --adv_step_size 0.5 --adv_noise_var 0.5 --adv_k 2"
TAKES_UNLABELED = ("vat", "smart", "alum")

MIDDLE = "model_0_2.pt"  # a checkpoint within the first epoch of a resumable run


def resumable(folder: Path) -> list[str]:
    """Flags of a run of three tasks of 24 examples: of the last batch of each, one example, a process has none."""
    flags = (
        f"--task_def {folder}/tasks.yml --dropout_p 0 --bert_dropout_p 0 --batch_size 23 --batch_size_eval 16 "
        "--grad_accumulation_step 2 --bregman_mu 2 --adv_train --adv_norm_level post_ln --save_per_updates_on "
        "--save_per_updates 2"
    )
    return flags.split()


# With dropout: a recomputed layer has to draw the masks of its first pass.
RECOMPUTED = {
    "sift": "--epochs 1 --adv_train --adv_norm_level post_ln --adv_k 2 --grad_accumulation_step 2",
    "freelb": "--epochs 1 --adv_train --adv_opt freelb --adv_k 3",
}

CASES: dict[str, str] = {"plain": ""} | {
    f"{method} {level}": f"{LARGE} --adv_opt {method} --adv_norm_level {level}"
    for method, level in [
        *((method, "post_ln") for method in PERTURBATIONS),
        ("smart", "pre_ln"),
        ("smart", "deberta"),
    ]
}
CASES["alum post_ln"] += " --adv_start_ratio 0"

# Other heads, with noise; their files are written by `write_heads`.
HEADS = {
    name: f"{LARGE} --adv_norm_level post_ln --task_def FOLDER/tasks.yml --data_dir FOLDER --train_datasets {name} "
    f"--test_datasets {name} --answer_dropout_p 0 --answer_mem_drop_p 0"
    for name in ("san", "ranking", "labels", "several")
}
CASES |= HEADS


def write_heads(folder: Path) -> None:
    """Pairs for the answer network, groups of two and of three of them to rank, pairs, cut to very unequal lengths,
    with a label a token, and pairs with three labels each that hold or not, in `folder`/heads."""
    folder = folder / "heads"
    folder.mkdir(exist_ok=True)
    samples = [sample for _, sample in read_token_json(RUN / "tinydata" / "mnli_train.json")]
    groups = [
        [samples[(place + more) % len(samples)] for more in range(2 + place % 2)] for place in range(len(samples))
    ]
    ranked = [
        {
            "uid": str(place),
            "label": place % len(own),
            **{key: [row[key] for row in own] for key in ("token_id", "type_id")},
        }
        for place, own in enumerate(groups)
    ]
    labels = []
    for place, sample in enumerate(samples):
        tokens, types = (sample[key][: 3 + 4 * (place % 5)] for key in ("token_id", "type_id"))
        label = [token % 3 for token in tokens]
        labels.append({"uid": str(place), "label": label, "token_id": tokens, "type_id": types})
    several = [own | {"label": [place % 2, int(place % 3 == 0), 0.25]} for place, own in enumerate(samples)]
    for name, own in (("san", samples), ("ranking", ranked), ("labels", labels), ("several", several)):
        for split in ("train", "dev"):
            write_lines(folder / f"{name}_{split}.json", map(json.dumps, own))
    kinds = ("PremiseAndOneHypothesis, task_type: Classification, n_class: 3, enable_san: true",)
    kinds += ("PremiseAndMultiHypothesis, task_type: Ranking, n_class: 1",)
    kinds += ("Seqence, task_type: SeqenceLabeling, n_class: 3",)
    kinds += ("PremiseAndOneHypothesis, task_type: MultiLabel, n_class: 3, labels: [a, b, c]",)
    named = zip(("san", "ranking", "labels", "several"), kinds, strict=True)
    text = "".join(f"{name}: {{data_format: {kind}, metric_meta: [ACC], dropout_p: 0}}\n" for name, kind in named)
    (folder / "tasks.yml").write_text(text)


# Examples of the labeled and of the unlabeled batches of an update.
ONE_BATCH = ([range(7)], [range(12, 17)])
# 2 processes share 7, 3 and 1 of them: one process has none of the last batch.
ACCUMULATED = ([range(7), range(7, 10), range(10, 11)], [range(12, 17), range(17, 18), range(18, 22)])
AT_ONCE = ([range(11)], [range(12, 22)])


def gradients(
    case: str, labeled: Sequence[Sequence[int]], unlabeled: Sequence[Sequence[int]], folder: Path
) -> dict[str, Tensor]:
    """The gradients of one update before they are clipped, by parameter, with every process's share of the batches.

    The teacher stands elsewhere than the student. Reports of the update, means over processes, go along.
    """
    config = tiny_config(folder, *f"{BASE} {CASES[case]}".replace("FOLDER", str(folder / "heads")).split())
    data = RunData(config)
    torch.manual_seed(0)
    model = MTDNNModel(config, data.task_defs, total_updates=10)
    generator = torch.Generator().manual_seed(1)
    assert model.bregman is not None
    head = model.network.scoring_list[0]
    with torch.no_grad():
        if isinstance(head, torch.nn.Sequential):
            head[1].weight *= 10  # of an untrained pooled head the outputs are all alike
    for parameter in model.bregman.teacher.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    accelerator = model.accelerator

    def share(dataset: SingleTaskDataset, examples: Sequence[int]) -> Batch:
        mine = list(examples)[accelerator.process_index :: accelerator.num_processes]
        return Collater(0)(MultiTaskDataset([dataset])[0, mine])

    takes_unlabeled = case in HEADS or case.split()[0] in TAKES_UNLABELED
    found: dict[str, Tensor] = {}

    def record(network: torch.nn.Module, _: object) -> None:
        found.update({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})

    with patch("mt_dnn.model.clip_gradients", record):
        report = model.update(
            *(share(data.train[0], examples) for examples in labeled),
            unlabeled=[share(data.train[0], examples) for examples in unlabeled] if takes_unlabeled else [],
        )
    for name, value in report._asdict().items():
        if value is not None:
            found[f"report {name}"] = accelerator.reduce(value, "mean")
    return found


def recorded_run(folder: Path, *flags: str) -> list[list[str]]:
    """A run on all processes, and the uids that each of its updates met in any of them."""
    update, met = MTDNNModel.update, []

    def recording(model: MTDNNModel, *batches: Batch, **options: Any) -> UpdateReport:
        met.append(
            [uid for batch in batches if not batch.stands_in for uid in (f"{batch.task_id}/{u}" for u in batch.uids)]
        )
        return update(model, *batches, **options)

    with patch.object(MTDNNModel, "update", recording), patch.object(Accelerator, "end_training"):
        tiny_run(folder, *flags)
    if not torch.distributed.is_initialized():
        return [sorted(uids) for uids in met]
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, met)
    return [sorted(chain(*parts)) for parts in zip(*everywhere, strict=True)]


def main(folder: Path) -> None:
    found = {
        (case, kind): gradients(case, *batches, folder)
        for case in CASES
        for kind, batches in (("one batch", ONE_BATCH), ("accumulated", ACCUMULATED))
    }
    flags = resumable(folder)
    met = {
        "two": recorded_run(folder / "two", *flags),
        "one_to_two": recorded_run(folder / "one_to_two", *flags, "--resume", "--model_ckpt", f"{folder}/one/{MIDDLE}"),
    }
    for name, method in RECOMPUTED.items():
        recorded_run(folder / f"{name}_whole", *method.split())
        recorded_run(folder / f"{name}_recomputed", *method.split(), "--grad_checkpointing")
    if torch.distributed.get_rank() == 0:
        torch.save({"gradients": found, "met": met}, folder / "found.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
