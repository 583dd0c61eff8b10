"""Run scripts, run as a user does: for real, or with a `python` that only writes its arguments down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

STAND_IN = """#!/usr/bin/env bash
# notes the flags; leaves what a run of three epochs leaves
echo "$(basename "$0") $*" >> "$CALLS"
while [[ $# -gt 0 ]]; do
  [[ $1 == --output_dir ]] && mkdir -p "$2" && for n in 0 1 2; do touch -d "2020-01-01 00:00:0$n" "$2/model_$n.pt"; done
  shift
done
"""


def run_script(name: str, *arguments: object, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script below `experiments/`, started in `folder` with this Python first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables}
    command = ["bash", str(EXPERIMENTS / name), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def calls_of(name: str, *arguments: object, folder: Path, **variables: str) -> list[dict[str, str]]:
    """What a script would run: by call the `launcher` and the value of each flag, the last one."""
    stand_ins, notes = folder / "stand_ins", folder / "calls"
    stand_ins.mkdir(exist_ok=True)
    for launcher in ("python", "torchrun"):
        (stand_ins / launcher).write_text(STAND_IN)
        (stand_ins / launcher).chmod(0o755)
    notes.unlink(missing_ok=True)
    path = os.pathsep.join([str(stand_ins), os.environ["PATH"]])
    finished = run_script(name, *arguments, folder=folder, **{"CALLS": str(notes), "PATH": path, **variables})
    assert finished.returncode == 0, finished.stderr
    calls = []
    for line in notes.read_text().splitlines():
        launcher, flags = line.split("train.py ")
        words = flags.split()
        call = dict(zip(words[::2], words[1::2], strict=True))
        calls.append({"launcher": " ".join(launcher.split()[:-1]), **{k.lstrip("-"): v for k, v in call.items()}})
    return calls
