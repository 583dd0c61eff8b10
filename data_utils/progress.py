"""Progress bars: one line of a terminal; nothing where the output is no terminal, such as a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm

COLUMNS, ROWS = 80, 24  # of a terminal of unknown size
LEAST_BAR = 4  # columns; with less room the line has no bar
SHORTEST = "{l_bar}{r_bar}"  # tqdm's own line without its bar


class Bar(tqdm):
    """tqdm's bar, which in a narrow terminal drops the figures that do not fit.

    A bar that opens while another is shown replaces it; the other returns with its next update.
    """

    monitor_interval = 0  # no thread of tqdm's draws: `miniters` is 1, so every update may draw

    def __str__(self) -> str:
        """A line as wide as the terminal minus one column."""
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
        """One of tqdm's figures in short form, a rate as 3.79/s or 2.31s/it."""
        values = self.format_dict | {"ncols": None, "bar_format": part, "unit": "it", "postfix": None}
        return str(self.format_meter(**values)).strip().replace("it/s", "/s")

    def _columns(self) -> int:
        """The terminal's width minus one column; tqdm's own measure is -1 in a terminal of unknown size."""
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
    """A progress bar over `items`, or one that its `update` moves.

    It is shown in the main process if standard error is a terminal, unless TQDM_DISABLE is set.

    Args:
        total: number of items, if `items` has no length.
        initial: items done before.
        name: text at the left.
        unit: what an item is called.
        main: whether this is the main process of the run.
        leave: keep the full bar at the end.
    """
    # Elsewhere tqdm itself decides, by TQDM_DISABLE.
    hidden = {} if main and sys.stderr.isatty() else {"disable": True}
    return Bar(
        items, total=total, initial=initial, desc=name, unit=unit, leave=leave, position=0, miniters=1,
        ncols=COLUMNS, nrows=ROWS, **hidden,
    )  # fmt: skip


def print_line(line: str) -> None:
    """Print a line at once, above the progress bar if one is shown."""
    tqdm.write(line)
    sys.stdout.flush()
