"""Tables of all formats: every cell is the text that stands in the file, or the table is refused."""

from __future__ import annotations

import datetime
import gzip
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import openpyxl
import pandas as pd
import pytest

from data_utils.errors import DataError, UserError
from data_utils.tables import find_tables, read_table, write_table

TEXTS = [
    "plain", 'say "hi"', "a\tb", "two\nlines", '"whole"', "x\r\ny", "lone\rreturn", "NA", "nan", "null", "None", "007",
    "1.0", "1e3", "TRUE", " blanks ", "é😀", "=1+1", "_x000D_", "a,b", "a;b", "\u2028", "\x0b", "\u200b", '"begins',
    "-", "#N/A", "'1", "ends\\", "\ufeffmark", '""', "-1",
]  # fmt: skip


def cells(path: Path, column: str = "text", encoding: str | None = None) -> list[str]:
    return [row.cells[column] for row in read_table(path, encoding=encoding).rows]


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


PANDAS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "a.csv": lambda own, path: own.to_csv(path, index=False),
    "b.csv": lambda own, path: own.to_csv(path, index=False, sep=";", encoding="utf-16"),
    "c.csv": lambda own, path: own.to_csv(path, index=False, sep="\t", encoding="utf-8-sig"),
    "d.csv": lambda own, path: own.to_csv(path, index=False, quoting=1),
    "a.csv.gz": lambda own, path: own.to_csv(path, index=False),
    "a.tsv": lambda own, path: own.to_csv(path, index=False, sep="\t"),
    "b.tsv": lambda own, path: own.to_csv(path, index=False, sep="\t", quoting=1),
    "c.tsv": lambda own, path: own.to_csv(path, index=False, sep="\t", quoting=2),
    "a.tsv.gz": lambda own, path: own.to_csv(path, index=False, sep="\t"),
    "a.parquet": lambda own, path: own.to_parquet(path),
    "a.jsonl": lambda own, path: own.to_json(path, orient="records", lines=True),
    "a.jsonl.gz": lambda own, path: own.to_json(path, orient="records", lines=True),
    "a.json": lambda own, path: own.to_json(path, orient="records"),
}


@pytest.mark.parametrize("name", PANDAS)
def test_what_pandas_writes_is_read_to_the_letter(name: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": ["1.0", "NA"] * (len(TEXTS) // 2), "n": range(len(TEXTS))})
    PANDAS[name](frame, tmp_path / name)
    found = read_table(tmp_path / name)
    assert found.columns == ("text", "label", "n") and not found.notes
    assert [row.cells["text"] for row in found.rows] == TEXTS
    assert [row.cells["label"] for row in found.rows] == list(frame.label)
    assert [row.cells["n"] for row in found.rows] == [str(number) for number in range(len(TEXTS))]


@pytest.mark.parametrize("name", [*PANDAS, "a.xlsx"])
def test_random_tables_are_read_to_the_letter_or_a_note_says_what_was_changed(name: str, tmp_path: Path) -> None:
    draw = random.Random(name)
    for _ in range(60):
        own = ["".join(draw.choices('ab",\t\n;1 é', k=draw.randrange(1, 8))) for _ in range(draw.randrange(1, 6))]
        frame = pd.DataFrame({"text": own, "label": draw.choices(["x", '"y"', "z,"], k=len(own))})
        PANDAS.get(name, lambda own, path: own.to_excel(path, index=False))(frame, tmp_path / name)
        try:
            found = read_table(tmp_path / name)
        except DataError:
            assert name == "a.tsv"  # two quotes that could belong to rows each
            continue
        same = [row.cells["text"] for row in found.rows] == own
        assert same or (found.notes and name.endswith((".tsv", ".tsv.gz"))), own


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.xlsx"])
@pytest.mark.parametrize("source", ["a.csv", "b.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"])
def test_a_table_is_written_with_new_columns(source: str, name: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS, "n": range(len(TEXTS))})
    PANDAS[source](frame, tmp_path / source)
    target = tmp_path / "out" / name
    share = [number / 7 for number in range(len(TEXTS))]
    write_table(target, read_table(tmp_path / source), {"label": TEXTS, "share": share})
    found = read_table(target)
    assert found.columns == ("text", "n", "label", "share") and not found.notes
    assert cells(target) == cells(target, "label") == TEXTS
    assert [float(own) for own in cells(target, "share")] == pytest.approx(share, rel=1e-15)  # Excel has 15 digits
    assert cells(target, "n") == [str(number) for number in range(len(TEXTS))]


def test_a_copy_is_written_as_the_table_was(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text;label\nschön;x\n".encode("windows-1252"))
    write_table(tmp_path / "b.csv", read_table(path, encoding="windows-1252"), {"y": ["1"]})
    assert (tmp_path / "b.csv").read_bytes() == "text;label;y\nschön;x;1\n".encode("windows-1252")
    with pytest.raises(DataError, match=r"b.csv: cannot be written in cp1252, which lacks '😀'"):
        write_table(tmp_path / "b.csv", read_table(path, encoding="windows-1252"), {"y": ["😀"]})
    stray = read_table(written(tmp_path / "a.tsv", 'text\tlabel\n5" disk\tx\n'))
    write_table(tmp_path / "b.tsv", stray, {"y": ["1"]})
    assert (tmp_path / "b.tsv").read_text() == 'text\tlabel\ty\n5" disk\tx\t1\n'
    with pytest.raises(DataError, match="a cell with a tab or a line break does not fit"):
        write_table(tmp_path / "b.tsv", stray, {"y": ["1\n2"]})
    pd.DataFrame({"n": [1, 2], "list": [["a"], []]}).to_parquet(tmp_path / "a.parquet")
    write_table(tmp_path / "b.parquet", read_table(tmp_path / "a.parquet"), {"p": [0.5, None]})
    again = pd.read_parquet(tmp_path / "b.parquet")
    assert again.n.dtype == np.int64 and [list(own) for own in again.list] == [["a"], []] and again.p[0] == 0.5


@pytest.mark.parametrize(
    ("new", "said"),
    [({"text": ["a"]}, "has a column 'text' already"), ({"y": []}, "0 values of column 'y' for 1 rows")],
)
def test_new_columns_that_do_not_fit_are_refused(new: dict[str, list[str]], said: str, tmp_path: Path) -> None:
    found = read_table(written(tmp_path / "a.csv", "text,label\na,b\n"))
    with pytest.raises(DataError, match=said):
        write_table(tmp_path / "b.csv", found, new)
    with pytest.raises(DataError, match=r"b.xls: found the ending '.xls', accepted: .csv, .tsv"):
        write_table(tmp_path / "b.xls", found)


# packed files and sizes


def test_what_is_too_large_when_unpacked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("content", "table", "parquet", "excel"):
        monkeypatch.setattr(f"data_utils.tables.{module}.LARGEST_TABLE", 100_000)
    frame = pd.DataFrame({"text": ["a" * 1000] * 200})
    for name in ("a.csv.gz", "a.parquet", "a.xlsx"):
        PANDAS.get(name, lambda own, path: own.to_excel(path, index=False))(frame, tmp_path / name)
        assert (tmp_path / name).stat().st_size < 50_000
        with pytest.raises(DataError, match=f"{name}: holds more than 100000"):
            read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.parquet", "a.xlsx"])
def test_damaged_files_are_refused_in_a_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name}: cannot be read: No such file"):
        read_table(tmp_path / name)
    frame = pd.DataFrame({"text": ["a"] * 20})
    PANDAS.get(name, lambda own, path: own.to_excel(path, index=False))(frame, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-1]):
        with pytest.raises(DataError, match=name) as found:
            read_table(written(tmp_path / name, content))
        assert "\n" not in str(found.value)


# JSON


def test_json_values_are_shown_as_they_are_written(tmp_path: Path) -> None:
    values = ["1", "1.0", "1.50", "1e3", "true", "null", "NaN", '"1"', "12345678901234567890", '["a", 1]', "{}"]
    path = written(tmp_path / "a.jsonl", "".join(f'{{"text": {own}}}\n' for own in values))
    expected = ["1", "1.0", "1.50", "1e3", "true", "", "", "1", "12345678901234567890", '["a", 1]', "{}"]
    assert cells(path) == expected
    assert cells(written(tmp_path / "a.json", f'[{", ".join(f"""{{"text": {own}}}""" for own in values)}]')) == expected
    write_table(tmp_path / "b.json", read_table(path), {"new": [None] * len(values)})
    assert len(json.loads((tmp_path / "b.json").read_text())) == len(values)


def test_columns_are_the_keys_of_all_rows(tmp_path: Path) -> None:
    found = read_table(written(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"label": "x", "text": "b"}\n'))
    assert found.columns == ("text", "label")
    assert [(row.number, row.cells["label"]) for row in found.rows] == [(1, ""), (3, "x")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '[{"a": 1}, 2]', "a.json: row 2: expected a JSON object, found '2'"),
        ("a.jsonl", '{"a": 1}\n2\n', "a.jsonl, line 2: expected a JSON object"),
        ("a.json", '[{"a": 1, "a": 2}]', "a.json: found the key 'a' twice"),
        ("a.json", "[]", "a.json: found no rows"),
        ("a.json", '[{"a": 1}', "a.json, line 1: found no whole JSON object"),
    ],
)
def test_json_that_is_no_table(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as found:
        read_table(written(tmp_path / name, text))
    assert said in str(found.value)


# Parquet and Excel


def test_whole_numbers_of_parquet_stay_whole_where_some_are_missing(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "label": pd.array([1, None, 3], dtype="Int64"),
            "half": np.array([0.1, 2.5, np.nan], np.float32),
            "kind": pd.Categorical(["x", "y", "x"]),
            "is": [True, False, True],
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    found = read_table(tmp_path / "a.parquet")
    assert [tuple(row.cells.values()) for row in found.rows] == [
        ("1", "0.1", "x", "true"),
        ("", "2.5", "y", "false"),
        ("3", "", "x", "true"),
    ]
    assert found.place(found.rows[1]).endswith("a.parquet, row 2")
    pd.DataFrame({"text": [b"a"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="b.parquet, row 1: found bytes in column 'text'"):
        read_table(tmp_path / "b.parquet")


def test_excel_shows_numbers_as_a_person_writes_them(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    rows = [("text", "label", None), ("a", 1, None), (None, None, None), (7, 1.5, None), (1.0, True, None)]
    for row in (*rows, ("1.0", pd.Timestamp("2024-12-31"), None)):
        sheet.append(row)
    book.create_sheet("notes")
    book.save(tmp_path / "a.xlsx")
    found = read_table(tmp_path / "a.xlsx")
    assert [(row.number, *row.cells.values()) for row in found.rows] == [
        (2, "a", "1"),
        (4, "7", "1.5"),
        (5, "1", "TRUE"),
        (6, "1.0", "2024-12-31"),
    ]
    assert found.notes == (f"{tmp_path / 'a.xlsx'}: the sheet 'Sheet' is read, and not 'notes'",)


def test_a_formula_without_its_value_is_refused(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(["text"])
    book.active.append(["=1+1"])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="a.xlsx, row 2: found a formula without its value in column A"):
        read_table(tmp_path / "a.xlsx")


def test_excel_keeps_truths_numbers_and_times(tmp_path: Path) -> None:
    row = [True, 1, 0.25, datetime.datetime(2024, 1, 2, 3, 4), datetime.time(3, 4), "01", None]
    book = openpyxl.Workbook()
    book.active.append([f"c{number}" for number in range(len(row))])
    book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    write_table(tmp_path / "b.xlsx", read_table(tmp_path / "a.xlsx"), {"new": [False]})
    found = list(openpyxl.load_workbook(tmp_path / "b.xlsx").active.values)
    assert found[1] == (*row, False)
    assert [type(value) for value in found[1]] == [type(value) for value in (*row, False)]


def test_what_excel_would_change_becomes_text(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 1, 2, 3, 4, tzinfo=datetime.timezone.utc)
    frame = pd.DataFrame({"when": [moment], "big": [2**62 + 1], "single": np.float32([0.1]), "inf": [math.inf]})
    frame.to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    write_table(tmp_path / "b.xlsx", table)
    found = list(openpyxl.load_workbook(tmp_path / "b.xlsx").active.values)[1]
    assert found == ("2024-01-02 03:04:00+00:00", "4611686018427387905", 0.1, "inf")
    assert read_table(tmp_path / "b.xlsx").rows[0].cells == table.rows[0].cells


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_columns_of_pandas_json_are_refused(name: str, tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}).to_json(tmp_path / name)
    with pytest.raises(DataError, match='accepted: an object a row, which pandas writes with orient="records"'):
        read_table(tmp_path / name)
    pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}).to_json(tmp_path / name, orient="records")
    assert [row.cells for row in read_table(tmp_path / name).rows] == [
        {"text": "a", "label": "0"},
        {"text": "b", "label": "1"},
    ]


def test_a_text_that_excel_cannot_hold_is_refused(tmp_path: Path) -> None:
    found = read_table(written(tmp_path / "a.csv", "text\n" + "a" * 32_768 + "\n"))
    with pytest.raises(DataError, match="b.xlsx, row 2: a text of 32768 characters does not fit"):
        write_table(tmp_path / "b.xlsx", found)


# folders and the library


def test_a_folder_has_its_splits(tmp_path: Path) -> None:
    for name in ("train.csv", "test.tsv", "notes.csv", "dev.txt"):
        written(tmp_path / name, "text\na\n")
    written(tmp_path / "validation.jsonl.gz", gzip.compress(b'{"text": "a"}\n'))
    name, tables = find_tables(str(tmp_path))
    assert name == tmp_path.name
    assert {split: Path(own.source).name for split, own in tables.items()} == {
        "train": "train.csv",
        "dev": "validation.jsonl.gz",
        "test": "test.tsv",
    }
    notes = [note for table in tables.values() for note in table.notes]
    assert notes == [f"{tmp_path}: files that are not read: dev.txt, notes.csv"]
    written(tmp_path / "dev.csv", "")
    with pytest.raises(DataError, match=r"validation\.jsonl\.gz: is a second dev"):
        find_tables(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.doc", "ending '.doc', accepted: .csv"), ("a.xlsx.gz", "'.xlsx.gz', accepted"), ("empty", "no table")],
)
def test_sources_that_are_none(name: str, said: str, tmp_path: Path) -> None:
    written(tmp_path / "a.doc", "x")
    written(tmp_path / "a.xlsx.gz", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=said):
        find_tables(str(tmp_path / name))


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    train = datasets.Dataset.from_dict({"text": TEXTS[:2], "label": [1, 0]}, features=features)
    test = datasets.Dataset.from_dict({"text": ["b"], "label": [-1]}, features=features)
    datasets.DatasetDict({"train": train, "validation": train, "test": test}).save_to_disk(str(tmp_path / "mine"))
    name, tables = find_tables(str(tmp_path / "mine"))
    assert name == "mine" and set(tables) == {"train", "dev", "test"}
    assert [row.cells for row in tables["train"].rows] == [
        {"text": TEXTS[0], "label": "good"},
        {"text": TEXTS[1], "label": "bad"},
    ]
    assert [row.cells["label"] for row in tables["test"].rows] == [""]
    assert tables["train"].class_names == {"label": ("bad", "good")}
    train.save_to_disk(str(tmp_path / "one"))
    assert set(find_tables(str(tmp_path / "one"))[1]) == {"train"}
    written(tmp_path / "one" / "state.json", "{")
    with pytest.raises(DataError, match="one: cannot be read by the library datasets"):
        find_tables(str(tmp_path / "one"))


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
    assert tables["train"].notes == ("nyu-mll/glue: splits that are not read: other",)
    assert [(row.number, row.cells, row.values) for row in tables["train"].rows] == [
        (1, {"text": "one", "label": "good"}, {"text": "one", "label": 1})
    ]
    assert tables["train"].class_names == {"label": ("bad", "good")}


def test_a_data_set_that_cannot_be_loaded_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load_dataset(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no hub\nmore")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match=r"--from: imbd is no file or folder, .* \(no hub\); accepted") as found:
        find_tables("imbd")
    assert "\n" not in str(found.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        find_tables("imdb")


def test_two_development_splits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": Split([{"text": "one", "label": 1}]), "validation": Split(), "dev": Split()}
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: splits))
    with pytest.raises(UserError, match="has the splits train, validation, dev, accepted: one of dev, valid"):
        find_tables("imdb")
