"""Characters that readers like to get wrong, each in each reader: read as it is, or refused with its line."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data_utils.errors import DataError
from data_utils.readers import read_canonical_tsv, read_score_file, read_token_json, write_score_file
from data_utils.storage.text_files import read_lines, write_lines
from data_utils.tables import read_table
from data_utils.tables.conll import read_conll
from data_utils.task_def import DataFormat
from experiments.canonical import Reading, read_examples, write_canonical
from experiments.dump_embedding.extractor import read_texts
from experiments.glue.glue_layouts import LAYOUTS
from experiments.glue.glue_prepro import read_part
from experiments.mlm.mlm_prepro import documents
from experiments.ner.prepro import read_sentences
from experiments.sift.data import study_data
from experiments.sift.data.hutto import parse_ratings
from experiments.squad.squad_prepro import read_squad
from experiments.superglue.superglue_prepro import boolq
from tasks.definition import TaskDefs
from tests.fuzz.inputs import CHARACTERS

Reader = Callable[[Path, str], str]  # gives back the text that it finds in a file with that text in it


def canonical(path: Path, text: str) -> str:
    path.write_bytes(f"0\t1\tx\n1\t0\tx{text}y\n".encode())
    return list(read_canonical_tsv(path, DataFormat.PremiseOnly))[1]["premise"][1:-1]


def written(path: Path, reading: Reading) -> list[str]:
    """The last example's fields in the canonical TSV that is made of a source."""
    with contextlib.redirect_stdout(io.StringIO()):
        write_canonical(path, reading)
    return [line.split("\t") for _, line in read_lines(path)][-1]


def glue(path: Path, text: str) -> str:
    layout = LAYOUTS["sst"][0]
    (path.parent / "dev.tsv").write_bytes(f"sentence\tlabel\nx\t1\n{text}\t1\n".encode())
    return written(path, read_part(path.parent, layout, layout.parts[1]))[2]


def superglue(path: Path, text: str) -> str:
    path = path.with_suffix(".jsonl")
    rows = [{"idx": 0, "label": 1, "question": "q", "passage": own} for own in ("x", text)]
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return written(path.parent / "target", Reading(read_examples(path, lambda row: boolq(row, "dev"))))[2]


def squad(path: Path, text: str) -> str:
    questions = [{"id": "0", "question": "q", "answers": [{"text": text, "answer_start": 1}]}]
    content = {"data": [{"paragraphs": [{"context": f"x{text}y", "qas": questions}]}]}
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode())
    return json.loads(written(path.parent / "target", read_squad(path, "squad"))[1])[0]


def conll(path: Path, text: str) -> str:
    path.write_bytes(f"x NN B O\n{text} NN B O\n".encode())
    return next(read_sentences(path))[1][0]


def plain_text(path: Path, text: str) -> str:
    path.write_bytes(f"x\nx{text}y\n".encode())
    return next(documents(path))[1][1:-1]


def tokens(path: Path, text: str) -> str:
    write_lines(path, (json.dumps({"uid": uid, "token_id": [1]}, ensure_ascii=False) for uid in ("x", text)))
    return [sample["uid"] for _, sample in read_token_json(path)][1]


def scores(path: Path, text: str) -> str:
    write_score_file(path, {}, [0], [text], [0.5])
    return read_score_file(path)["uids"][0]


def definition(path: Path, text: str) -> str:
    entry = {"data_format": "PremiseOnly", "task_type": "Classification", "n_class": 2, "metric_meta": ["ACC"]}
    path.write_text(yaml.safe_dump({"t": entry | {"labels": ["x", text]}}), encoding="utf-8")
    labels = TaskDefs(path).get_task_def("t").label_vocab
    return "" if labels is None else list(labels.tok2ind)[1]


def tweets(path: Path, text: str) -> str:
    path.write_bytes(f'id,label,tweet\n0,0,x\n1,0,"x{text}y"\n'.encode())
    return study_data._read_hate(path)[1].text[1:-1]


def reviews(path: Path, text: str) -> str:
    path.write_bytes(f"x\t1\nx{text}y\t0\n".encode())
    return study_data._read_uci(path)[1].text[1:-1]


def ratings(path: Path, text: str) -> str:
    return parse_ratings(f"0\t1\tx\n1\t1\tx{text}y\n".encode(), "tweets")[1].text[1:-1]


def own_table(path: Path, text: str) -> str:
    path = path.with_suffix(".csv")
    path.write_bytes(f'text,label\nx,1\n"{text}",0\n'.encode())
    return read_table(path).rows[1].cells["text"]


def embedded(path: Path, text: str) -> str:
    path.write_bytes(f"x\nx{text}y\n".encode())
    return str(read_texts(path)[1])[1:-1]


AS_THEY_ARE = (canonical, glue, conll, plain_text, reviews, ratings, own_table, embedded)  # text files
IN_JSON = (tokens, scores, definition, superglue, squad)
WRITTEN_AS_BLANKS = {superglue: "\r\0", squad: "\r\0", glue: "\r"}  # what a canonical TSV cannot hold
SINGLE_BLANKS = {tweets}  # white space of any kind becomes one blank, as the study's page says


@pytest.mark.parametrize("name", CHARACTERS)
@pytest.mark.parametrize("read", [*AS_THEY_ARE, *IN_JSON, tweets], ids=lambda read: read.__name__)
def test_characters(read: Reader, name: str, tmp_path: Path) -> None:
    text = CHARACTERS[name]
    if name == "NUL" and read not in IN_JSON:
        with pytest.raises(DataError, match=r", line [23]: found NUL at byte"):
            read(tmp_path / "file", text)
        return
    expected = "".join(" " if character in WRITTEN_AS_BLANKS.get(read, "") else character for character in text)
    if read in SINGLE_BLANKS and text.isspace():
        expected = " "
    assert read(tmp_path / "file", text) == expected


FILES: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "canonical": (lambda path: list(read_canonical_tsv(path, DataFormat.PremiseOnly)), b"0\t1\tx%b\n"),
    "tokens": (lambda path: [row for _, row in read_token_json(path)], b'{"uid": "%b", "token_id": [1]}\n'),
    "plain text": (lambda path: list(documents(path)), b"x%b\n"),
    "conll": (lambda path: list(read_sentences(path)), b"x%b NN B O\n"),
    "words": (lambda path: [row.cells for row in read_conll(path).rows], b"x%b NN B O\n"),
    "table": (lambda path: [row.cells for row in read_table(path).rows], b"text,label\nx%b,1\n"),
}


@pytest.mark.parametrize("kind", FILES)
def test_marks_at_the_start_and_ends_of_lines_are_no_text(kind: str, tmp_path: Path) -> None:
    read, line = FILES[kind]
    path = tmp_path / "file.csv"
    path.write_bytes(line % b"")
    expected = read(path)
    for content in (b"\xef\xbb\xbf" + line % b"", (line % b"").replace(b"\n", b"\r\n"), (line % b"").rstrip(b"\n")):
        path.write_bytes(content)
        assert read(path) == expected


@pytest.mark.parametrize("wrong", [b"\xed\xa0\x80", b"\xff", b"\xc0\x80", b"\x80"], ids=bytes.hex)
@pytest.mark.parametrize("kind", FILES)
def test_bytes_that_are_no_characters_are_refused_by_line(kind: str, wrong: bytes, tmp_path: Path) -> None:
    read, line = FILES[kind]
    path = tmp_path / "file.csv"
    path.write_bytes(line % b"" + line.split(b"\n")[-2] % wrong + b"\n")
    number = path.read_bytes().count(b"\n")
    with pytest.raises(DataError, match=f"file.csv, line {number}: found the byte {wrong[0]:#04x} at byte"):
        read(path)


@pytest.mark.parametrize("kind", sorted({*FILES} - {"table", "conll", "words"}))
def test_utf_16_is_refused(kind: str, tmp_path: Path) -> None:
    read, line = FILES[kind]
    path = tmp_path / "file.csv"
    path.write_bytes((line % b"").decode().encode("utf-16"))
    with pytest.raises(DataError, match=r"line 1: found the byte 0xff at byte 1; accepted is UTF-8"):
        read(path)


@pytest.mark.parametrize("half", ["\\ud800", "\\udc00", "\\udc00\\ud800", "a\\ud83d"])
def test_half_a_surrogate_pair_in_json_is_refused_by_line(half: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = '{"uid": "\\ud83d\\ude00", "token_id": [1]}\n'
    path.write_text(whole + whole.replace("\\ud83d\\ude00", half))
    with pytest.raises(DataError, match=r"line 2: found '\\ud[0-9a-f]+', half a surrogate pair"):
        list(read_token_json(path))
    path.write_text(whole)
    assert next(read_token_json(path))[1]["uid"] == "\U0001f600"
