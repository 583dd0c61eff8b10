"""What a run found, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RESULT_FILE = "results.json"  # of a run, in its output folder


@dataclass
class RunResult:
    """What a run found.

    Attributes:
        output_dir: folder of checkpoints and score files.
        history: one entry per epoch: `epoch`, from 0, and `metrics`, by `DATASET_SPLIT` and metric name, in percent.
        best_epoch: by the development sets, from 0; the last epoch if there are none.
        best_value: the number that ranks the best epoch; None if there are no development sets.
        seconds_per_update: median over the updates of this start, without evaluation; None if it made none.
        seconds: that the run took, over all of its starts.
    """

    output_dir: str
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float | None = None
    seconds_per_update: float | None = None
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics of the best epoch, by `DATASET_SPLIT` and metric name."""
        return next(entry["metrics"] for entry in self.history if entry["epoch"] == self.best_epoch)


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Metrics by name, in percent, as text for the log."""
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())


class RunClock:
    """Counts the seconds of a run over all of its starts.

    Attributes:
        before: seconds of the starts before this one, from the checkpoint that is resumed.
    """

    def __init__(self) -> None:
        self.before = 0.0
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """The seconds of all starts up to now."""
        return self.before + time.perf_counter() - self._started
