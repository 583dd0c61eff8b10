"""SIGTERM and SIGINT: a run that is to stop finishes its update and saves."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal or a scheduler signals all processes, and torchrun forwards the signal: one request arrives twice.
SAME_REQUEST_SECONDS = 5


class StopSignals:
    """Remembers the first signal that arrives within the block.

    A further signal more than 5 seconds later acts as it would without the block. If a signal arrived, the handlers
    stay after the block, because the process is about to end.

    Args:
        accelerator: if one of its processes gets a signal, all of them stop.

    Attributes:
        received: the number of the signal; None before it arrives.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received: int | None = None
        self._before: dict[int, object] = {}
        self._received_at = 0.0

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
        elif time.monotonic() - self._received_at > SAME_REQUEST_SECONDS:
            self._restore()
            os.kill(os.getpid(), number)

    def _receive(self, number: int) -> None:
        self._received_at, self.received = time.monotonic(), number

    def got_signal(self) -> bool:
        """Whether this process got a signal."""
        return self.received is not None

    def requested(self) -> bool:
        """Whether any process got a signal. All processes call this at the same point and get the same answer."""
        if self.accelerator.num_processes == 1:
            return self.got_signal()
        own = torch.tensor(float(self.got_signal()), device=self.accelerator.device)
        return self.agreed(float(self.accelerator.reduce(own, "sum")) > 0)

    def agreed(self, stop_requested: bool) -> bool:
        """Whether to stop, once the processes have agreed; a process without a signal of its own counts it as SIGTERM.

        Args:
            stop_requested: whether any process got a signal; with one process its own signal counts.
        """
        if self.accelerator.num_processes == 1:
            return self.got_signal()
        if stop_requested and self.received is None:
            self._receive(signal.SIGTERM)
        return stop_requested
