"""TensorBoard's curves, histograms and results, written in the thread of the run."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.files import write_errors

# Of buckets: each is a tenth wider than the one before, so that they are the same from update to update.
EDGES = [0.0, *(1e-6 * 1.1**step for step in range(436))]


class Curves:
    """A file of TensorBoard events, in its own record format.

    Its SummaryWriter writes in a thread, which a full disk ends with a traceback, and then waits for that thread.

    Args:
        folder: of the events; made where it is missing.

    Raises:
        WriteError: it cannot be written; likewise from what adds to it.
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
        """A point on each of these curves."""
        from torch.utils.tensorboard.summary import scalar

        self._write((scalar(name, value) for name, value in values.items()), update)

    def add_histogram(self, name: str, values: np.ndarray, update: int) -> None:
        """How these numbers, which are not negative, lie; of none, nothing is written."""
        from torch.utils.tensorboard.summary import histogram

        if values.size:
            self._write([histogram(name, values, bins=EDGES)], update)

    def add_result(self, flags: Mapping[str, Any], metrics: Mapping[str, float], update: int) -> None:
        """A row of the HParams dashboard: a run that came to its end.

        Args:
            flags: numbers, texts and None, which is left out.
            metrics: by tag; they are points on curves of these names too, for the dashboard reads them there.
        """
        from torch.utils.tensorboard.summary import hparams

        self.add(metrics, update)
        # Without the first part TensorBoard looks at all runs, and puts the flags first in which they differ; with it
        # the dashboard has the flags and metrics of one of them.
        _, start, end = hparams(dict(flags), dict(metrics))
        self._write([start, end], update)

    def _write(self, summaries: Iterable[Any], update: int) -> None:
        with write_errors(self.path.parent):
            for summary in summaries:
                event = self._event(wall_time=time.time(), step=update, summary=summary)
                self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._records.close()
