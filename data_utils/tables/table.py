"""A table: columns with names, rows of text with their places, and how its file was written."""

from __future__ import annotations

import csv
import datetime
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_utils.errors import DataError, FlagError, UserError, nearest

TRUTHS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}  # texts in the column of a yes or no
LARGEST_TABLE = 1 << 32  # bytes of a file when unpacked, and characters of all cells together


class Row(NamedTuple):
    """One row.

    Attributes:
        number: its line in a text file, its row in a sheet, else its number from 1.
        cells: text by column, as it is written in the file; an empty text where there is no value.
        values: the same as the file has it: numbers, lists and None in JSON, Parquet and Excel, else `cells`.
    """

    number: int
    cells: Mapping[str, str]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """How a table's file is written, so that a copy of it with more columns can be written alike.

    Attributes:
        kind: csv, tsv, jsonl, json (an array), conll, parquet, xlsx or datasets.
        encoding: of a text file.
        delimiter: between the columns of a csv or conll.
        quoted: of a tsv: quotes around a field are no part of it.
        arrow: of a Parquet file: its columns with their types.
        lines: of a conll: all of them, without line feeds.
        word_lines: of a conll: the numbers of the lines of each row's words.
    """

    kind: str
    encoding: str = "utf-8"
    delimiter: str = ","
    quoted: bool = True
    arrow: Any = field(default=None, repr=False, compare=False)
    lines: Sequence[str] = field(default=(), repr=False, compare=False)
    word_lines: Sequence[Sequence[int]] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Table:
    """One split of a data set, in memory.

    Attributes:
        source: the file or data set, for messages.
        columns: their names, in order.
        rows: in order.
        layout: how its file is written.
        class_names: by column, the names of classes that a data set of the `datasets` library stores as their index;
            cells have the names.
        notes: what a reader of the table should know, a line each. The caller prints them.
    """

    source: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    layout: Layout
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What `Row.number` counts: a line of a text file, else a row."""
        return "line" if self.layout.kind in ("csv", "tsv", "jsonl", "conll") else "row"

    def place(self, row: Row) -> str:
        """Where a row is, for messages: `reviews.csv, line 7`."""
        return f"{self.source}, {self.unit} {row.number}"


def make_table(
    source: Path | str,
    columns: Sequence[str],
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    layout: Layout,
    class_names: Mapping[str, Sequence[str]] | None = None,
    notes: Sequence[str] = (),
    text_of: Callable[[Any], str] | None = None,
) -> Table:
    """A table of values that may be anything.

    Args:
        source: as in `Table`; the other arguments too.
        rows: their numbers, and values by column; columns that a row lacks have no value in it.
        text_of: the text of a value; None for `as_text`.

    Raises:
        DataError: the cells are too large together, or one holds bytes; names the row.
    """
    check_columns(columns, source)
    names, written = class_names or {}, text_of or as_text
    found: list[Row] = []
    size = 0
    empty = Table(str(source), tuple(columns), (), layout)
    for number, values in rows:
        cells = {}
        for column in columns:
            value = values.get(column)
            if column in names and isinstance(value, int):
                value = names[column][value] if 0 <= value < len(names[column]) else None
            if isinstance(value, bytes):
                place = empty.place(Row(number, {}, {}))
                raise DataError(f"{place}: found bytes in column {column!r}, accepted: text or numbers")
            cells[column] = written(value)
            size += len(cells[column])
        if size > LARGEST_TABLE:
            raise DataError(f"holds more than {LARGEST_TABLE} characters, the most that a table may have", source)
        found.append(Row(number, cells, cells if values.keys() == cells.keys() and values == cells else values))
    return Table(str(source), tuple(columns), found, layout, names, tuple(notes))


def with_names(row: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    """A row whose lists of classes hold names instead of numbers; None for a number without a name, such as -1.

    Args:
        names: of the classes by column, as in `Table.class_names`.
    """
    found = {}
    for column in names:
        if isinstance(row.get(column), list):
            known = dict(enumerate(names[column]))
            found[column] = [known.get(own) for own in row[column]]
    return {**row, **found} if found else row


def column_names(written: Sequence[str], source: Path | str) -> tuple[list[str], list[str]]:
    """The names of columns without the blanks around them, and a note if one has some."""
    names = [name.strip() for name in written]
    changed = next((name for name in written if name != name.strip()), None)
    note = f"{source}: names of columns are read and written without the blanks around them, such as {changed!r}"
    return names, [] if changed is None else [note]


def check_columns(columns: Sequence[str], source: Path | str, line: int | None = None) -> None:
    """See that columns have names that differ.

    Raises:
        DataError: they have not.
    """
    if not any(columns):
        raise DataError("found no names of columns; accepted: a first line that names them", source, line)
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise DataError(f"found the column {twice[0]!r} {columns.count(twice[0])} times, accepted: once", source, line)


def column_of(table: Table, column: str, flag: str) -> str:
    """The column's name, if the table has it.

    Args:
        flag: that names it, without dashes.

    Raises:
        UserError: there is no such column; names those that there are.
    """
    if column not in table.columns:
        near = nearest(column, table.columns)
        unnamed = (
            "; --columns names those of a file without names"
            if not near and table.layout.kind in ("csv", "tsv")
            else ""
        )
        raise UserError(
            f"{table.source}: found no column {column!r}{near}; --{flag} names it; accepted: "
            + ", ".join(table.columns)
            + unnamed
        )
    return column


def named_columns(given: str, known: Sequence[str], flag: str) -> tuple[str, ...]:
    """The columns that a flag names.

    Args:
        given: a column's name, or several with commas between them, blanks around or not. A name with a comma stands
            alone, or in quotes: `"a, b",c`.
        known: the columns that there are.

    Raises:
        FlagError: a column is named twice.
    """
    if given in known:
        return (given,)
    names = tuple(name.strip() for name in next(csv.reader([given], skipinitialspace=True), [given]))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise FlagError(f"--{flag}: found {twice[0]!r} {names.count(twice[0])} times, accepted: once")
    return names


class WrittenNumber(float):
    """A number of a JSON text that is not whole, with the text that it was written as, such as `1.50` or `1e3`."""

    text: str

    def __new__(cls, text: str) -> WrittenNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number


def as_text(value: Any) -> str:
    """A value as a person writes it: no text for None and NaN, lists and objects as JSON, days as 2024-12-31."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, WrittenNumber):
        return value.text
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=as_text)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return str(value.date())
    return str(value)
