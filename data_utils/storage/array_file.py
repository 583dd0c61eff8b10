"""A file of flat numpy arrays, read by memory mapping; its header says what the arrays were made from.

First line: a checksum of the rest. Second line: JSON with what the arrays were made from and the type and length of
each array. Then the arrays, each at a multiple of 64 bytes. Reading it runs no code from it.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_utils.storage.files import atomic_write

ALIGNMENT = 64
READ_BYTES = 1 << 20  # bytes of a read for the checksum
LONGEST_HEADER = 1 << 16  # bytes
CHECKSUM_LINE = 9  # bytes: eight hexadecimal digits and the line's end


def write_arrays(path: Path | str, made_from: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one-dimensional arrays; the file replaces an older one when all is written.

    Args:
        made_from: JSON values by name; `map_arrays` returns the arrays only for equal ones.
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
    """The arrays of a file by name: read-only views, loaded from the file where they are used.

    Returns:
        the arrays; None if the file is missing or damaged, or was made from something else.
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
    # a damaged file can cause any of these
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _checksum(start: bytes, file: IO[bytes]) -> int:
    """The CRC-32 of `start` and the rest of the file, by reads: mapped pages would count as the process's memory."""
    checksum = zlib.crc32(start)
    for part in _parts(file):
        checksum = zlib.crc32(part, checksum)
    return checksum


def _parts(file: IO[bytes]) -> Iterator[memoryview]:
    buffer = bytearray(READ_BYTES)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        yield memoryview(buffer)[:count]
