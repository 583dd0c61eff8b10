import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_utils.errors import DataError, UserError
from data_utils.tables import file_table, find_tables, read_delimited


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_quotes_hold_commas_and_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'text,label\r\n"one, two\nthree ""four""",x\r\n\r\nfive,y\r\n')
    assert list(read_delimited(path)) == [
        (2, {"text": 'one, two\nthree "four"', "label": "x"}),
        (5, {"text": "five", "label": "y"}),
    ]


def test_a_semicolon_divides_where_it_makes_more_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "\ufefftext; label\n1,5;x\n")
    assert list(read_delimited(path)) == [(2, {"text": "1,5", "label": "x"})]
    path = written(tmp_path / "b.csv", 'id;"text, or more";label\n1;"a, b";pos\n')
    assert list(read_delimited(path)) == [(2, {"id": "1", "text, or more": "a, b", "label": "pos"})]
    path = written(tmp_path / "c.csv", '"text; all of it",label\na;b,c\n')
    assert list(read_delimited(path)) == [(2, {"text; all of it": "a;b", "label": "c"})]


def test_a_document_in_a_cell_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\n" + "word " * 40_000 + ",x\n")
    assert len(next(read_delimited(path))[1]["text"]) == 200_000


def test_quotes_mean_nothing_in_a_tsv(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", 'text\tlabel\n"no end\tx\n')
    assert list(read_delimited(path)) == [(2, {"text": '"no end', "label": "x"})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.csv, line 1: found no names of columns"),
        ("a,b,a\n", "a.csv, line 1: found the column 'a' 2 times"),
        ("a,b\n1,2\n1\n", "a.csv, line 3: expected 2 columns, found 1"),
        ('a,b\n1,2\n"1,2\n3,4\n', "a.csv, line 3: is no row of a table"),
        ('a,b\n1,2\n"' + "x\n" * 9_000_000 + '",2\n', "a.csv, line 3: is no row of a table (field larger"),
    ],
)
def test_what_is_no_table_is_told_by_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as found:
        list(read_delimited(written(tmp_path / "a.csv", text)))
    assert said in str(found.value) and "\n" not in str(found.value)


def test_json_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "one", "label": 1}\n')
    assert list(file_table(path).rows()) == [(1, {"text": "one", "label": 1})]


def test_a_folder_has_its_splits(tmp_path: Path) -> None:
    for name in ("train.csv", "validation.jsonl", "test.tsv", "notes.csv", "dev.txt"):
        written(tmp_path / name, "")
    name, tables = find_tables(str(tmp_path))
    assert name == tmp_path.name
    assert {split: Path(table.place).name for split, table in tables.items()} == {
        "train": "train.csv",
        "dev": "validation.jsonl",
        "test": "test.tsv",
    }
    written(tmp_path / "dev.csv", "")
    with pytest.raises(DataError, match=r"validation\.jsonl: is a second dev"):
        find_tables(str(tmp_path))


@pytest.mark.parametrize(("name", "said"), [("a.txt", "ending '.txt', accepted: .csv"), ("empty", "no train table")])
def test_sources_that_are_none(name: str, said: str, tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=said):
        find_tables(str(tmp_path / name))


class Split(list[dict[str, Any]]):
    """A split as the `datasets` library gives it."""

    @property
    def features(self) -> dict[str, Any]:
        return {"text": SimpleNamespace(dtype="string"), "label": SimpleNamespace(names=["bad", "good"])}


def test_data_sets_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> dict[str, Split]:
        asked.append((*arguments, options))
        return {"train": Split([{"text": "one", "label": 1}]), "validation": Split(), "other": Split()}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    name, tables = find_tables("nyu-mll/glue:cola", "cache")
    assert asked == [("nyu-mll/glue", "cola", {"cache_dir": "cache"})]
    assert name == "cola" and set(tables) == {"train", "dev"}
    assert list(tables["train"].rows()) == [(1, {"text": "one", "label": 1})]
    assert tables["train"].label_names == {"label": ["bad", "good"]}


def test_a_data_set_that_cannot_be_loaded_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no hub\nmore")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match=r"--from: imbd is no file or folder, .* \(no hub\); accepted") as found:
        find_tables("imbd")
    assert "\n" not in str(found.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        find_tables("imdb")
