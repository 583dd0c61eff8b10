import json
from collections import Counter
from pathlib import Path

import pytest

from data_utils.errors import UserError
from experiments.canonical import Example
from experiments.preparation.own_definition import write_definition
from experiments.preparation.own_tables import Choices, Columns, OwnTask, hold_out
from tasks.definition import TaskDefs

COLUMNS = Columns(("text",), ("label",))


def table(path: Path, *rows: dict[str, object]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(*labels: object) -> list[dict[str, object]]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["good", "bad"] * 10, ["bad", "good"]),
        ([10, 9, 1] * 10, ["1", "9", "10"]),
        ([True, False] * 10, ["false", "true"]),
        ([1.0, 2.5] * 10, []),
    ],
)
def test_labels_say_what_task_it_is(labels: list[object], expected: list[str], tmp_path: Path) -> None:
    task = OwnTask(table(tmp_path / "my_own.jsonl", *rows(*labels)), COLUMNS)
    kind = "Classification" if expected else "Regression"
    assert (task.name, task.labels, task.task_type) == ("my-own", expected, kind)
    write_definition(tmp_path / "task_def.yml", [task], "tanh")
    found = TaskDefs(tmp_path / "task_def.yml").get_task_def("my-own")
    assert found.n_class == max(1, len(expected)) and found.actf == "tanh"
    assert expected == ([] if found.label_vocab is None else list(found.label_vocab.tok2ind))


def test_whole_numbers_are_measures_where_it_is_said(tmp_path: Path) -> None:
    source = table(tmp_path / "a.jsonl", *rows(*[1, 2, 3] * 10))
    assert OwnTask(source, COLUMNS, task_type="Regression").definition()["task_type"] == "Regression"


def test_splits_and_their_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = Columns(("text", "other"), ("label",), "key")
    row = {"text": "a\tb\nc", "other": "d", "label": "x", "key": 7}
    table(tmp_path / "in" / "train.jsonl", row, row | {"label": "y", "key": 8}, row | {"other": " "})
    table(tmp_path / "in" / "dev.jsonl", row | {"label": None})
    table(tmp_path / "in" / "test.jsonl", {"text": "a", "other": "b", "key": "z"})
    task = OwnTask(str(tmp_path / "in"), pairs)
    paths = task.write(tmp_path)
    assert {split: path.read_text() for split, path in paths.items()} == {
        "train": "7\tx\ta b c\td\n8\ty\ta b c\td\n",
        "dev": "7\t\ta b c\td\n",
        "test": "z\t\ta\tb\n",
    }
    assert "in_train.tsv: 2 examples" in capsys.readouterr().out
    folder = tmp_path / "in"
    assert task.findings.lines() == [
        f"texts with tabs or line breaks, which become blanks: 3 (first: {folder / 'train.jsonl'}, line 1)",
        f"rows left out, a text being empty: 1 (first: {folder / 'train.jsonl'}, line 3)",
        f"rows of train with the texts of an earlier row: 1 (first: {folder / 'train.jsonl'}, line 2)",
        f"rows of train with the texts of an earlier row but other labels: 1 (first: {folder / 'train.jsonl'}, line 2)",
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text": "a"}, "line 21: found no label in column 'label'"),
        ({"text": "a", "label": ""}, "line 21: found no label in column 'label'"),
        ({"text": ["a"], "label": "x"}, "line 21: found \"['a']\", accepted: a text or a number"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_reported_by_line(wrong: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as found:
        OwnTask(table(tmp_path / "a.jsonl", *rows(*["x", "y"] * 10), wrong), COLUMNS)
    assert said in str(found.value)


def test_a_column_that_is_not_there_is_reported(tmp_path: Path) -> None:
    source = table(tmp_path / "a.jsonl", *rows("x", "y"))
    with pytest.raises(UserError) as found:
        OwnTask(source, Columns(("txt",), ("label",)))
    assert "no column 'txt' (did you mean 'text'?); --text names it; accepted: text, label" in str(found.value)


def test_a_label_that_was_never_learned_is_reported(tmp_path: Path) -> None:
    table(tmp_path / "in" / "train.jsonl", *rows(*["good", "bad"] * 10))
    table(tmp_path / "in" / "dev.jsonl", *rows("good", "godo"))
    with pytest.raises(UserError, match=r"dev\.jsonl, line 2: found the label 'godo' \(did you mean 'good'\?\)"):
        OwnTask(str(tmp_path / "in"), COLUMNS)


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        (["x"] * 9, None, "every label in column 'label' is 'x'"),
        ([f"id{number}" for number in range(9)], None, "holds 9 different labels in 9 rows, which are no classes"),
        (["1", "two"] * 9, "Regression", "line 2: found the label 'two', accepted: a finite number"),
        (
            ["2", "2,5", "3.5"] * 9,
            None,
            "line 2: found the label '2,5', a number with a decimal comma; accepted: a deci",
        ),
        (["2", "2,5"] * 9, "Regression", "line 2: found the label '2,5', accepted: a finite number"),
        (
            [1.5, 2.5, "nan", "-Inf"] * 9,
            None,
            "line 3: found the label 'nan' in 9 of 36 rows of train, which usually means no label",
        ),
        ([1, 2, "inf"] * 9, None, "line 3: found the label 'inf', accepted: a finite number, as the others"),
    ],
)
def test_labels_that_are_none(labels: list[object], kind: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        OwnTask(table(tmp_path / "a.jsonl", *rows(*labels)), COLUMNS, task_type=kind)


def test_decimal_commas_may_name_classes(tmp_path: Path) -> None:
    source = table(tmp_path / "a.jsonl", *rows(*["2", "2,5"] * 9))
    assert OwnTask(source, COLUMNS, task_type="Classification").labels == ["2", "2,5"]
    source = table(tmp_path / "b.jsonl", *rows(*["rain", "2,5"] * 9))
    assert OwnTask(source, COLUMNS).labels == ["2,5", "rain"]


def test_the_held_out_share_has_each_label_and_no_text_of_the_rest() -> None:
    examples: list[Example] = [
        (str(number), "rare" if number % 10 == 0 else "often", f"text {number // 2}") for number in range(1000)
    ]
    rest, share = hold_out(examples, 0.2)
    assert sorted([*rest, *share], key=lambda example: int(example[0])) == examples
    assert Counter(label for _, label, _ in share) == {"rare": 20, "often": 180}
    assert not {text for _, _, text in rest} & {text for _, _, text in share}
    assert hold_out(examples, 0.2) == (rest, share)
    # by chance, not every fifth of the file
    assert len({int(uid) // 100 for uid, _, _ in share}) == 10


def test_a_definition_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "task_def.yml"
    first = OwnTask(table(tmp_path / "a.jsonl", *rows(*["x", "y"] * 10)), COLUMNS)
    second = OwnTask(table(tmp_path / "b.jsonl", *rows(*["x", "z"] * 10)), COLUMNS)
    write_definition(path, [first])
    path.write_text("# mine\n" + path.read_text().rstrip("\n"))
    write_definition(path, [first, second], "tanh")
    assert path.read_text().startswith("# mine\na:\n") and TaskDefs(path).names == ("a", "b")
    before = path.read_text()
    with pytest.raises(UserError, match="defines task 'a' otherwise"):
        write_definition(path, [OwnTask(table(tmp_path / "c.jsonl", *rows(*[1, 2] * 9)), COLUMNS, name="a")])
    assert path.read_text() == before


def test_a_label_is_on_one_line_as_in_the_files_that_are_written(tmp_path: Path) -> None:
    task = OwnTask(table(tmp_path / "own.jsonl", *rows(*["a\tb", "c\nd"] * 10)), COLUMNS)
    assert task.labels == ["a b", "c d"]
    written = task.write(tmp_path)["train"].read_text().splitlines()
    assert {line.split("\t")[1] for line in written} == {"a b", "c d"}


@pytest.mark.parametrize("label", ["b\x85ad", "b\u2028ad", "schön", "yes", "1"])
def test_a_label_is_the_same_in_the_definition(label: str, tmp_path: Path) -> None:
    task = OwnTask(table(tmp_path / "own.jsonl", *rows(*[label, "good"] * 10)), COLUMNS)
    write_definition(tmp_path / "task_def.yml", [task])
    labels = TaskDefs(tmp_path / "task_def.yml").get_task_def("own").label_vocab
    assert labels is not None and list(labels.tok2ind) == task.labels == sorted([label, "good"])


# several labels

SEVERAL = Columns(("text",), ("rude", "loud"))


def several(*labels: tuple[object, object]) -> list[dict[str, object]]:
    return [{"text": f"text {number}", "rude": rude, "loud": loud} for number, (rude, loud) in enumerate(labels)]


def test_several_label_columns_are_a_yes_or_no_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [(0, 1), ("1", "0.0"), (1.0, "true"), ("True", False), ("FALSE", True)] * 4
    task = OwnTask(table(tmp_path / "own.jsonl", *several(*given)), SEVERAL)
    assert (task.task_type, task.labels) == ("MultiLabel", ["rude", "loud"])
    examples = sorted((example for own in task.splits.values() for example in own), key=lambda own: int(own[0]))
    assert [label for _, label, _ in examples] == ["[0, 1]", "[1, 0]", "[1, 1]", "[1, 0]", "[0, 1]"] * 4
    write_definition(tmp_path / "task_def.yml", [task], "tanh")
    found = TaskDefs(tmp_path / "task_def.yml").get_task_def("own")
    assert found.task_type.name == "MultiLabel" and found.class_names() == ["rude", "loud"]
    assert [own.name for own in found.metric_meta] == ["F1MIC", "F1MAC", "ACC"] and found.loss.name == "BceCriterion"
    task.write(tmp_path)
    assert "no example has" not in capsys.readouterr().out


def test_one_column_is_one_label_where_it_is_said(tmp_path: Path) -> None:
    columns = Columns(("text",), ("label",))
    task = OwnTask(table(tmp_path / "own.jsonl", *rows(*[0, 1] * 10)), columns, task_type="MultiLabel")
    assert task.labels == ["label"] and {label for _, label, _ in task.splits["train"]} == {"[0]", "[1]"}
    assert task.definition()["n_class"] == 1


def test_a_label_that_never_holds_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OwnTask(table(tmp_path / "own.jsonl", *several(*[(0, 1), (0, 0)] * 10)), SEVERAL).write(tmp_path)
    assert "own_train.tsv: no example has rude; a label without examples cannot be learned" in capsys.readouterr().out


def test_a_test_set_may_lack_all_labels_but_not_some(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    table(folder / "train.jsonl", *several(*[(0, 1), (1, 0)] * 9))
    table(folder / "dev.jsonl", {"text": "b", "rude": None, "loud": ""})
    table(folder / "test.jsonl", {"text": "a"})
    task = OwnTask(str(folder), SEVERAL)
    assert [label for _, label, _ in task.splits["dev"]] == [""]
    assert [label for _, label, _ in task.splits["test"]] == [""]
    table(folder / "test.jsonl", {"text": "a", "loud": 1})
    with pytest.raises(UserError, match=r"test.jsonl, line 1: found no value in column 'rude', accepted: 0 or 1"):
        OwnTask(str(folder), SEVERAL)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((2, 0), "line 19: found '2' in column 'rude', accepted: 0 or 1 (or false, true) in every label column"),
        ((0, 0.5), "line 19: found '0.5' in column 'loud', accepted"),
        ((-1, -1), "line 19: found '-1' in column 'rude', accepted"),
        ((0, "yes"), "line 19: found 'yes' in column 'loud', accepted"),
        ((0, None), "line 19: found no value in column 'loud', accepted"),
        ((None, None), "line 19: found no label in column 'rude'; accepted: a label in every row"),
    ],
)
def test_other_values_of_labels_are_reported_by_line_and_column(
    wrong: tuple[object, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as found:
        OwnTask(table(tmp_path / "own.jsonl", *several(*[(0, 1), (1, 0)] * 9, wrong)), SEVERAL)
    assert f"own.jsonl, {said}" in str(found.value)


def test_the_held_out_share_has_each_set_of_labels(tmp_path: Path) -> None:
    given = [(0, 0)] * 80 + [(1, 0)] * 10 + [(1, 1)] * 10
    task = OwnTask(table(tmp_path / "own.jsonl", *several(*given)), SEVERAL, dev_share=0.2)
    assert Counter(label for _, label, _ in task.splits["dev"]) == {"[0, 0]": 16, "[1, 0]": 2, "[1, 1]": 2}


def test_files_of_a_task_are_its_splits(tmp_path: Path) -> None:
    files = {own: table(tmp_path / f"stars_{own}.jsonl", *rows(*labels)) for own, labels in (
        ("train", ["a", "b"] * 9), ("dev", ["a"]), ("test", ["b"]),
    )}  # fmt: skip
    task = OwnTask(files, COLUMNS, choices=Choices(shared_texts="keep"))
    assert (task.name, {own: len(found) for own, found in task.splits.items()}) == (
        "stars",
        {"train": 18, "dev": 1, "test": 1},
    )
    own = {"train": table(tmp_path / "train.jsonl", *rows(*["a", "b"] * 9))}
    assert OwnTask(
        {**own, "dev": files["dev"]}, COLUMNS, choices=Choices(shared_texts="keep")
    ).name == tmp_path.name.replace("_", "-")


def test_decimal_commas_of_a_file_with_semicolons_are_numbers(tmp_path: Path) -> None:
    lines = [f"text {number};{number / 4}".replace(".", ",") for number in range(20)]
    (tmp_path / "a.csv").write_text("text;label\n" + "\n".join(lines) + "\n")
    task = OwnTask(str(tmp_path / "a.csv"), COLUMNS)
    found = sorted(task.splits["train"] + task.splits["dev"], key=lambda own: int(own[0]))
    assert task.task_type == "Regression" and [float(label) for _, label, _ in found] == [own / 4 for own in range(20)]
    assert task.findings.lines() == [
        f"labels with a decimal comma, read as numbers: 20 (first: {tmp_path / 'a.csv'}, line 2)"
    ]
    (tmp_path / "a.csv").write_text("text;label\n" + "\n".join(f"text {own};{own % 3},0" for own in range(20)) + "\n")
    task = OwnTask(str(tmp_path / "a.csv"), COLUMNS, task_type="Classification")
    assert task.labels == ["0,0", "1,0", "2,0"] and not task.findings.lines()


@pytest.mark.parametrize(("labels", "said"), [(["a", "b", "a|b"], "'|'"), (["a", "b", "c, d"], None)])
def test_labels_that_seem_to_be_several_are_reported(labels: list[str], said: str | None, tmp_path: Path) -> None:
    found = OwnTask(table(tmp_path / "a.jsonl", *rows(*labels * 9)), COLUMNS).findings.lines()
    assert bool(found) == (said is not None)
    assert not found or f"labels such as 'a|b', which seem to be several; --label_separator {said} divides" in found[0]


@pytest.mark.parametrize("wrong", [["a", None], ["a", " "], ["a", ["b"]]])
def test_a_list_holds_labels_alone(wrong: list[object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 19: found \['a', .*\] in column 'label', accepted: a list of labels"):
        OwnTask(table(tmp_path / "a.jsonl", *rows(*[["a"], ["b", "a"]] * 9, wrong)), COLUMNS)


def test_a_column_that_names_splits_is_reported(tmp_path: Path) -> None:
    labeled = [row | {"set": "Train" if number < 9 else "test"} for number, row in enumerate(rows(*["a", "b"] * 9))]
    source = table(tmp_path / "a.jsonl", *labeled)
    expected = f"column 'set' names splits, but all rows are used for training: 1 (first: {source}, line 10)"
    assert OwnTask(source, COLUMNS).findings.lines() == [expected]


def test_a_label_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: found {'name': 'a'} in column 'label', accepted: a text, a number or"):
        OwnTask(table(tmp_path / "a.jsonl", *rows(*[{"name": "a"}, {"name": "b"}] * 9)), COLUMNS)
