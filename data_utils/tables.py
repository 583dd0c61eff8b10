"""Tables with named columns: CSV, TSV, JSON lines, and data sets of the `datasets` library, a row at a time."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_utils.errors import DataError, UserError, first_line, nearest
from data_utils.text_files import LONGEST_LINE, read_json_lines, read_lines

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
SPLIT_NAMES = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
UNLABELED_CLASS = -1  # of the `datasets` library, where a test set has no labels

Row = tuple[int, Mapping[str, Any]]  # its line (of the `datasets` library its number from 1), and its values by column


@dataclass(frozen=True)
class Table:
    """One split of a data set.

    Attributes:
        place: the file or data set, for messages.
        rows: reads it from the start.
        label_names: by column, the texts of labels that are stored as their index.
    """

    place: str
    rows: Callable[[], Iterator[Row]]
    label_names: Mapping[str, Sequence[str]]


def find_tables(source: str, cache_dir: str | None = None) -> tuple[str, dict[str, Table]]:
    """The name and the splits (`train`, `dev`, `test`) that a source has.

    Args:
        source: a file (its rows are `train`); a folder with `train.csv`, `dev.csv`, … of one of `SUFFIXES`; or a
            data set's name, `imdb`, or with its configuration, `nyu-mll/glue:cola`.
        cache_dir: where downloads are kept.

    Raises:
        UserError: there is nothing of that name, or no split to train on.
    """
    path = Path(source)
    if path.is_file() or path.suffix in SUFFIXES:
        if path.suffix not in SUFFIXES:
            raise DataError(f"found the ending {path.suffix!r}, accepted: {', '.join(SUFFIXES)}", path)
        return path.stem, {"train": file_table(path)}
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES and file.stem in SPLIT_NAMES]
        tables: dict[str, Table] = {}
        for file in files:
            split = SPLIT_NAMES[file.stem]
            if split in tables:
                raise DataError(f"is a second {split} beside {tables[split].place}; accepted: one of them", file)
            tables[split] = file_table(file)
        if "train" not in tables:
            raise DataError(f"found no train table; accepted: train{', train'.join(SUFFIXES)}", path)
        return path.resolve().name, tables
    name, _, configuration = source.partition(":")
    return configuration or name.rsplit("/", 1)[-1], _hub_tables(name, configuration, cache_dir)


def file_table(path: Path) -> Table:
    """A file as a table; it is opened when its rows are asked for."""
    if path.suffix in (".jsonl", ".json"):
        return Table(str(path), lambda: iter(read_json_lines(path)), {})
    return Table(str(path), lambda: read_delimited(path), {})


def read_delimited(path: Path) -> Iterator[Row]:
    """The rows of a table whose first line names the columns.

    In a `.csv` a comma divides (a semicolon where it makes more columns of the first line), and quotes hold what
    divides; in a `.tsv` a tab does, and quotes mean nothing. Empty lines are passed over.

    Raises:
        DataError: no columns, two of one name, or a row with more or fewer; an open quote; with file and line.
    """
    lines = (line + "\n" for _, line in read_lines(path))
    first = next(lines, "")
    if path.suffix == ".tsv":
        dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    else:
        delimiter = max(",;", key=lambda divider: len(next(csv.reader([first], delimiter=divider), [])))
        dialect = {"delimiter": delimiter, "strict": True}
    csv.field_size_limit(LONGEST_LINE)  # csv's own, which holds for the process, is shorter than documents are
    reader = csv.reader(itertools.chain([first], lines), **dialect)
    columns: list[str] = []
    began = 1
    try:
        for fields in reader:
            if not columns:
                columns = [name.strip() for name in fields]
                _check_columns(columns, path)
            elif fields:
                if len(fields) != len(columns):
                    raise DataError(f"expected {len(columns)} columns, found {len(fields)}", path, began)
                yield began, dict(zip(columns, fields, strict=True))
            began = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"is no row of a table ({error})", path, began) from error


def _check_columns(columns: Sequence[str], path: Path) -> None:
    twice = [name for name in columns if columns.count(name) > 1]
    if not any(columns):
        raise DataError("found no names of columns; accepted: a first line that names them", path, 1)
    if twice:
        raise DataError(f"found the column {twice[0]!r} {columns.count(twice[0])} times, accepted: once", path, 1)


def cell(row: Mapping[str, Any], column: str, where: str, flag: str) -> Any:
    """A value of a row.

    Raises:
        UserError: there is no such column; names those that there are.
    """
    if column not in row:
        raise UserError(
            f"{where}: found no column {column!r}{nearest(column, row)}; --{flag} names it; accepted: {', '.join(row)}"
        )
    return row[column]


def _hub_tables(name: str, configuration: str, cache_dir: str | None) -> dict[str, Table]:
    """The splits of a data set of the `datasets` library; no code of the data set is run."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"--from: {name} is no file or folder, and for the name of a data set the library datasets is not "
            "installed; get it with: pip install datasets"
        ) from error
    try:
        found = datasets.load_dataset(name, configuration or None, cache_dir=cache_dir)
    except Exception as error:  # the library raises many kinds, those of its downloads among them
        reason = first_line(error)
        raise UserError(
            f"--from: {name} is no file or folder, and no data set of that name could be loaded ({reason}); accepted: "
            "a .csv, .tsv or .jsonl file, a folder with train.csv and the like, or NAME or NAME:CONFIGURATION of a "
            "data set"
        ) from error
    tables = {
        SPLIT_NAMES[split]: _hub_table(f"{name}, {split}", found[split]) for split in found if split in SPLIT_NAMES
    }
    if "train" not in tables:
        raise UserError(f"--from: {name} has the splits {', '.join(found)}, accepted: one named train among them")
    return tables


def _hub_table(place: str, data: Any) -> Table:
    names = {column: feature.names for column, feature in data.features.items() if hasattr(feature, "names")}
    return Table(place, lambda: enumerate(data, start=1), names)
