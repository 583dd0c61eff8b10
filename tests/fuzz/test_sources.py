"""Files as their publishers hand them out: read or refused by line, and what is written of them is read again."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given

from data_utils.errors import DataError
from data_utils.storage.text_files import MARK, read_lines
from experiments.anli import anli_prepro
from experiments.canonical import Example, Reading, read_examples, write_canonical
from experiments.dump_embedding.extractor import read_texts
from experiments.glue.glue_layouts import LAYOUTS, Layout, Part
from experiments.glue.glue_prepro import read_part
from experiments.mlm import mlm_prepro
from experiments.ner import prepro as ner_prepro
from experiments.sift.data import hutto, study_data
from experiments.squad.squad_prepro import read_squad
from experiments.superglue import superglue_prepro
from experiments.xnli import xnli_prepro
from tests.experiments.sift.hutto_archive import rated_lines, write_archive
from tests.fuzz.check import reading
from tests.fuzz.inputs import DRAWN, Choices


def canonical(target: Path, examples: Iterable[Example]) -> list[Example]:
    """Examples written and read again; as they were but for what cannot stand in a field."""
    kept: list[Example] = []

    def passed() -> Iterable[Example]:
        for example in examples:
            kept.append(example)
            yield example

    with contextlib.redirect_stdout(io.StringIO()):
        write_canonical(target, Reading(iter(passed())))
    again = [tuple(line.split("\t")) for _, line in read_lines(target)]
    if kept:
        kept[0] = (kept[0][0].lstrip(MARK), *kept[0][1:])
    assert again == [tuple("".join(" " if c in "\t\n\r\0" else c for c in part) for part in own) for own in kept]
    return kept


def glue_cases() -> list[tuple[str, Layout, Part]]:
    return [(task, layout, part) for task, layouts in LAYOUTS.items() for layout in layouts for part in layout.parts]


GLUE = glue_cases()


def glue_seed(layout: Layout, part: Part) -> bytes:
    """Three examples in a layout's columns."""
    columns = part.columns or ("index", *layout.texts, layout.label)
    rows = [] if part.columns else [columns]
    for number in range(3):
        known = {"index": str(number), layout.label: "0" if number else "entailment"}
        rows.append(tuple(known.get(column, f"{column} {number} d\u00e9j\u00e0") for column in columns))
    return "".join("\t".join(row) + "\n" for row in rows).encode()


SEEDS = [glue_seed(layout, part) for _, layout, part in GLUE]


KINDS = {
    "CoLA's files": ["cola"],
    "SciTail's and SNLI's files": ["scitail", "snli"],
    "GLUE's other files": sorted(LAYOUTS.keys() - {"cola", "scitail", "snli"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_glue(tmp_path: Path, name: str) -> None:
    cases = [case for case, (task, _, _) in enumerate(GLUE) if task in KINDS[name]]
    target = tmp_path / "target.tsv"

    @given(DRAWN)
    def each(drawn: bytes) -> None:
        choices = Choices(drawn)
        case = choices.of(cases)
        content = choices.text([SEEDS[case]])
        _, layout, part = GLUE[case]
        files = [tmp_path / own for own in part.files]
        for path in files:
            path.write_bytes(content)
        reading(name, lambda: canonical(target, read_part(tmp_path, layout, part).examples), target, *files)

    each()


SUPERGLUE = {
    "boolq": {"idx": 0, "label": True, "passage": "a b", "question": "c"},
    "cb": {"idx": 0, "label": "neutral", "premise": "a", "hypothesis": "b"},
    "copa": {"idx": 0, "label": 1, "premise": "a", "choice1": "b", "choice2": "c", "question": "cause"},
    "multirc": {
        "idx": 0,
        "passage": {
            "text": "a",
            "questions": [{"idx": 0, "question": "b", "answers": [{"idx": 0, "text": "c", "label": 1}]}],
        },
    },
    "record": {
        "idx": 0,
        "passage": {"text": "Ann met Bob.", "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}]},
        "qas": [{"idx": 1, "query": "@placeholder left", "answers": [{"start": 0, "end": 2, "text": "Ann"}]}],
    },
    "rte": {"idx": 0, "label": "entailment", "premise": "a", "hypothesis": "b"},
    "wic": {"idx": 0, "label": False, "word": "a", "sentence1": "b", "sentence2": "c"},
    "wsc": {
        "idx": 0,
        "label": True,
        "text": "Ann said she slept .",
        "target": {"span1_index": 0, "span1_text": "Ann", "span2_index": 2, "span2_text": "she"},
    },
}
SPLITS = ("train", "dev", "test")


@given(DRAWN)
def test_superglue(tmp_path: Path, drawn: bytes) -> None:
    choices = Choices(drawn)
    task, split = choices.of(sorted(SUPERGLUE)), choices.of(SPLITS)
    content = choices.json_lines([SUPERGLUE[task]])
    path, target = tmp_path / "train.jsonl", tmp_path / "target.tsv"
    path.write_bytes(content)
    _, examples_of = superglue_prepro.readers(Reading(), 13)[task]
    read = partial(read_examples, path, partial(examples_of, split=split))
    reading("SuperGLUE's files", lambda: canonical(target, read()), path, target)


ANLI = {"uid": "0", "label": "e", "context": "a", "hypothesis": "b", "reason": ""}


@given(DRAWN)
def test_anli(tmp_path: Path, drawn: bytes) -> None:
    choices = Choices(drawn)
    split, content = choices.of(SPLITS), choices.json_lines([ANLI])
    path, target = tmp_path / "train.jsonl", tmp_path / "target.tsv"
    path.write_bytes(content)
    read = partial(read_examples, path, partial(anli_prepro.pair, split=split))
    reading("ANLI's files", lambda: canonical(target, read()), path, target)


XNLI = {"language": "de", "pairID": "1", "gold_label": "neutral", "sentence1": "a", "sentence2": "b"}
XNLI_TABLE = "".join("\t".join(row) + "\n" for row in (XNLI, XNLI.values(), XNLI.values())).encode()


@given(DRAWN)
def test_xnli(tmp_path: Path, drawn: bytes) -> None:
    choices = Choices(drawn)
    suffix = choices.of(("tsv", "jsonl"))
    content = choices.text([XNLI_TABLE]) if suffix == "tsv" else choices.json_lines([XNLI])
    folder, target = tmp_path / "data", tmp_path / "target"
    folder.mkdir(exist_ok=True)
    path = folder / f"xnli.dev.{suffix}"
    path.write_bytes(content)

    def convert() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            xnli_prepro.convert(path, target / "xnli_dev.tsv")
            for language in xnli_prepro.languages(path):
                xnli_prepro.convert(path, target / f"xnli_{language}_dev.tsv", language)

    reading("XNLI's files", convert, path, target / "xnli_dev.tsv")
    assert {own.name for own in tmp_path.iterdir()} <= {"data", "target"}  # nothing is written elsewhere
    for written in target.glob("*") if target.is_dir() else ():
        assert written.name.startswith("xnli_") and written.is_file()
        written.unlink()


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "Ann met Bob.",
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
                        {"id": "2", "question": "Whom?", "answers": [], "is_impossible": True},
                    ],
                }
            ]
        }
    ]
}


@given(DRAWN)
def test_squad(tmp_path: Path, drawn: bytes) -> None:
    choices = Choices(drawn)
    task, content = choices.of(("squad", "squad-v2")), choices.json([SQUAD])
    path, target = tmp_path / "train-v2.0.json", tmp_path / "target.tsv"
    path.write_bytes(content)
    reading("SQuAD's files", lambda: canonical(target, read_squad(path, task).examples), path, target)


CONLL = b"-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nGerman JJ B-NP B-MISC\n. . O O\n"


@given(DRAWN)
def test_ner(tmp_path: Path, drawn: bytes) -> None:
    choices = Choices(drawn)
    task, content = choices.of(sorted(ner_prepro.COLUMNS)), choices.text([CONLL, CONLL.replace(b" ", b"\t")])
    path, target = tmp_path / "train.txt", tmp_path / "target.tsv"
    path.write_bytes(content)

    def converted() -> list[Example]:
        sentences = list(ner_prepro.read_sentences(path))
        found = task if sentences and task in ner_prepro.tasks_of(sentences) else "ner"
        return canonical(target, ner_prepro.examples(sentences, found))

    kept = reading("CoNLL's files", converted, path, target)
    for _, labels, words in kept or ():
        assert len(json.loads(labels)) == len(json.loads(words)) > 0


PLAIN = b"One sentence .\nAnother one .\n\nA second document .\n"


@given(DRAWN)
def test_mlm(tmp_path: Path, drawn: bytes) -> None:
    choices = Choices(drawn)
    suffix = choices.of(("txt", "jsonl"))
    content = choices.text([PLAIN]) if suffix == "txt" else choices.json_lines([{"text": "a b\nc\n\nd"}])
    path, target = tmp_path / f"wiki.{suffix}", tmp_path / "mlm_train.txt"
    path.write_bytes(content)
    found = reading("plain text for MLM", lambda: [list(own) for own in mlm_prepro.documents(path)], path)
    if found and not found[0][0].startswith(MARK):
        with contextlib.redirect_stdout(io.StringIO()):
            mlm_prepro.write_documents(target, found)
        assert [list(own) for own in mlm_prepro.documents(target)] == found


def study_examples(target: Path, examples: list[hutto.Example]) -> None:
    """Written as the study does, a line has three fields again."""
    hutto.write_canonical(target, examples)
    assert [line.count("\t") for _, line in read_lines(target)] == [2] * len(examples)


TWEETS = 'id,label,tweet\n1,0,"a, b"\n2,1,hate \xf0\n3,0,"two\nlines"\n'


@given(DRAWN)
def test_tweets(tmp_path: Path, drawn: bytes) -> None:
    content = Choices(drawn).text([TWEETS.encode(), TWEETS.encode("latin-1")])
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    found = reading("the study's tweets (CSV)", lambda: study_data._read_hate(path), path)
    study_examples(tmp_path / "target.tsv", found or [])


TABLES = {True: b"s\t1\t\tHe sleeps.\ns\t0\t*\tSleeps he.\n", False: b"good film\t1\nbad\x0b film\t0\n"}


@given(DRAWN)
def test_study_tables(tmp_path: Path, drawn: bytes) -> None:
    choices = Choices(drawn)
    cola = choices.of((True, False))
    content = choices.text([TABLES[cola]])
    path = tmp_path / "table.txt"
    path.write_bytes(content)
    read = study_data._read_cola if cola else study_data._read_uci
    found = reading("the study's tables (UCI, CoLA)", lambda: read(path), path)
    study_examples(tmp_path / "target.tsv", found or [])


@given(DRAWN)
def test_advglue(tmp_path: Path, drawn: bytes) -> None:
    content = Choices(drawn).json([{"sst2": [{"idx": 0, "sentence": "a film", "label": 1}], "rte": []}])
    path = tmp_path / "advglue" / "dev.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    found = reading("the study's AdvGLUE (JSON)", lambda: study_data.advglue(tmp_path), path)
    study_examples(tmp_path / "target.tsv", (found or {}).get("sentiment_advglue_test", []))


@given(DRAWN)
def test_ratings(tmp_path: Path, drawn: bytes) -> None:
    content = Choices(drawn).text([rated_lines("tweets", 3).encode()])
    path = Path(hutto.DOMAINS["tweets"])
    found = reading("the ratings (vaderSentiment)", lambda: hutto.parse_ratings(content, "tweets"), path)
    study_examples(tmp_path / "target.tsv", found or [])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_archive(
        tmp_path_factory.mktemp("archive"), {domain: rated_lines(domain, 2) for domain in hutto.DOMAINS}
    ).read_bytes()


@given(DRAWN)
def test_archive(tmp_path: Path, archive: bytes, drawn: bytes) -> None:
    draw = random.Random(drawn)
    changed = bytearray(archive[: draw.choice([len(archive), draw.randrange(len(archive))])])
    for _ in range(draw.randrange(4)):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(changed)
    members = [Path(name) for name in hutto.DOMAINS.values()]
    reading("the ratings' archive (tar)", lambda: hutto.read_domains(path), path, *members)
    assert [own.name for own in tmp_path.iterdir()] == ["archive.tar.gz"]


@given(DRAWN)
def test_texts_to_embed(tmp_path: Path, drawn: bytes) -> None:
    content = Choices(drawn).text([b"a text\na pair ||| of texts\n"])
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    found = reading("texts for the extractor", lambda: read_texts(path), path)
    assert found is None or all(isinstance(own, str) or len(own) == 2 for own in found)


@pytest.mark.parametrize("language", ["/../../x", "..", "de/../..", "9" * 300, "de\u2028"])
def test_a_language_cannot_lead_out_of_the_folder(language: str, tmp_path: Path) -> None:
    path = tmp_path / "data" / "xnli.dev.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({**XNLI, "language": language}) + "\n")
    with pytest.raises(DataError, match="found the language "):
        xnli_prepro.main(["--root_dir", str(tmp_path / "root"), "--data_dir", str(path.parent)])
    assert sorted(own.name for own in tmp_path.iterdir()) == ["data", "root"]
