"""Data sets of the `datasets` library: by their name, or in a folder of `save_to_disk`. None of their code is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_utils.errors import DataError, UserError, first_line
from data_utils.tables.table import Layout, Table, make_table, with_names

SAVED = ("dataset_dict.json", "state.json")  # in a folder of several splits, in one of a single split


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written this folder."""
    return any((folder / name).is_file() for name in SAVED)


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        what = "is a folder of" if Path(source).is_dir() else "is no file or folder, and for a data set's name"
        raise UserError(
            f"--from: {source} {what} the library datasets, which is not installed; get it with: pip install datasets"
        ) from error
    return datasets


def saved_tables(folder: Path) -> dict[str, Table]:
    """The splits of a folder of `save_to_disk` by their names; a single split is `train`.

    Raises:
        DataError: it cannot be read.
        UserError: the library is not installed.
    """
    library = _library(str(folder))
    try:
        found = library.load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds
        raise DataError(f"cannot be read by the library datasets ({first_line(error)})", folder) from error
    splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
    return {split: _table(f"{folder}, {split}", data) for split, data in splits.items()}


def named_tables(name: str, configuration: str, cache_dir: str | None) -> dict[str, Table]:
    """The splits of a data set of the hub by their names.

    Raises:
        UserError: there is none of that name, or the library is not installed.
    """
    library = _library(name)
    try:
        found = library.load_dataset(name, configuration or None, cache_dir=cache_dir)
    except Exception as error:  # those of downloads among them
        raise UserError(
            f"--from: {name} is no file or folder, and no data set of that name could be loaded ({first_line(error)}); "
            "accepted: a table's file, a folder with train.csv and the like, or NAME or NAME:CONFIGURATION of a data "
            "set"
        ) from error
    return {split: _table(f"{name}, {split}", found[split]) for split in found}


def _table(source: str, data: Any) -> Table:
    names = {column: own for column, feature in data.features.items() if (own := _class_names(feature))}
    rows = ((number, with_names(row, names)) for number, row in enumerate(data, start=1))
    return make_table(source, list(data.features), rows, Layout("datasets"), names)


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of a feature's classes, or of those of a list's items; none where it has none."""
    items = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", feature)
    return tuple(getattr(items, "names", None) or ())
