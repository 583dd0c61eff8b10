"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from data_utils.errors import FlagError, WriteError

LOCK = ".lock"  # in a folder that a run writes to; holds the number of its process
TEMPORARY = ".tmp"  # ends the name of what is not yet whole


@contextmanager
def written(path: Path | str, what: str = "written") -> Iterator[None]:
    """An operating-system error, as a `WriteError` that names what cannot be written."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot be {what}: {error.strerror or error}", path) from error


@contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path`; sync and rename it when the block ends, remove it when the block fails.

    An operating-system error (full disk, read-only folder) is raised as a `WriteError` that names the file.
    """
    path = Path(path)
    temporary = None
    try:
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            encoding = None if "b" in mode else "utf-8"
            newline = None if "b" in mode else "\n"
            descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
            with os.fdopen(descriptor, mode, encoding=encoding, newline=newline) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            temporary = None
            _sync_folder(path.parent)
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    """Let a new name in a folder outlast a loss of power, where the file system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary(folder: Path, prefix: str) -> None:
    """Remove what processes that were killed left half-written of files with such names; none may be writing them."""
    for path in folder.glob(f".{prefix}*{TEMPORARY}"):
        with suppress(OSError):
            path.unlink()


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder beside `path`; synced and renamed when the block ends, removed when the block fails.

    Raises:
        WriteError: it cannot be written, or `path` is there and no empty folder.
    """
    path = Path(path)
    temporary = None
    try:
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent))
            yield temporary
            for file in filter(Path.is_file, temporary.rglob("*")):
                with file.open("rb") as saved:
                    os.fsync(saved.fileno())
                file.chmod(0o666 & ~_umask())
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(path)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def writable_folder(path: Path | str) -> Path:
    """The folder, made where it is missing; found out before hours of work that end in it.

    Raises:
        WriteError: it cannot be made or written to.
    """
    path = Path(path)
    with written(path, "written to"):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    return path


@contextmanager
def folder_lock(path: Path, flag: str) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; a process that dies lets go of it.

    Raises:
        FlagError: another process holds it; names its number.
    """
    with written(path, "written to"):
        file = (path / LOCK).open("a+b", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown"
            raise FlagError(
                f"--{flag}: {path} is in use by another run (process {holder}); accepted: a folder of its own"
            ) from None
        file.truncate(0)
        with suppress(OSError):  # on a full disk the number is missing, and the lock is there
            file.write(str(os.getpid()).encode())
        yield


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process after the other through, by a lock on a file that is there; without one where the file system
    has none."""
    with path.open("rb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
