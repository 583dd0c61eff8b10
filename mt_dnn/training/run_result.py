"""What a run found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RESULT_FILE = "results.json"  # of a run, in its output folder


@dataclass
class RunResult:
    """What a run found.

    Attributes:
        history: an entry an epoch: `epoch`, and `metrics`, by `DATASET_SPLIT` and metric name, in percent.
        best_epoch: by the development sets; the last epoch where there are none.
        seconds_per_update: median over the updates of this process, evaluation aside; None where none was left to do.
        output_dir: where checkpoints and score files are.
    """

    output_dir: str
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float | None = None
    seconds_per_update: float | None = None

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics of the best epoch, by `DATASET_SPLIT` and metric name."""
        return next(entry["metrics"] for entry in self.history if entry["epoch"] == self.best_epoch)


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Metrics by name, in percent, as the log has them."""
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
