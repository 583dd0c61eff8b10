"""TensorBoard's curves, written in the thread of the run."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from data_utils.files import written


class Curves:
    """A file of TensorBoard events, in its own record format.

    Its SummaryWriter writes in a thread, which a full disk ends with a traceback, and then waits for that thread.

    Args:
        folder: of the events; made where it is missing.

    Raises:
        WriteError: it cannot be written; likewise from `add`.
    """

    def __init__(self, folder: Path | str):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        self.path = Path(folder) / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        with written(folder):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(self.path.open("ab", buffering=0))
            self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, values: Mapping[str, float], update: int) -> None:
        """A point on each of these curves."""
        from torch.utils.tensorboard.summary import scalar

        with written(self.path.parent):
            for name, value in values.items():
                event = self._event(wall_time=time.time(), step=update, summary=scalar(name, value))
                self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._records.close()
