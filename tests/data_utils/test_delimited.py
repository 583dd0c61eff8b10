"""CSV and TSV files: what divides, what quotes mean, encodings."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_utils.errors import DataError, FlagError
from data_utils.tables import read_table
from tests.data_utils.test_tables import cells, written


def test_quotes_hold_commas_and_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'text,label\r\n"one, two\r\nthree ""four""",x\r\n\r\nfive,y\r\n')
    found = read_table(path)
    assert [(row.number, row.cells) for row in found.rows] == [
        (2, {"text": 'one, two\r\nthree "four"', "label": "x"}),
        (5, {"text": "five", "label": "y"}),
    ]
    assert found.place(found.rows[1]) == f"{path}, line 5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufefftext; label\n1,5;x\n", {"text": "1,5", "label": "x"}),
        ('id;"text, or more";label\n1;"a, b";pos\n', {"id": "1", "text, or more": "a, b", "label": "pos"}),
        ('"text; all of it",label\na;b,c\n', {"text; all of it": "a;b", "label": "c"}),
        ("text\tlabel\na;b\tc,d\n", {"text": "a;b", "label": "c,d"}),
        ("text,label\ra,b\r", {"text": "a", "label": "b"}),
    ],
)
def test_what_divides_is_seen_in_the_first_line(text: str, expected: dict[str, str], tmp_path: Path) -> None:
    assert [row.cells for row in read_table(written(tmp_path / "a.csv", text)).rows] == [expected]


def test_a_document_in_a_cell_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\n" + "word " * 40_000 + ",x\n")
    assert len(cells(path)[0]) == 200_000


@pytest.mark.parametrize(
    ("text", "expected", "note"),
    [
        ('"no end\tx\n', ['"no end'], "line 2: is no row of a table"),
        ('5" disk\tx\n', ['5" disk'], "line 2 has them inside a field"),
        ('"I came.\tx\nI saw."\ty\n', ['"I came.', 'I saw."'], "line 2 has them|line 2 would be joined|is no row"),
        ('"I came.\tx\n"\ty\n', ['"I came.', '"'], "line 2 would be joined with the next"),
        ('"Great"\tx\nbad\ty\n', ['"Great"', "bad"], "line 2 has them around a field that needs none"),
        ('"a, b"\tx\nc, d\ty\n', ['"a, b"', "c, d"], "line 2 has them around a field that needs none"),
        ('"a, b"\tx\ncd\ty\n', ["a, b", "cd"], None),  # Excel's tab-separated text
        ('"a ""b"" c"\tx\n', ['a "b" c'], None),
        ('"a\nb"\tx\nc\ty\n', ["a\nb", "c"], None),
        ('"a\nb\tx\nc"\ty\n', ["a\nb\tx\nc"], "line 2: quotes hold lines that look like rows"),
    ],
)
def test_quotes_in_a_tsv(text: str, expected: list[str], note: str | None, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", "text\tlabel\n" + text)
    found = read_table(path)
    assert [row.cells["text"] for row in found.rows] == expected
    if note is None:
        assert not found.notes
    else:
        assert len(found.notes) == 1 and found.notes[0].startswith(str(path))
        assert any(own in found.notes[0] for own in note.split("|"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.csv, line 1: found no names of columns"),
        ("a,b,a\n", "a.csv, line 1: found the column 'a' 2 times"),
        ("a,b\n1,2\n1\n", "a.csv, line 3: expected 2 columns, found 1"),
        (
            "a:b\n1:2,5\n",
            "line 2: expected one column as in the first line, 'a:b', found 2; accepted: columns divided by",
        ),
        ('a,b\n1,2\n"1,2\n3,4\n', "a.csv, line 3: is no row of a table"),
        ('a,b\n1,2\n"' + "x\n" * 9_000_000 + '",2\n', "a.csv, line 3: is no row of a table (field larger"),
        ("a,b\n1,\0\n", "a.csv, line 2: found NUL at byte 3; accepted is text; for UTF-16"),
        (b"a,b\n1,2\nsch\xf6n,2\n", "a.csv, line 3: found the byte 0xf6 at byte 4, which is not utf-8; --encoding"),
    ],
)
def test_what_is_no_table_is_reported_by_line(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as found:
        read_table(written(tmp_path / "a.csv", text))
    assert said in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_blanks_around_names_of_columns_are_removed_and_reported(name: str, tmp_path: Path) -> None:
    divider = "\t" if name == "a.tsv" else ","
    path = written(tmp_path / name, f" text {divider}label\na{divider}x\n")
    found = read_table(path)
    note = f"{path}: names of columns are read and written without the blanks around them, such as ' text '"
    assert (found.columns, found.notes) == (("text", "label"), (note,))
    assert not read_table(written(tmp_path / name, f"text{divider}label\na{divider}x\n")).notes


def test_a_carriage_return_in_the_first_line_is_text(tmp_path: Path) -> None:
    found = read_table(written(tmp_path / "a.csv", "te\rxt;label\na;x\n"))
    assert found.columns == ("te\rxt", "label") and found.layout.delimiter == ";"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_says_the_encoding(encoding: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\nschön 😀,x\n".encode(encoding))
    assert cells(path) == ["schön 😀"] and cells(path, encoding="windows-1252") == ["schön 😀"]


def test_a_flag_says_the_encoding(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\n“schön”,x\n".encode("windows-1252"))
    assert cells(path, encoding="windows-1252") == ["“schön”"]
    path = written(tmp_path / "b.csv", "text,label\nschön,x\n".encode("utf-16-le"))
    assert cells(path, encoding="utf-16-le") == ["schön"]
    for wrong in ("klingon", "zip", "hex"):
        with pytest.raises(FlagError, match=f"--encoding: found '{wrong}', accepted: utf-8, utf-16, windows-1252"):
            read_table(path, encoding=wrong)
