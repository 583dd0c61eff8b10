"""A file of flat numpy arrays that is memory-mapped, and whose header says what it was made from.

First line: a checksum of all that follows. Second line: JSON, what the arrays were made from and each one's type and
number of values. Then the arrays, each at a multiple of 64 bytes. Nothing in it is code.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_utils.files import atomic_write

ALIGNMENT = 64
READ_BYTES = 1 << 20  # read at a time for the checksum
LONGEST_HEADER = 1 << 16  # bytes
CHECKSUM_LINE = 9  # bytes: eight hexadecimal digits and the line's end


def write_arrays(path: Path | str, made_from: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one-dimensional arrays; the file appears when all is written, in place of an older one.

    Args:
        made_from: plain values by name; `map_arrays` gives the arrays to who names the same ones.
        arrays: by name.

    Raises:
        DataError: the file cannot be written.
    """
    types = {name: [values.dtype.str, len(values)] for name, values in arrays.items()}
    header = json.dumps({"made_from": made_from, "arrays": types}).encode() + b"\n"
    parts: list[Any] = [header]
    end = CHECKSUM_LINE + len(header)
    for values in arrays.values():
        parts += [bytes(-end % ALIGNMENT), np.ascontiguousarray(values).view(np.uint8)]
        end += -end % ALIGNMENT + values.nbytes
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    with atomic_write(path, "wb") as file:
        file.write(b"%08x\n" % checksum)
        for part in parts:
            file.write(part)


def map_arrays(path: Path | str, made_from: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays of a file by name, read-only views of the file itself; reading one reads no other.

    Returns:
        None where there is no such file, or it is damaged, or it was made from something else.
    """
    try:
        with open(path, "rb") as file:
            checksum = int(file.read(CHECKSUM_LINE), 16)
            header_line = file.readline(LONGEST_HEADER)
            header = json.loads(header_line)
            if header["made_from"] != made_from or checksum != _checksum(header_line, file):
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = {}
        end = CHECKSUM_LINE + len(header_line)
        for name, (dtype, count) in header["arrays"].items():
            start = end + -end % ALIGNMENT
            arrays[name] = np.frombuffer(mapped, dtype, count, start)
            end = start + arrays[name].nbytes
        return arrays
    # of what a damaged file can hold
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _checksum(start: bytes, file: IO[bytes]) -> int:
    """Of `start` and the rest of the file, which is read, not mapped: mapped pages count as the process's memory."""
    checksum = zlib.crc32(start)
    for part in _parts(file):
        checksum = zlib.crc32(part, checksum)
    return checksum


def _parts(file: IO[bytes]) -> Iterator[memoryview]:
    buffer = bytearray(READ_BYTES)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        yield memoryview(buffer)[:count]
