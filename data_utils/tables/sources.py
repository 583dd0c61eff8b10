"""From a path or a name to tables, and from a table to a file."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_utils.errors import DataError, FlagError, UserError
from data_utils.storage.files import atomic_write
from data_utils.tables.conll import conll_text, read_conll
from data_utils.tables.content import encodable, stem_of, suffix_of
from data_utils.tables.delimited import delimited_text, read_csv, read_tsv
from data_utils.tables.excel import read_excel, write_excel
from data_utils.tables.json_rows import json_text, read_json_rows
from data_utils.tables.named import is_saved, named_tables, saved_tables
from data_utils.tables.parquet import read_parquet, write_parquet
from data_utils.tables.table import Layout, Row, Table

DELIMITED_READERS = {".csv": read_csv, ".tsv": read_tsv, ".txt": read_tsv}
TEXT_READERS: Mapping[str, Callable[..., Table]] = {
    **DELIMITED_READERS,
    ".jsonl": read_json_rows,
    ".ndjson": read_json_rows,
    ".json": read_json_rows,
    ".conll": read_conll,
    ".conllu": read_conll,
}  # also packed, as .csv.gz
OTHER_READERS: Mapping[str, Callable[[Path], Table]] = {".parquet": read_parquet, ".xlsx": read_excel}
SUFFIXES = (*TEXT_READERS, *OTHER_READERS)
INSTEAD = {  # what to do about files that hold tables, but are not read
    **dict.fromkeys((".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"), "; unpack it, or pack it with gzip"),
    **dict.fromkeys((".xls", ".ods", ".numbers"), "; save it as .xlsx or .csv"),
    **dict.fromkeys((".feather", ".arrow", ".pkl", ".pickle", ".orc"), "; pandas' to_parquet writes it anew"),
}
WORD_SUFFIXES = (".conll", ".conllu")  # a line a word
SPLIT_NAMES = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
ACCEPTED = f"{', '.join(SUFFIXES)}, all but the last two also with .gz"


def read_table(path: Path | str, *, encoding: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """A file as a table; its ending says the format.

    Every cell is text, exactly as it stands in the file: `NA`, `007` and `1.0` stay as they are.

    Args:
        path: `.csv`, `.tsv`, `.txt` (as `.tsv`), `.jsonl`, `.ndjson`, `.json`, `.conll`, `.conllu` (also with `.gz`),
            `.parquet` or `.xlsx`.
        encoding: of a text file without a mark of its encoding at its start; None: UTF-8.
        columns: names for a `.csv`, `.tsv` or `.txt` whose first line is a row.

    Raises:
        UserError: another ending; a file that cannot be read, with its line or row.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if (path.name.lower().endswith(".gz") and suffix not in TEXT_READERS) or suffix not in SUFFIXES:
        hint = INSTEAD.get(path.suffix.lower(), "")
        raise DataError(f"found the ending {''.join(path.suffixes[-2:])!r}, accepted: {ACCEPTED}{hint}", path)
    if suffix in DELIMITED_READERS:
        return DELIMITED_READERS[suffix](path, encoding, columns)
    if columns is not None:
        raise FlagError(f"--columns: found it with {path}, accepted: with {', '.join(DELIMITED_READERS)}")
    if suffix in TEXT_READERS:
        return TEXT_READERS[suffix](path, encoding)
    return OTHER_READERS[suffix](path)


def find_tables(
    source: str, cache_dir: str | None = None, encoding: str | None = None, columns: Sequence[str] | None = None
) -> tuple[str, dict[str, Table]]:
    """The name and the splits (`train`, `dev`, `test`) that a source has, one at least.

    Args:
        source: a file (its rows are `train`); a folder with `train.csv`, `dev.csv`, … of the formats of `read_table`;
            a folder of `datasets`' `save_to_disk`; or a data set's name, `imdb`, or with its configuration,
            `nyu-mll/glue:cola`.
        cache_dir: where downloads are kept.
        encoding, columns: as in `read_table`.

    Raises:
        UserError: there is nothing of that name, or no such split.
    """
    path = Path(source)
    if columns is not None and not path.is_file() and not path.is_dir() and suffix_of(path) not in SUFFIXES:
        raise FlagError(f"--columns: found it with {source}, accepted: with {', '.join(DELIMITED_READERS)}")
    if path.is_dir() and is_saved(path):
        return path.resolve().name, _known_splits(saved_tables(path), source)
    if path.is_dir():
        return path.resolve().name, _tables_in(path, encoding, columns)
    if path.is_file() or suffix_of(path) in SUFFIXES:
        return stem_of(path), {"train": read_table(path, encoding=encoding, columns=columns)}
    name, _, configuration = source.partition(":")
    found = named_tables(name, configuration, cache_dir)
    return configuration or name.rsplit("/", 1)[-1], _known_splits(found, name)


def _split_stem(path: Path) -> str:
    """The name of a file without its endings, and without what says that it is the only part of its split."""
    return stem_of(path).removesuffix("-00000-of-00001")


def find_splits(sources: Sequence[str]) -> dict[str, str] | None:
    """The files that are splits of one task by their names, such as `train.csv` and `dev.csv`, or `own_train.csv` and
    `own_dev.csv`; None where the files are tables of their own.

    Returns:
        The files by split.
    """
    found: dict[str, str] = {}
    first: set[tuple[Path, str]] = set()
    for source in sources:
        path = Path(source)
        rest, _, last = f"_{_split_stem(path)}".replace("-", "_").replace(".", "_").rpartition("_")
        if path.is_dir() or suffix_of(path) not in SUFFIXES or last not in SPLIT_NAMES or SPLIT_NAMES[last] in found:
            return None
        found[SPLIT_NAMES[last]] = source
        first.add((path.parent.resolve(), rest))
    return found if len(first) == 1 and len(found) > 1 and "train" in found else None


def _known_splits(found: Mapping[str, Table], source: str) -> dict[str, Table]:
    known = [split for split in found if split in SPLIT_NAMES]
    if not known:
        raise UserError(f"--from: {source} has the splits {', '.join(found)}, accepted: {', '.join(SPLIT_NAMES)}")
    tables = {SPLIT_NAMES[split]: found[split] for split in known}
    if len(tables) < len(known):
        raise UserError(f"--from: {source} has the splits {', '.join(known)}, accepted: one of dev, valid, validation")
    others = [split for split in found if split not in SPLIT_NAMES]
    return _with_note(tables, f"{source}: splits that are not read: {', '.join(others)}" if others else None)


def _with_note(tables: dict[str, Table], note: str | None) -> dict[str, Table]:
    """The tables, the first one with a note for the user."""
    first = next(iter(tables))
    return tables if note is None else {**tables, first: replace(tables[first], notes=(*tables[first].notes, note))}


def _tables_in(folder: Path, encoding: str | None, columns: Sequence[str] | None) -> dict[str, Table]:
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        split = (
            SPLIT_NAMES.get(_split_stem(file)) if suffix_of(file) in SUFFIXES and suffix_of(file) != ".txt" else None
        )
        if split is not None and split in files:
            raise DataError(f"is a second {split} table, with {files[split]}; accepted: one of them", file)
        if split is not None:
            files[split] = file
    if not files:
        raise DataError(f"found no table; accepted: train, dev and test with the ending {ACCEPTED}", folder)
    others = sorted(
        file.name for file in folder.iterdir() if suffix_of(file) in SUFFIXES and file not in files.values()
    )
    tables = {split: read_table(file, encoding=encoding, columns=columns) for split, file in files.items()}
    return _with_note(tables, f"{folder}: files that are not read: {', '.join(others)}" if others else None)


def write_table(path: Path | str, table: Table, new_columns: Mapping[str, Sequence[Any]] | None = None) -> None:
    """Write a table, its columns followed by new ones.

    A file of the table's own format is written as that was: delimiter, quotes, encoding, types of Parquet's columns.
    A name that ends in `.gz` is packed. Colors and formulas of Excel are lost.

    Args:
        path: its ending says the format, as in `read_table`.
        table: what `read_table` or `find_tables` gave.
        new_columns: a value a row by the column's name: texts, numbers, None, in JSON also lists.

    Raises:
        UserError: another ending, a column that the table has, too few values, a text that the format cannot hold; a
            file that cannot be written.
    """
    path, new = Path(path), {column: list(values) for column, values in (new_columns or {}).items()}
    suffix = suffix_of(path)
    packed = path.name.lower().endswith(".gz")
    if suffix not in SUFFIXES or (packed and suffix not in TEXT_READERS):
        raise DataError(f"found the ending {''.join(path.suffixes[-2:])!r}, accepted: {ACCEPTED}", path)
    for column, values in new.items():
        if column in table.columns:
            raise DataError(f"the table has a column {column!r} already; accepted: a new name", table.source)
        if len(values) != len(table.rows):
            raise DataError(f"{len(values)} values of column {column!r} for {len(table.rows)} rows", table.source)
    if suffix == ".parquet":
        write_parquet(path, table, new)
    elif suffix == ".xlsx":
        write_excel(path, [*table.columns, *new], _with_values(table, new))
    else:
        _write_text(path, suffix, packed, table, new)


def _with_values(table: Table, new: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows as their file has them, and new values."""
    return [dict(row.values) | {column: own[at] for column, own in new.items()} for at, row in enumerate(table.rows)]


def _write_text(path: Path, suffix: str, packed: bool, table: Table, new: Mapping[str, Sequence[Any]]) -> None:
    own = table.layout
    if suffix in (".json", ".jsonl", ".ndjson"):
        # some call a file of JSON lines .json
        is_array = suffix == ".json" and not (own.kind == "jsonl" and suffix_of(Path(table.source)) == ".json")
        text = json_text(_with_values(table, new), is_array)
    elif suffix in WORD_SUFFIXES:
        text = conll_text(path, table, new)
    else:
        kind, divider = ("csv", ",") if suffix == ".csv" else ("tsv", "\t")
        layout = own if own.kind == kind else Layout(kind, own.encoding, divider)
        rows = [
            Row(row.number, {**row.cells, **{column: values[at] for column, values in new.items()}}, {})
            for at, row in enumerate(table.rows)
        ]
        columns = (*table.columns, *new)
        text = delimited_text(path, Table(table.source, columns, rows, layout), columns)
    with encodable(path, own.encoding):
        content = text.encode(own.encoding)
    with atomic_write(path, "wb") as file:
        file.write(gzip.compress(content, mtime=0) if packed else content)
