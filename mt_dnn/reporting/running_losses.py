"""The losses of the updates since the last report, and the figures of the last regularized update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from mt_dnn.training.update import UpdateReport

# Name in every report, by name in `UpdateReport`.
LOSSES = {"task_loss": "loss", "adv_loss": "R", "unlabeled": "R_unlabeled", "bregman": "bregman"}
# Figures of the last regularized update, by name in `UpdateReport` and in every report.
RISES = ("ascent_rise", "chance_rise")
FIGURES = ("emb_val", "eff_perturb", "delta_size", "skipped", *RISES)


class RunningLosses:
    """Collects losses as tensors; none is read back from the device before it is shown or saved.

    Attributes:
        searched: the last update that had the regularizer; None before the first.
    """

    def __init__(self) -> None:
        self.searched: UpdateReport | None = None
        self._values: dict[str, list[Tensor]] = {name: [] for name in LOSSES}

    def add(self, report: UpdateReport) -> None:
        """Take in the losses that an update had, and its figures if it had the regularizer."""
        if report.emb_val is not None:
            self.searched = report
        for name, values in self._values.items():
            value = getattr(report, name)
            if value is not None:
                values.append(value)

    def means(self) -> dict[str, float]:
        """Means of this process, by name in reports; a loss that no update had is left out."""
        return {LOSSES[name]: float(torch.stack(values).mean()) for name, values in self._values.items() if values}

    def clear(self) -> None:
        """Begin the next interval."""
        for values in self._values.values():
            values.clear()

    def state(self, accelerator: Accelerator) -> dict[str, list[float]]:
        """The losses and figures for a checkpoint, each a mean over processes; all processes call it."""
        figures = {name: [value] for name in FIGURES if (value := getattr(self.searched, name, None)) is not None}
        found = {}
        for name, values in {**self._values, **figures}.items():
            if values:
                own = torch.stack(values)
                found[name] = (accelerator.reduce(own, "mean") if accelerator.num_processes > 1 else own).tolist()
        return found

    def load(self, state: Mapping[str, Sequence[float]], device: torch.device) -> None:
        """Go on with what `state` gave, in one process or several, as many as there are."""
        for name, values in self._values.items():
            values[:] = [torch.tensor(float(value), device=device) for value in state.get(name, [])]
        figures = {name: torch.tensor(float(state[name][0]), device=device) for name in FIGURES if name in state}
        self.searched = UpdateReport(torch.zeros((), device=device), **figures) if figures else None
