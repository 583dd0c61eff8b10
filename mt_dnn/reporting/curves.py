"""Curves, histograms and results for TensorBoard, written in the run's own thread."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.storage.files import write_errors

# Of the histogram's buckets: each is a tenth wider than the one before; they are the same at every update.
EDGES = [0.0, *(1e-6 * 1.1**step for step in range(436))]


class Curves:
    """A file of TensorBoard events, in its own record format.

    TensorBoard's SummaryWriter is not used: it writes in a thread, which ends with a traceback when the disk is full,
    and then waits for that thread.

    Args:
        folder: of the events; is created if it is missing.

    Raises:
        WriteError: it cannot be written; the methods raise it, too.
    """

    def __init__(self, folder: Path | str):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        self.path = Path(folder) / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        with write_errors(folder):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(self.path.open("ab", buffering=0))
            self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, values: Mapping[str, float], update: int) -> None:
        """Add a point to each of these curves."""
        from torch.utils.tensorboard.summary import scalar

        self._write((scalar(name, value) for name, value in values.items()), update)

    def add_histogram(self, name: str, values: np.ndarray, update: int) -> None:
        """Add a histogram of numbers that are not negative; of an empty array nothing is written."""
        from torch.utils.tensorboard.summary import histogram

        if values.size:
            self._write([histogram(name, values, bins=EDGES)], update)

    def add_result(self, flags: Mapping[str, Any], metrics: Mapping[str, float], update: int) -> None:
        """Add a row to the HParams dashboard, for a run that is finished.

        Args:
            flags: numbers and texts; None is left out.
            metrics: by tag; they also become points on curves of these names, where the dashboard reads them.
        """
        from torch.utils.tensorboard.summary import hparams

        self.add(metrics, update)
        # Without the first part TensorBoard compares all runs and lists the flags that differ first; with it, the
        # dashboard would show the flags and metrics of one run only.
        _, start, end = hparams(dict(flags), dict(metrics))
        self._write([start, end], update)

    def _write(self, summaries: Iterable[Any], update: int) -> None:
        with write_errors(self.path.parent):
            for summary in summaries:
                event = self._event(wall_time=time.time(), step=update, summary=summary)
                self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._records.close()
