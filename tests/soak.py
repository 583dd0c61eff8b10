"""Kill a small run at random moments, over and over, and see that nothing is lost.

    python -m tests.soak --kills 200

A run of `train.py` is killed (SIGKILL; of several processes one, the others have to end by themselves, or at SIGTERM
where they still wait for it to join them) at a random moment of its life, gone on with, killed again, until it ends;
then the next run begins. Each has to end with the parameters, the optimizer's state and the scores of the run that
nobody killed, bit for bit, and with the same reports, once each. Prints the counts; exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkProcess as Process
from pathlib import Path
from typing import Any

import torch

import mt_dnn.training.trainer  # noqa: F401  so that no fork has to import it
import train
from data_utils.errors import run_command_line
from mt_dnn.checkpoints.checkpoint import load_checkpoint
from tests.mt_dnn.runs import DATASETS, RUN

MOST_SECONDS = 60  # that a run's other processes may outlive the one that was killed
GRACE_SECONDS = 30  # torchrun's, between SIGTERM and SIGKILL
FIRST_SECONDS = 600  # for the run that nobody kills
LAST = "model_2.pt"


def flags(folder: Path) -> list[str]:
    """The run: three tasks, SiFT, dropout, a checkpoint every fourth update, of which three are kept."""
    given = (
        f"--task_def {RUN / 'task_def.yml'} --data_dir {RUN / 'tinydata'} --train_datasets cola,mnli,stsb "
        f"--test_datasets {DATASETS} --init_checkpoint {RUN / 'tiny'} --output_dir {folder} "
        f"--log_file {folder / 'log.txt'} "
        "--epochs 3 --optimizer adamw --learning_rate 1e-3 --dataloader_num_workers 0 --log_per_updates 1 "
        "--adv_train --adv_norm_level post_ln --bregman_mu 1 --save_per_updates_on --save_per_updates 4 --keep_last 3"
    )
    resumed = ["--resume"] if list(folder.glob("model_*.pt")) else []
    return [*given.split(), *resumed]


def start(folder: Path, processes: int) -> list[Process]:
    """The run, from its newest checkpoint where there is one: `train.py` in forks of this process, which has imported
    what takes longer than the run itself."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        child = get_context("fork").Process(target=run, args=(folder, flags(folder), rank, processes, port))
        child.start()
        started.append(child)
    return started


def run(folder: Path, given: list[str], rank: int, processes: int, port: int) -> None:
    """What a child does, as torchrun would have started it."""
    with (folder / "output.txt").open("ab") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        }  # fmt: skip
    run_command_line(lambda: train.main(given))


def left_behind(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves that a user may look at."""
    content = load_checkpoint(folder / LAST)
    found: dict[str, Any] = {f"state {name}": tensor for name, tensor in content["state"].items()}
    for number, moments in content["optimizer"]["state"].items():
        found |= {f"optimizer {number} {name}": torch.as_tensor(value) for name, value in moments.items()}
    found |= {path.name: path.read_text() for path in folder.glob("*_scores_epoch_*.json")}
    found["reports"] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["history"] = json.loads((folder / "results.json").read_text())["history"]
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    for name in sorted(first.keys() | second.keys()):
        one, other = first.get(name), second.get(name)
        both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        if not (torch.equal(one, other) if both else one == other):  # type: ignore[arg-type]
            yield name


def ended(children: Sequence[Process], seconds: float) -> bool:
    """Wait so long at most; whether all have ended."""
    deadline = time.monotonic() + seconds
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    return all(child.exitcode is not None for child in children)


def killed(children: Sequence[Process], draw: random.Random) -> bool:
    """Kill one of a run's processes; whether the others ended.

    Those that still wait for the killed one to join them cannot know of it; torchrun tells them by SIGTERM, which in a
    run that has begun would wait for the update under way, and so for the killed one.
    """
    draw.choice([child for child in children if child.exitcode is None]).kill()
    if ended(children, MOST_SECONDS):
        return True
    for child in children:
        child.terminate()
    if ended(children, GRACE_SECONDS):
        return True
    for child in children:
        child.kill()
        child.join()
    return False


def soak(kills: int, processes: int, seed: int, root: Path) -> int:
    """Returns how many runs ended otherwise than the one that nobody killed, or did not end."""
    draw = random.Random(seed)
    began = time.monotonic()
    whole = start(root / "whole", processes)
    if not ended(whole, FIRST_SECONDS) or any(child.exitcode for child in whole):
        raise SystemExit(f"the run that nobody kills failed; see {root / 'whole' / 'output.txt'}")
    life = time.monotonic() - began
    expected = left_behind(root / "whole")
    done = runs = wrong = 0
    moments: Counter[str] = Counter()
    while done < kills:
        folder = root / f"run_{runs}"
        runs += 1
        found: list[str] = []
        while True:
            children = start(folder, processes)
            if ended(children, draw.uniform(0, life)):
                break
            done += 1
            moments[moment(folder)] += 1
            if not killed(children, draw):
                found.append(f"processes that were alive {MOST_SECONDS + GRACE_SECONDS} seconds after one was killed")
        codes = [child.exitcode for child in children]
        found += [f"exit codes {codes}"] if any(codes) else differences(expected, left_behind(folder))
        if found:
            wrong += 1
            print(f"run {runs}: differs in {', '.join(found[:5])}; kept in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
        print(f"{done} kills, {runs} runs, {wrong} of them lost or changed", flush=True)
    told = ", ".join(f"{count} {name}" for name, count in moments.items())
    print(f"{done} kills ({told}) over {runs} runs of {processes} process(es): {wrong} lost or changed")
    return wrong


def moment(folder: Path) -> str:
    """What a run was doing when it was killed, as far as its files tell."""
    if list(folder.glob(".*.tmp")):
        return "while a file was written"
    return "after a checkpoint" if list(folder.glob("model_*.pt")) else "before the first checkpoint"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="at least so many (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of a run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the runs (default: a temporary one)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # a fork has no threads of its parent
    root = arguments.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    sys.exit(1 if soak(arguments.kills, arguments.processes, arguments.seed, root) else 0)


if __name__ == "__main__":
    main()
