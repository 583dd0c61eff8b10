"""The losses of the updates since the last report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from mt_dnn.model import UpdateReport

# Name in every report, by name in `UpdateReport`.
LOSSES = {"task_loss": "loss", "adv_loss": "R", "unlabeled": "R_unlabeled", "bregman": "bregman"}


class RunningLosses:
    """Collects losses as tensors; none is read back from the device before it is shown or saved."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {name: [] for name in LOSSES}

    def add(self, report: UpdateReport) -> None:
        """Take in the losses that an update had."""
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
        """The losses for a checkpoint, each a mean over processes; all processes call it."""
        found = {}
        for name, values in self._values.items():
            if values:
                own = torch.stack(values)
                found[name] = (accelerator.reduce(own, "mean") if accelerator.num_processes > 1 else own).tolist()
        return found

    def load(self, state: Mapping[str, Sequence[float]], device: torch.device) -> None:
        """Go on with what `state` gave, in one process or several, as many as there are."""
        for name, values in self._values.items():
            values[:] = [torch.tensor(float(value), device=device) for value in state.get(name, [])]
