"""Errors that a user can cause; a command shows one in one line and ends with exit code 2."""

from __future__ import annotations

import argparse
import difflib
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

LONGEST_MESSAGE = 1000  # characters of a line
LONGEST_REASON = 200  # characters of a library's message in such a line


class UserError(Exception):
    """A mistake in a flag, a file or a definition; the message is one line: what, where, what is accepted.

    Text quoted from a file cannot break the line or control the terminal: unprintable characters are escaped.

    Attributes:
        reported: another process of the run has reported the error.
    """

    reported = False

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
    """Training met numbers that are not finite and did not recover; the same run would fail again."""


class NotFiniteError(DataError):
    """Scores of a model that are infinite or NaN."""


class TaskDefError(UserError):
    """One or more mistakes in a task definition, a line each."""

    def __init__(self, message: str):
        Exception.__init__(self, "\n".join(map(in_one_line, message.split("\n"))))


class Stopped(Exception):
    """A run that a signal stopped after it had saved; the message is one line: where, and how to continue.

    Attributes:
        exit_code: 128 plus the signal's number, as in a shell.
        reported: another process of the run reports it.
    """

    def __init__(self, message: str, number: int, reported: bool = False):
        super().__init__(message)
        self.exit_code = 128 + number
        self.reported = reported


class OneLineParser(argparse.ArgumentParser):
    """argparse's parser, with `FlagError` for every mistake on the command line."""

    def error(self, message: str) -> NoReturn:
        raise FlagError(message.removeprefix("argument "))


def at_least(lowest: int) -> Callable[[str], int]:
    """The argparse `type` of an integer flag that must be at least `lowest`."""

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
    """The text with unprintable characters escaped; the middle of a very long text is left out."""
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    part = LONGEST_MESSAGE // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:part]} … {text[-part + 3 :]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened; the error's class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:LONGEST_REASON]


def nearest(name: str, accepted: Iterable[str]) -> str:
    """A hint such as " (did you mean 'cola'?)" for a misspelt name, or the empty string."""
    match = difflib.get_close_matches(name, list(accepted), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def run_command_line(main: Callable[[], None]) -> None:
    """Call `main`, and exit as a command should.

    A `UserError` gives one line on standard error and exit code 2; a signal gives 128 plus its number.
    """
    try:
        main()
    except UserError as error:
        if not error.reported:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as error:
        for number in (signal.SIGTERM, signal.SIGINT):  # a second signal while the interpreter ends
            signal.signal(number, signal.SIG_IGN)
        if not error.reported:
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
