"""Tables with a label for each word: CoNLL's files, a word a row, and lists that were written as text."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from data_utils.errors import UserError
from data_utils.tables import Table, read_table, write_table
from data_utils.tables.lists import list_in, with_lists
from data_utils.tables.sentences import sentences_of

CONLL = "-DOCSTART- O\n\n# sent_id = 1\nNew B-LOC\n# O\n\n\nred O\nYork I-LOC"


def written(folder: Path, name: str, content: str, encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(content.encode(encoding))
    return folder / name


def lists_of(table: Table, column: str) -> list[object]:
    return [row.values[column] for row in table.rows]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_conll_has_a_row_a_sentence(end: str, tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a.conll", CONLL.replace("\n", end)))
    assert table.columns == ("text", "label")
    assert lists_of(table, "text") == [["New", "#"], ["red", "York"]]  # "# O" is a word
    assert lists_of(table, "label") == [["B-LOC", "O"], ["O", "I-LOC"]]
    assert [table.place(row).rsplit(", ", 1)[1] for row in table.rows] == ["line 4", "line 8"]
    assert table.notes == (f"{tmp_path / 'a.conll'}: 1 lines are comments and no words (first: line 3)",)


@pytest.mark.parametrize(
    ("content", "columns", "words"),
    [
        ("one\ntwo\n", ("text",), [["one", "two"]]),
        ("one NN B-NP O\n\ntwo\tNN  B-NP O\n", ("text", "column2", "column3", "label"), [["one"], ["two"]]),
        ("z. B.\tO\nnow\tO\n", ("text", "label"), [["z. B.", "now"]]),
        ("# id 7 domain=en\nit _ _ O\n", ("text", "column2", "column3", "label"), [["it"]]),
        ("a\u00a0b O\n", ("text", "label"), [["a\u00a0b"]]),
    ],
)
def test_columns_of_a_conll(content: str, columns: tuple[str, ...], words: list[list[str]], tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a.conll", content))
    assert (table.columns, lists_of(table, "text")) == (columns, words)


def test_a_conllu_has_its_own_names(tmp_path: Path) -> None:
    lines = ["# text = du Tag", "1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_"]
    lines += [f"{at}\t{word}\t{word}\tADP\t_\t_\t0\troot\t_\t_" for at, word in ((1, "de"), (2, "le"), (3, "Tag"))]
    table = read_table(written(tmp_path, "a.conllu", "\n".join(lines) + "\n\n"))
    assert lists_of(table, "form") == [["de", "le", "Tag"]] and lists_of(table, "upos") == [["ADP"] * 3]
    assert [note.split(": ", 1)[1] for note in table.notes] == [
        "1 lines are comments and no words (first: line 1)",
        "1 lines without a whole number as id, such as 3-4, are left out (first: line 2)",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.conll", "one O\ntwo\n", "line 2: expected 2 columns as in the lines before, found 'two'"),
        ("a.conll", "one\tO\n\tO\n", "line 2: expected 2 columns as in the lines before"),
        ("a.conll", "\n-DOCSTART- O\n", "found no sentence; accepted: a word and its label a line"),
        ("a.conllu", "1\tone\tO\n", "line 1: expected the 10 columns of CoNLL-U, divided by tabs, found 3"),
    ],
)
def test_a_damaged_conll_is_refused_by_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_table(written(tmp_path, name, content))
    assert said in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_conll_comes_back_with_another_column(encoding: str, tmp_path: Path) -> None:
    content = CONLL.replace("red", "réd").replace("\n", "\r\n") + "\r\n"
    table = read_table(written(tmp_path, "a.conll", content, encoding), encoding="latin-1")
    write_table(tmp_path / "b.conll", table, {"own": [["B-X", None], None]})
    assert (tmp_path / "b.conll").read_bytes().decode(encoding).split("\r\n") == [
        "-DOCSTART- O", "", "# sent_id = 1", "New B-LOC B-X", "# O O", "", "", "réd O O", "York I-LOC O", "",
    ]  # fmt: skip
    with pytest.raises(UserError, match="the label 'a b' has a blank"):
        write_table(tmp_path / "b.conll", table, {"own": [["a b", None], None]})
    other = read_table(written(tmp_path, "a.csv", "text\nx\n"))
    with pytest.raises(UserError, match="accepted: the table's ending"):
        write_table(tmp_path / "b.conll", other, {})


# a word a row

WORDS = [("S1", "New", "B"), ("", "York", "I"), ("", "", "O"), ("S2", "red", "O"), ("S2", "one", "O"), ("", "", "")]


def words_table(folder: Path, rows: list[tuple[str, str, str]]) -> Table:
    frame = pandas.DataFrame(rows, columns=["Sentence #", "Word", "Tag"])
    frame.to_csv(folder / "words.csv", index=False)
    return read_table(folder / "words.csv")


def test_words_become_sentences(tmp_path: Path) -> None:
    table, places = sentences_of(words_table(tmp_path, WORDS), "Sentence #", "Word")
    assert lists_of(table, "Word") == [["New", "York"], ["red", "one"]]
    assert lists_of(table, "Tag") == [["B", "I"], ["O", "O"]] and lists_of(table, "Sentence #") == ["S1", "S2"]
    assert places == [[0, 1], [3, 4]]
    assert table.notes[0].endswith("1 rows have no word in column 'Word' and are left out (first: line 4)")
    assert [row.number for row in table.rows] == [2, 5]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("S1", "a", "O"), ("S2", "b", "O"), ("S1", "c", "O")], "line 4: found 'S1' in column 'Sentence #' again"),
        ([("", "a", "O")], "line 2: found no value in column 'Sentence #'"),
    ],
)
def test_sentences_that_cannot_be_told_apart(rows: list[tuple[str, str, str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        sentences_of(words_table(tmp_path, rows), "Sentence #", "Word")
    assert said in str(caught.value)


# lists as text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        (" [1, 2]\n", [1, 2]),
        ("[]", []),
        ("[laughs]", None),
        ("[a, b]", None),
        ("[1] see below", None),
        ("a", None),
        ("('a', 'b')", None),
    ],
)
def test_lists_in_texts(text: str, expected: list[object] | None) -> None:
    assert list_in(text) == expected


def test_a_list_without_commas_is_refused() -> None:
    for text in ("['New' 'York'\n 'is']", "[0 3 -1]", "[0.5 1.  2.]"):
        with pytest.raises(ValueError, match="as numpy prints it"):
            list_in(text)


def test_a_column_is_one_of_lists_if_all_its_cells_are(tmp_path: Path) -> None:
    tables = {
        "train": read_table(written(tmp_path, "a.csv", "t,l,o\n\"['a','b']\",\"['x']\",[1]\n['c'],,two\n")),
        "test": read_table(written(tmp_path, "b.csv", "t,o\n\"['d']\",x\n")),
    }
    found = with_lists(tables, ["t", "l", "o"])
    assert lists_of(found["train"], "t") == [["a", "b"], ["c"]] and lists_of(found["train"], "l") == [["x"], None]
    assert lists_of(found["train"], "o") == ["[1]", "two"] and lists_of(found["test"], "t") == [["d"]]
    assert [note.rsplit(": ", 1)[1] for note in found["train"].notes] == [
        f"column {name!r} holds lists written as text; they are read as lists" for name in "tl"
    ]
    tables["test"] = read_table(written(tmp_path, "b.csv", "t,o\nd,x\n"))
    with pytest.raises(UserError, match="b.csv, line 2: column 't': found 'd', accepted: a list, as in the training"):
        with_lists(tables, ["t"])
