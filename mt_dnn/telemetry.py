"""What a run reports while it trains: means since the last report, to the log, the bar and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor

from mt_dnn.config import Config
from mt_dnn.model import UpdateReport


class Telemetry:
    """Collects update reports without reading a number back before it is shown.

    Args:
        config: says whether TensorBoard is written, and where.
        enabled: write TensorBoard in this process.
    """

    def __init__(self, config: Config, enabled: bool = True):
        self.writer = None
        if config.data.tensorboard and enabled:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(config.data.tensorboard_logdir)
        self._task_losses: list[Tensor] = []
        self._adv_losses: list[Tensor] = []
        self._sum = torch.zeros(())

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()

    def add(self, report: UpdateReport) -> None:
        self._task_losses.append(report.task_loss)
        self._sum = self._sum.to(report.task_loss.device) + report.task_loss
        if report.adv_loss is not None:
            self._adv_losses.append(report.adv_loss)
            self._sum = self._sum + report.adv_loss

    def finite(self) -> bool:
        """Whether every loss so far was a finite number."""
        return bool(self._sum.isfinite())

    def recent(self) -> str:
        """The losses for the bar: means since the last log line."""
        return _text(self._losses())

    def _losses(self) -> dict[str, float]:
        values = {"loss": self._task_losses, "R": self._adv_losses}
        return {name: float(torch.stack(losses).mean()) for name, losses in values.items() if losses}

    def flush(self, update: int, report: UpdateReport, learning_rate: float) -> str:
        """The log line: losses are means since the last one, the rest is this update's."""
        values = self._losses()
        for name in ("emb_val", "eff_perturb", "delta_size", "skipped"):
            value = getattr(report, name)
            if value is not None:
                values[name] = float(value)
        values["lr"] = learning_rate
        self._task_losses.clear()
        self._adv_losses.clear()
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"train/{name}", value, update)
        return _text(values)

    def evaluation(self, update: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Metrics of an evaluation, by dataset and name."""
        if self.writer is not None:
            for dataset, values in metrics.items():
                for name, value in values.items():
                    self.writer.add_scalar(f"{dataset}/{name}", value, update)


def _text(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
