"""From seconds to ratios with their intervals, tables, `bench.json` and `bench.png`."""

from __future__ import annotations

import json
import platform
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from data_utils.storage.files import atomic_write
from experiments.bench.measure import Memory
from experiments.bench.rows import COMPARED, PLAIN
from experiments.sift.reporting.tables import markdown_table

RESAMPLES = 10_000
PACKAGES = ("torch", "transformers", "accelerate", "smart-pytorch")
MEGABYTE = 1e6
ABOUT = (
    "s/step: median over rounds; × plain: ratio of medians; paired: median of the rounds' ratios with its bootstrap "
    "interval. tokens/s: real tokens.\nforwards: a step's arithmetic in forwards of the encoder; GFLOP/s: that times "
    "the matrix products of a forward; of rate: over torch's own matrix product's, above 1 where oneDNN is faster.\n"
    "MB: peak memory of a process; by steps: what came after model and batches were there."
)


class Ratio(NamedTuple):
    """Ours over theirs: of_medians, the ratio of the two medians over rounds; paired, the median of the rounds' ratios;
    low and high, its 95 % interval by bootstrap over rounds."""

    of_medians: float
    paired: float
    low: float
    high: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Args: a number a round, of two rows of the same rounds."""
    first, second = np.asarray(ours), np.asarray(theirs)
    pairs = first / second
    draws = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    low, high = np.percentile(np.median(pairs[draws], axis=1), (2.5, 97.5))
    return Ratio(float(np.median(first) / np.median(second)), float(np.median(pairs)), float(low), float(high))


class Measured(NamedTuple):
    """A row: seconds of each step by round; forwards, flops and tokens, means of a step; memory, where measured."""

    seconds: list[list[float]]
    forwards: float
    flops: float
    tokens: float
    memory: Memory | None

    @property
    def by_round(self) -> list[float]:
        """Mean seconds of a round's steps."""
        return [float(np.mean(times)) for times in self.seconds]

    @property
    def step(self) -> float:
        """Seconds a step: the median over rounds."""
        return median(self.by_round)


class Bench(NamedTuple):
    """rows: by name, plain first; skipped: rows that could not run, with the reason; matrix_rates: operations a second,
    one a round; settings: those of the command."""

    rows: dict[str, Measured]
    skipped: dict[str, str]
    matrix_rates: list[float]
    settings: dict[str, Any]

    def over_plain(self, name: str) -> Ratio:
        return ratio(self.rows[name].by_round, self.rows[PLAIN.name].by_round)

    def comparisons(self) -> dict[tuple[str, str], Ratio]:
        return {
            (ours, theirs): ratio(self.rows[ours].by_round, self.rows[theirs].by_round)
            for ours, theirs in COMPARED
            if ours in self.rows and theirs in self.rows
        }


ROW_HEADER = (
    "row",
    "s/step",
    "× plain",
    "paired, 95 %",
    "tokens/s",
    "forwards",
    "GFLOP/s",
    "of rate",
    "MB",
    "by steps",
)
COMPARED_HEADER = ("ours", "theirs", "ratio", "paired, 95 %", "memory")


def tables(bench: Bench) -> str:
    """The rows and the comparisons in Markdown, and what the columns mean."""
    rate = median(bench.matrix_rates)
    rows = []
    for name, row in bench.rows.items():
        over, speed = bench.over_plain(name), row.flops / row.step
        times = [f"{row.step:.3f}", f"{over.of_medians:.2f}", _interval(over), f"{row.tokens / row.step:.0f}"]
        work = [f"{row.forwards:g}", f"{speed / 1e9:.0f}", f"{speed / rate:.2f}"]
        memory = ["", ""] if row.memory is None else [f"{part / MEGABYTE:.0f}" for part in row.memory]
        rows.append([name, *times, *work, *memory])
    compared = [
        [ours, theirs, f"{found.of_medians:.2f}", _interval(found), _memory_ratio(bench.rows[ours], bench.rows[theirs])]
        for (ours, theirs), found in bench.comparisons().items()
    ]
    notes = [ABOUT, f"torch's matrix product runs at {rate / 1e9:.0f} GFLOP/s; threads: {torch.get_num_threads()}."]
    notes += [f"{name}: not run, {reason}." for name, reason in bench.skipped.items()]
    parts = [markdown_table(ROW_HEADER, rows)] + ([markdown_table(COMPARED_HEADER, compared)] if compared else [])
    return "\n".join([*parts, *notes])


def _interval(found: Ratio) -> str:
    return f"{found.paired:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _memory_ratio(ours: Measured, theirs: Measured) -> str:
    if ours.memory is None or theirs.memory is None:
        return ""
    return f"{ours.memory.peak / theirs.memory.peak:.2f}"


def write(bench: Bench, folder: Path) -> None:
    """Write `bench.json` and `bench.png` to `folder`."""
    rows = {
        name: {
            **{key: value for key, value in row._asdict().items() if key != "memory"},
            "seconds_per_step": row.step,
            "over_plain": bench.over_plain(name)._asdict(),
            "memory": row.memory and row.memory._asdict(),
        }
        for name, row in bench.rows.items()
    }
    content = {
        "environment": environment(),
        "settings": bench.settings,
        "matrix_rates": bench.matrix_rates,
        "rows": rows,
        "comparisons": [
            {"ours": ours, "theirs": theirs, **found._asdict()} for (ours, theirs), found in bench.comparisons().items()
        ],
        "skipped": bench.skipped,
    }
    with atomic_write(folder / "bench.json") as file:
        json.dump(content, file, indent=1)
    draw(bench, folder / "bench.png")


def environment() -> dict[str, Any]:
    """Versions, machine and, in a clone, the commit."""
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def draw(bench: Bench, path: Path) -> None:
    """How many plain steps a step of each row costs, as bars with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios: Mapping[str, Ratio] = {name: bench.over_plain(name) for name in bench.rows}
    figure, axis = pyplot.subplots(figsize=(8, 1.4 + 0.36 * len(ratios)))
    places = range(len(ratios))
    centres = [found.paired for found in ratios.values()]
    spread = [[f.paired - f.low for f in ratios.values()], [f.high - f.paired for f in ratios.values()]]
    theirs = {pair[1] for pair in COMPARED}
    colors = ["tab:gray" if name in theirs else "tab:blue" for name in ratios]
    axis.barh(places, centres, xerr=spread, color=colors, capsize=3, height=0.7)
    for place, found in zip(places, ratios.values(), strict=True):
        axis.text(found.high, place, f"  {found.paired:.2f}", va="center", fontsize=9)
    axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set_yticks(places, list(ratios))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * max(found.high for found in ratios.values()))
    axis.set_xlabel("time of a step, in plain steps (95 % interval over rounds)")
    axis.set_title("Training steps of this project (blue) and of others (gray)", fontsize=11)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    command = textwrap.fill(bench.settings["command"], 130)
    figure.text(0.01, 0.01, command, fontsize=7, family="monospace", color="dimgray")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)
