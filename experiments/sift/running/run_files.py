"""The files of runs: JSON as a study writes it, or the same compressed (`.json.gz`), as the repository keeps it."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from data_utils.errors import DataError
from data_utils.files import atomic_write
from data_utils.text_files import LARGEST_DOCUMENT, decoded, parse_json, read_json

PLAIN, PACKED = ".json", ".json.gz"


def run_files(folder: Path) -> list[Path]:
    """The runs of a folder, compressed or not, by name."""
    return sorted([*folder.glob(f"*{PLAIN}"), *folder.glob(f"*{PACKED}")])


def run_name(path: Path) -> str:
    """A run's name, which is its file's without the ending."""
    return path.name.removesuffix(PACKED).removesuffix(PLAIN)


def read_run_file(path: Path) -> Any:
    """What a run's file holds.

    Raises:
        DataError: it cannot be read, is no gzip or too large, or is no JSON.
    """
    if not path.name.endswith(PACKED):
        return read_json(path)
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST_DOCUMENT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"is no readable gzip ({error})", path) from error
    if len(content) > LARGEST_DOCUMENT:
        raise DataError(f"holds more than {LARGEST_DOCUMENT} bytes, the most that it may have", path)
    return parse_json(decoded(content, path, 1), path)


def write_packed(path: Path, content: Any) -> bool:
    """Write a run compressed; False where the file holds the same already.

    Raises:
        DataError: the file is there and damaged.
        WriteError: it cannot be written.
    """
    if path.is_file() and read_run_file(path) == content:
        return False
    with atomic_write(path, "wb") as file:
        file.write(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0))
    return True
