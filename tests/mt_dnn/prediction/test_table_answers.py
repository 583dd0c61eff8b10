"""predict.py --from: the table comes back with its rows in order and new columns, and with labels the metrics."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from pyarrow import parquet
from sklearn.metrics import accuracy_score, f1_score

import predict
from data_utils.errors import UserError
from data_utils.tables import read_table
from mt_dnn.prediction import TextModel
from mt_dnn.prediction.table_answers import answer_columns, free_names
from tasks import Answer
from tests.mt_dnn.prediction.test_text_model import texts_of

TEXTS = [*texts_of(20), "", 'red, "blue"\nfour']
LABELS = [str(own) for own in np.random.default_rng(0).choice(list("abc"), len(TEXTS))]


@pytest.fixture
def run(every_type: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls predict.py on `in.csv` in the current folder: run("--text …")."""
    monkeypatch.chdir(tmp_path)
    with open("in.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "review", "stars"])
        rows.writerows(zip([f"{row:03}" for row in range(len(TEXTS))], TEXTS, LABELS, strict=True))

    def call(flags: str, source: str = "in.csv") -> None:
        given = f"--model {every_type / 'model_0.pt'} --from {source} --cuda false {flags}"
        predict.main(given.split())

    return call


def test_a_csv_comes_back_with_answers(run: Any, model: TextModel) -> None:
    run("--task one --text review --output out.csv --all_scores")
    answers = model.predict(TEXTS, "one")
    with open("out.csv", newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [
        "id", "review", "stars", "prediction", "probability", "probability_a", "probability_b", "probability_c",
    ]  # fmt: skip
    assert [row["id"] for row in found] == [f"{row:03}" for row in range(len(TEXTS))]
    assert [row["review"] for row in found] == TEXTS
    for row, answer in zip(found, answers, strict=True):
        assert row["prediction"] == (answer.label or "")
        if answer.label is not None:
            assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-7)
            assert [float(row[f"probability_{name}"]) for name in "abc"] == pytest.approx(
                list(answer.probabilities.values()), abs=1e-7
            )
    assert [row["probability"] for row in found].count("") == 1
    assert not Path("out_metrics.json").exists()


def test_metrics_are_scikit_learns_of_the_table_that_is_written(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    run("--task one --text review --output out.csv --label stars")
    rows = [row.cells for row in read_table("out.csv").rows if row.cells["prediction"]]
    stars, found = [row["stars"] for row in rows], [row["prediction"] for row in rows]
    expected = {"ACC": 100 * accuracy_score(stars, found), "F1MAC": 100 * f1_score(stars, found, average="macro")}
    assert json.loads(Path("out_metrics.json").read_text()) == pytest.approx(expected)


def test_the_metrics_may_be_others(run: Any) -> None:
    run("--task one --text review --output out.csv --label stars --metric MCC")
    assert list(json.loads(Path("out_metrics.json").read_text())) == ["MCC"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "csv.gz", "parquet", "xlsx"])
def test_the_ending_says_the_format(run: Any, ending: str, model: TextModel) -> None:
    run(f"--task several --text review --output out.{ending} --all_scores")
    answers = model.predict(TEXTS, "several")
    found = read_table(f"out.{ending}")
    assert [row.cells["review"] for row in found.rows] == TEXTS
    shown = [row.cells["prediction"] for row in found.rows]
    assert shown == ["" if answer.label is None else json.dumps(answer.label) for answer in answers]
    numbers = [row.cells["probability_x"] for row in found.rows]
    assert [float(own) for own in numbers if own] == pytest.approx(
        [answer.probabilities["x"] for answer in answers if answer.probabilities], abs=1e-7
    )
    if ending == "parquet":
        table = parquet.read_table("out.parquet")
        assert str(table.schema.field("prediction").type).startswith("list<") and table.column("id")[1].as_py() == "001"
    elif ending == "xlsx":
        sheet = openpyxl.load_workbook("out.xlsx").worksheets[0]
        assert isinstance(sheet.cell(2, 6).value, float)
    elif ending == "csv.gz":
        assert gzip.decompress(Path("out.csv.gz").read_bytes()).startswith(b"id,review,stars,prediction")


def test_lists_of_json_lines_are_candidates_and_words(run: Any, model: TextModel) -> None:
    rows = [
        {"q": "red", "own": ["one", "two"], "words": ["red", "blue"]},
        {"q": "blue", "own": ["two"], "words": "red"},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("--task rank --text q,own --output out.jsonl --all_scores", "in.jsonl")
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    answers = model.predict([(row["q"], row["own"]) for row in rows], "rank")
    assert [row["prediction"] for row in found] == [answer.label for answer in answers]
    assert found[0]["probabilities"] == pytest.approx(answers[0].probabilities, abs=1e-7)
    run("--task tags --text words --output out.jsonl", "in.jsonl")
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [len(row["prediction"]) for row in found] == [2, 1]
    assert {name: found[0][name] for name in rows[0]} == rows[0]


def test_a_pair_of_a_latin_1_table(run: Any, model: TextModel) -> None:
    Path("latin.csv").write_bytes("first;second\nred;blué\n".encode("latin-1"))
    run("--task pair --text first,second --output out.csv --encoding latin-1", "latin.csv")
    (answer,) = model.predict([("red", "blué")], "pair")
    expected = f"first;second;prediction;probability\nred;blué;{answer.label};"
    assert Path("out.csv").read_bytes().decode("latin-1").startswith(expected)


def test_several_label_columns_go_by_their_names(run: Any, model: TextModel) -> None:
    texts, labels = texts_of(30), np.random.default_rng(1).integers(0, 2, (30, 3)).tolist()
    rows = [f"{text},{z},{x},{y}\n" for text, (x, y, z) in zip(texts, labels, strict=True)]
    Path("in.csv").write_text("review,z,x,y\n" + "".join(rows))
    run("--task several --text review --label z,x,y --output first.csv")
    expected = model.evaluate(texts, labels, "several")
    assert expected != model.evaluate(texts, [[z, x, y] for x, y, z in labels], "several")
    assert json.loads(Path("first_metrics.json").read_text()) == pytest.approx(expected)
    names = [json.dumps([name for name, own in zip("xyz", row, strict=True) if own]) for row in labels]
    lines = [json.dumps({"review": text, "own": own}) + "\n" for text, own in zip(texts, names, strict=True)]
    Path("in.jsonl").write_text("".join(lines))
    run("--task several --text review --label own --output second.csv", "in.jsonl")
    assert json.loads(Path("second_metrics.json").read_text()) == pytest.approx(expected)
    Path("in.csv").write_text("review,z,x,w\nred,0,1,0\n")
    with pytest.raises(UserError, match="--label: found z, x, w, accepted: the task's labels x, y, z, or one column"):
        run("--task several --text review --label z,x,w --output third.csv")
    with pytest.raises(UserError, match="--label: found 2 columns, accepted: one for task one"):
        run("--task one --text review --label z,x --output third.csv")


def test_several_labels_in_a_column_are_divided(run: Any, model: TextModel) -> None:
    texts, labels = texts_of(30), np.random.default_rng(1).integers(0, 2, (30, 3)).tolist()
    assert [0, 0, 0] in labels  # an empty cell is a text without labels, not a row without its answer
    cells = ["; ".join(name for name, own in zip("xyz", row, strict=True) if own) for row in labels]
    Path("in.csv").write_text(
        "review,own\n" + "".join(f"{text},{own}\n" for text, own in zip(texts, cells, strict=True))
    )
    with pytest.raises(UserError, match="line 2: found .*accepted: a list of some of x, y, z; --label_separator says"):
        run("--task several --text review --label own --output out.csv")
    run("--task several --text review --label own --label_separator ; --output out.csv")
    expected = model.evaluate(texts, labels, "several")
    assert json.loads(Path("out_metrics.json").read_text()) == pytest.approx(expected)
    assert [row.cells["own"] for row in read_table("out.csv").rows] == cells
    for flags in ("--label own --task one --label_separator ;", "--task several --label_separator ;"):
        with pytest.raises(UserError, match="--label_separator: found .*, accepted: "):
            run(f"{flags} --text review --output other.csv")
    assert not Path("other.csv").exists()


def test_columns_may_have_blanks_after_commas(run: Any, every_type: Path) -> None:
    Path("in.csv").write_text("review,z,x,y\nred,0,1,0\nblue,1,0,0\n")
    flags = f"--model {every_type / 'model_0.pt'} --from in.csv --task several --text review --cuda false"
    predict.main([*flags.split(), "--label", "x, y, z", "--output", "out.csv"])
    assert json.loads(Path("out_metrics.json").read_text())


def test_all_tasks_of_a_model_answer(run: Any, every_type: Path, tmp_path: Path, model: TextModel) -> None:
    from mt_dnn.configuration.config import Config
    from mt_dnn.model import MTDNNModel
    from tasks.definition import TaskDefs

    task_defs = TaskDefs(every_type / "tasks.yml")
    flags = {"init_checkpoint": str(every_type / "small"), "train_datasets": ("one", "number"), "cuda": False}
    MTDNNModel(Config.from_flags(flags), [task_defs.get_task_def(name) for name in ("one", "number")]).save(
        str(tmp_path / "two.pt")
    )
    run("--text review --output out.csv --model two.pt")
    columns = read_table("out.csv").columns
    assert columns[3:] == ("one_prediction", "one_probability", "number_prediction")
    with pytest.raises(UserError, match="--label: goes with one task; --task names it, accepted: one, number"):
        run("--text review --output out.csv --model two.pt --label stars")


def test_the_users_columns_are_never_overwritten(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    Path("in.csv").write_text("review,prediction,model_probability\nred,mine,too\n")
    run("--task one --text review --output out.csv")
    (row,) = read_table("out.csv").rows
    assert list(row.cells)[3:] == ["model_model_prediction", "model_model_probability"]
    assert (row.cells["prediction"], row.cells["model_probability"]) == ("mine", "too")


def test_a_table_without_rows_stays_one(run: Any) -> None:
    Path("in.csv").write_text("review,stars\n")
    run("--task one --text review --output out.csv")
    assert Path("out.csv").read_text() == "review,stars,prediction,probability\n"
    with pytest.raises(UserError, match="--label: no row has a text and a label"):
        run("--task one --text review --label stars --output out.csv")


@pytest.mark.parametrize("task", ["one", "number", "several", "tags"])
def test_the_columns_are_the_same_where_no_row_has_an_answer(run: Any, task: str) -> None:
    headers = set()
    for name, content in (("some", "review\nred\n"), ("empty", 'review\n" "\n'), ("none", "review\n")):
        Path("in.csv").write_text(content)
        run(f"--task {task} --text review --output {name}.csv --all_scores")
        headers.add(read_table(f"{name}.csv").columns)
    assert len(headers) == 1


def test_marks_of_no_label_are_in_no_metric_and_are_counted(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [["-1", "", "N/A", "-1.0", label][min(row, 4)] for row, label in enumerate(LABELS[:20])]
    rows = zip(TEXTS[:20], shown, strict=True)
    Path("in.csv").write_text("review,stars\n" + "".join(f"{text},{own}\n" for text, own in rows))
    run("--task one --text review --output out.csv --label stars")
    said = "4 of 20 rows have no label (written as '-1' in 1, 'N/A' in 1, '-1.0' in 1) and are in no metric"
    assert said in capsys.readouterr().out
    found = [row.cells["prediction"] for row in read_table("out.csv").rows][4:20]
    assert json.loads(Path("out_metrics.json").read_text())["ACC"] == pytest.approx(
        100 * accuracy_score(shown[4:], found)
    )
    Path("in.csv").write_text("review,z,x,y\nred,-1,-1,-1\nblue,1,0,0\n")
    run("--task several --text review --label x,y,z --output out.csv")
    assert "1 of 2 rows have no label (written as '-1' in 1) and are in no metric" in capsys.readouterr().out


@pytest.mark.parametrize("label", ["-2", "d", "unknown"])
def test_other_labels_that_the_task_does_not_have_are_refused(run: Any, label: str) -> None:
    Path("in.csv").write_text(f"review,stars\nred,a\nblue,{label}\n")
    with pytest.raises(UserError, match=f"in.csv, line 3: found the label '{label}'"):
        run("--task one --text review --output out.csv --label stars")


def test_minus_one_is_a_number_where_numbers_are_predicted(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.csv").write_text("review,stars\nred,-1\nblue,0.5\none,2\n")
    run("--task number --text review --output out.csv --label stars")
    assert "no label" not in capsys.readouterr().out
    Path("in.csv").write_text("review,stars\nred,-1\nblue,-1\n")
    with pytest.raises(UserError, match="--label: no row has a text and a label"):
        run("--task number --text review --output out.csv --label stars")


def test_metrics_of_an_earlier_run_do_not_stay(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run("--task one --text review --output out.csv --label stars")
    run("--task one --text review --output out.csv")
    assert not Path("out_metrics.json").exists()
    assert "out_metrics.json: removed, the metrics of an earlier run" in capsys.readouterr().out
    for other in ("{}", '{"lr": 3}', "[1]", "no JSON"):
        Path("out_metrics.json").write_text(other)
        run("--task one --text review --output out.csv")
        assert Path("out_metrics.json").read_text() == other
        assert "out_metrics.json: stays as it is, and is not of this run" in capsys.readouterr().out
    Path("out_metrics.json").write_text('{"ACC": 50.0}')  # of out.csv
    run("--task one --text review --output out.jsonl")
    assert Path("out_metrics.json").exists()


def test_answers_of_squad_are_counted_from_the_start_of_the_context(run: Any) -> None:
    rows = [
        {"q": "red", "c": "  \n one two\tfour", "a": {"text": ["two\tfour", "one"], "answer_start": [8, 4]}},
        {"q": "red", "c": "blue one", "a": {"text": ["blue"], "answer_start": [0]}},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("--task span --text q,c --label a --output out.jsonl", "in.jsonl")
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [{name: own[name] for name in "qca"} for own in found] == rows
    assert set(json.loads(Path("out_metrics.json").read_text())) == {"EmF1", "EmF1_exact"}
    rows[0]["a"]["answer_start"][0] = 7
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="line 1: the answer 'two four' is not at character 7"):
        run("--task span --text q,c --label a --output out.jsonl", "in.jsonl")


def test_new_names_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert list(free_names({"prediction": [1]}, ["text"])) == ["prediction"] and not caplog.messages
    assert list(free_names({"prediction": [1]}, ["prediction"])) == ["model_prediction"]
    assert caplog.messages == ["the table has a column prediction; the new columns begin with model_"]


def test_numbers_have_the_digits_that_single_precision_has(model: TextModel) -> None:
    answers = [Answer("a", float(np.float32(0.1)), {"a": float(np.float32(0.1))}), Answer(None)]
    assert answer_columns(answers, True, model.tasks["one"].task) == {
        "prediction": ["a", None], "probability": [0.1, None], "probability_a": [0.1, None],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--text reviw --output out.csv --task one",
            "in.csv: found no column 'reviw' (did you mean 'review'?); --text",
        ),
        ("--text review --label star --output out.csv --task one", "found no column 'star' (did you mean 'stars'?)"),
        ("--text review,review --output out.csv --task pair", "--text: found 'review' 2 times, accepted: once"),
        ("--text review --output out.doc --task one", "--output: found 'out.doc', accepted: a name that ends in .csv"),
        ("--text review --output in.csv --task one", "--output: in.csv is the table that is read"),
        ("--text review --output ./no/out.csv --task one", "--output: there is no folder no; accepted"),
        ("--text review --output . --task one", "--output: found '', accepted: a name that ends in"),
        ("--text review --task one", "--output: is missing; --from needs it"),
        ("--output out.csv --task one", "--text: is missing; --from needs it"),
        ("--text review --output out.csv --with_label", "--with_label: does not go with --from"),
        ("--text review --output out.csv --checkpoint x", "--checkpoint: does not go with --from"),
        ("--text review --output out.csv --prep_input x", "--from and --prep_input: found both, accepted: one of them"),
        ("--text review --output out.csv --task on", "--task: found 'on' (did you mean 'one'?)"),
        ("--text review --output out.csv", "--text: task pair takes 2 columns (premise, hypothesis), found 1; --task"),
        ("--text id,review --output out.csv --task one", "--text: task one takes 1 column (text), found 2"),
        ("--text review --output out.csv --task one --metric AC", "--metric: found 'AC'"),
        ("--text review --output out.csv --task number --label stars", "in.csv, line 2: found the label"),
        ("--text id,review --output out.csv --task rank", "in.csv, line 2: found"),
        ("--text review --output out.csv --task one --encoding utf-9", "--encoding: found 'utf-9'"),
        ("--text review --output out.csv --task one --max_seq_len 99", "--max_seq_len: found 99, accepted: at most 64"),
        ("--text review --output out.csv --task one --model nowhere", "nowhere: no such file or folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(run: Any, flags: str, message: str) -> None:
    before = sorted(Path().iterdir())
    with pytest.raises(UserError) as caught:
        run(flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(Path().iterdir()) == before


def test_a_row_of_a_sheet_is_named_as_one(run: Any) -> None:
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for row in (["review", "stars"], ["red", "a"], ["blue", "d"]):
        sheet.append(row)
    book.save("in.xlsx")
    with pytest.raises(UserError, match="in.xlsx, row 3: found the label 'd'; accepted: a, b, c"):
        run("--task one --text review --label stars --output out.xlsx", "in.xlsx")


def test_a_link_to_the_table_is_the_table(run: Any) -> None:
    Path("link.csv").symlink_to("in.csv")
    with pytest.raises(UserError, match=r"--output: link.csv is the table that is read"):
        run("--task one --text review --output link.csv")
    Path("new_metrics.json").write_text('[{"review": "red"}]')
    with pytest.raises(UserError, match=r"--output: new_metrics.json is the table that is read"):
        run("--task one --text review --output new.csv", "new_metrics.json")


@pytest.mark.parametrize(
    ("flags", "message"), [("", "found neither"), ("--prep_input x.json", "--checkpoint: is missing")]
)
def test_one_of_both_ways_is_taken(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict.main(flags.split())


def test_decimal_commas_of_a_file_with_semicolons_are_numbers(run: Any, model: TextModel) -> None:
    numbers = [own / 4 for own in range(12)]
    rows = [f"{text};{str(number).replace('.', ',')}\n" for text, number in zip(TEXTS, numbers, strict=False)]
    Path("in.csv").write_text("review;stars\n" + "".join(rows))
    run("--task number --text review --label stars --output out.csv")
    expected = model.evaluate(TEXTS[:12], numbers, "number")
    assert json.loads(Path("out_metrics.json").read_text()) == pytest.approx(expected)
    assert [row.cells["stars"] for row in read_table("out.csv").rows][1] == "0,25"
