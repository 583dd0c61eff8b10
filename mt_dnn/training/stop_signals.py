"""SIGTERM and SIGINT: asked to stop, a run finishes its update and saves."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# torchrun sends on what a terminal or a scheduler has sent to all processes: one wish to stop comes twice.
SAME_WISH_SECONDS = 5


class StopSignals:
    """Within the block the first signal is remembered; one that comes more than 5 seconds later does what it would have
    done without the block. Where one came, that holds after the block too, for the process is about to end.

    Args:
        accelerator: all of its processes stop where one was asked to.

    Attributes:
        received: the signal's number; None before one came.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received: int | None = None
        self._before: dict[int, object] = {}
        self._first = 0.0  # when it came, or another process told of its own

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.received is None:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self._receive(number)
        elif time.monotonic() - self._first > SAME_WISH_SECONDS:
            self._restore()
            os.kill(os.getpid(), number)

    def _receive(self, number: int) -> None:
        self._first, self.received = time.monotonic(), number

    def own(self) -> bool:
        """Whether this process was asked to stop."""
        return self.received is not None

    def requested(self) -> bool:
        """Whether a process was asked to stop; every process calls it at the same point, and all get one answer."""
        if self.accelerator.num_processes == 1:
            return self.own()
        own = torch.tensor(float(self.own()), device=self.accelerator.device)
        return self.agreed(float(self.accelerator.reduce(own, "sum")) > 0)

    def agreed(self, asked: bool) -> bool:
        """Take over what all processes found together; in those that were not asked themselves it counts as SIGTERM."""
        if self.accelerator.num_processes == 1:
            return self.own()
        if asked and self.received is None:
            self._receive(signal.SIGTERM)
        return asked
