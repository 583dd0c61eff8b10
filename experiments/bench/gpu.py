"""Everything that needs a GPU, in one command of about six minutes: tests, speed by precision, and a profile.

    python -m experiments.bench.gpu                        on a GPU
    python -m experiments.bench.gpu --device cpu --tiny    the same commands on small sizes, to try them without one

1. The tests marked `cuda`: every method, level and precision compared with the CPU, whole runs, and two GPUs if there
   are two.
2. `python -m experiments.bench` on an encoder of BERT-base's size with random weights, on made-up sentences of CoLA's
   and MNLI's lengths, in TF32, bf16 and fp16, each in a process of its own; in bf16 with compiled layers too.
3. The profile of SiFT's and plain's steps, and the counts of their operators.

It writes `gpu.json` with every figure and `gpu.md`, a page of tables, to the output folder. Both are written again
after each command, so that finished measurements are there if the time runs out. A command that fails or takes too long
is named, and the others run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_utils.errors import OneLineParser, at_least, run_command_line
from data_utils.storage.files import atomic_write, writable_folder
from data_utils.storage.text_files import read_json, write_lines
from experiments.bench.measure import PRECISIONS, product_rate
from experiments.bench.report import PACKAGES, environment
from experiments.sift.reporting.tables import markdown_table

ROOT = Path(__file__).parents[2]
ROWS = "plain,smart,sift,sift-free,trainer,smart-pytorch"
COMPILED_ROWS = "plain,sift"
# Mean number of tokens of a sentence of CoLA and of a pair of MNLI, [CLS] and [SEP] among them.
LENGTHS = {"cola": 11, "mnli": 40}
EXAMPLES = 3200
SHOWN_LINES = 30
SQUARE = 8192  # of a matrix product that comes near the peak of a GPU
SIZES: dict[str, Any] = {}  # BertConfig's own: BERT-base
TINY_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
GOALS = (("smart", "plain", 2.7), ("sift", "plain", 2.7), ("plain", "trainer", 1.0), ("smart", "smart-pytorch", 0.8))


class Part(NamedTuple):
    """One of the commands: its name, and its arguments after `python`."""

    name: str
    words: list[str]


def write_encoder(folder: Path, tiny: bool) -> Path:
    """A BERT of random weights, of BERT-base's size."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(**(TINY_SIZES if tiny else SIZES))).save_pretrained(folder / "encoder")
    return folder / "encoder"


def write_data(folder: Path, name: str, examples: int) -> Path:
    """Token JSON lines of random words, their lengths gamma-distributed around the data set's mean."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.gamma(4, (LENGTHS[name] - 2) / 4, examples).round().astype(int), 1, 126)
    path = folder / f"{name}.json"
    write_lines(
        path,
        (
            json.dumps({"uid": str(uid), "label": uid % 3, "token_id": [101, *ids.tolist(), 102]})
            for uid, ids in enumerate(generator.integers(1000, 30000, length) for length in lengths)
        ),
    )
    return path


def parts(folder: Path, precisions: Sequence[str], tiny: bool) -> list[Part]:
    """All commands, the most telling first."""
    encoder = str(write_encoder(folder, tiny))
    examples, rounds = (160, 2) if tiny else (EXAMPLES, 10)

    def bench(name: str, *flags: str) -> Part:
        words = ["-m", "experiments.bench", "--init_checkpoint", encoder, "--rounds", str(rounds)]
        return Part(name, [*words, *flags, "--output_dir", str(folder / name)])

    data = {name: str(write_data(folder, name, examples)) for name in LENGTHS}
    found = [
        bench(f"{name} {precision}", "--data", data[name], "--rows", ROWS, "--precision", precision, "--no-memory")
        for name in LENGTHS
        for precision in precisions
    ]
    last = precisions[-1] if "bf16" not in precisions else "bf16"
    common = ("--data", data["cola"], "--precision", last)
    tests = ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests"]
    return [
        *found,
        bench("profile", *common, "--profile", "plain,sift"),
        Part("tests", tests),
        bench("operators", *common, "--operators", "plain,smart,sift"),
        bench("memory", "--data", data["mnli"], "--precision", last, "--rows", ROWS, "--rounds", "1", "--steps", "1"),
        bench(f"cola {last} compiled", *common, "--rows", COMPILED_ROWS, "--no-memory", "--compile"),
    ]


def run(part: Part, folder: Path, seconds: float, device: str) -> dict[str, Any]:
    """Run a command, for at most so many seconds.

    Returns:
        its exit status (None where it ran too long), seconds, last lines, and what `bench.json` holds.
    """
    own = {"TEST_DEVICE": device, "TOKENIZERS_PARALLELISM": "false"}
    own |= {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    began = time.monotonic()
    log = folder / f"{part.name.replace(' ', '-')}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *part.words], cwd=ROOT, env={**os.environ, **own}, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
    found = {
        "command": shlex.join(["python", *part.words]),
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "output": log.read_text(encoding="utf-8", errors="replace")[-6000:],
    }
    measured = folder / part.name / "bench.json"
    return found | ({"bench": read_json(measured)} if status == 0 and measured.is_file() else {})


def peak_rates(device: str, tiny: bool) -> dict[str, float]:
    """Operations a second of a large square product, by precision."""
    import torch

    size = 256 if tiny else SQUARE
    found = {}
    for name, dtype in PRECISIONS.items():
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        found[name] = product_rate((size, size, size), device, dtype)
    return found


def page(content: dict[str, Any]) -> str:
    """The page of tables."""
    machine = content["environment"]
    versions = ", ".join(f"{name} {machine[name]}" for name in PACKAGES if machine[name])
    lines = [f"# A step on {machine['gpu'] or machine['cpu']}", "", f"{versions}; commit {machine['commit']}.", ""]
    lines += ["## Goals", "", goals(content), ""]
    for name, part in content["parts"].items():
        lines += [f"## {name}", "", f"`{part['command']}`", ""]
        if part["status"] is None:
            lines += [f"Ended after {part['seconds']:.0f} seconds: it took too long.", ""]
        if "bench" in part:
            lines += [speeds(part["bench"], content["peak_rates"]), ""]
        else:
            lines += [printed(part["output"]), ""]
    return "\n".join(lines)


def printed(output: str) -> str:
    """The tables that a command printed, or the last lines of one that printed none."""
    lines = output.strip().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    return "\n".join(tables or ["```text", *lines[-SHOWN_LINES:], "```"])


def speeds(bench: dict[str, Any], peaks: dict[str, float]) -> str:
    """A row of the bench a line: its time, its ratio to plain, and the shares of the matrix products' rates."""
    rate = float(np.median(bench["matrix_rates"]))
    peak = peaks[bench["settings"]["precision"]]
    rows = []
    for name, row in bench["rows"].items():
        over, speed = row["over_plain"], row["flops"] / row["seconds_per_step"]
        ratio = f"{over['paired']:.2f} [{over['low']:.2f}, {over['high']:.2f}]"
        memory = "" if row["memory"] is None else f"{row['memory']['peak'] / 1e6:.0f}"
        shares = [f"{100 * speed / rate:.0f} %", f"{100 * speed / peak:.0f} %"]
        rows.append([name, f"{1000 * row['seconds_per_step']:.1f}", ratio, f"{speed / 1e12:.2f}", *shares, memory])
    header = ("row", "ms/step", "× plain, 95 %", "TFLOP/s", "of such a product", "of a large product", "MB")
    skipped = [f"{name}: not run, {reason}." for name, reason in bench["skipped"].items()]
    return "\n".join([markdown_table(header, rows), *skipped])


def goals(content: dict[str, Any]) -> str:
    """A table: for every measurement the ratio of our time to theirs, and the goal."""
    rows = []
    for name, part in content["parts"].items():
        measured = part.get("bench", {}).get("rows", {})
        for ours, theirs, goal in GOALS:
            if ours in measured and theirs in measured:
                ratio = measured[ours]["seconds_per_step"] / measured[theirs]["seconds_per_step"]
                met = "yes" if ratio <= goal else "no"
                rows.append([name, f"{ours} / {theirs}", f"{ratio:.2f}", f"{goal:g}", met])
    return markdown_table(("measurement", "ratio", "found", "at most", "met"), rows) if rows else "Nothing measured."


def write(content: dict[str, Any], folder: Path) -> None:
    with atomic_write(folder / "gpu.json") as file:
        json.dump(content, file, indent=1)
    with atomic_write(folder / "gpu.md") as file:
        file.write(page(content))


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny encoder and few steps, to try the command")
    parser.add_argument("--precisions", default="tf32,bf16,fp16", help="comma-separated (default: %(default)s)")
    parser.add_argument("--minutes", type=at_least(1), default=6, help="of all commands (default: %(default)s)")
    parser.add_argument("--output_dir", default="gpu_output", help="folder of results (default: %(default)s)")
    parser.add_argument("--only", help="commands to run, as a regular expression of their names")
    arguments = parser.parse_args(argv)
    precisions = arguments.precisions.split(",")
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        parser.error(f"--precisions: found {unknown[0]!r}, accepted: {', '.join(PRECISIONS)}")
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device: found cuda, and torch sees no GPU; accepted: a machine with one, or --device cpu --tiny"
        )
    end = time.monotonic() + 60 * arguments.minutes
    folder = writable_folder(arguments.output_dir).absolute()
    content: dict[str, Any] = {"environment": environment(), "peak_rates": {}, "parts": {}}
    content["peak_rates"] = peak_rates(arguments.device, arguments.tiny)
    for part in parts(folder, precisions, arguments.tiny):
        if arguments.only is not None and not re.search(arguments.only, part.name):
            continue
        if (left := end - time.monotonic()) < 1:
            print(f"{part.name}: not run, the time is over")
            continue
        found = content["parts"][part.name] = run(part, folder, left, arguments.device)
        status = "ended, too long" if found["status"] is None else f"exit status {found['status']}"
        print(f"{part.name}: {status}, {found['seconds']} s", flush=True)
        write(content, folder)
    write(content, folder)
    print(folder / "gpu.md")


if __name__ == "__main__":
    run_command_line(main)
