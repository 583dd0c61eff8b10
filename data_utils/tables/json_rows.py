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

    In a `.json` one object may hold the rows too: under one of its keys, as in `{"data": [{…}, {…}]}`, in pandas' form
    "split", or as a list a column. A note says so.

    Raises:
        DataError: not such JSON, or no row at all; names the line, or the array's element.
    """
    text, found = read_text(path, encoding)
    is_array = text.lstrip().startswith("[")
    is_document = path.name.lower().removesuffix(".gz").endswith(".json") and not is_array
    single = _single_object(text, path) if is_document else None
    inside = None if single is None else _rows_inside(single, path)
    if inside is not None:
        rows, note = list(enumerate(inside[0], start=1)), [f"{path}: {inside[1]}"]
        is_array = True
    else:
        rows, note = list(_of_array(text, path) if is_array else _of_lines(text, path)), []
    if len(rows) == 1 and rows[0][1] and all(isinstance(value, dict) for value in rows[0][1].values()):
        hint = 'accepted: an object a row, which pandas writes with orient="records"'
        raise DataError(f"holds one object, whose values are objects; {hint}", path, rows[0][0])
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    if not columns:
        raise DataError("found no rows; accepted: JSON objects, one a line or in an array", path)
    return make_table(path, columns, rows, Layout("json" if is_array else "jsonl", found), notes=note)


def _single_object(text: str, path: Path) -> dict[str, Any] | None:
    """The object that is all of a text; None where it is something else, such as an object a line."""
    first = next((line for line in lines_of(text) if line.strip()), "")
    try:
        json.loads(first)
        if text.strip() != first.strip():
            return None
    except (ValueError, RecursionError):
        pass  # an object on several lines
    try:
        found = parse_json(text, path, decoder=DECODER)
    except DataError:
        return None
    return found if isinstance(found, dict) else None


def _rows_inside(found: dict[str, Any], path: Path) -> tuple[list[dict[str, Any]], str] | None:
    """The rows that an object holds, and in words where; None where it is no table, or one row.

    Raises:
        DataError: it holds several tables.
    """
    lists = {key: own for key, own in found.items() if isinstance(own, list) and own}
    of_objects = [key for key, own in lists.items() if all(isinstance(row, dict) for row in own)]
    if len(of_objects) == 1:
        key = of_objects[0]
        others = ", ".join(repr(own) for own in found if own != key)
        return lists[key], f"the rows are those of the key {key!r}" + (f"; left out: {others}" if others else "")
    if len(of_objects) > 1:
        raise DataError(f"holds rows under several keys ({', '.join(of_objects)}); accepted: a file with one", path)
    names, data = found.get("columns"), lists.get("data", [])
    if isinstance(names, list) and data and all(isinstance(row, list) and len(row) == len(names) for row in data):
        return [dict(zip(map(str, names), row, strict=True)) for row in data], "the rows are those of the key 'data'"
    if found and len(lists) == len(found) and len({len(own) for own in lists.values()}) == 1:
        return [
            dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)
        ], "holds a list a column"
    return None


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
