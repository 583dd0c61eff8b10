"""Files with their checksum beside them, `NAME.sha256`, as `sha256sum --check` reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_utils.errors import DataError
from data_utils.files import atomic_write

CHECKSUM = ".sha256"
READ_BYTES = 1 << 20


def checksum_of(path: Path) -> Path:
    """The file that holds a file's checksum."""
    return path.with_name(path.name + CHECKSUM)


@contextmanager
def checked_write(path: Path) -> Iterator[IO[bytes]]:
    """As `atomic_write`, then the checksum.

    Raises:
        WriteError: one of the two cannot be written; an older file of that name is untouched where it is the first.
    """
    with atomic_write(path, "wb") as file:
        yield file
        # Who is killed before the new checksum is there leaves a file without one, not with a wrong one.
        checksum_of(path).unlink(missing_ok=True)
    with atomic_write(checksum_of(path)) as file:
        file.write(f"{sha256(path)}  {path.name}\n")


def has_right_checksum(path: Path) -> bool:
    """Whether a file has a checksum beside it; where it has, the file is what was written.

    Raises:
        DataError: it is not, or one of the two cannot be read.
    """
    try:
        expected = checksum_of(path).read_text(encoding="utf-8", errors="replace").split()[:1]
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", checksum_of(path)) from error
    if expected != [sha256(path)]:
        raise DataError(f"is damaged: its checksum is not that in {checksum_of(path).name}", path)
    return True


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error
    return digest.hexdigest()


def remove_checked(path: Path) -> None:
    """A file and its checksum."""
    checksum_of(path).unlink(missing_ok=True)
    path.unlink()
