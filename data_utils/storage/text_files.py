"""Text files: lines, whole texts and JSON, read within limits; malformed content is an error with its line."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import orjson

from data_utils.errors import DataError
from data_utils.storage.files import atomic_write

MARK = "\ufeff"  # byte order mark at the start of a file, no part of its text
BYTE_ORDER_MARK = MARK.encode()

# Limits, far above what the formats need.
LONGEST_LINE = 1 << 24  # bytes, of files that are read line by line
LARGEST_FILE = 1 << 36  # bytes, of the same files
LARGEST_DOCUMENT = 1 << 30  # bytes, of files that are read as a whole, such as score files and SQuAD's
DEEPEST = 64  # nested lists and objects in a JSON text

HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of the first or second half of a surrogate pair


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    r"""The lines of a UTF-8 file with their numbers from 1.

    A line ends with "\n" or "\r\n"; other line separators of Unicode are part of the line. A byte order mark at the
    start of the file is dropped.

    Raises:
        DataError: the file is missing, unreadable or too large, or a line is too long, not UTF-8 or holds NUL.
    """
    for number, line in read_byte_lines(path):
        yield number, decode_line(line, path, number)


def read_byte_lines(path: Path | str) -> Iterator[tuple[int, bytes]]:
    """The lines as `read_lines` yields them, undecoded: a line may hold NUL and bytes that are not UTF-8."""
    try:
        with open(path, "rb") as file:
            _check_size(file, LARGEST_FILE, path)
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(f"is longer than {LONGEST_LINE} bytes, the most that a line may have", path, number)
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                yield number, line.removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error


def decode_line(line: bytes, path: Path | str, number: int) -> str:
    """A line as text.

    Raises:
        DataError: it is not UTF-8, or holds NUL.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"found the byte {line[error.start]:#04x} at byte {error.start + 1}"
        raise DataError(f"{found}; accepted is UTF-8", path, number) from error
    if "\0" in text:
        raise DataError(f"found NUL at byte {line.index(0) + 1}; accepted is text", path, number)
    return text


def _check_size(file: IO[bytes], largest: int, path: Path | str) -> None:
    size = os.fstat(file.fileno()).st_size
    if size > largest:
        raise DataError(f"holds {size} bytes; accepted: at most {largest}", path)


def read_text(path: Path | str, largest: int = LARGEST_DOCUMENT, fallback: str | None = None) -> str:
    r"""The text of a UTF-8 file with "\n" as the end of lines; a byte order mark at its start is dropped.

    Args:
        largest: bytes that the file may have.
        fallback: the encoding of a file that is not UTF-8; None: such a file is an error.

    Raises:
        DataError: as `read_lines`.
    """
    try:
        with open(path, "rb") as file:
            _check_size(file, largest, path)
            content = file.read(largest + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error
    if len(content) > largest:
        raise DataError(f"holds more than {largest} bytes, the most that it may have", path)
    if fallback is not None:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            content = content.decode(fallback).encode("utf-8")
    lines = content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    return "\n".join(decode_line(line.removesuffix(b"\r"), path, number) for number, line in enumerate(lines, start=1))


def read_json(path: Path | str) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), path)


def parse_json(text: str, path: Path | str, number: int | None = None, decoder: json.JSONDecoder | None = None) -> Any:
    """The value of a JSON text.

    Args:
        text: the content of the file `path`, or of its line `number`.
        decoder: made by `decoder`; None: the default one.

    Raises:
        DataError: the text is no JSON, an object has a key twice, values are nested too deeply, an integer has too many
            digits, or an escape is half a surrogate pair.
    """
    try:
        found = (decoder or DECODER).decode(text)
        # Counting brackets is fast, but counts those inside strings too.
        if _depth(text) > DEEPEST and _is_deep(found):
            raise RecursionError
        if "\\u" in text and HALF_PAIR.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = number or error.lineno
        raise DataError(f"found no whole JSON object ({error.msg} at column {error.colno})", path, place) from error
    except RecursionError as error:
        raise DataError(f"holds values nested too deeply; accepted: {DEEPEST} in one another", path, number) from error
    except UnicodeEncodeError as error:
        found = f"found {error.object[error.start]!r}, half a surrogate pair"
        raise DataError(f"{found}; accepted are whole characters", path, number) from error
    except _KeyTwice as error:
        raise DataError(f"found the key {error.args[0]!r} twice in an object; accepted: once", path, number) from error
    except ValueError as error:  # Python's limit
        raise DataError("holds an integer of too many digits", path, number) from error
    return found


class _KeyTwice(Exception):
    """A JSON object has this key twice."""


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs.

    Raises:
        _KeyTwice: a key is in two of them.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwice(next(key for key in keys if keys.count(key) > 1))
    return found


def decoder(parse_float: Callable[[str], Any] | None = None) -> json.JSONDecoder:
    """A JSON decoder that refuses an object with a key twice.

    Args:
        parse_float: text of a number with a point or exponent → value; None: a float.
    """
    return json.JSONDecoder(object_pairs_hook=_object_of, parse_float=parse_float)


DECODER = decoder()
STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
OTHER_BYTES = bytes(set(range(256)) - STEPS.keys())


def _depth(text: str) -> int:
    """The deepest nesting of brackets in a text, those inside strings included."""
    brackets = text.encode("utf-8", "surrogatepass").translate(None, OTHER_BYTES)
    return max(accumulate(map(STEPS.__getitem__, brackets)), default=0)


def _is_deep(found: Any) -> bool:
    level: list[Any] = [[found]]
    for _ in range(DEEPEST + 1):
        inside: list[Any] = []
        for outer in level:
            values = outer.values() if isinstance(outer, dict) else outer
            inside += [value for value in values if isinstance(value, list | dict)]
        if not inside:
            return False
        level = inside
    return True


def read_json_lines(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers.

    Raises:
        DataError: a line that is no JSON object; as `parse_json`.
    """
    for number, line in read_lines(path):
        yield number, parse_json_object(line, path, number)


def parse_json_object(line: str, path: Path | str, number: int) -> dict[str, Any]:
    """The object that line `number` of a JSON-lines file holds.

    Raises:
        DataError: the line is no JSON object; as `parse_json`.
    """
    found = parse_json(line, path, number)
    if not isinstance(found, dict):
        raise DataError(f"expected a JSON object, found {line[:40]!r}", path, number)
    return found


def plain_object(line: bytes) -> dict[str, Any] | None:
    """A line of JSON lines that holds one object of numbers, texts, null and lists of them, read three times faster.

    Returns:
        what `parse_json` returns, but that an integer beyond 64 bits may be a float; None where the line is another
        kind of JSON or none, so that `parse_json` has to read it or to refuse it.
    """
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    # As many colons as keys: no key is there twice, no object is inside another. Few brackets: no deep nesting.
    plain = isinstance(found, dict) and line.count(b":") == len(found) and line.count(b"[") < DEEPEST
    # One letter is found faster than a word, and the usual keys have neither.
    words = (b"r" in line and b"true" in line) or (b"f" in line and b"false" in line)
    return found if plain and not words else None


def with_null(values: Any) -> Any:
    """The same with null in the place of numbers that are not finite, which JSON does not have."""
    if isinstance(values, Mapping):
        return {name: with_null(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [with_null(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write_lines(path: Path | str, lines: Iterable[str]) -> int:
    """Write lines, a line break after each; the file appears when all are written. Returns their number."""
    count = 0
    with atomic_write(path) as file:
        for line in lines:
            file.write((line if count else line.lstrip(MARK)) + "\n")
            count += 1
    return count
