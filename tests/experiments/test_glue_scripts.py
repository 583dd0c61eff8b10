from __future__ import annotations

import os
from pathlib import Path

import pytest

import prepro_std
from data_utils.readers import read_score_file
from experiments.glue import glue_prepro
from tests.encoder_folder import write_encoder
from tests.experiments.scripts import EXPERIMENTS, calls_of, run_script

TASK_DEF = EXPERIMENTS / "glue" / "glue_task_def.yml"
RUN, THEN = "glue/run_glue_finetuning.sh", "glue/run_mtl_then_finetuning.sh"
TASKS = ["mnli", "rte", "qqp", "qnli", "mrpc", "sst", "cola", "stsb"]
TESTED = ["mnli_matched", "mnli_mismatched", *TASKS[1:]]
QUICK = ("--epochs", "1", "--dataloader_num_workers", "0")

MNLI_DEV = ("dev_matched", "dev_mismatched")
# folder and files of a task in GLUE's layout: training and development sets, header, a line with number and label
FILES = {
    "MNLI": (
        ("train", "dev_matched", "dev_mismatched"),
        "index\tsentence1\tsentence2\tgold_label",
        "{0}\tgood\tbad\t{1}",
    ),
    "RTE": (("train", "dev"), "index\tsentence1\tsentence2\tlabel", "{0}\tgood {0}\tbad\t{1}"),
    "QQP": (("train", "dev"), "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "{0}\t1\t2\tgood\tfine\t{1}"),
    "QNLI": (("train", "dev"), "index\tquestion\tsentence\tlabel", "{0}\tgood\tfine\t{1}"),
    "MRPC": (("train", "dev"), "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{1}\t5\t6\tgood\tpoor {0}"),
    "SST-2": (("train", "dev"), "sentence\tlabel", "good {0}\t{1}"),
    "CoLA": (("train", "dev"), None, "gj04\t{1}\t\tpoor {0}"),
    "STS-B": (("train", "dev"), "index\tsentence1\tsentence2\tscore", "{0}\tgood\tbad\t{1}"),
}
LABELS = {
    "MNLI": ("neutral", "entailment"),
    "RTE": ("entailment", "not_entailment"),
    "QNLI": ("entailment", "not_entailment"),
    "STS-B": ("2.5", "4.000"),
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The eight tasks tokenized for a tiny encoder, a local folder that is called as a BERT of the hub is."""
    for folder, (parts, header, line) in FILES.items():
        (tmp_path / folder).mkdir()
        for part in parts:
            lines = [line.format(number, LABELS.get(folder, ("0", "1"))[number % 2]) for number in range(4)]
            lines = lines if header is None else [header, *lines]
            (tmp_path / folder / f"{part}.tsv").write_text("".join(f"{text}\n" for text in lines))
    glue_prepro.main(["--root_dir", str(tmp_path)])
    encoder, root = write_encoder(tmp_path / "bert-tiny-uncased"), tmp_path / "canonical_data"
    prepro_std.main(["--model", str(encoder), "--root_dir", str(root), "--task_def", str(TASK_DEF)])
    return root


def test_all_tasks_together_then_one_of_them(data_dir: Path):
    folder = data_dir.parent
    finished = run_script(RUN, data_dir, "bert", "tiny", "mtdnn", 2, 1, *QUICK, folder=folder)
    assert finished.returncode == 0, finished.stderr
    output = folder / "glue_app" / "mtdnn" / "bert-tiny-uncased"
    for dataset in TESTED:
        assert len(read_score_file(output / f"{dataset}_dev_scores_epoch_0.json")["uids"]) == 4
    assert (output / "mt-dnn-train.log").is_file()

    flags = [*QUICK, "--init_checkpoint", output / "model_0.pt", "--adv_train"]
    finished = run_script(RUN, data_dir, "bert", "tiny", "rte", 2, 1, *flags, folder=folder, OUTPUT_ROOT="tuned")
    assert finished.returncode == 0, finished.stderr
    assert (folder / "tuned" / "rte" / "bert-tiny-uncased" / "rte_dev_scores_epoch_0.json").is_file()


@pytest.mark.slow
def test_all_tasks_together_then_each_of_them(data_dir: Path):
    folder = data_dir.parent
    finished = run_script(THEN, data_dir, "bert", "tiny", 2, 1, *QUICK, folder=folder)
    assert finished.returncode == 0, finished.stderr
    found = {path.name for path in (folder / "glue_app" / "mtdnn_finetuned").glob("*/*/*_scores_epoch_0.json")}
    assert found == {f"{dataset}_dev_scores_epoch_0.json" for dataset in TESTED}


def test_a_single_tasks_settings_are_mt_dnns(tmp_path: Path):
    (call,) = calls_of(RUN, "d", "bert", "base", "cola", 32, 1, "--seed", 3, folder=tmp_path)
    assert call == {
        "launcher": "python", "task_def": str(TASK_DEF), "data_dir": "d/bert-base-uncased", "train_datasets": "cola",
        "test_datasets": "cola", "init_checkpoint": "bert-base-uncased", "epochs": "3", "learning_rate": "5e-5",
        "optimizer": "adamax", "batch_size": "32", "output_dir": "glue_app/cola/bert-base-uncased",
        "log_file": "glue_app/cola/bert-base-uncased/mt-dnn-train.log", "seed": "3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "size", "encoder", "tokens"),
    [
        ("roberta", "large", "roberta-large", "roberta-large"),
        ("deberta", "v3-base", "microsoft/deberta-v3-base", "deberta-v3-base"),
        ("electra", "small", "google/electra-small-discriminator", "electra-small-discriminator"),
        ("t5e", "base", "t5-base", "t5-base"),
        ("mtdnn", "base", "mt_dnn_models/mt_dnn_base_uncased.pt", "bert-base-uncased"),
    ],
)
def test_an_encoder_is_named_by_kind_and_size(tmp_path: Path, kind: str, size: str, encoder: str, tokens: str):
    (call,) = calls_of(RUN, "d", kind, size, "mnli", 32, 2, folder=tmp_path)
    assert (call["init_checkpoint"], call["data_dir"]) == (encoder, f"d/{tokens}")
    assert call["test_datasets"] == "mnli_matched,mnli_mismatched" and call["train_datasets"] == "mnli"
    assert call["launcher"] == "torchrun --nproc_per_node 2"


def test_token_files_may_lie_where_mt_dnn_writes_them(tmp_path: Path):
    (tmp_path / "d" / "microsoft" / "deberta-base").mkdir(parents=True)
    (call,) = calls_of(RUN, "d", "deberta", "base", "cola", 32, 1, folder=tmp_path)
    assert call["data_dir"] == "d/microsoft/deberta-base"
    (tmp_path / "d" / "deberta-base").mkdir()
    (call,) = calls_of(RUN, "d", "deberta", "base", "cola", 32, 1, folder=tmp_path)
    assert call["data_dir"] == "d/deberta-base"


def test_each_task_begins_with_the_last_checkpoint_of_all_together(tmp_path: Path):
    older = tmp_path / "out" / "mtdnn" / "bert-base-uncased" / "model_9.pt"  # of an earlier, longer run
    older.parent.mkdir(parents=True)
    older.touch()
    os.utime(older, (0, 0))
    first, *others = calls_of(THEN, "d", "bert", "base", 16, 1, "--seed", 3, folder=tmp_path, OUTPUT_ROOT="out")
    assert first["train_datasets"].split(",") == TASKS and first["test_datasets"].split(",") == TESTED
    assert first["init_checkpoint"] == "bert-base-uncased"
    assert [call["train_datasets"] for call in others] == TASKS
    for call in others:
        assert call["init_checkpoint"] == "out/mtdnn/bert-base-uncased/model_2.pt"
        assert call["output_dir"] == f"out/mtdnn_finetuned/{call['train_datasets']}/bert-base-uncased"
        assert (call["data_dir"], call["batch_size"], call["seed"]) == ("d/bert-base-uncased", "16", "3")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (RUN, ("d", "bert"), "error: usage: run_glue_finetuning.sh DATA_DIR MODEL_TYPE MODEL_SIZE TASK"),
        (RUN, ("d", "gpt", "base", "cola", 8, 1), "error: MODEL_TYPE: found gpt, accepted: bert, roberta, deberta"),
        (RUN, ("d", "bert", "base", "cola", 8, "two"), "error: NUM_GPUS: found two, accepted: a whole number"),
        (THEN, ("d", "bert", "base"), "error: usage: run_mtl_then_finetuning.sh DATA_DIR MODEL_TYPE MODEL_SIZE BATCH"),
    ],
)
def test_wrong_arguments_are_told(tmp_path: Path, script: str, arguments: tuple[object, ...], message: str):
    finished = run_script(script, *arguments, folder=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.startswith(message) and finished.stderr.count("\n") == 1
