"""Progress bars: a line of a terminal, and nothing where nobody watches, as in a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm

COLUMNS, ROWS = 80, 24  # of a terminal that does not say
LEAST_BAR = 4  # columns; where a bar has no room for so many, the line has none
SHORTEST = "{l_bar}{r_bar}"  # tqdm's own line without its bar


class Bar(tqdm):
    """tqdm's bar, which in a narrow terminal leaves out what there is no room for, whole figures at a time.

    A bar that is opened while another is shown takes its line, and the other comes back with its next update.
    """

    monitor_interval = 0  # no thread that draws: `miniters` is 1, so that every update sees to it

    def __str__(self) -> str:
        """A line as wide as the terminal, but for its last column."""
        columns = self._columns()
        values = self.format_dict | {"ncols": columns}
        shortest = str(self.format_meter(**values | {"ncols": None, "bar_format": SHORTEST}))
        if not self.total or len(shortest) + LEAST_BAR <= columns:
            return str(self.format_meter(**values)).ljust(columns)
        parts = [self._part(part) for part in ("{desc} {percentage:.0f}%", "{remaining}", "{rate_fmt}")]
        parts += (self.postfix or "").split(", ")
        while len(" ".join(parts)) > columns and len(parts) > 1:
            parts.pop()
        return " ".join(parts)[:columns].ljust(columns)

    def _part(self, part: str) -> str:
        """A figure of tqdm's, briefly: of a rate 3.79/s, or 2.31s/it."""
        values = self.format_dict | {"ncols": None, "bar_format": part, "unit": "it", "postfix": None}
        return str(self.format_meter(**values)).strip().replace("it/s", "/s")

    def _columns(self) -> int:
        """tqdm's own measure is -1 in a terminal that does not know its size."""
        with suppress(OSError):  # the terminal is gone, and the run goes on
            return (os.get_terminal_size(self.fp.fileno()).columns or COLUMNS) - 1
        return COLUMNS - 1


def progress(
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    name: str | None = None,
    unit: str = "it",
    main: bool = True,
    leave: bool = False,
) -> Bar:
    """A bar over `items`, or one that is moved by its `update`.

    It is shown where standard error is a terminal, in the main process, unless TQDM_DISABLE is set.

    Args:
        total: where `items` do not tell their number.
        initial: what was done before.
        name: stands at the left.
        unit: one of what is counted.
        main: whether this is the main process of the run.
        leave: the full bar stays when it is done.
    """
    # Where it may be shown tqdm decides, by TQDM_DISABLE.
    hidden = {} if main and sys.stderr.isatty() else {"disable": True}
    return Bar(
        items, total=total, initial=initial, desc=name, unit=unit, leave=leave, position=0, miniters=1,
        ncols=COLUMNS, nrows=ROWS, **hidden,
    )  # fmt: skip


def print_line(line: str) -> None:
    """Print a line at once, above the progress bar if one is shown."""
    tqdm.write(line)
    sys.stdout.flush()
