from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.errors import DataError
from experiments.ner.prepro import main, read_sentences
from tasks.definition import TaskDefs
from tests.experiments.publish import trained, write_lines
from tests.experiments.scripts import EXPERIMENTS, calls_of

TASK_DEF = EXPERIMENTS / "ner" / "ner_task_def.yml"
RUN = "ner/run_ner_finetuning.sh"

# the beginning of a file of CoNLL-2003, and a last sentence that no blank line ends
FILE = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O
. . O O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- -X- O

"She 's`` $ O O""".splitlines()
TSVS = {
    "ner": [
        (["B-ORG", "O", "B-MISC", "O", "O"], ["EU", "rejects", "German", "call", "."]),
        (["B-PER", "I-PER"], ["Peter", "Blackburn"]),
        (["O"], ['"She']),
    ],
    "pos": [
        (["NNP", "VBZ", "JJ", "NN", "."], ["EU", "rejects", "German", "call", "."]),
        (["NNP", "NNP"], ["Peter", "Blackburn"]),
        (["$"], ['"She']),
    ],
    "chunk": [
        (["B-NP", "B-VP", "B-NP", "I-NP", "O"], ["EU", "rejects", "German", "call", "."]),
        (["B-NP", "I-NP"], ["Peter", "Blackburn"]),
        (["O"], ['"She']),
    ],
}


def run(folder: Path) -> dict[str, list[tuple[list[str], list[str]]]]:
    """What the command writes, by name: of each sentence labels and words."""
    main(["--data_dir", str(folder), "--output_dir", str(folder / "canonical_data")])
    found = {}
    for path in (folder / "canonical_data").iterdir():
        fields = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        assert [uid for uid, *_ in fields] == [str(number) for number in range(len(fields))]
        found[path.stem] = [(json.loads(labels), json.loads(words)) for _, labels, words in fields]
    return found


@pytest.mark.parametrize("names", [("train.txt", "valid.txt", "test.txt"), ("eng.train", "eng.testa", "eng.testb")])
def test_columns_become_the_labels_of_three_tasks(tmp_path: Path, names: tuple[str, ...]):
    for name in names:
        write_lines(tmp_path / name, FILE)
    expected = {f"{task}_{split}": lines for task, lines in TSVS.items() for split in ("train", "dev", "test")}
    assert run(tmp_path) == expected


def test_the_labels_are_known(tmp_path: Path):
    task_defs = TaskDefs(TASK_DEF)
    for task, sentences in TSVS.items():
        vocabulary = task_defs.get_task_def(task).label_vocab
        assert vocabulary is not None
        assert all(label in vocabulary for labels, _ in sentences for label in labels)


def test_a_line_with_too_few_columns_is_named(tmp_path: Path):
    write_lines(tmp_path / "train.txt", [*FILE[:4], "call NN"])
    with pytest.raises(DataError, match="expected 4 columns as above, found 'call NN'") as caught:
        run(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'train.txt'}, line 5: ")


@pytest.mark.parametrize("middle", ["", "NN "])
def test_files_of_words_and_names_alone(tmp_path: Path, middle: str):
    write_lines(tmp_path / "train.txt", [f"EU {middle}B-ORG", f"rejects {middle}O", "", f"Ann {middle}B-PER"])
    assert run(tmp_path) == {"ner_train": [(["B-ORG", "O"], ["EU", "rejects"]), (["B-PER"], ["Ann"])]}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["EU"], "line 1: expected a word and its tag or tags, found 'EU'"),
        (["EU O", "a b O"], "line 2: expected 2 col"),
    ],
)
def test_lines_of_other_columns_are_named(tmp_path: Path, lines: list[str], said: str):
    write_lines(tmp_path / "train.txt", lines)
    with pytest.raises(DataError, match=said):
        run(tmp_path)


@pytest.mark.parametrize(
    ("lines", "said"), [(["EU"], "line 1: expected a word and its tag"), (["", ""], "no sentence")]
)
def test_a_mistake_in_one_file_leaves_nothing_written(tmp_path: Path, lines: list[str], said: str):
    write_lines(tmp_path / "train.txt", FILE)
    write_lines(tmp_path / "test.txt", lines)
    with pytest.raises(DataError, match=f"test.txt.*{said}"):
        run(tmp_path)
    assert not (tmp_path / "canonical_data").exists()


def test_what_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(DataError, match="found none of train.txt or eng.train; .*--data_dir"):
        run(tmp_path)
    write_lines(tmp_path / "train.txt", FILE)
    assert set(run(tmp_path)) == {"ner_train", "pos_train", "chunk_train"}
    assert "skipped dev: " in capsys.readouterr().out


def test_from_the_files_to_the_scores(tmp_path: Path):
    for name in ("train.txt", "valid.txt", "test.txt"):
        write_lines(tmp_path / name, FILE)
    run(tmp_path)
    sift = ("--adv_train", "--adv_norm_level", "post_ln")
    found = trained(tmp_path, RUN, "mtdnn", *sift, encoder="bert-tiny-cased", task_def=TASK_DEF)
    assert set(found) == {f"{task}_{split}" for task in TSVS for split in ("dev", "test")}
    for name, scores in found.items():
        metric = "ACC" if name.startswith("pos") else "SeqEval"
        assert list(scores["metrics"]) == [metric] and scores["uids"] == ["0", "1", "2"]
        # a label a token: of each sentence the words' pieces and two special tokens
        assert [len(labels) for labels in scores["predictions"]] == [7, 4, 4]


def test_tasks_alone_and_together(tmp_path: Path):
    for task, expected in (("mtdnn", "ner,pos,chunk"), ("ner", "ner")):
        (call,) = calls_of(RUN, "d", "bert", "base", task, 16, 1, folder=tmp_path)
        assert call["train_datasets"] == call["test_datasets"] == expected
        assert (call["init_checkpoint"], call["data_dir"]) == ("bert-base-cased", "d/bert-base-cased")


@pytest.mark.parametrize("blank", ["\xa0", "\x85", "\u2028", "\u3000", "\x0b"])
def test_rarer_blanks_belong_to_a_word(tmp_path: Path, blank: str):
    (tmp_path / "train.txt").write_bytes(f"a{blank}b NN B-NP O\n".encode())
    assert list(read_sentences(tmp_path / "train.txt")) == [[[f"a{blank}b", "NN", "B-NP", "O"]]]
