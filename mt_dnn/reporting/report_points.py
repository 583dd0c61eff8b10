"""When a run reports: at which updates, and how often at least while nobody watches a bar."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

POINTS = 50  # of a run without --log_per_updates, about
# Where the flag is left out, the ascent gain is measured at most once in so many updates, for it costs three forwards.
GAIN_UPDATES = 20
QUIET_SECONDS = 30.0  # without a line, where no bar shows that the run goes on


class ReportPoints:
    """The updates at which figures are reported: the first one, and every `interval`th.

    They depend on the flag and the length of the run alone, so that a resumed run has the points of an unbroken one.

    Args:
        log_per_updates: the interval; 0 gives about 50 points, however long the run is.
        total_updates: of the run.

    Attributes:
        interval: updates from one point to the next.
        gain_interval: updates from one measurement of the ascent gain to the next, a multiple of `interval`.
    """

    def __init__(self, log_per_updates: int, total_updates: int):
        self.interval = self.gain_interval = log_per_updates
        if not log_per_updates:
            self.interval = max(1, round(total_updates / POINTS))
            self.gain_interval = self.interval * math.ceil(GAIN_UPDATES / self.interval)

    def includes(self, update: int) -> bool:
        """Whether an update, counted from 1, is reported."""
        return update == 1 or update % self.interval == 0

    def measures_gain(self, update: int, every: int = 1) -> bool:
        """Whether a regularized update measures its ascent gain.

        Args:
            every: the next regularized update is so many later; this one's figures are reported until then.
        """
        return any(later == 1 or later % self.gain_interval == 0 for later in range(update, update + every))


class Heartbeat:
    """Logs a line where there was none for 30 seconds. It reads the clock and nothing of the device.

    Args:
        log: of the run.
        enabled: false where a bar is shown, and in all processes but the main one.
    """

    def __init__(self, log: logging.Logger, enabled: bool):
        self.log, self.enabled = log, enabled
        self.reset()

    def reset(self) -> None:
        """Count from now on: a line was logged."""
        self._last = time.monotonic()

    def beat(self, text: Callable[[], str]) -> None:
        """Log `text()` if a line is due."""
        if self.enabled and time.monotonic() - self._last >= QUIET_SECONDS:
            self.log.info(text())
            self.reset()


def duration(seconds: float) -> str:
    """As "1.5 h", "12.0 min" or "4.2 s"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
