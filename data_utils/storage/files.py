"""Writing files and folders in one step, and locks."""

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

LOCK = ".lock"  # in a folder that a run writes to; holds the id of its process
TEMPORARY = ".tmp"  # suffix of unfinished files


@contextmanager
def write_errors(path: Path | str, what: str = "written") -> Iterator[None]:
    """Turn an operating-system error in the block into a `WriteError`: `PATH: cannot be {what}: …`."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot be {what}: {error.strerror or error}", path) from error


@contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file in the folder of `path`; sync and rename it when the block ends, remove it if it fails.

    An operating-system error (full disk, read-only folder) is raised as a `WriteError` that names the file.
    """
    path = Path(path)
    temporary = None
    try:
        with write_errors(path):
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
    """Make a new name in a folder survive a power failure, if the file system supports that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary(folder: Path, prefix: str) -> None:
    """Remove unfinished files that killed processes left, with names that begin so; no process may be writing them."""
    for path in folder.glob(f".{prefix}*{TEMPORARY}"):
        with suppress(OSError):
            path.unlink()


@contextmanager
def atomic_folder(path: Path | str, replace: bool = False) -> Iterator[Path]:
    """Make a temporary folder next to `path`; sync and rename it when the block ends, remove it if it fails.

    Args:
        replace: a folder that is at `path` is removed once the new one is complete.

    Raises:
        WriteError: it cannot be written, or `path` exists and is not an empty folder.
    """
    path = Path(path)
    temporary = None
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent))
            yield temporary
            for file in filter(Path.is_file, temporary.rglob("*")):
                with file.open("rb") as saved:
                    os.fsync(saved.fileno())
                file.chmod(0o666 & ~_umask())
            temporary.chmod(0o777 & ~_umask())
            if replace and path.exists():
                old = path.rename(f"{temporary}.old{TEMPORARY}")
                temporary.replace(path)
                shutil.rmtree(old)
            else:
                temporary.replace(path)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def writable_folder(path: Path | str) -> Path:
    """Make the folder if it is missing, and check that files can be written there; returns its path.

    Raises:
        WriteError: it cannot be made or written to.
    """
    path = Path(path)
    with write_errors(path, "written to"):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    return path


@contextmanager
def folder_lock(path: Path, flag: str) -> Iterator[None]:
    """Lock a folder against other processes while the block runs; the lock ends with the process.

    Raises:
        FlagError: another process has the lock; the message names its id.
    """
    with write_errors(path, "written to"):
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
        with suppress(OSError):  # on a full disk the id is missing, and the lock works
            file.write(str(os.getpid()).encode())
        yield


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Run the block in one process at a time, by a lock on an existing file; no lock if the file system has none."""
    with path.open("rb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
