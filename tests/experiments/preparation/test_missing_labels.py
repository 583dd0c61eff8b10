"""Training labels such as `-` and `-1`, which stand for no label, do not become classes unnoticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.errors import UserError
from experiments.preparation.missing_labels import no_label_marks
from experiments.preparation.own_rows import ColumnFlags, Columns
from experiments.preparation.own_tables import Choices, OwnTask

COLUMNS = Columns(("text",), ("label",))
SNLI = ("entailment", "neutral", "contradiction", "-")


def folder_of(folder: Path, **splits: list[str]) -> str:
    folder.mkdir()
    for split, labels in splits.items():
        rows = [{"text": f"{split} {number}", "label": label} for number, label in enumerate(labels)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.mark.parametrize(
    ("labels", "sure", "perhaps"),
    [
        (SNLI, {"-"}, set()),
        (["a", "b", "?"], {"?"}, set()),
        (["yes", "-"], set(), {"-"}),
        (["+", "-"], set(), set()),
        (["+", "-", "0"], set(), set()),
        (["0", "1", "2", "-1"], {"-1"}, set()),
        (["1", "2", "3", "-1.0"], {"-1.0"}, set()),
        (["0", "1", "-1"], set(), {"-1"}),
        (["1", "-1"], set(), set()),
        (["-2", "-1", "0", "1", "2"], set(), set()),
        (["0.5", "2", "3", "-1"], set(), set()),
        (["good", "bad", "-1"], {"-1"}, set()),
        (["good", "bad", "nan"], {"nan"}, set()),
        (["good", "bad", "#N/A", "NaN"], {"#N/A", "NaN"}, set()),
        (["joy", "anger", "none"], set(), {"none"}),
        (["NA", "EU", "N/A"], set(), {"NA", "N/A"}),
        (["1", "2", "NA"], {"NA"}, set()),
        (["1.5", "2", "?", "null"], {"?", "null"}, set()),
        (["-", "?"], set(), set()),
        (["nan"], set(), set()),
        (["\U0001f600", "happy", "sad"], set(), set()),
    ],
)
def test_marks_are_told_apart_from_classes(labels: list[str], sure: set[str], perhaps: set[str]) -> None:
    assert no_label_marks(labels) == (sure, perhaps)


def test_a_mark_stops_is_left_out_or_becomes_a_class(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "snli", train=[*SNLI] * 9, dev=["neutral", "-"])
    with pytest.raises(UserError) as caught:
        OwnTask(source, COLUMNS)
    assert str(caught.value) == (
        f"{source}/train.jsonl, line 4: found the label '-' in 9 of 36 rows of train, which usually means no label; "
        "accepted: --missing_labels drop leaves such rows out, keep makes it a class"
    )
    task = OwnTask(source, COLUMNS, choices=Choices(missing_labels="drop"))
    assert task.labels == sorted(SNLI[:3])
    assert [len(task.splits[split]) for split in ("train", "dev")] == [27, 1]
    assert task.findings.lines() == [
        f"labels '-' of train, which mean no label: 9 (first: {source}/train.jsonl, line 4)",
        f"labels '-' of dev, which mean no label: 1 (first: {source}/dev.jsonl, line 2)",
        f"rows of train left out, having no label: 9 (first: {source}/train.jsonl, line 4)",
        f"rows of dev left out, having no label: 1 (first: {source}/dev.jsonl, line 2)",
    ]
    task = OwnTask(source, COLUMNS, choices=Choices(missing_labels="keep"))
    assert task.labels == sorted(SNLI) and len(task.splits["train"]) == 36
    assert task.findings.lines()[0].startswith("labels '-', a class like others; if it means no label, empty")


def test_a_label_that_may_be_a_class_is_one_and_is_reported(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "mood", train=["joy", "anger", "none"] * 9)
    task = OwnTask(source, COLUMNS)
    assert task.labels == ["anger", "joy", "none"]
    assert task.findings.lines() == [
        f"labels 'none', a class like others; if it means no label, empty these cells: 9 (first: {source}/train.jsonl, "
        "line 3)"
    ]


def test_numbers_with_marks_are_numbers(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "stars", train=["1.5", "2", "NA"] * 9, test=["?", "?"])
    task = OwnTask(source, COLUMNS, choices=Choices(missing_labels="drop"))
    assert task.task_type == "Regression" and {label for _, label, _ in task.splits["train"]} == {"1.5", "2"}
    assert [label for _, label, _ in task.splits["test"]] == ["", ""]


# names of columns


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("a, b", "c", Columns(("a, b",), ("c",))),
        ("a, b", "x,y", Columns(("a, b",), ("x,y",))),
        ('"a, b", c', "x", Columns(("a, b", "c"), ("x",))),
        ("c , d", 'x, "x,y"', Columns(("c", "d"), ("x", "x,y"))),
    ],
)
def test_a_name_with_a_comma_stands_alone_or_in_quotes(text: str, label: str, expected: Columns) -> None:
    assert ColumnFlags(text, label).read(["a, b", "c", "d", "x", "x,y"], None) == expected


def test_a_table_whose_column_has_a_comma(tmp_path: Path) -> None:
    rows = [f'"text {number}","{"xy"[number % 2]}"\n' for number in range(20)]
    (tmp_path / "in.csv").write_text('"Review, free text","Good, bad"\n' + "".join(rows))
    task = OwnTask(str(tmp_path / "in.csv"), ColumnFlags("Review, free text", "Good, bad"))
    assert task.labels == ["x", "y"] and len(task.splits["train"]) == 18
    with pytest.raises(UserError, match="found no column 'Review'"):
        OwnTask(str(tmp_path / "in.csv"), ColumnFlags("Review, free", "Good, bad"))
