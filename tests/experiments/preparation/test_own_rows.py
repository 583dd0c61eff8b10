"""What would make training or scores wrong is refused in a line, or done as the flag says, and told with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from data_utils.errors import UserError
from experiments.preparation.own_definition import write_definition
from experiments.preparation.own_labels import similar
from experiments.preparation.own_rows import Columns
from experiments.preparation.own_tables import Choices, OwnTask
from tasks.definition import TaskDefs

COLUMNS = Columns(("text",), ("label",))


def folder_of(path: Path, **splits: list[tuple[str, object]]) -> str:
    path.mkdir(exist_ok=True)
    for split, rows in splits.items():
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
        (path / f"{split}.jsonl").write_text("".join(lines))
    return str(path)


def many(*labels: object) -> list[tuple[str, object]]:
    return [(f"text {number}", label) for number, label in enumerate(labels)]


def labels_of(task: OwnTask, split: str) -> list[str]:
    return [label for _, label, *_ in task.splits[split]]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["Bad", "bad", "good"], [["Bad", "bad"]]),
        (["1", "1.0", "true", "0", "no"], [["1", "1.0", "true"]]),
        (["01", "+1", "1e0", "1"], [["01", "+1", "1e0", "1"]]),
        (["very  good", "very good", "VERY GOOD"], [["very  good", "very good", "VERY GOOD"]]),
        (["ﬁne", "fine"], [["ﬁne", "fine"]]),
        (["-0", "0.0", "false"], [["-0", "0.0", "false"]]),
        (["a", "b", "1", "11", "10", "nan", "inf", "yes", "1_0"], []),
    ],
)
def test_similar_labels(labels: list[str], expected: list[list[str]]) -> None:
    assert similar(labels) == expected


def test_similar_labels_stop_merge_or_stay(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "own", train=many(*["bad", "good"] * 9, "Bad"), dev=[("z", "GOOD")])
    with pytest.raises(UserError) as found:
        OwnTask(source, COLUMNS)
    said = str(found.value)
    assert "line 19: labels that differ in case" in said or "dev.jsonl, line 1: labels that differ in case" in said
    assert "'bad' (9), 'Bad' (1)" in said and "'good' (9), 'GOOD' (1)" in said and "--similar_labels" in said
    task = OwnTask(source, COLUMNS, choices=Choices(similar_labels="merge"))
    assert task.labels == ["bad", "good"] and labels_of(task, "dev") == ["good"]
    assert f"labels 'Bad', made 'bad': 1 (first: {source}/train.jsonl, line 19)" in task.findings.lines()
    with pytest.raises(UserError, match="found the label 'GOOD'"):
        OwnTask(source, COLUMNS, choices=Choices(similar_labels="keep"))
    folder_of(tmp_path / "own", dev=[("z", "good")])
    task = OwnTask(source, COLUMNS, choices=Choices(similar_labels="keep"))
    assert task.labels == ["Bad", "bad", "good"]


def test_the_kinds_of_one_in_json_are_similar_and_numbers_to_predict_are_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'1' \(3\), '1.0' \(3\), 'true' \(3\)"):
        OwnTask(folder_of(tmp_path / "own", train=many(*[1, 1.0, True, 0] * 3)), COLUMNS)
    task = OwnTask(folder_of(tmp_path / "own", train=many(*[1, 1.0, 2.5] * 9)), COLUMNS)
    assert task.task_type == "Regression"


def test_missing_labels_are_reported_at_once(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "own", train=many(*["a", None, "b", ""] * 9))
    with pytest.raises(UserError) as found:
        OwnTask(source, COLUMNS)
    assert (
        f"{source}/train.jsonl, line 2: found no label in column 'label'; 18 of 36 rows of train have none (line 4, "
        "line 6, line 8, line 10, …)" in str(found.value)
    )
    task = OwnTask(source, COLUMNS, choices=Choices(missing_labels="drop"))
    assert len(task.splits["train"]) + len(task.splits["dev"]) == 18
    assert task.findings.lines() == [
        f"rows of train left out, having no label: 18 (first: {source}/train.jsonl, line 2)"
    ]


def test_some_labels_of_a_test_set_are_no_test_set(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "own", train=many(*["a", "b"] * 9), test=[("x", "a"), ("y", None)])
    with pytest.raises(UserError, match=r"test.jsonl, line 2: found no label"):
        OwnTask(source, COLUMNS)
    task = OwnTask(source, COLUMNS, choices=Choices(missing_labels="drop"))
    assert task.splits["test"] == [("0", "a", "x")]


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (["a", "b"], [-1, -1], ["", ""]),
        ([0, 1], [-1.0, "-1"], ["", ""]),
        ([-1, 1], [-1, 1], ["-1", "1"]),  # a label as others
        ([0.5, -1], [-1, -1], ["", ""]),
        ([0.5, -1], [-1, 0.5], ["-1", "0.5"]),
    ],
)
def test_minus_one_of_a_test_set_is_no_label(
    train: list[object], test: list[object], expected: list[str], tmp_path: Path
) -> None:
    rows = [(f"test {number}", label) for number, label in enumerate(test)]
    task = OwnTask(folder_of(tmp_path / "own", train=many(*train * 9), test=rows), COLUMNS)
    assert labels_of(task, "test") == expected


def test_texts_that_training_shares_with_other_sets(tmp_path: Path) -> None:
    train = many(*["a", "b"] * 9)
    source = folder_of(tmp_path / "own", train=train, dev=[("new", "a"), ("text  3 ", "a"), ("text 4", "b")])
    with pytest.raises(UserError) as found:
        OwnTask(source, COLUMNS)
    assert (
        f"{source}/train.jsonl, line 4: this text and those of 1 more training rows stand in the development or test "
        f"set too (this one: {source}/dev.jsonl, line 2)" in str(found.value)
    )
    task = OwnTask(source, COLUMNS, choices=Choices(shared_texts="keep"))
    assert len(task.splits["train"]) == 18
    task = OwnTask(source, COLUMNS, choices=Choices(shared_texts="drop"))
    assert [text for _, _, text in task.splits["train"]] == [text for text, _ in train if text[5:] not in ("3", "4")]
    left = "rows of train left out, whose texts the development or test set has: 2"
    assert task.findings.lines() == [f"{left} (first: {source}/train.jsonl, line 4)"]
    folder_of(tmp_path / "own", dev=train)
    with pytest.raises(UserError, match="every training text stands in the development or test set too"):
        OwnTask(source, COLUMNS, choices=Choices(shared_texts="drop"))


def test_a_test_set_without_labels_may_share_texts(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "own", train=many(*["a", "b"] * 9), test=[("text 3", None)])
    assert len(OwnTask(source, COLUMNS).splits["test"]) == 1


# several labels in one column


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_several_labels_in_one_column(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"own.{suffix}"
    lists = [["b", "a"], [], ["b"], ["a "]] * 9
    frame = pd.DataFrame({"text": [f"text {number}" for number in range(36)], "label": lists})
    if suffix == "csv":
        frame.assign(label=[" ; ".join(own) for own in lists]).to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    separator = ";" if suffix == "csv" else None
    task = OwnTask(str(path), Columns(("text",), ("label",), separator=separator), dev_share=0.25)
    assert (task.task_type, task.labels) == ("MultiLabel", ["a", "b"])
    found = {uid: label for split in task.splits.values() for uid, label, _ in split}
    assert [found[str(number)] for number in range(4)] == ["[1, 1]", "[0, 0]", "[0, 1]", "[1, 0]"]
    write_definition(tmp_path / "task_def.yml", [task])
    assert TaskDefs(tmp_path / "task_def.yml").get_task_def("own").task_type.name == "MultiLabel"
    with pytest.raises(UserError, match="--task_type: found Classification for several labels a text"):
        OwnTask(str(path), Columns(("text",), ("label",), separator=separator), task_type="Classification")


def test_a_test_set_without_several_labels_has_none(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "own", train=many(*["a;b", "a", ""] * 9), test=[("x", ""), ("y", None)])
    columns = Columns(("text",), ("label",), separator=";")
    task = OwnTask(source, columns)
    assert labels_of(task, "test") == ["", ""]
    assert set(labels_of(task, "train")) == {"[1, 1]", "[1, 0]", "[0, 0]"}


# a test table alone


def test_a_test_table_needs_the_definition_of_its_task(tmp_path: Path) -> None:
    first = OwnTask(folder_of(tmp_path / "own", train=many(*["a", "b"] * 9)), COLUMNS)
    write_definition(tmp_path / "task_def.yml", [first])
    known = tmp_path / "task_def.yml"
    (tmp_path / "new.csv").write_text("text\nx\ny\n")
    new = str(tmp_path / "new.csv")
    task = OwnTask(new, COLUMNS, name="own", split="test", task_def=known)
    assert task.splits == {"test": [("0", "", "x"), ("1", "", "y")]} and not task.is_new
    with pytest.raises(UserError, match="no definition of a task 'new'; --task_name names one of own"):
        OwnTask(new, COLUMNS, split="test", task_def=known)
    with pytest.raises(UserError, match="found no train table, and no definition"):
        OwnTask(new, COLUMNS, split="test")
    with pytest.raises(UserError, match="--text: 2 columns make PremiseAndOneHypothesis"):
        OwnTask(new, Columns(("text", "text"), ("label",)), name="own", split="test", task_def=known)
    (tmp_path / "new.csv").write_text("text,label\nx,a\ny,c\n")
    with pytest.raises(UserError, match="line 3: found the label 'c', accepted: a, b"):
        OwnTask(new, COLUMNS, name="own", split="test", task_def=known)
    unlabeled = OwnTask(new, COLUMNS, name="own", split="unlabeled", task_def=known)
    assert unlabeled.splits == {"unlabeled": [("0", "", "x"), ("1", "", "y")]}
    with pytest.raises(UserError, match="--split: found .*own with train, accepted|--split"):
        OwnTask(
            folder_of(tmp_path / "two", train=[("a", "a")], dev=[("b", "b")]), COLUMNS, split="test", task_def=known
        )


def test_blanks_around_labels_and_ids_that_occur_twice_are_reported(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(
        "text,label,id\n" + "".join(f"t {n}, {'ab'[n % 2]},{n // 2}\n" for n in range(18))
    )
    task = OwnTask(str(tmp_path / "own.csv"), Columns(("text",), ("label",), "id"))
    assert task.labels == ["a", "b"]
    path = tmp_path / "own.csv"
    assert task.findings.lines() == [
        f"labels with blanks around them, which are taken away: 18 (first: {path}, line 2)",
        f"values of column 'id' that stand in an earlier row too: 9 (first: {path}, line 3)",
    ]
