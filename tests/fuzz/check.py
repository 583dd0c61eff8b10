"""What has to hold of every reader: it gives its result, or refuses in a line that names the file, in bounded time."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

from data_utils.errors import TaskDefError, UserError

LONGEST_SECONDS = 30  # an input's, on a busy machine

Found = TypeVar("Found")


@dataclass
class Tally:
    """What became of a reader's inputs."""

    tried: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    longest: float = 0.0


TALLIES: dict[str, Tally] = {}


class Hangs(BaseException):
    """A reader that took too long; no reader may take it for an error of its input."""


@contextmanager
def no_hang(seconds: int = LONGEST_SECONDS) -> Iterator[None]:
    """Raises `Hangs` out of the block when it takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"nothing came back in {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def reading(name: str, read: Callable[[], Found], *files: Path) -> Found | None:
    """What a reader gives for an input; None where it refuses it.

    Args:
        name: the reader's, in the table.
        read: reads the files.
        files: a refusal has to name one of them.

    Raises:
        AssertionError: a refusal of several lines, or that names no file. Other errors of the reader pass through.
    """
    tally = TALLIES.setdefault(name, Tally())
    tally.tried += 1
    start = time.perf_counter()
    try:
        with no_hang(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read()
    except UserError as error:
        tally.refused += 1
        check_refusal(error, *files)
        return None
    finally:
        taken = time.perf_counter() - start
        tally.seconds += taken
        tally.longest = max(tally.longest, taken)
    tally.accepted += 1
    return found


def check_refusal(error: UserError, *files: Path) -> None:
    """One line (a task definition's mistakes: a line each) that can be printed and names a file."""
    lines = str(error).split("\n") if isinstance(error, TaskDefError) else [str(error)]
    for line in lines:
        assert len(line.splitlines()) == 1, repr(line)
        assert line.isprintable(), repr(line)
        line.encode()
        assert any(file.name in line for file in files), (line, files)
