"""Which epoch is the best: one number per evaluation, from the development sets only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from data_utils.errors import FlagError, nearest
from data_utils.metrics import Metric
from mt_dnn.configuration.flag_groups import TrainingConfig
from mt_dnn.data.run_data import RunData

DEV = "dev"
Metrics = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Selection:
    """The metrics whose mean over development sets ranks the epochs; higher is better.

    Attributes:
        parts: (dataset, metric) pairs.
    """

    parts: tuple[tuple[str, str], ...]

    @classmethod
    def of_run(cls, training: TrainingConfig, data: RunData) -> Selection:
        """From `--best_metric`; with `--early_stop` it must be able to rank the epochs.

        Raises:
            FlagError: it cannot rank them, or as in `from_flag`.
        """
        selection = cls.from_flag(training.best_metric, data)
        if training.early_stop and not selection.parts:
            raise FlagError("--early_stop: no development set with labels ranks the epochs; accepted: 0, or such a set")
        return selection

    @classmethod
    def from_flag(cls, best_metric: str | None, data: RunData) -> Selection:
        """From `--best_metric`: `ACC` (mean over the sets that have it), `DATASET:ACC`, or None (each first metric).

        Raises:
            FlagError: the dataset has no development set with labels that is evaluated, or has no such metric.
        """
        available = {
            dataset: [metric.name for metric in evaluated.task_def.metric_meta if metric != Metric.CMAT]
            for (dataset, split), evaluated in data.evaluation.items()
            if split == DEV and evaluated.has_labels
        }
        if best_metric is None:
            return cls(tuple((dataset, metrics[0]) for dataset, metrics in available.items() if metrics))
        dataset, _, metric = best_metric.rpartition(":")
        if dataset and dataset not in available:
            hint = nearest(dataset, available)
            raise FlagError(f"--best_metric: no development set {dataset!r}; accepted: {', '.join(available)}{hint}")
        parts = tuple((name, metric) for name in ([dataset] if dataset else available) if metric in available[name])
        if not parts:
            known = sorted({name for names in available.values() for name in names})
            raise FlagError(
                f"--best_metric: no development set has the metric {metric!r}; accepted: {', '.join(known)}"
                f"{nearest(metric, known)}"
            )
        return cls(parts)

    def value(self, metrics: Metrics) -> float | None:
        """The number of one evaluation from its metrics by `DATASET_dev`; None if nothing ranks the epochs."""
        if not self.parts:
            return None
        mean = sum(metrics[f"{dataset}_{DEV}"][metric] for dataset, metric in self.parts) / len(self.parts)
        return -math.inf if math.isnan(mean) else mean

    def __str__(self) -> str:
        return ", ".join(f"{dataset}_{DEV} {metric}" for dataset, metric in self.parts)
