"""The folder that a model is exported to. No file is lost there but those that the same run exported before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_utils.errors import DataError, FlagError
from data_utils.storage.files import atomic_folder, atomic_write, writable_folder
from data_utils.storage.text_files import read_json

RECORD = ".save_hf.json"  # in a run's output folder: what the run exported, and to which folder
SHOWN_FILES = 3  # in a message


class TargetFolder:
    """The folder of `--save_hf`, checked before a run and again before it is written.

    Args:
        path: the folder.
        output_dir: of the run, which keeps a record of what it exports, so that the same run may replace it; None: only
            a new or an empty folder is accepted.

    Raises:
        UserError: it holds files that this run did not export, or it cannot be made.
    """

    def __init__(self, path: Path | str, output_dir: Path | str | None = None):
        self.path = Path(path).resolve()
        self._record = None if output_dir is None else Path(output_dir) / RECORD
        self.check()
        writable_folder(self.path.parent)

    def check(self) -> None:
        """Check that nothing is lost if the folder is replaced.

        Raises:
            UserError: it holds files that this run did not export, or changed ones.
        """
        try:
            taken = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
            found = self._files() if taken and self.path.is_dir() else {}
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", self.path) from error
        if not taken:
            return
        accepted = "accepted: a new or an empty folder"
        if self._record is not None:
            accepted += ", or the one of an earlier run with the same --output_dir"
        exported = self._exported()
        if not found or exported is None:
            raise FlagError(f"--save_hf: {self.path} is not empty; {accepted}")
        others = sorted(name for name, changed in found.items() if exported.get(name) != changed)
        if others:
            shown = ", ".join(others[:SHOWN_FILES]) + (", …" if len(others) > SHOWN_FILES else "")
            raise FlagError(
                f"--save_hf: {self.path} holds files that the earlier run did not write, or that changed since: "
                f"{shown}; {accepted}, as it was left"
            )

    @contextmanager
    def replaced(self) -> Iterator[Path]:
        """A temporary folder that takes the folder's place when the block ends.

        Raises:
            UserError: as `check`; it cannot be written.
        """
        self.check()
        with atomic_folder(self.path, replace=True) as temporary:
            yield temporary
        if self._record is not None:
            with atomic_write(self._record) as file:
                json.dump({"folder": str(self.path), "files": self._files()}, file, indent=1)

    def _files(self) -> dict[str, int]:
        """When each file was changed, in nanoseconds, by its name within the folder."""
        files = [path for path in self.path.rglob("*") if not path.is_dir() or path.is_symlink()]
        return {path.relative_to(self.path).as_posix(): path.lstat().st_mtime_ns for path in files}

    def _exported(self) -> dict[str, int] | None:
        """What the run exported to this folder, as `_files` gives it; None if it exported nothing there."""
        if self._record is None or not self._record.is_file():
            return None
        found = read_json(self._record)
        if not isinstance(found, dict) or found.get("folder") != str(self.path):
            return None
        files = found.get("files")
        return files if isinstance(files, dict) else None
