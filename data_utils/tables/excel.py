"""Excel's `.xlsx` files, by openpyxl."""

from __future__ import annotations

import datetime
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.errors import DataError, first_line
from data_utils.storage.files import atomic_write
from data_utils.tables.table import LARGEST_TABLE, Layout, Table, as_text, check_columns, column_names, make_table

UNCHANGED = 10**15  # whole numbers below; Excel has 15 digits
LONGEST_CELL = 32_767  # characters, Excel's own limit; openpyxl would cut what is longer
# Excel writes characters that XML cannot hold, or changes, as _x000D_; an underscore before such a text as _x005F_.
ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
TO_ESCAPE = re.compile(r"[\x01-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")


def read_excel(path: Path) -> Table:
    """The first sheet of a `.xlsx`; its first row names the columns. Empty rows are no rows.

    Numbers are as a person writes them: 1 and not 1.0; truths are TRUE and FALSE.

    Raises:
        DataError: missing, no such file, too large; a column without a name; a formula without its value; names the
            row.
    """
    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_TABLE:
                raise DataError(f"holds more than {LARGEST_TABLE} bytes, the most that a table may have", path)
        # Two views of the sheet: the values that Excel has stored, and the formulas that they come from.
        books = [openpyxl.load_workbook(path, read_only=True, data_only=own) for own in (True, False)]
        try:
            rows = list(_rows(path, *(book.worksheets[0] for book in books)))
            others = [sheet.title for sheet in books[0].worksheets[1:]]
            title = books[0].worksheets[0].title
        finally:
            for book in books:
                book.close()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error
    except DataError:
        raise
    except Exception as error:  # openpyxl raises many kinds for a damaged file
        raise DataError(f"is no whole .xlsx file ({first_line(error)})", path) from error
    notes = [f"{path}: the sheet {title!r} is read, and not {', '.join(map(repr, others))}"] if others else []
    return _table(path, rows, notes)


def _rows(path: Path, stored: Any, formulas: Any) -> Iterator[tuple[int, list[Any]]]:
    for number, (values, written) in enumerate(zip(stored.iter_rows(), formulas.iter_rows(), strict=True), start=1):
        found = []
        for cell, own in zip(values, written, strict=True):
            if cell.value is None and own.data_type == "f":
                raise DataError(
                    f"{path}, row {number}: found a formula without its value in column {own.column_letter}; accepted: "
                    "a file that Excel has saved, or values"
                )
            found.append(_shown(cell.value))
        if any(value is not None for value in found):
            yield number, found


def _shown(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < UNCHANGED:
        return int(value)
    if isinstance(value, str):
        return ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)
    return value


def _table(path: Path, rows: Sequence[tuple[int, list[Any]]], notes: Sequence[str]) -> Table:
    if not rows:
        raise DataError("found no names of columns; accepted: a first row that names them", path)
    names, named_so = column_names(["" if value is None else str(value) for value in rows[0][1]], path)
    widest = max(len(values) for _, values in rows)
    names += [""] * (widest - len(names))
    rows = [(number, values + [None] * (widest - len(values))) for number, values in rows]
    filled = [at for at, name in enumerate(names) if name or any(values[at] is not None for _, values in rows)]
    columns = [names[at] for at in filled]
    check_columns(columns, path, rows[0][0])
    named = ((number, {names[at]: values[at] for at in filled}) for number, values in rows[1:])
    return make_table(path, columns, named, Layout("xlsx"), notes=[*notes, *named_so], text_of=_text_of)


def _text_of(value: Any) -> str:
    """A cell as Excel shows it."""
    return str(value).upper() if isinstance(value, bool) else as_text(value)


def write_excel(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a `.xlsx` of one sheet; texts stay texts, also those that look like formulas.

    Raises:
        DataError: a text longer than a cell of Excel can hold; names the row.
    """
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    shown = [[_to_cell(values.get(column)) for column in columns] for values in rows]
    for number, own in enumerate(shown, start=2):
        longest = max((len(value) for value in own if isinstance(value, str)), default=0)
        if longest > LONGEST_CELL:
            raise DataError(
                f"{path}, row {number}: a text of {longest} characters does not fit a cell of Excel, which holds "
                f"{LONGEST_CELL}; accepted: a name that ends in .csv, .jsonl or .parquet"
            )
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    for own in [[_to_cell(column) for column in columns], *shown]:
        cells = [WriteOnlyCell(sheet, value) for value in own]
        for cell in cells:
            if isinstance(cell.value, str):
                cell.data_type = "s"
        sheet.append(cells)
    with atomic_write(path, "wb") as file:
        book.save(file)


def _to_cell(value: Any) -> Any:
    """A value as Excel can hold it; text for numbers and times that Excel would change."""
    if value is None or value != value:
        return None
    if isinstance(value, np.floating):
        value = float(str(value))
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and abs(value) < UNCHANGED:
        return value
    if isinstance(value, datetime.date | datetime.time) and getattr(value, "tzinfo", None) is None:
        return value
    return TO_ESCAPE.sub(lambda found: f"_x{ord(found[0]):04X}_", as_text(value))
