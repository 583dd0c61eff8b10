"""Errors a user can cause: one family, shown by the command lines in one line with exit code 2."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """A mistake in a flag, a file or a definition; the message is one line: what, where, what is accepted.

    Attributes:
        told: another process of the run has told what befell it.
    """

    told = False


class FlagError(UserError):
    """A flag with a value that cannot be used."""


class DataError(UserError):
    """A file or a line of a file that cannot be read."""

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None):
        where = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(where + message)


class WriteError(DataError):
    """A file that cannot be written: a full disk, a folder that is read-only."""


class TaskDefError(UserError):
    """One or more mistakes in a task definition."""


class Stopped(Exception):
    """A run that a signal stopped after it had saved; the message is one line: where, and how to go on.

    Attributes:
        exit_code: 128 and the signal's number, as a shell has it.
        told: another process of the run tells it.
    """

    def __init__(self, message: str, number: int, told: bool = False):
        super().__init__(message)
        self.exit_code = 128 + number
        self.told = told


class OneLineParser(argparse.ArgumentParser):
    """argparse whose complaints are `FlagError`s."""

    def error(self, message: str) -> NoReturn:
        raise FlagError(message)


def nearest(name: str, accepted: Iterable[str]) -> str:
    """A hint " (did you mean 'cola'?)" for a misspelt name, or the empty string."""
    match = difflib.get_close_matches(name, list(accepted), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def run_command_line(main: Callable[[], None]) -> None:
    """Call `main`; a `UserError` becomes one line on standard error and exit code 2, a signal 128 and its number."""
    try:
        main()
    except UserError as error:
        if not error.told:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as error:
        if not error.told:
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
