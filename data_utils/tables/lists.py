"""Lists that a cell of text holds: pandas writes a column of lists to a CSV so."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_utils.errors import DataError
from data_utils.tables.table import Row, Table, as_text

NUMPY_NUMBERS = re.compile(r"\[\s*-?\d+\.?\d*(\s+-?\d+\.?\d*)+\s*\]")
LONGEST_LITERAL = 1 << 18  # characters of a list in Python's way, whose syntax tree takes a hundred times its memory


LACKS_COMMAS = (
    'found "{}", a list without commas, as numpy prints it; accepted: ["a", "b"], which tolist() gives before a table '
    "is written"
)


def list_in(text: str) -> list[Any] | None:
    """A list written in JSON's way (`["a", "b"]`) or Python's (`['a', 'b']`); None where the text is none.

    Raises:
        ValueError: texts without commas between them, as numpy writes an array: Python would join them.
    """
    shown = text.strip()
    if not (shown.startswith("[") and shown.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval) if len(shown) <= LONGEST_LITERAL else (json.loads,):
        try:
            found = parse(shown)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if parse is ast.literal_eval and _lacks_commas(shown):
            raise ValueError(LACKS_COMMAS.format(shown[:60]))
        return found if isinstance(found, list) else None
    if NUMPY_NUMBERS.fullmatch(shown[:LONGEST_LITERAL]):
        raise ValueError(LACKS_COMMAS.format(shown[:60]))
    return None


def _lacks_commas(text: str) -> bool:
    """Whether a text of Python has two texts side by side."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    kinds = [own for own in kinds if own not in (tokenize.NL, tokenize.NEWLINE)]
    return any(own == after == tokenize.STRING for own, after in itertools.pairwise(kinds))


def with_lists(tables: Mapping[str, Table], columns: Sequence[str]) -> dict[str, Table]:
    """The tables, with lists in columns whose cells are all lists written as text in the first table; notes say so.

    Raises:
        DataError: a list as numpy prints it; or, in such a column, a cell of another table that is no list.
    """
    first = next(iter(tables.values()))
    written = [own for own in columns if own in first.columns and _holds_lists(first, own)]
    return {split: _read_lists(table, written) for split, table in tables.items()}


def _holds_lists(table: Table, column: str) -> bool:
    cells = [row for row in table.rows if isinstance(row.values.get(column), str) and row.cells[column].strip()]
    return bool(cells) and all(_list_of(table, row, column) is not None for row in cells)


def _list_of(table: Table, row: Row, column: str) -> list[Any] | None:
    try:
        return list_in(row.cells[column])
    except ValueError as error:
        raise DataError(f"{table.place(row)}: column {column!r}: {error}") from error


def _read_lists(table: Table, columns: Sequence[str]) -> Table:
    own = [column for column in columns if column in table.columns]
    if not own:
        return table
    rows = []
    for row in table.rows:
        found: dict[str, Any] = {}
        for column in own:
            value = row.values.get(column)
            found[column] = _list_of(table, row, column) if isinstance(value, str) else value
            if found[column] is None and row.cells[column].strip():
                raise DataError(
                    f"{table.place(row)}: column {column!r}: found {row.cells[column][:40]!r}, accepted: a list, as in "
                    "the training table"
                )
        cells = {column: as_text(value) for column, value in found.items()}
        rows.append(Row(row.number, {**row.cells, **cells}, {**row.values, **found}))
    notes = [f"{table.source}: column {column!r} holds lists written as text; they are read as lists" for column in own]
    return replace(table, rows=rows, notes=(*table.notes, *notes))
