"""CSV and TSV files.

The rows are read by Python's csv module rather than by pandas: that fills rows that are too short without a word, and
cannot say in which line a row begins.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_utils.errors import DataError
from data_utils.storage.text_files import LONGEST_LINE
from data_utils.tables.content import lines_of, read_text
from data_utils.tables.table import Layout, Table, as_text, check_columns, column_names, make_table

Fields = tuple[int, list[str]]  # the line in which a row begins, and its fields
QUOTE = '"'
SHOWN = 40  # characters in a message
DIVIDERS = ",;\t|"  # of a .csv
LONE_RETURN = re.compile("\r(?!\n)")
EXCEL_HINT = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # a line that only Excel reads: it names the divider
QUOTED_AFTER_BLANKS = re.compile(r'\s+".*"\s*', re.DOTALL)
PRIVATE_USE = range(0xE000, 0xF900)  # characters that Unicode leaves without a meaning


def read_csv(path: Path, encoding: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """A `.csv`: the divider is that of comma, semicolon, tab and `|` which makes most columns of the first line.

    Quotes hold what divides. Empty lines are no rows. A line `sep=;`, which Excel reads, says the divider.

    Args:
        columns: names for a file whose first line is a row; None where the first line names the columns.

    Raises:
        DataError: no columns, two of one name, a row with more or fewer, a quote that does not end; names the line.
    """
    text, found = read_text(path, encoding)
    first, notes = next(lines_of(text), ""), []
    hint = EXCEL_HINT.fullmatch(first)
    if hint is not None:
        text = "\n" + text[len(first) :]  # an empty line, so that lines keep their numbers
        notes.append(f"{path}: {first.strip()!r} in the first line names the divider; it is no row, and is not written")
        divider = hint[1]
    else:
        first = next((line for line in lines_of(text) if line.strip()), "")
        counts = {own: _count(first, own) for own in DIVIDERS}
        divider = max(DIVIDERS, key=lambda own: (columns is not None and counts[own] == len(columns), counts[own]))
    rows, more = _rows_of_csv(text, path, divider)
    return _table(path, rows, Layout("csv", found, divider), [*notes, *more], columns)


def _count(line: str, divider: str) -> int:
    """The columns of a line that quotes may leave unfinished."""
    csv.field_size_limit(LONGEST_LINE)
    try:
        return len(next(csv.reader([line.replace("\r", "")], delimiter=divider), []))
    except csv.Error:
        return 0


def _rows_of_csv(text: str, path: Path, divider: str) -> tuple[list[Fields], list[str]]:
    """The rows, and a note if quotes stand after blanks, as in `"a", "b"`; csv alone takes such for text."""
    try:
        rows = list(_quoted(text, path, divider))
    except DataError:
        rows = []
    uneven = not rows or any(len(fields) != len(rows[0][1]) for _, fields in rows)
    if f'{divider} "' in text and (
        uneven or any(QUOTED_AFTER_BLANKS.fullmatch(own) for _, fields in rows for own in fields)
    ):
        try:
            other = list(_quoted(text, path, divider, after_blanks=True))
        except DataError:
            other = []
        if other and all(len(fields) == len(other[0][1]) for _, fields in other):
            return other, [f"{path}: blanks after {divider!r} are left out, so that quotes after them are quotes"]
    return rows or list(_quoted(text, path, divider)), []


def read_tsv(path: Path, encoding: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """A `.tsv`: a tab divides; quotes hold what divides, or are text, whichever the file shows.

    Programs that write quotes (pandas, Excel, R) put them around whole fields, and double those inside. A file in which
    every quote stands so is read their way. Elsewhere quotes are part of the text, and a note says so.

    Args:
        columns: as in `read_csv`.

    Raises:
        DataError: as `read_csv`.
    """
    text, found = read_text(path, encoding)
    if QUOTE not in text:
        return _table(path, list(_plain(text)), Layout("tsv", found, "\t", quoted=False), given=columns)
    reason = _why_plain(text, path)
    if reason is None:
        rows = list(_quoted(text, path, "\t"))
        return _table(path, rows, Layout("tsv", found, "\t"), _rows_in_quotes(path, rows), columns)
    note = f"{path}: quotes are read as part of the text: {reason}"
    return _table(path, list(_plain(text)), Layout("tsv", found, "\t", quoted=False), [note], columns)


def _quoted(text: str, path: Path, divider: str, after_blanks: bool = False) -> Iterator[Fields]:
    """The rows where quotes hold what divides.

    Args:
        after_blanks: blanks after what divides are left out.

    Raises:
        DataError: the quotes are not well formed; names the line.
    """
    csv.field_size_limit(LONGEST_LINE)  # csv's own, which holds for the process, is shorter than documents are
    # A carriage return within a line is text, but csv refuses it outside quotes: another character takes its place.
    stand_in = next(own for own in map(chr, PRIVATE_USE) if own not in text) if LONE_RETURN.search(text) else ""
    held = LONE_RETURN.sub(stand_in, text) if stand_in else text
    reader = csv.reader(lines_of(held), delimiter=divider, strict=True, skipinitialspace=after_blanks)
    began = 1
    try:
        for fields in reader:
            if fields:
                yield began, [own.replace(stand_in, "\r") for own in fields] if stand_in else fields
            began = reader.line_num + 1
    except csv.Error as error:
        hint = '; a quote inside quotes is doubled, "", and not escaped by a backslash' if '\\"' in text else ""
        raise DataError(f"is no row of a table ({error}){hint}", path, began) from error


def _plain(text: str) -> Iterator[Fields]:
    for number, line in enumerate(lines_of(text), start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, line.split("\t")


def _why_plain(text: str, path: Path) -> str | None:
    """Why a text with tabs and quotes was not written by a program that quotes fields; None where it may have been."""
    try:
        rows = list(_quoted(text, path, "\t"))
    except DataError as error:
        return str(error).removeprefix(f"{path}, ")
    width = len(rows[0][1]) if rows else 0
    uneven = next((number for number, fields in rows if len(fields) != width), None)
    if uneven is not None:
        return f"line {uneven} would have another number of columns"
    if text.startswith(QUOTE) or any(len(fields) != width for _, fields in _plain(text)):
        return None  # names of columns in quotes, or lines that make rows only with quotes
    merged = next((number for number, fields in rows if any("\n" in own for own in fields)), None)
    if merged is not None:
        return f"line {merged} would be joined with the next, and both are rows as they are"
    return _unusual_quotes(text, rows)


def _rows_in_quotes(path: Path, rows: Sequence[Fields]) -> list[str]:
    """A note on the first field with a line in it that could be a row: two quotes that belong to different rows would
    look so."""
    tabs = len(rows[0][1]) - 1
    for number, fields in rows:
        if tabs and any(line.count("\t") == tabs for own in fields for line in own.split("\n")[1:-1]):
            return [f"{path}, line {number}: quotes hold lines that look like rows; they are read as one text"]
    return []


def _unusual_quotes(text: str, rows: Sequence[Fields]) -> str | None:
    """The first quotes that a program would not have written: inside a field without quotes around it, or around a
    field that needs none, unless all of its column has them."""
    width = len(rows[0][1])
    marked = list(zip(rows, _quotes_around(text, rows), strict=True))
    loose = [own for (_, fields), has in marked for own, is_in in zip(fields, has, strict=True) if not is_in]
    commas = not any("," in own for own in loose)
    whole = [all(has[column] or not fields[column] for (_, fields), has in marked) for column in range(width)]
    for (number, fields), has in marked:
        for column, (own, is_in) in enumerate(zip(fields, has, strict=True)):
            if not is_in and QUOTE in own:
                return f"line {number} has them inside a field"
            needs = not own or any(character in own for character in '\t\n\r"') or (commas and "," in own)
            if is_in and not needs and not whole[column]:
                return f"line {number} has them around a field that needs none, unlike other fields"
    return None


def _quotes_around(text: str, rows: Sequence[Fields]) -> Iterator[list[bool]]:
    """Of each field whether quotes stand around it: what csv has taken away is missed in the text."""
    lines = list(lines_of(text))
    ends = [number for number, _ in rows[1:]] + [len(lines) + 1]
    for (number, fields), end in zip(rows, ends, strict=True):
        raw, at = "".join(lines[number - 1 : end - 1]), 0
        has = []
        for own in fields:
            has.append(raw.startswith(QUOTE, at))
            at += len(own) + (own.count(QUOTE) + 2 if has[-1] else 0) + 1
        yield has


def _table(
    path: Path, rows: Sequence[Fields], layout: Layout, notes: Sequence[str] = (), given: Sequence[str] | None = None
) -> Table:
    """The rows as a table.

    Args:
        given: names of the columns; None where they are the first row.
    """
    if given is not None:
        rows = [(1, list(given)), *rows]
        notes = [*notes, f"{path}: the columns are named by --columns; where the table is written, these are line 1"]
    if not rows:
        raise DataError("found no names of columns; accepted: a first line that names them", path, 1)
    rows, left_out = _without_empty(path, rows)
    columns, named_so = column_names(rows[0][1], path)
    check_columns(columns, path, rows[0][0])
    for number, fields in rows:
        if len(fields) != len(columns):
            expected, accepted = f"{len(columns)} columns", ""
            if len(columns) == 1:
                expected = f"one column as in the first line, {columns[0][:SHOWN]!r}"
                dividers = "commas, semicolons or tabs" if layout.kind == "csv" else "tabs"
                accepted = f"; accepted: columns divided by {dividers}"
            elif layout.quoted and len(fields) > len(columns):
                accepted = f"; a text with {layout.delimiter!r} in it needs quotes around it"
            raise DataError(f"expected {expected}, found {len(fields)}{accepted}", path, number)
    named = ((number, dict(zip(columns, fields, strict=True))) for number, fields in itertools.islice(rows, 1, None))
    return make_table(path, columns, named, layout, notes=[*notes, *left_out, *named_so])


def _without_empty(path: Path, rows: Sequence[Fields]) -> tuple[Sequence[Fields], list[str]]:
    """The rows without columns that have neither a name nor a cell, if there are several, and a note on them.

    Spreadsheets write such at the end of each line.
    """
    names = rows[0][1]
    empty = [at for at, name in enumerate(names) if not name.strip()]
    even = all(len(fields) == len(names) for _, fields in rows)
    if len(empty) < 2 or not even or any(fields[at].strip() for _, fields in rows for at in empty):
        return rows, []
    kept = [at for at in range(len(names)) if at not in empty]
    note = f"{path}: {len(empty)} columns without a name and without content are left out"
    return [(number, [fields[at] for at in kept]) for number, fields in rows], [note]


def delimited_text(path: Path, table: Table, columns: Sequence[str]) -> str:
    """A table as CSV or TSV, in its own way where it was read from such a file.

    Raises:
        DataError: a tsv whose quotes are text cannot hold a cell with a tab or a line break.
    """
    layout = table.layout
    file = io.StringIO(newline="")
    if layout.kind == "tsv" and not layout.quoted:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    else:
        writer = csv.writer(file, delimiter=layout.delimiter, lineterminator="\n")
    try:
        writer.writerow(columns)
        for row in table.rows:
            writer.writerow([as_text(row.cells[column]) for column in columns])
    except csv.Error as error:
        raise DataError("a cell with a tab or a line break does not fit a .tsv without quotes", path) from error
    return file.getvalue()
