"""Parquet files, by pyarrow: pandas would make 1.0 of the 1 in a column that lacks values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.errors import DataError, first_line
from data_utils.storage.files import atomic_write
from data_utils.tables.table import LARGEST_TABLE, Layout, Table, make_table, with_names

BATCH = 1000  # rows


def read_parquet(path: Path) -> Table:
    """A `.parquet`. If the `datasets` library wrote it, cells of classes have the names that its metadata gives.

    Raises:
        DataError: missing, no Parquet file, or too large.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with open(path, "rb") as opened, ParquetFile(opened) as file:
            groups = [file.metadata.row_group(own) for own in range(file.metadata.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > LARGEST_TABLE:
                raise DataError(f"holds more than {LARGEST_TABLE} bytes, the most that a table may have", path)
            found = file.read()
        found.validate(full=True)  # texts that are no UTF-8 among others
    except OSError as error:
        reason = first_line(error) if error.strerror is None else error.strerror
        raise DataError(f"cannot be read: {reason}", path) from error
    except pyarrow.ArrowException as error:
        raise DataError(f"is no whole Parquet file ({first_line(error)})", path) from error
    names = _class_names(found)
    notes = [
        f"{path}: column {own!r} has the names of its classes in the file's metadata; they are used" for own in names
    ]
    rows = ((number, with_names(row, names)) for number, row in _rows(found))
    return make_table(path, found.column_names, rows, Layout("parquet", arrow=found), names, notes)


def _class_names(found: Any) -> dict[str, tuple[str, ...]]:
    """The names of classes by column, which the `datasets` library writes into the metadata."""
    try:
        features = json.loads((found.schema.metadata or {})[b"huggingface"])["info"]["features"]
        known = {own: feature.get("feature", feature) for own, feature in features.items() if own in found.column_names}
        names = {own: tuple(map(str, feature["names"])) for own, feature in known.items() if feature.get("names")}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    whole = {own: str(found.schema.field(own).type) for own in names}
    return {own: names[own] for own in names if "int" in whole[own]}


def _rows(found: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.types

    names = found.column_names
    short = [pyarrow.types.is_float16(own.type) or pyarrow.types.is_float32(own.type) for own in found.schema]
    number = 0
    for batch in found.to_batches(BATCH):
        # 0.1 of single precision is 0.1, and not 0.10000000149011612
        lists = [
            [None if value is None or value != value else np.float32(value) for value in column.to_pylist()]
            if is_short
            else column.to_pylist()
            for column, is_short in zip(batch.columns, short, strict=True)
        ]
        for values in zip(*lists, strict=True):
            number += 1
            yield number, dict(zip(names, values, strict=True))


def write_parquet(path: Path, table: Table, new_columns: Mapping[str, Sequence[Any]]) -> None:
    """A table with more columns; the columns of a Parquet file keep their types, those of others are text.

    Raises:
        DataError: a new column with values of several kinds.
    """
    import pyarrow
    from pyarrow.parquet import write_table

    found = table.layout.arrow
    if found is None:
        found = pyarrow.table({column: [row.cells[column] for row in table.rows] for column in table.columns})
    for column, values in new_columns.items():
        try:
            found = found.append_column(column, pyarrow.array(list(values)))
        except pyarrow.ArrowException as error:
            raise DataError(f"column {column!r}: {first_line(error)}", path) from error
    with atomic_write(path, "wb") as file:
        write_table(found, file)
