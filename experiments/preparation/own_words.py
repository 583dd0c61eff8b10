"""Rows of a table whose texts are lists of words with a label each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_utils.errors import UserError
from data_utils.tables import Row, Table, column_of
from data_utils.tables.lists import with_lists
from data_utils.tables.sentences import sentences_of
from data_utils.tables.table import as_text
from experiments.canonical import SEPARATORS
from experiments.preparation.own_rows import Columns, Findings, OwnRow

SPECIAL = ("X", "CLS", "SEP")  # labels of MT-DNN's own: a word's later pieces, and the ends of a text
NO_ENTITY = "O"
ENTITY = re.compile(r"[BIES]-.+")


def with_word_lists(tables: Mapping[str, Table], columns: Columns) -> dict[str, Table]:
    """The tables with their lists as such: of a table with a word a row, and of lists written as text.

    Raises:
        UserError: as `sentences_of` and `with_lists`.
    """
    found = dict(tables)
    if columns.sentence is not None:
        found = {own: sentences_of(table, columns.sentence, columns.text[0]).table for own, table in found.items()}
    return with_lists(found, [*columns.text, *columns.label])


def have_words(tables: Mapping[str, Table], columns: Columns) -> bool:
    """Whether the texts are lists of words, and the labels lists too where the tables have some."""
    if len(columns.text) != 1 or len(columns.label) != 1:
        return False
    text, label = columns.text[0], columns.label[0]
    rows = [row for table in tables.values() for row in table.rows]
    lists = any(isinstance(row.values.get(text), list) for row in rows)
    labels = [row.values.get(label) for row in rows if row.values.get(label) not in (None, "")]
    return lists and all(isinstance(own, list) for own in labels)


def read_word_rows(table: Table, columns: Columns, labeled: bool, findings: Findings) -> list[OwnRow]:
    """The sentences of a table; those without words are left out.

    Args:
        labeled: the table has to have the label column.
        findings: gets what is changed or left out.

    Raises:
        UserError: no such column, a cell that is no list, or another number of labels than words.
    """
    column_of(table, columns.text[0], "text")
    if labeled:
        column_of(table, columns.label[0], "label")
    if columns.id is not None:
        column_of(table, columns.id, "id")
    return list(_rows(table, columns, findings))


def _rows(table: Table, columns: Columns, findings: Findings) -> Iterator[OwnRow]:
    ids: set[str] = set()
    for index, row in enumerate(table.rows):
        place = table.place(row)
        words = _list(row, columns.text[0], place)
        if not any(word.strip() for word in words):
            findings.add("rows left out, having no words", place)
            continue
        shown = tuple(word.translate(SEPARATORS) for word in words)
        if shown != tuple(words):
            findings.add("words with tabs or line breaks, which become blanks", place)
        uid = str(index) if columns.id is None else row.cells[columns.id].translate(SEPARATORS).strip()
        if uid in ids:
            findings.add(f"values of column {columns.id!r} that stand in an earlier row too", place)
        ids.add(uid)
        written = _list(row, columns.label[0], place)
        labels = tuple(label.translate(SEPARATORS).strip() for label in written)
        if labels != tuple(written):
            findings.add("labels with blanks around them, which are taken away", place)
        if any(labels) and len(labels) != len(shown):
            raise UserError(
                f"{place}: found {len(shown)} words in column {columns.text[0]!r} and {len(labels)} labels in column "
                f"{columns.label[0]!r}, accepted: a label a word"
            )
        if any(labels) and not all(labels):
            word = shown[labels.index("")]
            raise UserError(
                f"{place}: found no label of the word {word!r}, accepted: a label of every word, or of none"
            )
        yield OwnRow(place, uid, shown, labels if any(labels) else None)


def _list(row: Row, column: str, place: str) -> list[str]:
    """The texts of a cell's list; none where there is no cell."""
    value: Any = row.values.get(column)
    if value is None or value == "":
        return []
    if not isinstance(value, list) or any(isinstance(own, list | dict) for own in value):
        raise UserError(f"{place}: found {str(value)[:40]!r} in column {column!r}, accepted: a list of texts")
    return [as_text(own) for own in value]


def word_labels(found: Sequence[str], place: str) -> list[str]:
    """The labels of words in the order of the classes: `O` first.

    Raises:
        UserError: one has the name of a label that the task type adds.
    """
    labels = sorted(found, key=lambda own: (own != NO_ENTITY, own))
    taken = next((own for own in labels if own in SPECIAL), None)
    if taken is not None:
        raise UserError(
            f"{place}: found the label {taken!r}; accepted: other names than {', '.join(SPECIAL)}, which stand for the "
            "later pieces of a word and for the ends of a text"
        )
    return labels


def word_metrics(labels: Sequence[str]) -> list[str]:
    """F1 of entities where labels name some, such as `B-PER`; else the share of right words."""
    return ["SeqEval", "ACC"] if any(map(ENTITY.fullmatch, labels)) else ["ACC", "F1MAC"]
