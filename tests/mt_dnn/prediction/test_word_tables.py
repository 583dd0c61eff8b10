"""predict.py --from with a label for each word: the table comes back in its own form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import predict
from data_utils.errors import UserError
from data_utils.tables import read_table
from mt_dnn.prediction import TextModel

SENTENCES = [["red", "blue", "one"], ["two", "four"]]
TAGS = [["O", "B-N", "I-N"], ["O", "B-N"]]


@pytest.fixture
def run(every_type: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*flags: str, task: str = "tags") -> None:
        predict.main(["--model", str(every_type / "model_0.pt"), "--cuda", "false", "--task", task, *flags])

    return call


def test_a_conll_has_the_prediction_in_its_last_column(run: Any, model: TextModel) -> None:
    blocks = [
        "".join(f"{word}\tNN\t{tag}\n" for word, tag in zip(*own, strict=True))
        for own in zip(SENTENCES, TAGS, strict=True)
    ]
    Path("in.conll").write_text("\n".join(blocks))
    run("--from", "in.conll", "--text", "text", "--label", "label", "--output", "out.conll", "--all_scores")
    expected = [answer.label for answer in model.predict(SENTENCES, "tags")]
    found = [line.split("\t") for line in Path("out.conll").read_text().splitlines()]
    assert found[3] == [""] and [len(own) for own in found] == [4, 4, 4, 1, 4, 4]
    assert [own[3] for own in found if own[0]] == [label for own in expected for label in own]
    assert ["\t".join(own[:3]) for own in found] == Path("in.conll").read_text().splitlines()
    assert json.loads(Path("out_metrics.json").read_text()) == pytest.approx(model.evaluate(SENTENCES, TAGS, "tags"))


def test_a_word_a_row_has_an_answer_a_row(run: Any, model: TextModel) -> None:
    lines = ["s,w,t", "1,red,O", ",blue,B-N", ",,O", ",one,I-N", "2,two,O", "2,four,B-N"]
    Path("in.csv").write_text("\n".join(lines) + "\n")
    run("--from", "in.csv", "--text", "w", "--label", "t", "--sentence", "s", "--output", "out.csv", "--all_scores")
    answers = model.predict(SENTENCES, "tags")
    rows = [row.cells for row in read_table("out.csv").rows]
    assert [",".join((own["s"], own["w"], own["t"])) for own in rows] == lines[1:]
    words = [own for own in rows if own["w"]]
    assert [own["prediction"] for own in words] == [label for answer in answers for label in answer.label]
    assert [float(own["probability"]) for own in words] == pytest.approx(
        [own for answer in answers for own in answer.probability], abs=1e-6
    )
    assert [float(own["probability_B-N"]) for own in words] == pytest.approx(
        [own["B-N"] for answer in answers for own in answer.probabilities], abs=1e-6
    )
    assert (rows[2]["prediction"], rows[2]["probability"]) == ("", "")
    assert json.loads(Path("out_metrics.json").read_text()) == pytest.approx(model.evaluate(SENTENCES, TAGS, "tags"))


def test_lists_as_text_are_lists(run: Any, model: TextModel) -> None:
    Path("in.csv").write_text("w\n" + "".join(f'"{own}"\n' for own in SENTENCES))
    run("--from", "in.csv", "--text", "w", "--output", "out.csv")
    found = [json.loads(row.cells["prediction"]) for row in read_table("out.csv").rows]
    assert found == [answer.label for answer in model.predict(SENTENCES, "tags")]
    Path("in.csv").write_text("w\n['red' 'blue']\n")
    with pytest.raises(UserError, match="in.csv, line 2: found .*, a list without commas, as numpy prints it"):
        run("--from", "in.csv", "--text", "w", "--output", "other.csv")


def test_sentences_without_labels_are_in_no_metric(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").write_text("".join(
        json.dumps({"w": words, "t": tags}) + "\n" for words, tags in zip(SENTENCES, [TAGS[0], ["", ""]], strict=True)
    ))  # fmt: skip
    run("--from", "in.jsonl", "--text", "w", "--label", "t", "--output", "out.jsonl")
    assert "1 of 2 rows have no label and are in no metric" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "task", "said"),
    [
        (["--output", "out.conll"], "tags", "--output: found 'out.conll', accepted: another ending"),
        (["--output", "out.csv", "--sentence", "no"], "tags", "found no column 'no'; --sentence names it"),
        (["--output", "out.csv", "--sentence", "w"], "one", "--sentence: found it, accepted: for tasks with a label a"),
    ],
)
def test_mistakes_about_words(run: Any, flags: list[str], task: str, said: str) -> None:
    Path("in.csv").write_text("w\nred\n")
    with pytest.raises(UserError, match=said):
        run("--from", "in.csv", "--text", "w", *flags, task=task)
    assert [path.name for path in Path().iterdir()] == ["in.csv"]
