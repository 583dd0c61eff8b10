"""Rows of a table as examples, and what a person should know of them: counts with the first place of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from data_utils.errors import FlagError, UserError
from data_utils.tables import Row, Table, column_of
from data_utils.tables.sources import SPLIT_NAMES
from data_utils.tables.table import as_text, named_columns
from experiments.canonical import SEPARATORS
from experiments.preparation.own_labels import similar, with_points

SHOWN = 60  # characters of a cell in a message


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        text: one, or two of a pair of texts.
        label: of the label, or several, a label each, with 0 or 1 in every row.
        id: of the example's id; None numbers the rows.
        sentence: in a table with a word a row: which sentence it belongs to.
        separator: between the labels in one column, of texts with several labels; None: a cell is one label, or a list
            in JSON and Parquet.
    """

    text: tuple[str, ...]
    label: tuple[str, ...]
    id: str | None = None
    separator: str | None = None
    sentence: str | None = None


@dataclass(frozen=True)
class ColumnFlags:
    """The flags that name columns, as they were given: which columns they are, the table decides.

    Attributes:
        text, label: a column's name, or several names with commas between them; quotes hold a name with a comma.
        id, separator, sentence: as in `Columns`.
    """

    text: str
    label: str
    id: str | None = None
    separator: str | None = None
    sentence: str | None = None

    def read(self, known: Sequence[str], task_type: str | None) -> Columns:
        """The columns of a table that has the columns `known`.

        Raises:
            FlagError: too many, or columns that do not go with other flags.
        """
        text, label = named_columns(self.text, known, "text"), named_columns(self.label, known, "label")
        if len(text) > 2:
            raise FlagError(f"--text: found {len(text)} columns, accepted: one or two")
        if len(label) > 1 and task_type not in (None, "MultiLabel"):
            raise FlagError(f"--task_type: found {task_type} for {len(label)} label columns, accepted: MultiLabel")
        if self.separator is not None and (len(label) > 1 or not self.separator.strip(" ")):
            raise FlagError(
                f"--label_separator: found {self.separator!r}, accepted: a text that divides labels in one column"
            )
        if self.sentence is not None and (len(text) > 1 or len(label) > 1 or self.separator is not None):
            raise FlagError("--sentence: goes with one column of words and one of labels, and no --label_separator")
        return Columns(text, label, self.id, self.separator, self.sentence)


class OwnRow(NamedTuple):
    """A row with texts.

    Attributes:
        place: for messages.
        uid: the example's id.
        texts: one or two.
        labels: of one column its label, of several columns a text each, of several labels in a column those; None where
            there is no value.
    """

    place: str
    uid: str
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None


@dataclass
class Findings:
    """What was found in the tables: how often, and where first, by what it is."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, place: str) -> None:
        self.found.setdefault(what, []).append(place)

    def lines(self) -> list[str]:
        """`WHAT: COUNT (first: PLACE)` of each."""
        return [f"{what}: {len(places)} (first: {places[0]})" for what, places in self.found.items()]


def read_rows(table: Table, columns: Columns, labeled: bool, findings: Findings) -> list[OwnRow]:
    """The rows of a table; those with an empty text are left out.

    Args:
        labeled: the table has to have the label columns; others may lack them.
        findings: gets what is changed or left out.

    Raises:
        UserError: no such column, a text that is a list.
    """
    for column in columns.text:
        column_of(table, column, "text")
    for column in columns.label if labeled else ():
        column_of(table, column, "label")
    if columns.id is not None:
        column_of(table, columns.id, "id")
    return list(_rows(table, columns, findings))


def _rows(table: Table, columns: Columns, findings: Findings) -> Iterator[OwnRow]:
    ids: set[str] = set()
    for index, row in enumerate(table.rows):
        place = table.place(row)
        texts = tuple(_text(row, column, place) for column in columns.text)
        if not all(text.strip() for text in texts):
            findings.add("rows left out, a text being empty", place)
            continue
        if any(text != row.cells[column] for text, column in zip(texts, columns.text, strict=True)):
            findings.add("texts with tabs or line breaks, which become blanks", place)
        uid = str(index) if columns.id is None else _one_line(row.cells[columns.id])
        if uid in ids:
            findings.add(f"values of column {columns.id!r} that stand in an earlier row too", place)
        ids.add(uid)
        labels = _labels(row, columns, table)
        shown = None if labels is None else tuple(_one_line(label) for label in labels)
        if shown != labels:
            findings.add("labels with blanks around them, which are taken away", place)
        yield OwnRow(place, uid, texts, shown)


def _labels(row: Row, columns: Columns, table: Table) -> tuple[str, ...] | None:
    """The label texts of a row as they stand; None where it has none."""
    first = columns.label[0]
    if len(columns.label) > 1:
        # of classes with names, as `datasets` has them, the numbers
        found = tuple(as_text(row.values.get(column)) for column in columns.label)
        return found if any(own.strip() for own in found) else None
    value = row.values.get(first)
    if isinstance(value, list):
        if any(isinstance(own, list | dict) or not as_text(own).strip() for own in value):
            shown = str(value)[:SHOWN]
            raise UserError(f"{table.place(row)}: found {shown} in column {first!r}, accepted: a list of labels")
        return tuple(as_text(label) for label in value)
    if isinstance(value, dict):
        shown = str(value)[:SHOWN]
        raise UserError(f"{table.place(row)}: found {shown} in column {first!r}, accepted: a text, a number or a list")
    text = row.cells.get(first, "")
    if columns.separator is not None:
        if first not in table.columns:
            return None
        return tuple(own for own in text.split(columns.separator) if own.strip())
    return (text,) if text.strip() else None


def _text(row: Row, column: str, place: str) -> str:
    value = row.values.get(column)
    if isinstance(value, list | dict):
        raise UserError(f"{place}: found {str(value)[:40]!r}, accepted: a text or a number")
    return row.cells[column].translate(SEPARATORS)


def _one_line(text: str) -> str:
    """A label or an id as the canonical files hold it."""
    return text.translate(SEPARATORS).strip()


def report_split_columns(table: Table, findings: Findings) -> None:
    """Report columns that divide the rows into training and other rows, which a single table is not read by."""
    known = {*SPLIT_NAMES, ""}
    for column in table.columns:
        first: dict[str, Row] = {}  # the row of each value
        for row in table.rows:
            value = row.cells[column].strip().casefold()
            if value not in known:
                break
            first.setdefault(value, row)
        else:
            others = [row for value, row in first.items() if value != "train"]
            if "train" in first and others:
                what = f"column {column!r} names splits, but all rows are used for training"
                findings.add(what, table.place(others[0]))


def read_decimal_commas(rows: dict[str, list[OwnRow]], tables: Mapping[str, Table], findings: Findings) -> None:
    """Read 2,5 as 2.5 where a file with semicolons has such numbers as labels, as spreadsheets write them.

    Args:
        rows: by split, a label each; changed in place.
        tables: where they come from.
    """
    for split, found in rows.items():
        layout = tables[split].layout
        labels = [row.labels[0] for row in found if row.labels]
        points = with_points(labels) if (layout.kind, layout.delimiter) == ("csv", ";") else None
        if points is None:
            continue
        numbers = iter(points)
        changed = [row._replace(labels=(next(numbers),)) if row.labels else row for row in found]
        for row, own in zip(found, changed, strict=True):
            if row != own:
                findings.add("labels with a decimal comma, read as numbers", row.place)
        rows[split] = changed


def merge_similar(rows: dict[str, list[OwnRow]], choice: str, findings: Findings) -> None:
    """Look for labels that differ in case, blanks or the form of a number alone.

    Args:
        rows: by split; changed in place.
        choice: stop, merge (the most frequent one of training stands for all) or keep.

    Raises:
        UserError: there are some, and the choice is `stop`; names them with their counts.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for split in sorted(rows, key=lambda own: own != "train"):
        for row in rows[split]:
            counts.update(row.labels or ())
            first.update({label: row.place for label in row.labels or () if label not in first})
    groups = similar(label for label, _ in counts.most_common())
    if groups and choice == "stop":
        shown = "; ".join(", ".join(f"{own!r} ({counts[own]})" for own in group) for group in groups)
        raise UserError(
            f"{first[groups[0][-1]]}: labels that differ in case, blanks or the form of a number alone: {shown}; "
            "correct them, or let --similar_labels merge take the most frequent one for all, keep make each a class"
        )
    merged = {other: group[0] for group in groups for other in group[1:]}
    for other, kept in merged.items():
        done = f"made {kept!r}" if choice == "merge" else f"kept apart from {kept!r}"
        for _ in range(counts[other]):
            findings.add(f"labels {other!r}, {done}", first[other])
    if choice == "merge" and merged:
        for split, found in rows.items():
            rows[split] = [
                row if row.labels is None else row._replace(labels=tuple(merged.get(own, own) for own in row.labels))
                for row in found
            ]


def text_key(texts: Sequence[str]) -> tuple[str, ...]:
    """What rows of the same texts have in common: the texts but for their blanks."""
    return tuple(" ".join(text.split()) for text in texts)


def without_shared(rows: Mapping[str, list[OwnRow]], choice: str, findings: Findings) -> dict[str, list[OwnRow]]:
    """Look for texts that stand in several rows.

    Args:
        choice: stop, drop or keep, of training rows whose texts a development or test set with labels has.

    Returns:
        The rows; of training those that are left.

    Raises:
        UserError: training has such rows, and the choice is `stop`, or it has no others.
    """
    shared: dict[tuple[str, ...], str] = {}
    for split, found in rows.items():
        first: dict[tuple[str, ...], OwnRow] = {}
        for row in found:
            earlier = first.setdefault(text_key(row.texts), row)
            if earlier is not row:
                findings.add(f"rows of {split} with the texts of an earlier row", row.place)
            if earlier.labels != row.labels:
                findings.add(f"rows of {split} with the texts of an earlier row but other labels", row.place)
        if split in ("dev", "test"):
            scored = {key: row.place for key, row in first.items() if row.labels is not None}
            shared = scored | shared
    train = rows.get("train", [])
    twice = [row for row in train if text_key(row.texts) in shared]
    if not twice:
        return dict(rows)
    if choice == "stop":
        raise UserError(
            f"{twice[0].place}: this text and those of {len(twice) - 1} more training rows stand in the development or "
            f"test set too (this one: {shared[text_key(twice[0].texts)]}), so that scores would be too good; accepted: "
            "--shared_texts drop leaves them out of training, keep trains on them"
        )
    for row in twice:
        done = "left out" if choice == "drop" else "kept"
        findings.add(f"rows of train {done}, whose texts the development or test set has", row.place)
    if choice == "keep":
        return dict(rows)
    rest = [row for row in train if text_key(row.texts) not in shared]
    if not rest:
        raise UserError(f"{twice[0].place}: every training text stands in the development or test set too")
    return {**rows, "train": rest}
