"""Faults for the tests: command lines in processes of their own, disks that are full or read-only, damaged files."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from data_utils.errors import run_command_line

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 1 << 5, 1 << 12, 1 << 14, 1 << 18
FILLER = "filler"


class Ended(NamedTuple):
    """A command line that ended: its exit code, and all that it printed."""

    code: int
    output: str

    @property
    def last(self) -> str:
        """The last line that is not of the progress bar."""
        lines = [line for line in self.output.replace("\r", "\n").splitlines() if line.strip()]
        return next((line for line in reversed(lines) if not re.search(r"%\|.*\|", line)), "")


def command(main: Callable[[Sequence[str]], None], argv: Sequence[object], before: Callable[[], Any] = int) -> Ended:
    """A command line in a fork of this process, which has imported all that it needs.

    Args:
        before: called in the fork first; what it changes there changes nothing here.
    """

    def work() -> None:
        before()
        run_command_line(lambda: main([str(argument) for argument in argv]))

    return in_fork(work)


def in_fork(work: Callable[[], None]) -> Ended:
    """What a function prints in a fork, and 0, the exit code that it asks for, or 1 with a traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stdout.flush(), sys.stderr.flush()
            # pytest catches what goes through these descriptors and through the names that it has replaced
            os.dup2(writing, 1), os.dup2(writing, 2)
            sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            work()
            code = 0
        except SystemExit as asked:
            code = asked.code if isinstance(asked.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as output:
        text = output.read()
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text)


class Disk:
    """A small disk at `folder` that can be filled or made read-only.

    It is a tmpfs in a mount namespace of this process. Where the kernel allows none, a full disk is a process that may
    not write to files (EFBIG in ENOSPC's place), and a read-only one a folder whose mode forbids it, or, for root, whom
    no mode stops, a file in the folder's place.

    Attributes:
        full, read_only: what the system says of writing to it, as a pattern.
    """

    def __init__(self, folder: Path, size: str = "4m"):
        self.folder = folder
        self.mounted = _mount_tmpfs(folder, size)
        self.full = "No space left on device" if self.mounted else "File too large"
        self.read_only = "Read-only file system" if self.mounted else "Permission denied|Not a directory|File exists"

    def fill(self) -> None:
        """No byte more from here on; without a tmpfs, for this process."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with suppress(OSError), (self.folder / FILLER).open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        """Room again."""
        (self.folder / FILLER).unlink(missing_ok=True)

    def protect(self) -> None:
        """Read-only from here on."""
        if self.mounted:
            # A disk on which a file is open for writing stays writable; a copy of it, read-only, comes over it.
            copy = Path(shutil.copytree(self.folder, self.folder.with_name("copy"), copy_function=shutil.copy2))
            _check(_libc().mount(bytes(copy), bytes(self.folder), None, MS_BIND, None))
            _check(_libc().mount(b"none", bytes(self.folder), None, MS_BIND | MS_REMOUNT | MS_RDONLY, None))
        elif os.geteuid():
            self.folder.chmod(0o555)
        else:
            self.folder.rename(self.folder.with_name("moved"))
            self.folder.touch()


def with_disk(folder: Path, check: Callable[[Disk], None], size: str = "4m") -> None:
    """Call `check` in a fork that has a disk at `folder`; fail with what it says."""
    folder.mkdir()
    found = in_fork(lambda: check(Disk(folder, size)))
    if found.code:
        pytest.fail(found.output)


def _mount_tmpfs(folder: Path, size: str) -> bool:
    user, group = os.geteuid(), os.getegid()
    try:
        _check(_libc().unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)))
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _check(_libc().mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        _check(_libc().mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode()))
    except OSError:
        return False
    return True


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit, in the middle by default; the time stamp stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    _replace(path, bytes(content))


def cut(path: Path) -> None:
    """Take away the last third; the time stamp stays."""
    content = path.read_bytes()
    _replace(path, content[: 2 * len(content) // 3])


def empty(path: Path) -> None:
    """Take away all; the time stamp stays."""
    _replace(path, b"")


def _replace(path: Path, content: bytes) -> None:
    stamp = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(stamp, stamp))
