"""Kill a small run at random moments, over and over, and see that nothing is lost.

    python -m tests.soak --kills 200

A run of `train.py` is killed (SIGKILL) at a random moment of its life, gone on with, killed again, until it ends; then
the next run begins. Each has to end with the parameters, the optimizer's state and the scores of the run that nobody
killed, bit for bit, and with its updates told once each. Prints the counts; exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mt_dnn.checkpoint import load_checkpoint
from tests.mt_dnn.runs import DATASETS, RUN

ROOT = Path(__file__).parents[1]
LAST = "model_2.pt"


def command(folder: Path, processes: int) -> list[str]:
    """The run: three tasks, SiFT, dropout, a checkpoint every fourth update, of which three are kept."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
    flags = (
        f"--task_def {RUN / 'task_def.yml'} --data_dir {RUN / 'tinydata'} --train_datasets cola,mnli,stsb "
        f"--test_datasets {DATASETS} --init_checkpoint {RUN / 'tiny'} --output_dir {folder} "
        f"--log_file {folder / 'log.txt'} "
        "--epochs 3 --optimizer adamw --learning_rate 1e-3 --dataloader_num_workers 0 --log_per_updates 1 "
        "--adv_train --adv_norm_level post_ln --bregman_mu 1 --save_per_updates_on --save_per_updates 4 --keep_last 3"
    )
    return [*launcher, "train.py", *flags.split()]


def start(folder: Path, processes: int) -> subprocess.Popen[bytes]:
    """The run, from its newest checkpoint where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    resumed = ["--resume"] if list(folder.glob("model_*.pt")) else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [*command(folder, processes), *resumed], cwd=ROOT, env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip


def left_behind(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves that a user may look at."""
    content = load_checkpoint(folder / LAST)
    found: dict[str, Any] = {f"state {name}": tensor for name, tensor in content["state"].items()}
    for number, moments in content["optimizer"]["state"].items():
        found |= {f"optimizer {number} {name}": torch.as_tensor(value) for name, value in moments.items()}
    found |= {path.name: path.read_text() for path in folder.glob("*_scores_epoch_*.json")}
    updates = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    # What is told of losses is the mean since the last line, which a kill may make shorter.
    found["updates"] = [(line["kind"], line["epoch"], line["update"]) for line in updates]
    found["history"] = json.loads((folder / "results.json").read_text())["history"]
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    for name in sorted(first.keys() | second.keys()):
        one, other = first.get(name), second.get(name)
        both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        if not (torch.equal(one, other) if both else one == other):  # type: ignore[arg-type]
            yield name


def kill_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, 9)
    process.wait()


def soak(kills: int, processes: int, seed: int, root: Path) -> int:
    """Returns how many runs ended otherwise than the one that nobody killed, or did not end."""
    draw = random.Random(seed)
    began = time.monotonic()
    if start(root / "whole", processes).wait() != 0:
        raise SystemExit(f"the run that nobody kills failed; see {root / 'whole' / 'output.txt'}")
    life = time.monotonic() - began
    expected = left_behind(root / "whole")
    done = runs = wrong = 0
    moments: Counter[str] = Counter()
    while done < kills:
        folder = root / f"run_{runs}"
        runs += 1
        while True:
            process = start(folder, processes)
            try:
                code = process.wait(draw.uniform(0, life))
            except subprocess.TimeoutExpired:
                newest = max(folder.glob("model_*.pt"), key=lambda path: path.stat().st_mtime_ns, default=None)
                moments["before its first checkpoint" if newest is None else "after one"] += 1
                kill_group(process)
                done += 1
                continue
            break
        found = list(differences(expected, left_behind(folder))) if code == 0 else [f"exit code {code}"]
        if found:
            wrong += 1
            print(f"run {runs}: differs in {', '.join(found[:5])}; kept in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
        print(f"{done} kills, {runs} runs, {wrong} of them lost or changed", flush=True)
    told = ", ".join(f"{count} {name}" for name, count in moments.items())
    print(f"{done} kills ({told}) over {runs} runs of {processes} process(es): {wrong} lost or changed")
    return wrong


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="at least so many (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of a run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the runs (default: a temporary one)")
    arguments = parser.parse_args(argv)
    root = arguments.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    sys.exit(1 if soak(arguments.kills, arguments.processes, arguments.seed, root) else 0)


if __name__ == "__main__":
    main()
