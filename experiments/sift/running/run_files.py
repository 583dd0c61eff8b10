"""Files of runs: JSON, as a study writes it, or compressed JSON (`.json.gz`), as the archive has it."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from data_utils.errors import DataError
from data_utils.storage.files import atomic_write
from data_utils.storage.text_files import LARGEST_DOCUMENT, decode_line, parse_json, read_json

PLAIN, PACKED = ".json", ".json.gz"


def run_files(folder: Path) -> list[Path]:
    """The run files of a folder, compressed or not, sorted by name."""
    return sorted([*folder.glob(f"*{PLAIN}"), *folder.glob(f"*{PACKED}")])


def run_name(path: Path) -> str:
    """A run's name: its file's name without the suffix."""
    return path.name.removesuffix(PACKED).removesuffix(PLAIN)


def read_run_file(path: Path) -> Any:
    """The content of a run's file.

    Raises:
        DataError: the file cannot be read, is damaged or too large, or is no JSON.
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
    return parse_json(decode_line(content, path, 1), path)


def write_packed(path: Path, content: Any) -> bool:
    """Write a run's content compressed, unless the file has the same content.

    Returns:
        whether the file was written.

    Raises:
        DataError: the file exists and is damaged.
        WriteError: it cannot be written.
    """
    if path.is_file() and read_run_file(path) == content:
        return False
    with atomic_write(path, "wb") as file:
        file.write(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0))
    return True
