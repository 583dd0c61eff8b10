from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import prepro_std
from data_utils.errors import DataError, FlagError
from data_utils.readers import read_documents, read_score_file
from experiments.mlm import mlm_prepro
from tasks.definition import TaskDefs
from tests.experiments.scripts import EXPERIMENTS, calls_of, run_script
from tests.tasks.learning import WORDS, write_small_encoder

TASK_DEF = EXPERIMENTS / "mlm" / "mlm.yml"
RUN = "mlm/run_mlm.sh"


def write_text(path: Path, count: int) -> Path:
    """Documents of three sentences, in WikiText's layout."""
    draw = random.Random(1)
    documents = ("".join(f" {' '.join(draw.choices(WORDS, k=6))} \n" for _ in range(3)) for _ in range(count))
    path.write_text(" \n" + "\n \n".join(documents))
    return path


def test_the_definition_reads_mt_dnns_keys():
    task_def = TaskDefs(TASK_DEF).get_task_def("mlm")
    assert (task_def.task_type.name, task_def.data_type.name, task_def.loss.name) == ("MaskLM", "MLM", "MlmCriterion")


def test_from_text_to_a_pre_trained_encoder(tmp_path: Path):
    encoder = write_small_encoder(tmp_path / "small")
    root = tmp_path / "canonical_data"
    text = write_text(tmp_path / "wiki.train.raw", 60)
    mlm_prepro.main(["--train", str(text), "--dev_every", "10", "--root_dir", str(root)])
    assert [len(list(read_documents(root / f"mlm_{split}.txt"))) for split in ("train", "dev")] == [54, 6]
    flags = ["--model", str(encoder), "--root_dir", str(root), "--task_def", str(TASK_DEF)]
    prepro_std.main([*flags, "--max_seq_len", "16"])
    lines = [json.loads(line) for line in (root / "small" / "mlm_train.json").read_text().splitlines()]
    # two sentences of six words and the two special tokens fill a sequence of 14, the third has its own
    assert [(line["uid"], len(line["token_id"])) for line in lines[:4]] == [
        ("0-0", 14), ("0-1", 8), ("1-0", 14), ("1-1", 8),
    ]  # fmt: skip

    alum = ["--adv_train", "--adv_opt", "alum", "--epochs", "2", "--dataloader_num_workers", "0"]
    finished = run_script(RUN, root / "small", encoder, 8, *alum, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    output = tmp_path / "mlm_app"
    assert (output / "model_1.pt").is_file() and (output / "mlm-train.log").is_file()
    found = read_score_file(output / "mlm_dev_scores_epoch_1.json")
    assert set(found["metrics"]) == {"ACC", "perplexity"} and len(found["uids"]) == 12
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if line["kind"] == "update"] == list(range(1, 29))

    # it goes on from its own checkpoint, whose name does not tell the tokenizer
    again = [*alum, "--tokenizer", str(encoder)]
    finished = run_script(RUN, root / "small", output / "model_1.pt", 8, *again, folder=tmp_path, OUTPUT_DIR="again")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "again" / "model_1.pt").is_file()


def test_mt_dnns_json_lines_are_read(tmp_path: Path):
    rows = [{"text": "one  two\nthree\n\n\n\nfour"}, {"text": " \n\n"}, {"text": "five"}]
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.txt").write_text("six\n\n\nseven\n")
    dev = ["--dev", str(tmp_path / "b.txt")]
    mlm_prepro.main(["--train", str(tmp_path / "a.json"), str(tmp_path / "b.txt"), *dev, "--root_dir", str(tmp_path)])
    assert (tmp_path / "mlm_train.txt").read_text() == "one two three\nfour\n\nfive\n\nsix\n\nseven\n\n"
    assert [document["sentences"] for document in read_documents(tmp_path / "mlm_dev.txt")] == [["six"], ["seven"]]
    for line in ('{"text": 3}', "[]", '{"words": "a"}', "{"):
        (tmp_path / "a.json").write_text('{"text": "one"}\n' + line + "\n")
        with pytest.raises(DataError, match=r'a.json, line 2: .*(accepted: \{"text": "…"\}|no whole JSON object)'):
            mlm_prepro.main(["--train", str(tmp_path / "a.json"), "--root_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "mlm_train.txt").exists()
    with pytest.raises(FlagError, match="--dev_every: found '1'"):
        mlm_prepro.main(["--train", str(tmp_path / "b.txt"), "--dev_every", "1"])


def test_the_settings_of_a_run(tmp_path: Path):
    (call,) = calls_of(RUN, "d", "bert", 16, "--seed", 3, folder=tmp_path)
    assert call == {
        "launcher": "python", "task_def": str(TASK_DEF), "data_dir": "d", "train_datasets": "mlm",
        "test_datasets": "mlm", "init_checkpoint": "bert", "epochs": "3", "learning_rate": "5e-5",
        "optimizer": "adamax", "batch_size": "16", "output_dir": "mlm_app", "log_file": "mlm_app/mlm-train.log",
        "seed": "3",
    }  # fmt: skip
    finished = run_script(RUN, "d", "bert", folder=tmp_path)
    assert finished.returncode == 2 and finished.stderr.startswith("error: usage: run_mlm.sh DATA_DIR INIT_CHECKPOINT")


@pytest.mark.parametrize("line", ['{"text": "\\ud800"}', '{"text": ["a"]}', "[" * 5000, "9" * 5000])
def test_a_line_of_json_without_a_text_is_told(tmp_path: Path, line: str):
    path = tmp_path / "wiki.jsonl"
    path.write_text('{"text": "a\\u0000b"}\n' + line + "\n")
    with pytest.raises(DataError, match="wiki.jsonl, line 2: "):
        list(mlm_prepro.documents(path))
    path.write_text('{"text": "a\\u0000b"}\n')
    assert list(mlm_prepro.documents(path)) == [["a b"]]


def test_too_few_documents_to_hold_one_out_write_nothing(tmp_path: Path):
    (tmp_path / "text.txt").write_text("one line\nanother\n\nsecond\n")
    given = ["--train", str(tmp_path / "text.txt"), "--root_dir", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"mlm_dev.txt: found no document for it; accepted: --dev FILE"):
        mlm_prepro.main(given)
    assert not list((tmp_path / "out").glob("*"))
    mlm_prepro.main([*given, "--dev_every", "2"])
    assert (tmp_path / "out" / "mlm_dev.txt").read_text() == "second\n\n"
