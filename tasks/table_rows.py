"""A row of a user's table as the fields of a canonical line: which texts a data format needs, and what a cell may hold.

A cell is a text, a number, a list, or nothing (None, NaN). A list may also be written as a text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from data_utils.readers import GAP, SEPARATORS
from data_utils.tables.lists import list_in
from data_utils.task_def import DataFormat

SHOWN = 60  # characters of a cell in a message

# The texts of a row, in the order in which a user names their columns.
TEXT_COLUMNS: dict[DataFormat, tuple[str, ...]] = {
    DataFormat.PremiseOnly: ("text",),
    DataFormat.PremiseAndOneHypothesis: ("premise", "hypothesis"),
    DataFormat.PremiseAndMultiHypothesis: ("premise", "candidates"),
    DataFormat.Seqence: ("words",),
    DataFormat.MLM: ("text",),
    DataFormat.CLUE_SPAN: ("question", "context"),
    DataFormat.CLUE_GEN: ("question", "context"),
    DataFormat.ClozeChoice: ("passage", "query", "choices"),
}
# The last text is a list, whose items may also be in columns of their own.
WITH_LIST = (DataFormat.PremiseAndMultiHypothesis, DataFormat.ClozeChoice)


def takes(data_format: DataFormat, count: int) -> bool:
    """Whether a row of this format can have so many texts."""
    needed = len(TEXT_COLUMNS.get(data_format, ()))
    return needed > 0 and (count == needed or (data_format in WITH_LIST and count > needed))


def takes_in_words(data_format: DataFormat) -> str:
    """The texts that a row has, for messages and help."""
    names = TEXT_COLUMNS.get(data_format, ())
    if not names:
        return f"no texts of a table (nothing reads the format {data_format.name})"
    return f"{len(names)} column{'s' * (len(names) > 1)} ({', '.join(names)})"


def fields_of_row(data_format: DataFormat, cells: Sequence[Any]) -> dict[str, Any] | None:
    """The fields of a canonical line, without id and label.

    Args:
        cells: a value for each of `TEXT_COLUMNS`; items of a last list may also be given one by one.

    Returns:
        None where a text is missing.

    Raises:
        ValueError: a cell that holds something else; the message says what is accepted.
    """
    if data_format == DataFormat.Seqence:
        words = words_of(cells[0])
        return {"premise": json.dumps(words)} if words else None
    if data_format in WITH_LIST:
        single = len(TEXT_COLUMNS[data_format]) - 1
        texts, items = [as_text(cell) for cell in cells[:single]], _items(cells[single:])
        if not all(texts) or not items:
            return None
        if data_format == DataFormat.ClozeChoice:
            return _choice_fields(texts[0], texts[1], items)
        ids = ",".join(map(str, range(len(items))))
        return {"ruid": ids, "premise": texts[0], "hypotheses": items}
    if not all(as_text(cell) for cell in cells):
        return None
    # Blanks at the ends stay, as in training: some tokenizers see them, and answers in a context are counted with them.
    texts = [cell.translate(SEPARATORS) if isinstance(cell, str) else as_text(cell) for cell in cells]
    names = TEXT_COLUMNS[data_format] if len(texts) > 1 else ("premise",)
    return dict(zip(names, texts, strict=True))


def as_text(cell: Any) -> str:
    """A cell as a text on one line, as canonical files hold it; empty where there is none.

    Raises:
        ValueError: a list or a mapping.
    """
    if is_missing(cell):
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, list | tuple | dict):
        raise ValueError(f"found {str(cell)[:SHOWN]!r}, accepted: a text or a number")
    return str(cell).translate(SEPARATORS).strip()


def is_missing(cell: Any) -> bool:
    """Whether a cell holds nothing."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def as_list(cell: Any) -> list[Any] | None:
    """A list, or one written as a text in JSON's or Python's way; None: the cell is no list.

    Raises:
        ValueError: a list as numpy prints it.
    """
    if isinstance(cell, list | tuple):
        return list(cell)
    return list_in(cell) if isinstance(cell, str) else None


def words_of(cell: Any) -> list[str]:
    """A sentence's words: a list, or a text that is divided at its blanks."""
    found = as_list(cell)
    return as_text(cell).split() if found is None else [as_text(word) for word in found]


def _items(cells: Sequence[Any]) -> list[str]:
    """The texts of a list, which is one cell, or a cell an item; missing ones are left out."""
    if len(cells) == 1:
        found = as_list(cells[0])
        if found is None and not is_missing(cells[0]) and str(cells[0]).strip():
            raise ValueError(f'found {str(cells[0])[:SHOWN]!r}, accepted: a list of texts such as ["a", "b"]')
        cells = found or []
    return [text for text in map(as_text, cells) if text]


def _choice_fields(passage: str, query: str, choices: list[str]) -> dict[str, Any]:
    if GAP not in query:
        raise ValueError(f"found {query[:SHOWN]!r}, accepted: a query with {GAP} where a choice stands")
    hypotheses = [query.replace(GAP, choice) for choice in choices]
    return {"choice": json.dumps(choices), "answer": "[]", "premise": passage, "hypotheses": hypotheses}
