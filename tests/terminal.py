"""A terminal for tests: a command's bytes, and what a reader of the terminal then sees."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from data_utils.progress import Bar


def run_in_terminal(
    command: Sequence[str], columns: int, folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command whose standard output and error are a terminal of that width.

    Returns:
        Its exit code, and what it wrote.
    """
    own, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, cwd=folder, env=variables, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        written = b""
        while True:
            try:
                part = os.read(own, 1 << 16)
            except OSError as error:  # Linux says so where the other end is closed
                assert error.errno == errno.EIO
                break
            if not part:
                break
            written += part
    os.close(own)
    return process.returncode, written.decode()


def seen(text: str, columns: int) -> list[str]:
    """The lines that stand in a terminal of that width in the end, those it had to break joined again.

    It knows carriage returns, line feeds, and that a character behind the last column goes to the next line.
    """
    rows, broken = [[" "] * columns], [False]
    row = column = 0

    def down() -> None:
        nonlocal row
        row += 1
        if row == len(rows):
            rows.append([" "] * columns)
            broken.append(False)

    for character in text:
        if character == "\r":
            column = 0
        elif character == "\n":
            down()
        else:
            assert character.isprintable(), f"{character!r} is not known here"
            if column == columns:
                broken[row] = True
                column = 0
                down()
            rows[row][column] = character
            column += 1
    lines = [""]
    for cells, goes_on in zip(rows, broken, strict=True):
        lines[-1] += "".join(cells)
        if not goes_on:
            lines.append("")
    return [line.rstrip() for line in lines[:-1]]


def drawn_to_the_end(patch: pytest.MonkeyPatch) -> None:
    close = Bar.close

    def drawn(bar: Bar) -> None:
        if not bar.disable:
            bar.refresh()
        close(bar)

    patch.setattr(Bar, "close", drawn)


class Terminal(io.StringIO):
    """In the place of `sys.stderr`: a terminal that does not tell its width.

    A bar is drawn at most ten times a second; `drawn_to_the_end` draws it once more when it is closed.
    """

    def isatty(self) -> bool:
        return True
