"""JSON files: an object a line, or one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.errors import DataError
from data_utils.storage.text_files import decoder, parse_json
from data_utils.tables.content import lines_of, read_text
from data_utils.tables.table import Layout, Table, WrittenNumber, as_text, make_table

DECODER = decoder(parse_float=WrittenNumber)


def read_json_rows(path: Path, encoding: str | None = None) -> Table:
    """A `.json` or `.jsonl`: an object a line, or an array of objects. Columns are all keys, as they first appear.

    Raises:
        DataError: not such JSON, or no row at all; names the line, or the array's element.
    """
    text, found = read_text(path, encoding)
    is_array = text.lstrip().startswith("[")
    rows = list(_of_array(text, path) if is_array else _of_lines(text, path))
    if len(rows) == 1 and rows[0][1] and all(isinstance(value, dict) for value in rows[0][1].values()):
        hint = 'accepted: an object a row, which pandas writes with orient="records"'
        raise DataError(f"holds one object, whose values are objects; {hint}", path, rows[0][0])
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    if not columns:
        raise DataError("found no rows; accepted: JSON objects, one a line or in an array", path)
    return make_table(path, columns, rows, Layout("json" if is_array else "jsonl", found))


def _of_array(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(parse_json(text, path, decoder=DECODER), start=1):
        if not isinstance(row, dict):
            raise DataError(f"row {number}: expected a JSON object, found {str(row)[:40]!r}", path)
        yield number, row


def _of_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        row = parse_json(line, path, number, DECODER)
        if not isinstance(row, dict):
            raise DataError(f"expected a JSON object, found {line[:40]!r}", path, number)
        yield number, row


def _as_json(value: Any) -> Any:
    """A value that JSON has no kind for: a number of numpy as one of Python, else its text."""
    return float(str(value)) if isinstance(value, np.floating) else as_text(value)


def json_text(rows: Iterable[dict[str, Any]], is_array: bool) -> str:
    """Rows as an array with a row a line, or as JSON lines."""
    valid = ({column: None if value != value else value for column, value in row.items()} for row in rows)
    shown = [json.dumps(row, ensure_ascii=False, default=_as_json) for row in valid]
    if is_array:
        return "[\n" + ",\n".join(shown) + "\n]\n"
    return "".join(line + "\n" for line in shown)
