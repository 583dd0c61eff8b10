from __future__ import annotations

import json
from pathlib import Path

import pytest

import prepro_std
from data_utils.errors import DataError
from data_utils.readers import read_score_file
from experiments.domain_adaptation import domain_prepro
from tasks.definition import TaskDefs
from tests.encoder_folder import write_encoder
from tests.experiments.scripts import EXPERIMENTS, calls_of, run_script

TASK_DEF = EXPERIMENTS / "domain_adaptation" / "domain_adaptation_def.yml"
RUN, BATCH = "domain_adaptation/run_domain_adaptation.sh", "domain_adaptation/run_batch.sh"
PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
RATERS = "label1\tlabel2\tlabel3\tlabel4\tlabel5"
SNLI_HEADER = f"gold_label\t{PARSES}\tsentence1\tsentence2\tcaptionID\tpairID\t{RATERS}\n"


def write_releases(folder: Path, train: int = 200) -> None:
    """SciTail and SNLI in the files of their public releases, every tenth pair of SNLI without an agreed label."""
    scitail, snli = folder / "SciTailV1.1" / "tsv_format", folder / "snli_1.0"
    scitail.mkdir(parents=True)
    snli.mkdir()
    for split, count in (("train", train), ("dev", 6), ("test", 4)):
        pairs = [
            f"good fine {number}.\tbad {number}.\t{'entails' if number % 2 else 'neutral'}\n" for number in range(count)
        ]
        (scitail / f"scitail_1.0_{split}.tsv").write_text("".join(pairs))
        rows = [SNLI_HEADER]
        for number in range(count):
            label = "-" if number % 10 == 9 else ("contradiction", "neutral", "entailment")[number % 3]
            texts = f"good {number}.\tpoor {number}."
            rows.append(f"{label}\t( p )\t( p )\t(ROOT)\t(ROOT)\t{texts}\t1.jpg#0\t1.jpg#0r1n\t{label}\t\t\t\t\n")
        (snli / f"snli_1.0_{split}.txt").write_text("".join(rows))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Canonical files of both tasks."""
    write_releases(tmp_path)
    domain_prepro.main(["--root_dir", str(tmp_path)])
    return tmp_path / "canonical_data"


def test_the_tasks_are_those_of_glues_definitions():
    glue, own = TaskDefs(EXPERIMENTS / "glue" / "glue_task_def.yml"), TaskDefs(TASK_DEF)
    assert own.names == domain_prepro.TASKS
    for task in own.names:
        assert repr(vars(own.get_task_def(task))) == repr(vars(glue.get_task_def(task)))


def test_both_tasks_are_converted_with_their_shares(root: Path):
    sizes = {path.stem: len(path.read_text().splitlines()) for path in root.glob("*.tsv")}
    assert sizes == {
        "scitail_train": 200, "scitail_1_train": 20, "scitail_01_train": 2, "scitail_001_train": 1,
        "scitail_dev": 6, "scitail_test": 4,
        "snli_train": 180, "snli_1_train": 18, "snli_01_train": 1, "snli_001_train": 1,
        "snli_dev": 6, "snli_test": 4,
    }  # fmt: skip
    for task in domain_prepro.TASKS:
        parts = [
            set((root / f"{task}{share}_train.tsv").read_text().splitlines()) for share in ("_001", "_01", "_1", "")
        ]
        assert parts[0] <= parts[1] < parts[2] < parts[3]
    assert (root / "snli_train.tsv").read_text().splitlines()[0].split("\t")[1:] == [
        "contradiction", "good 0.", "poor 0.",
    ]  # fmt: skip


def test_shares_of_the_published_sizes_are_nested_and_follow_the_seed():
    sizes = {task: {name: len(part) for name, part in domain_prepro.shares(count, 13).items()} for task, count in (
        ("scitail", 23596), ("snli", 549367),
    )}  # fmt: skip
    assert sizes["scitail"] == {"001": 23, "01": 235, "1": 2359}
    assert sizes["snli"] == {"001": 549, "01": 5493, "1": 54936}
    one, again, other = (domain_prepro.shares(1000, seed) for seed in (13, 13, 14))
    assert one == again and one["1"] != other["1"]
    assert set(one["001"]) < set(one["01"]) < set(one["1"]) and one["1"] == sorted(set(one["1"]))
    # not the head of the file
    assert min(one["1"]) < 100 and max(one["1"]) > 900


def test_one_task_is_enough_and_none_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="scitail: .*snli: .*--data_dir"):
        domain_prepro.main(["--root_dir", str(tmp_path)])
    folder = tmp_path / "data" / "SNLI"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("index\tsentence1\tsentence2\tgold_label\n4\tgood\tbad\tneutral\n")
    domain_prepro.main(["--root_dir", str(tmp_path), "--data_dir", str(tmp_path / "data")])
    names = {path.name for path in (tmp_path / "canonical_data").iterdir()}
    assert names == {"snli_train.tsv", "snli_001_train.tsv", "snli_01_train.tsv", "snli_1_train.tsv"}


def test_from_the_release_to_the_scores(root: Path):
    folder = root.parent
    encoder = write_encoder(folder / "tiny")
    prepro_std.main(["--model", str(encoder), "--root_dir", str(root), "--task_def", str(TASK_DEF)])
    flags = ["--epochs", "1", "--dataloader_num_workers", "0", "--adv_train", "--adv_norm_level", "post_ln"]
    finished = run_script(RUN, root / "tiny", encoder, "scitail_1", "scitail", 8, *flags, folder=folder)
    assert finished.returncode == 0, finished.stderr
    output = folder / "domain_app" / "scitail_1"
    assert (output / "model_0.pt").is_file() and (output / "domain-adaptation-train.log").is_file()
    for split, count in (("dev", 6), ("test", 4)):
        assert len(read_score_file(output / f"scitail_{split}_scores_epoch_0.json")["uids"]) == count
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert {"R" in line for line in lines if line["kind"] == "update"} == {True}

    # what was trained on one task is the shared encoder of another
    checkpoint = output / "model_0.pt"
    finished = run_script(
        RUN, root / "tiny", checkpoint, "snli_1", "snli", 8, *flags[:4], folder=folder, OUTPUT_ROOT="o"
    )
    assert finished.returncode == 0, finished.stderr
    assert (folder / "o" / "snli_1" / "snli_dev_scores_epoch_0.json").is_file()


def test_the_settings_are_mt_dnns(tmp_path: Path):
    (call,) = calls_of(RUN, "d", "c.pt", "snli_01", "snli", 16, "--seed", 3, folder=tmp_path)
    assert call == {
        "launcher": "python", "task_def": str(TASK_DEF), "data_dir": "d", "train_datasets": "snli_01",
        "test_datasets": "snli", "init_checkpoint": "c.pt", "epochs": "3", "learning_rate": "5e-5",
        "optimizer": "adamax", "batch_size": "16", "output_dir": "domain_app/snli_01",
        "log_file": "domain_app/snli_01/domain-adaptation-train.log", "seed": "3",
    }  # fmt: skip


def test_the_batch_runs_every_share_of_the_tasks_that_are_there(tmp_path: Path):
    for task in domain_prepro.TASKS:
        (tmp_path / f"{task}_train.json").touch()
    calls = calls_of(BATCH, tmp_path, "c.pt", "--seed", 3, folder=tmp_path)
    assert [(call["train_datasets"], call["test_datasets"], call["batch_size"]) for call in calls] == [
        (task + share, task, size)
        for task in domain_prepro.TASKS
        for share, size in (("_001", "8"), ("_01", "8"), ("_1", "32"), ("", "32"))
    ]
    assert all(call["init_checkpoint"] == "c.pt" and call["seed"] == "3" for call in calls)
    (tmp_path / "scitail_train.json").unlink()
    assert {call["test_datasets"] for call in calls_of(BATCH, tmp_path, "c.pt", folder=tmp_path)} == {"snli"}


def test_too_few_arguments_are_told(tmp_path: Path):
    finished = run_script(RUN, "d", "c.pt", "snli", folder=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: usage: run_domain_adaptation.sh DATA_DIR INIT_CHECKPOINT TRAIN TEST BATCH_SIZE [FLAG...]\n"
    )
