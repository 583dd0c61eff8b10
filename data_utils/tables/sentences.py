"""Tables with a word a row, such as those of named entities on Kaggle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from data_utils.errors import DataError
from data_utils.tables.table import Row, Table, as_text, column_of


class Sentences(NamedTuple):
    """A table of words as one of sentences.

    Attributes:
        table: a row a sentence, named by its first word's; the cells of the other columns are lists.
        places: of each sentence the places of its words' rows in the table of words.
    """

    table: Table
    places: list[list[int]]


def sentences_of(table: Table, sentence: str, word: str) -> Sentences:
    """The sentences of a table of words. Rows without a word are left out; a note counts those that hold something.

    Args:
        sentence: the column that says which sentence a row belongs to: its value is the same for all words of a
            sentence, or stands at the first word alone.
        word: the column of the words.

    Raises:
        UserError: no such columns; a first row without a sentence; a sentence whose words do not follow one another.
    """
    column_of(table, sentence, "sentence")
    column_of(table, word, "text")
    places: list[list[int]] = []
    names: list[str] = []
    seen: set[str] = set()
    without_word: list[Row] = []
    for place, row in enumerate(table.rows):
        name = row.cells[sentence].strip()
        if name and (not names or name != names[-1]):
            if name in seen:
                raise DataError(
                    f"{table.place(row)}: found {name!r} in column {sentence!r} again, after other sentences; "
                    "accepted: the words of a sentence in rows that follow one another"
                )
            seen.add(name)
            names.append(name)
            places.append([])
        if not row.cells[word].strip():
            if any(cell.strip() for column, cell in row.cells.items() if column != sentence):
                without_word.append(row)
            continue
        if not names:
            raise DataError(
                f"{table.place(row)}: found no value in column {sentence!r}; accepted: one at each first word"
            )
        places[-1].append(place)
    notes = list(table.notes)
    if without_word:
        notes.append(
            f"{table.source}: {len(without_word)} rows have no word in column {word!r} and are left out (first: "
            f"{table.unit} {without_word[0].number})"
        )
    kept = [(name, own) for name, own in zip(names, places, strict=True) if own]
    rows = [_sentence(table, sentence, name, own) for name, own in kept]
    return Sentences(replace(table, rows=rows, notes=tuple(notes)), [own for _, own in kept])


def _sentence(table: Table, sentence: str, name: str, places: Sequence[int]) -> Row:
    words = [table.rows[place] for place in places]
    values = {
        column: name if column == sentence else [word.cells[column] for word in words] for column in table.columns
    }
    return Row(words[0].number, {column: as_text(value) for column, value in values.items()}, values)
