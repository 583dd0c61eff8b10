"""`prepro_std.py --from` with a label for each word, in the forms in which people have such tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas
import pytest

from data_utils.errors import UserError
from experiments.preparation.own_definition import write_definition
from experiments.preparation.own_rows import ColumnFlags
from experiments.preparation.own_tables import Choices, OwnTask
from prepro_std import main
from tests.encoder_folder import write_encoder

SENTENCES = [
    ([f"w{number}", "New", "York"], ["O", "B-PLACE", "I-PLACE"]) if number % 2 else ([f"w{number}"], ["B-NAME"])
    for number in range(20)
]
FLAGS = ColumnFlags("tokens", "tags")


def frame() -> pandas.DataFrame:
    return pandas.DataFrame(SENTENCES, columns=["tokens", "tags"])


def long_frame() -> pandas.DataFrame:
    rows = [
        (f"S{number}" if not place else None, word, tag)
        for number, (words, tags) in enumerate(SENTENCES)
        for place, (word, tag) in enumerate(zip(words, tags, strict=True))
    ]
    return pandas.DataFrame(rows, columns=["sentence", "tokens", "tags"])


def conll(path: Path) -> None:
    blocks = ["".join(f"{own[0]} {own[1]}\n" for own in zip(*sentence, strict=True)) for sentence in SENTENCES]
    path.write_text("\n".join(blocks))


FORMS: dict[str, tuple[Callable[[Path], object], ColumnFlags]] = {
    "own.jsonl": (lambda path: frame().to_json(path, orient="records", lines=True), FLAGS),
    "own.json": (lambda path: frame().to_json(path, orient="records"), FLAGS),
    "own.parquet": (lambda path: frame().to_parquet(path), FLAGS),
    "own.csv": (lambda path: frame().to_csv(path, index=False), FLAGS),
    "own.xlsx": (lambda path: frame().to_excel(path, index=False), FLAGS),
    "own.tsv": (
        lambda path: long_frame().to_csv(path, index=False, sep="\t"),
        ColumnFlags("tokens", "tags", sentence="sentence"),
    ),
    "own.conll": (conll, ColumnFlags("text", "label")),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_makes_the_same_task(name: str, tmp_path: Path) -> None:
    write, flags = FORMS[name]
    write(tmp_path / name)
    task = OwnTask(str(tmp_path / name), flags)
    assert (task.name, task.task_type, task.labels) == ("own", "SeqenceLabeling", ["O", "B-NAME", "B-PLACE", "I-PLACE"])
    found = sorted(task.splits["train"] + task.splits["dev"], key=lambda own: int(own[0]))
    assert [(json.loads(words), json.loads(tags)) for _, tags, words in found] == SENTENCES
    assert task.definition("tanh") == {
        "data_format": "Seqence",
        "task_type": "SeqenceLabeling",
        "n_class": 7,
        "metric_meta": ["SeqEval", "ACC"],
        "loss": "SeqCeCriterion",
        "adv_loss": "SymKlCriterion",
        "split_names": ["train", "dev"],
        "labels": ["O", "B-NAME", "B-PLACE", "I-PLACE", "X", "CLS", "SEP"],
    }


def test_numbers_of_a_data_set_have_its_names(tmp_path: Path) -> None:
    names = ["O", "B-PLACE", "I-PLACE", "B-NAME", "I-NAME"]
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "tags": datasets.Sequence(datasets.ClassLabel(names=names)),
        }
    )
    numbers = [[names.index(tag) for tag in tags] for _, tags in SENTENCES]
    data = datasets.Dataset.from_dict({"tokens": [words for words, _ in SENTENCES], "tags": numbers}, features=features)
    datasets.DatasetDict({"train": data, "validation": data.select(range(4))}).save_to_disk(str(tmp_path / "own"))
    task = OwnTask(str(tmp_path / "own"), FLAGS, choices=Choices(shared_texts="keep"))
    assert task.labels == ["O", "B-NAME", "B-PLACE", "I-NAME", "I-PLACE"]
    assert [json.loads(tags) for _, tags, _ in task.splits["train"]] == [tags for _, tags in SENTENCES]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"tags": ["O"]},
            "line 21: found 2 words in column 'tokens' and 1 labels in column 'tags', accepted: a label a",
        ),
        ({"tags": ["O", None]}, "line 21: found no label of the word 'York', accepted: a label of every word"),
        ({"tags": ["O", "X"]}, "found the label 'X'; accepted: other names than X, CLS, SEP"),
        ({"tags": None}, "line 21: found no label in column 'tags'"),
        ({"tags": ["O", "b-place"]}, "line 21: labels that differ in case"),
        ({"tokens": "New York"}, "line 21: found 'New York' in column 'tokens', accepted: a list of texts"),
    ],
)
def test_sentences_that_cannot_be_used(changed: dict[str, object], said: str, tmp_path: Path) -> None:
    rows = [{"tokens": words, "tags": tags} for words, tags in SENTENCES]
    rows.append({"tokens": ["New", "York"], "tags": ["O", "O"], **changed})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as caught:
        OwnTask(str(tmp_path / "own.jsonl"), FLAGS)
    assert said in str(caught.value)


def test_signs_are_labels_of_words(tmp_path: Path) -> None:
    """Of parts of speech `.` and `-` are some."""
    conll(tmp_path / "own.conll")
    text = (tmp_path / "own.conll").read_text().replace("B-NAME", ".").replace("I-PLACE", "-")
    (tmp_path / "own.conll").write_text(text)
    task = OwnTask(str(tmp_path / "own.conll"), ColumnFlags("text", "label"))
    assert task.labels == ["O", "-", ".", "B-PLACE"]


def test_a_test_set_may_lack_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    frame().to_json(tmp_path / "own.jsonl", orient="records", lines=True)
    flags = ["--text", "tokens", "--label", "tags", "--root_dir", str(tmp_path / "data"), "--model", str(encoder)]
    main(["--from", str(tmp_path / "own.jsonl"), *flags, "--max_seq_len", "16"])
    assert "save_hf" not in (tmp_path / "data" / "encoder" / "own.yml").read_text()
    assert "task own (SeqenceLabeling):\n  train: 18 rows; labels: O " in capsys.readouterr().out
    frame()[["tokens"]].to_json(tmp_path / "new.jsonl", orient="records", lines=True)
    given = ["--from", str(tmp_path / "new.jsonl"), "--split", "test", "--task_name", "own", "--max_seq_len", "16"]
    main([*given, *flags])
    lines = [json.loads(line) for line in (tmp_path / "data" / "encoder" / "own_test.json").read_text().splitlines()]
    assert len(lines) == 20 and not any("label" in line for line in lines)
    assert "test: 20 rows; no labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "task_type", "said"),
    [
        (FLAGS, "Classification", "--task_type: found Classification for lists of words and labels, accepted: Seq"),
        (ColumnFlags("id", "id"), "SeqenceLabeling", "--task_type: found SeqenceLabeling for other texts than lists"),
        (ColumnFlags("tokens,id", "tags", sentence="id"), None, "--sentence: goes with one column of words"),
        (ColumnFlags("tokens", "tags", sentence="no"), None, "found no column 'no'; --sentence names it"),
    ],
)
def test_flags_that_do_not_go_with_words(flags: ColumnFlags, task_type: str | None, said: str, tmp_path: Path) -> None:
    frame().assign(id="x").to_json(tmp_path / "own.jsonl", orient="records", lines=True)
    with pytest.raises(UserError) as caught:
        OwnTask(str(tmp_path / "own.jsonl"), flags, task_type=task_type)
    assert said in str(caught.value)


def test_a_definition_of_words_is_one_that_can_be_read(tmp_path: Path) -> None:
    conll(tmp_path / "own.conll")
    write_definition(tmp_path / "task_def.yml", [OwnTask(str(tmp_path / "own.conll"), ColumnFlags("text", "label"))])
    again = OwnTask(
        str(tmp_path / "own.conll"), ColumnFlags("text", "label"), split="dev", task_def=tmp_path / "task_def.yml"
    )
    assert len(again.splits["dev"]) == 20
