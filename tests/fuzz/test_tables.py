"""Tables of a user: read or refused by line, and what is written of them is read again."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

import pytest
from hypothesis import given

from data_utils.storage.text_files import read_lines
from data_utils.tables import read_table, write_table
from experiments.canonical import Example
from experiments.preparation.own_definition import write_definition
from experiments.preparation.own_tables import Columns, OwnTask
from tasks.definition import TaskDefs
from tests.fuzz.check import reading
from tests.fuzz.inputs import DRAWN, Choices
from tests.fuzz.test_sources import CONLL

ROWS = [{"text": f"text {number}", "label": "good" if number % 2 else "bad", "id": number} for number in range(4)]
COMMAS = b'id,text,label\n1,"a, b",good\n2,c,bad\n3,"d ""e""\nf",good\n4,g,bad\n'


@given(DRAWN)
def test_tables_of_ones_own(tmp_path: Path, drawn: bytes) -> None:
    choices = Choices(drawn)
    suffix = choices.of(("csv", "tsv", "jsonl"))
    path, root = tmp_path / f"own.{suffix}", tmp_path / "root"
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    if suffix == "jsonl":
        content = choices.text([lines.replace(b"\n", b"\n" + choices.json([ROWS[0]]) + b"\n", 1)], most=1)
    else:
        content = choices.text([COMMAS if suffix == "csv" else b"id\ttext\tlabel\n1\ta\t0.5\n2\tb\t1\n3\tc\t2\n"])
    path.write_bytes(content)
    columns = Columns(("text",), ("label",), choices.of((None, "id")))

    def convert() -> OwnTask:
        with contextlib.redirect_stdout(io.StringIO()):
            task = OwnTask(str(path), columns, dev_share=0.5)
            (root / "task_def.yml").unlink(missing_ok=True)
            write_definition(root / "task_def.yml", [task])
            for split, target in task.write(root).items():
                assert len(list(read_lines(target))) == len(task.splits[split])
        return task

    task = reading("tables of one's own", convert, path, Path("--dev_share"), Path("task_def.yml"))
    if task is not None:
        labels = TaskDefs(root / "task_def.yml").get_task_def("own").label_vocab
        assert task.labels == ([] if labels is None else list(labels.tok2ind))


WORDS = [{"words": ["New", "York", "."], "tags": ["B-X", "I-X", "O"]}, {"words": ["it"], "tags": ["O"]}]
WORD_ROWS = b"s,words,tags\n1,New,B-X\n,York,I-X\n2,it,O\n,,\n3,.,O\n"
UNIVERSAL = (
    b"# text = New it\n1\tNew\tnew\tADJ\t_\t_\t0\troot\t_\t_\n2-3\t" + b"_\t" * 7 + b"_\n2\tit\tit\tPRON" + b"\t_" * 6
)


@given(DRAWN)
def test_labels_of_words(tmp_path: Path, drawn: bytes) -> None:
    choices = Choices(drawn)
    suffix = choices.of(("conll", "conllu", "csv", "jsonl", "tsv"))
    path, root = tmp_path / f"own.{suffix}", tmp_path / "root"
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in WORDS * 2)
    contents = {"conll": CONLL, "conllu": UNIVERSAL + b"\n\n" + UNIVERSAL, "csv": WORD_ROWS, "jsonl": lines}
    literal = b"words\ttags\n['New', 'York']\t['B', \"I\"]\n['it']\t['O']\n"
    path.write_bytes(choices.text([contents.get(suffix, literal)]))
    columns = {"conll": Columns(("text",), ("label",)), "conllu": Columns(("form",), ("upos",))}.get(
        suffix, Columns(("words",), ("tags",), sentence="s" if suffix == "csv" else None)
    )

    def convert() -> list[Example]:
        with contextlib.redirect_stdout(io.StringIO()):
            task = OwnTask(str(path), columns, dev_share=0.5)
            (root / "task_def.yml").unlink(missing_ok=True)
            write_definition(root / "task_def.yml", [task])
            task.write(root)
        assert TaskDefs(root / "task_def.yml").names == ("own",)
        return [example for split in task.splits.values() for example in split] if task.task_type == WORD_TYPE else []

    kept = reading("labels of words in tables", convert, path, Path("--dev_share"), Path("task_def.yml"))
    for _, labels, words in kept or ():
        assert len(json.loads(labels)) == len(json.loads(words)) > 0


WORD_TYPE = "SeqenceLabeling"


@pytest.fixture(scope="module")
def binary_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tables")
    table = read_table(_written(folder / "own.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in ROWS * 9)))
    names = ("own.parquet", "own.xlsx", "own.csv.gz")
    for name in names:
        write_table(folder / name, table)
    return {name: (folder / name).read_bytes() for name in names}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@given(DRAWN)
def test_damaged_tables(tmp_path: Path, binary_tables: dict[str, bytes], drawn: bytes) -> None:
    draw = random.Random(drawn)
    name = draw.choice(sorted(binary_tables))
    changed = bytearray(binary_tables[name])
    for _ in range(draw.randrange(1, 5)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    path = _written(tmp_path / name, changed[: draw.choice([len(changed), draw.randrange(len(changed))])])
    found = reading("tables (Parquet, Excel, gzip)", lambda: read_table(path), path)
    assert found is None or all(isinstance(own, str) for row in found.rows for own in row.cells.values())
