"""Files with a checksum file, `NAME.sha256`, in the format of `sha256sum --check`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_utils.errors import DataError
from data_utils.storage.files import atomic_write

CHECKSUM = ".sha256"
READ_BYTES = 1 << 20


def checksum_of(path: Path) -> Path:
    """The path of a file's checksum file."""
    return path.with_name(path.name + CHECKSUM)


@contextmanager
def checked_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file as `atomic_write` does, then its checksum file.

    Raises:
        WriteError: one of the two cannot be written; if it is the first, an older file of that name is unchanged.
    """
    with atomic_write(path, "wb") as file:
        yield file
        # A process killed before the new checksum is written leaves a file without one, not with a wrong one.
        checksum_of(path).unlink(missing_ok=True)
    with atomic_write(checksum_of(path)) as file:
        file.write(f"{sha256(path)}  {path.name}\n")


def verify_checksum(path: Path) -> bool:
    """Check a file against its checksum file.

    Returns:
        whether there is a checksum file.

    Raises:
        DataError: the checksum differs, or one of the two cannot be read.
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
    """The SHA-256 of a file, in hexadecimal digits.

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
    """Remove a file and its checksum file."""
    checksum_of(path).unlink(missing_ok=True)
    path.unlink()
