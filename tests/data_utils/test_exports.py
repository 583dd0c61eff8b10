"""Tables as other programs export them: spreadsheets, pandas, web services. What is changed is said in a note."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pandas
import pytest
from pyarrow import parquet

from data_utils.errors import FlagError, UserError
from data_utils.tables import find_tables, read_table, write_table
from data_utils.tables.sources import find_splits

FRAME = pandas.DataFrame({"text": ["a, b", 'c "d"', "e\nf"], "label": ["x", "y", "x"]})
ROWS = FRAME.to_dict("records")


def written(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def read(path: Path, **flags: object) -> tuple[list[dict[str, str]], list[str]]:
    """The cells of the columns `text` and `label`, and the notes without the file's name."""
    table = read_table(path, **flags)  # type: ignore[arg-type]
    cells = [{name: row.cells[name] for name in ("text", "label")} for row in table.rows]
    return cells, [note.removeprefix(f"{path}: ") for note in table.notes]


@pytest.mark.parametrize("divider", [",", ";", "\t", "|"])
def test_a_line_for_excel_names_the_divider(divider: str, tmp_path: Path) -> None:
    content = FRAME.to_csv(index=False, sep=divider)
    path = written(tmp_path / "a.csv", f"sep={divider}\n{content}")
    cells, notes = read(path)
    assert cells == ROWS and [row.number for row in read_table(path).rows] == [3, 4, 5]
    assert notes == [
        f"{f'sep={divider}'.strip()!r} in the first line names the divider; it is no row, and is not written"
    ]
    assert read(written(path, content)) == (ROWS, [])


@pytest.mark.parametrize("ends", [",,", ",,,"])
def test_columns_without_name_and_content_are_left_out(ends: str, tmp_path: Path) -> None:
    lines = ["text,label", "one,x", "two,y"]
    path = written(tmp_path / "a.csv", "".join(line + ends + "\n" for line in lines))
    cells, notes = read(path)
    assert cells == [{"text": "one", "label": "x"}, {"text": "two", "label": "y"}]
    assert notes == [f"{len(ends)} columns without a name and without content are left out"]
    with pytest.raises(UserError, match="found the column '' 2 times"):
        read_table(written(path, "text,label,,\none,x,3,\n"))


def test_quotes_after_blanks_are_quotes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", '"text", "label"\n"a, b", "x"\n"c ""d""", "y"\n"e\nf", "x"\n')
    assert read(path) == (ROWS, ["blanks after ',' are left out, so that quotes after them are quotes"])
    path = written(tmp_path / "a.csv", 'text,label\nHe said "no",x\n"He said, ""no""", y\n')
    assert read(path) == ([{"text": 'He said "no"', "label": "x"}, {"text": 'He said, "no"', "label": " y"}], [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,label\na, b,x\n", "line 2: expected 2 columns, found 3; a text with ',' in it needs quotes around it"),
        ('text,label\n"a \\"b\\" c",x\n', 'a quote inside quotes is doubled, "", and not escaped by a backslash'),
    ],
)
def test_a_refusal_says_how_to_write_it(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_table(written(tmp_path / "a.csv", text))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (json.dumps({"data": ROWS}), "the rows are those of the key 'data'"),
        (
            json.dumps({"version": 1, "examples": ROWS}, indent=1),
            "the rows are those of the key 'examples'; left out: 'version'",
        ),
        (FRAME.to_json(orient="split"), "the rows are those of the key 'data'"),
        (FRAME.to_json(orient="table"), "the rows are those of the key 'data'; left out: 'schema'"),
        (json.dumps(FRAME.to_dict("list")), "holds a list a column"),
    ],
)
def test_rows_inside_an_object(content: str, note: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", content)
    assert read(path) == (ROWS, [note])
    write_table(tmp_path / "b.json", read_table(path), {"new": [1, 2, 3]})
    assert [row.values["new"] for row in read_table(tmp_path / "b.json").rows] == [1, 2, 3]


def test_an_object_with_several_tables_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", json.dumps({"sst2": ROWS, "rte": ROWS}, indent=1))
    with pytest.raises(
        UserError, match=r"a.json: holds rows under several keys \(sst2, rte\); accepted: a file with one"
    ):
        read_table(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_an_object_a_line_is_a_row(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, "".join(json.dumps(row) + "\n" for row in ROWS))
    assert read(path) == (ROWS, [])
    if name != "a.json":
        (row,) = read_table(written(path, '{"turns": [{"a": 1}, {"a": 2}], "id": 3}\n')).rows
        assert list(row.cells) == ["turns", "id"]


# names of columns


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt"])
def test_names_for_a_file_without_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    FRAME.to_csv(path, index=False, header=False, sep="," if name == "a.csv" else "\t")
    said = "the columns are named by --columns; where the table is written, these are line 1"
    assert read(path, columns=("text", "label")) == (ROWS, [said])
    with pytest.raises(UserError, match="expected 3 columns, found 2"):
        read_table(path, columns=("a", "b", "c"))
    with pytest.raises(UserError, match="found no column 'text'.*--columns names those of a file without names"):
        from data_utils.tables import column_of

        column_of(read_table(path), "text", "text")


def test_names_say_what_divides(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "one, two, three;x\nfour;y\n")
    assert read(path, columns=("text", "label"))[0][0] == {"text": "one, two, three", "label": "x"}


def test_names_go_with_files_of_lines_alone(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(FlagError, match=r"--columns: found it with .*a.parquet, accepted: with .csv, .tsv, .txt"):
        read_table(tmp_path / "a.parquet", columns=("text", "label"))
    with pytest.raises(FlagError, match=r"--columns: found it with imdb"):
        find_tables("imdb", columns=("text", "label"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.csv", "test.csv"], {"train": "train.csv", "test": "test.csv"}),
        (["own_train.csv", "own-dev.csv"], {"train": "own_train.csv", "dev": "own-dev.csv"}),
        (["train.csv", "validation.jsonl.gz"], {"train": "train.csv", "dev": "validation.jsonl.gz"}),
        (["train.csv"], None),
        (["train.csv", "own_train.csv"], None),
        (["a_train.csv", "b_test.csv"], None),
        (["a/train.csv", "b/test.csv"], None),
        (["train.csv", "reviews.csv"], None),
        (["dev.csv", "test.csv"], None),
        (["train", "test"], None),
    ],
)  # fmt: skip
def test_files_that_are_splits_of_one_task(names: list[str], expected: dict[str, str] | None) -> None:
    assert find_splits(names) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.csv.zip", "unpack it, or pack it with gzip"), ("a.xls", "save it as .xlsx or .csv"), ("a.pkl", "to_parquet")],
)
def test_other_files_with_tables_are_refused_with_a_way_out(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read_table(written(tmp_path / name, "x"))


def test_parquet_files_of_the_library_have_the_names_of_classes(tmp_path: Path) -> None:
    """As the hub hands them out: a folder with `train-00000-of-00001.parquet`."""
    classes = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": classes,
            "all": datasets.Sequence(classes),
            "n": datasets.Value("int64"),
        }
    )
    columns = {"text": ["a", "b", "c"], "label": [1, 0, -1], "all": [[1], [0, 1], []], "n": [1, 0, 1]}
    data = datasets.Dataset.from_dict(columns, features=features)
    (tmp_path / "own").mkdir()
    for split in ("train", "validation"):
        data.to_parquet(tmp_path / "own" / f"{split}-00000-of-00001.parquet")
    name, tables = find_tables(str(tmp_path / "own"))
    assert (name, list(tables)) == ("own", ["train", "dev"])
    assert [row.cells["label"] for row in tables["train"].rows] == ["good", "bad", ""]
    assert [row.values["all"] for row in tables["train"].rows] == [["good"], ["bad", "good"], []]
    assert [row.cells["n"] for row in tables["train"].rows] == ["1", "0", "1"]
    assert [note.split(": ")[1] for note in tables["dev"].notes] == [
        f"column {own!r} has the names of its classes in the file's metadata; they are used" for own in ("label", "all")
    ]
    write_table(tmp_path / "copy.parquet", tables["train"], {"new": ["a", "b", "c"]})
    assert parquet.read_table(tmp_path / "copy.parquet").column("label").to_pylist() == [1, 0, -1]
