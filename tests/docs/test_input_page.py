"""The examples of docs/input.md are read as the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_utils.tables import SUFFIXES, read_table
from data_utils.tables.content import suffix_of
from data_utils.tables.sentences import sentences_of
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "input.md"
EXAMPLES = {block.detail: block.text for block in blocks(PAGE) if block.kind == "file"}
WORDS = [["The", "New", "York"], ["Paris"]]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(EXAMPLES[name])
    table = read_table(path, columns=("text", "label") if name == "nameless.txt" else None)
    if name == "places.csv":
        table = sentences_of(table, "sentence", "word").table
    if name.startswith("places"):
        column = {"places.conll": "text", "places.csv": "word", "places.jsonl": "words"}[name]
        assert [row.values[column] for row in table.rows] == WORDS
        return
    assert table.columns == ("text", "label") and "/".join(row.cells["label"] for row in table.rows) in (
        "good/bad",
        "1/0",
    )
    assert not [note for note in table.notes if "--columns" not in note and "quotes are read" not in note]


def test_every_ending_that_is_read_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(EXAMPLES) == 8
    for suffix in SUFFIXES:
        assert f"{suffix}" in text and suffix_of(Path(f"a{suffix}")) == suffix
