"""SIGTERM and SIGINT: asked to stop, a run finishes its update and saves."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
CUDA_UPDATES = 10  # updates between two questions to the other processes, for each makes a GPU's host wait


class StopSignals:
    """Within the block the first signal is remembered; a second one does what it would have done without the block.

    Args:
        accelerator: all of its processes stop where one was asked to.

    Attributes:
        received: the signal's number; None before one came.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__(None, None, None)

    def asked(self, update: int | None = None) -> bool:
        """Whether a process was asked to stop; every process calls it at the same point, and all get one answer.

        Args:
            update: the number of updates done, where it is asked after each.
        """
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return self.received is not None
        if update is not None and accelerator.device.type == "cuda" and update % CUDA_UPDATES:
            return False
        own = torch.tensor(float(self.received or 0), device=accelerator.device)
        # The sum tells that one was asked; of several numbers the name of one is told, SIGTERM's where they differ.
        if float(accelerator.reduce(own, "sum")) == 0:
            return False
        self.received = self.received or signal.SIGTERM
        return True
