"""Files of words in columns, a word a line and a blank line after each sentence: CoNLL's, and CoNLL-U's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_utils.errors import DataError
from data_utils.tables.content import lines_of, read_text
from data_utils.tables.table import Layout, Table, make_table

WORD, TAG = "text", "label"  # the first and the last column of a .conll; those between are column2, column3, …
UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")  # columns of a .conllu
DOCUMENT = "-DOCSTART-"  # a line of its own before each document, no word
COLUMN = re.compile(r"[^ \t]+")  # rarer blanks of Unicode belong to a word
COMMENT = re.compile(r"#\s*(\S+\s*[=:]|id\s|begin\s|end\s)")  # at the start of a sentence; "# O" is a word
NO_ENTITY = "O"


def columns_of(line: str, tabs: bool) -> list[str]:
    """The columns of a line.

    Args:
        tabs: tabs divide them, so that a word may hold blanks; else blanks do too.
    """
    return [own.strip(" ") for own in line.split("\t")] if tabs else COLUMN.findall(line)


def read_conll(path: Path, encoding: str | None = None) -> Table:
    """A `.conll`, or a `.conllu`: a row a sentence, whose cells are lists with an item a word.

    The columns of a `.conll` are `text` (the first), `label` (the last) and `column2`, `column3`, … between them; those
    of a `.conllu` have CoNLL-U's names. Comments are no words: lines such as `# sent_id = 3` before a sentence. Of a
    `.conllu` words without a whole number, such as `3-4`, are left out. Notes say so.

    Raises:
        DataError: a line with another number of columns than the first word's; names it.
    """
    text, found = read_text(path, encoding)
    lines = [line.removesuffix("\n") for line in lines_of(text)]
    universal = path.name.lower().endswith(".conllu")
    left_out: Counter[str] = Counter()
    first: dict[str, int] = {}
    tabs = next(("\t" in line for line in lines if _is_word(line)), False)
    sentences: list[list[tuple[int, list[str]]]] = [[]]
    names: Sequence[str] = ()
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith(DOCUMENT):
            sentences.append([])
            continue
        own = columns_of(line, tabs)
        what = _no_word(line, own, universal, not sentences[-1])
        if what is not None:
            left_out[what] += 1
            first.setdefault(what, number)
            continue
        names = names or _names(len(own), universal, path, number)
        if len(own) != len(names) or not own[0]:
            expected = f"{len(names)} columns as in the lines before"
            raise DataError(f"expected {expected}, found {line[:60]!r}", path, number)
        sentences[-1].append((number, own))
    kept = [own for own in sentences if own]
    if not kept:
        raise DataError("found no sentence; accepted: a word and its label a line", path)
    rows = ((own[0][0], {name: [columns[at] for _, columns in own] for at, name in enumerate(names)}) for own in kept)
    notes = [f"{path}: {count} {what} (first: line {first[what]})" for what, count in left_out.items()]
    layout = Layout(
        "conll", found, "\t" if tabs else " ", lines=tuple(lines), word_lines=[[at for at, _ in own] for own in kept]
    )
    return make_table(path, names, rows, layout, notes=notes)


def _is_word(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(("#", DOCUMENT))


def _no_word(line: str, columns: Sequence[str], universal: bool, at_start: bool) -> str | None:
    """What a line is that holds no word; None for one that does."""
    if at_start and line.startswith("#") and (universal or COMMENT.match(line)):
        return "lines are comments and no words"
    if universal and not columns[0].isdigit():
        return "lines without a whole number as id, such as 3-4, are left out"
    return None


def _names(count: int, universal: bool, path: Path, number: int) -> Sequence[str]:
    if universal and count != len(UNIVERSAL):
        raise DataError(
            f"expected the {len(UNIVERSAL)} columns of CoNLL-U, divided by tabs, found {count}", path, number
        )
    if universal:
        return UNIVERSAL
    return [WORD, *(f"column{at}" for at in range(2, count)), TAG] if count > 1 else [WORD]


def conll_text(path: Path, table: Table, new_columns: Mapping[str, Sequence[Any]]) -> str:
    """The file that a table was read from, with more columns at the ends of its words' lines.

    Args:
        new_columns: a list a row, with an item a word; None, in such a list or for it, becomes `O`.

    Raises:
        DataError: the table was read from another format; an item with a blank.
    """
    layout = table.layout
    if layout.kind != "conll":
        raise DataError("is written for a table that was read from such a file; accepted: the table's ending", path)
    lines = list(layout.lines)
    for values in new_columns.values():
        for numbers, own in zip(layout.word_lines, values, strict=True):
            for number, item in zip(numbers, own or [None] * len(numbers), strict=True):
                shown = NO_ENTITY if item is None else str(item)
                if COLUMN.fullmatch(shown) is None:
                    raise DataError(f"the label {shown!r} has a blank, which divides columns; accepted: .jsonl", path)
                line = lines[number - 1]
                end = "\r" if line.endswith("\r") else ""
                lines[number - 1] = line.removesuffix("\r") + layout.delimiter + shown + end
    return "\n".join(lines) + "\n"
