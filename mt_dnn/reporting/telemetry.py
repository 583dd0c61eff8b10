"""The figures that a run reports while it trains: for the log, the bar, TensorBoard and `metrics.jsonl`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data_utils.storage.files import atomic_write, write_errors
from mt_dnn.configuration.config import GROUPS, RESUME_FLAGS, UPLOAD_FLAGS, Config
from mt_dnn.configuration.flags import flags_of
from mt_dnn.reporting.curves import Curves
from mt_dnn.reporting.run_result import RunResult
from mt_dnn.reporting.running_losses import FIGURES, RISES, RunningLosses
from mt_dnn.training.update import UpdateReport

METRICS_FILE = "metrics.jsonl"
# Flags that say where things lie or what is shown, not what is computed.
PLACES = (
    "data_dir", "task_def", "output_dir", "log_file", "model_ckpt", "tensorboard_logdir", "transformer_cache",
    "dataloader_num_workers", "log_per_updates", "batch_size_eval",
)  # fmt: skip

TOKEN_SHARES = "delta_share"  # name of the histogram in TensorBoard


class Telemetry:
    """Collects update reports without reading a number back before it is shown.

    Args:
        config: has the output folder and the flags of TensorBoard.
        enabled: write files in this process.
        accelerator: means over its processes are reported; all of them call `flush`.
        updates, epoch: of a resumed run, the updates done and the epoch that it goes on with. Lines of `metrics.jsonl`
            about later updates, and about evaluations that are repeated, are removed.
        losses: those since the last report, of a resumed run too; by default none.
    """

    def __init__(
        self,
        config: Config,
        enabled: bool = True,
        accelerator: Accelerator | None = None,
        updates: int = 0,
        epoch: int = 0,
        losses: RunningLosses | None = None,
    ):
        self.config = config
        self.losses = RunningLosses() if losses is None else losses
        self.accelerator = accelerator
        self.curves: Curves | None = None
        self.path = Path(config.training.output_dir) / METRICS_FILE if enabled else None
        if config.data.tensorboard and enabled:
            self.curves = Curves(config.data.tensorboard_logdir)
        if self.path is not None:
            lines = _lines_until(self.path, updates, epoch) if updates else []
            with atomic_write(self.path) as file:
                file.writelines(lines)

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.curves is not None:
            self.curves.close()

    def add(self, report: UpdateReport) -> None:
        """Take in what an update did."""
        self.losses.add(report)

    def recent(self) -> str:
        """Mean losses since the last report, in few characters for the bar."""
        return _text(self.losses.means(), digits=3)

    def _over_processes(self, values: dict[str, float]) -> dict[str, float]:
        """The means of these numbers over processes."""
        if self.accelerator is None or self.accelerator.num_processes == 1 or not values:
            return values
        own = torch.tensor(list(values.values()), device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(own, "mean").tolist(), strict=True))

    def flush(self, epoch: int, update: int, task: str, searched: UpdateReport | None, learning_rate: float) -> str:
        """Report an update; returns the log line.

        Args:
            searched: the last update with the regularizer, whose figures are reported; None before the first.
        """
        losses = self._over_processes(self.losses.means())
        figures = self._over_processes(
            {name: float(value) for name in FIGURES if (value := getattr(searched, name, None)) is not None}
        )
        gain = ascent_gain(figures)
        if gain is not None:
            figures["ascent_gain"] = gain
        values = {**losses, **figures, "lr": learning_rate}
        self.losses.clear()
        if self.curves is not None:
            self.curves.add({f"train/{name}": value for name, value in values.items()}, update)
        self._add_shares(searched, update)
        self._write({"kind": "update", "epoch": epoch, "update": update, "task": task, **values})
        return _text({name: value for name, value in values.items() if name not in RISES})

    def _add_shares(self, searched: UpdateReport | None, update: int) -> None:
        """The histogram of ‖δ‖₂/‖h‖₂ over the tokens of all processes, if the update computed it."""
        if searched is None or searched.relative_sizes is None:
            return
        shares = [searched.relative_sizes.cpu().numpy()]
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            shares = gather_object(shares)
        if self.curves is not None:
            self.curves.add_histogram(f"train/{TOKEN_SHARES}", np.concatenate(shares), update)

    def result(self, result: RunResult, update: int) -> None:
        """Write the run's flags and the metrics of its best epoch to TensorBoard, at the end."""
        if self.curves is not None:
            best = [entry["metrics"] for entry in result.history if entry["epoch"] == result.best_epoch]
            metrics = {
                f"best/{dataset}/{name}": value
                for found in best
                for dataset, values in found.items()
                for name, value in values.items()
            }
            self.curves.add_result(
                hyperparameters(self.config), {"best/epoch": float(result.best_epoch), **metrics}, update
            )

    def evaluation(self, epoch: int, update: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Report the metrics of an evaluation, by dataset and metric name."""
        for dataset, values in metrics.items():
            self._write({"kind": "evaluation", "epoch": epoch, "update": update, "dataset": dataset, **values})
            if self.curves is not None:
                self.curves.add({f"{dataset}/{name}": value for name, value in values.items()}, update)

    def _write(self, line: Mapping[str, Any]) -> None:
        """Add a line to `metrics.jsonl`; a number that is not finite becomes null."""
        if self.path is not None:
            plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
            with write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain) + "\n")


def hyperparameters(config: Config) -> dict[str, Any]:
    """The flags that decide what a run computes, lists as texts, for TensorBoard."""
    hidden = {
        *PLACES,
        *RESUME_FLAGS,
        *UPLOAD_FLAGS,
        "save_hf",
        "tensorboard",
        *(name for group in GROUPS.values() for name, flag in flags_of(group).items() if flag.notice),
    }
    flat = {name: value for name, value in config.to_flat().items() if name not in hidden}
    return {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in flat.items()}


def ascent_gain(values: Mapping[str, float]) -> float | None:
    """(R(δ) − R(0)) / (R(δ′) − R(0)); None if it was not measured, or if chance did not raise R."""
    if values.get("chance_rise", 0.0) <= 0:
        return None
    return values["ascent_rise"] / values["chance_rise"]


def _lines_until(path: Path, updates: int, epoch: int) -> list[str]:
    """The lines of an interrupted run's file that stay valid when it resumes after `updates`, in `epoch`."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found = json.loads(line)
            stays = found["epoch"] < epoch or (found["kind"] == "update" and found["update"] <= updates)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a line that was cut by the interruption, or is damaged
        if stays:
            lines.append(line + "\n")
    return lines


def set_aside(path: Path, log: Callable[[str], object]) -> None:
    """Rename a `metrics.jsonl` of another run, if there is one, and say so: this run begins a file of its own.

    Raises:
        WriteError: it cannot be renamed.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    number = next(own for own in itertools.count(1) if not path.with_stem(f"{path.stem}_{own}").exists())
    with write_errors(path):
        path.rename(path.with_stem(f"{path.stem}_{number}"))
    log(f"{path}: of another run, now {path.stem}_{number}{path.suffix}")


def _text(values: Mapping[str, float], digits: int = 4) -> str:
    return ", ".join(f"{name} {value:.{digits}g}" for name, value in values.items())
