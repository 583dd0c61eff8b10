"""Errors a user can cause: one family, shown by the command lines in one line with exit code 2."""

from __future__ import annotations

import argparse
import difflib
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

LONGEST_MESSAGE = 1000  # characters of a line
LONGEST_REASON = 200  # of what a library says, within it


class UserError(Exception):
    """A mistake in a flag, a file or a definition; the message is one line: what, where, what is accepted.

    What it quotes from a file cannot break the line or steer a terminal: characters that do not print are escaped.

    Attributes:
        told: another process of the run has told what befell it.
    """

    told = False

    def __init__(self, message: str):
        super().__init__(in_one_line(message))


class FlagError(UserError):
    """A flag with a value that cannot be used."""


class DataError(UserError):
    """A file or a line of a file that cannot be read."""

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None):
        where = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(where + message)


class WriteError(DataError):
    """A file that cannot be written: a full disk, a folder that is read-only."""


class DivergedError(UserError):
    """Training met numbers that are not finite, and did not recover: the same run would meet them again."""


class NotFiniteError(DataError):
    """Scores of a model that are no numbers, or infinite."""


class TaskDefError(UserError):
    """One or more mistakes in a task definition, a line each."""

    def __init__(self, message: str):
        Exception.__init__(self, "\n".join(map(in_one_line, message.split("\n"))))


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
        raise FlagError(message.removeprefix("argument "))


def at_least(lowest: int) -> Callable[[str], int]:
    """The `type` of a command line's integer flag that is `lowest` or more."""

    def number(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = None
        if found is None or found < lowest:
            raise argparse.ArgumentTypeError(f"found {text!r}, accepted: an integer, at least {lowest}")
        return found

    return number


def in_one_line(text: str) -> str:
    """The text with its unprintable characters escaped; of a very long one the middle is left out."""
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    part = LONGEST_MESSAGE // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:part]} … {text[-part + 3 :]}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, cut, to stand in brackets; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:LONGEST_REASON]


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
        for number in (signal.SIGTERM, signal.SIGINT):  # the same wish once more, while the interpreter ends
            signal.signal(number, signal.SIG_IGN)
        if not error.told:
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
