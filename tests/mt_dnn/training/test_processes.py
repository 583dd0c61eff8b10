"""Two processes (gloo) train and evaluate as one does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data_utils.readers import read_score_file
from tests.mt_dnn.runs import RUN, SIFT, TASK_DEF, assert_same, parameters, tiny_run
from tests.mt_dnn.training.two_processes import (
    AT_ONCE,
    CASES,
    HEADS,
    MIDDLE,
    ONE_BATCH,
    RECOMPUTED,
    gradients,
    recorded_run,
    resumable,
    write_heads,
)

ROOT = Path(__file__).parents[3]
NO_DROPOUT = ("--dropout_p", "0", "--bert_dropout_p", "0", "--batch_size", "7")


UNLABELED = ("--adv_train", "--adv_opt", "vat", "--unlabeled_datasets", "mnli", "--bregman_mu", "2")


# With weights of which processes and batches have unequal sums.
BY_TOKENS = (*SIFT, "--max_tokens_per_batch", "150", "--class_weights", "0.2,1,3")
# So large that a process which did not find what another kept would end elsewhere.
KEPT_NOISE = (*SIFT, "--adv_free", "--adv_radius", "1")


@pytest.mark.parametrize(
    "method",
    [SIFT, UNLABELED, ("--adv_train", "--adv_opt", "freelb"), BY_TOKENS, KEPT_NOISE],
    ids=["sift", "unlabeled vat, bregman", "freelb", "sift by tokens", "sift with kept noise"],
)
def test_two_processes_end_with_one_processs_parameters_and_scores(method: tuple[str, ...], tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(RUN / "tinydata", data_dir)
    lines = (data_dir / "mnli_train.json").read_text().splitlines(keepends=True)
    (data_dir / "mnli_unlabeled.json").write_text("".join(lines[:11]))
    flags = ["--train_datasets", "mnli", "--test_datasets", "mnli_matched", *NO_DROPOUT, *method]
    flags += ["--data_dir", str(data_dir)]
    one = tiny_run(tmp_path / "one", *flags)
    two = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py"]
    command += [
        "--task_def",
        str(TASK_DEF),
        "--init_checkpoint",
        str(RUN / "tiny"),
    ]
    command += ["--output_dir", str(two), "--log_file", str(two / "log.txt"), "--epochs", "2", "--optimizer", "adamw"]
    command += ["--learning_rate", "1e-3", "--dataloader_num_workers", "0", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert_same(parameters(tmp_path / "one" / "model_1.pt"), parameters(two / "model_1.pt"), tolerance=1e-5)
    expected = read_score_file(tmp_path / "one" / "mnli_matched_dev_scores_epoch_1.json")
    found = read_score_file(two / "mnli_matched_dev_scores_epoch_1.json")
    assert found["uids"] == expected["uids"]
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    assert found["metrics"] == one.history[1]["metrics"]["mnli_matched_dev"]
    assert finished.stdout.count("best epoch:") == 1
    reports = [(path / "metrics.jsonl").read_text().splitlines() for path in (tmp_path / "one", two)]
    for ours, theirs in zip(*reports, strict=True):
        expected, found = json.loads(ours), json.loads(theirs)
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"ascent_gain"}:  # the ratio of two small numbers
            value = expected[name]
            assert found[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-6)), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def one(folder: Path) -> list[list[str]]:
    """A run of one process in `folder`/one: the uids that its updates met."""
    write_heads(folder)
    (folder / "tasks.yml").write_text(TASK_DEF.read_text().replace("dropout_p: 0.05", "dropout_p: 0"))
    return recorded_run(folder / "one", *resumable(folder))


@pytest.fixture(scope="module")
def two(folder: Path, one: list[list[str]]) -> dict[str, Any]:
    """What two processes found, and their runs in `folder`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["-m", "tests.mt_dnn.training.two_processes", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("kind", ["one batch", "accumulated"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_two_processes_are_those_of_one_batch_in_one(
    case: str, kind: str, two: dict[str, Any], folder: Path
) -> None:
    batches = ONE_BATCH if kind == "one batch" else AT_ONCE
    expected = gradients(case, *batches, folder)
    found = two["gradients"][case, kind]
    assert_same(expected, found, tolerance=1e-5 if case == "san" else 1e-6)  # its search is steep: rounding grows
    if case in HEADS:
        assert any(name.startswith("scoring_list") and float(own.abs().max()) > 1e-3 for name, own in expected.items())
        assert float(expected["report adv_loss"]) > 1e-3
    elif case != "plain":
        plain = gradients("plain", *batches, folder)
        assert max(float((expected[name] - plain[name]).abs().max()) for name in plain if "." in name) > 1e-3


def test_updates_meet_the_same_examples_on_any_number_of_processes(two: dict[str, Any], one: list[list[str]]) -> None:
    assert sum(len(uids) for uids in one) == 2 * 3 * 24
    assert two["met"]["two"] == one
    assert two["met"]["one_to_two"] == one[2:]


def test_a_run_goes_on_with_another_number_of_processes(
    two: dict[str, Any], one: list[list[str]], folder: Path
) -> None:
    expected = parameters(folder / "one" / "model_1.pt")
    assert_same(expected, parameters(folder / "two" / "model_1.pt"), tolerance=1e-5)
    assert_same(expected, parameters(folder / "one_to_two" / "model_1.pt"), tolerance=1e-5)
    middle = folder / "two" / MIDDLE
    assert recorded_run(folder / "two_to_one", *resumable(folder), "--resume", "--model_ckpt", str(middle)) == one[2:]
    assert_same(expected, parameters(folder / "two_to_one" / "model_1.pt"), tolerance=1e-5)


def test_scores_are_those_of_one_process_where_a_process_has_no_batch(two: dict[str, Any], folder: Path) -> None:
    for name in ("cola", "mnli_matched", "stsb"):  # 10 examples each, all in one batch
        expected = read_score_file(folder / "one" / f"{name}_dev_scores_epoch_1.json")
        found = read_score_file(folder / "two" / f"{name}_dev_scores_epoch_1.json")
        assert found["uids"] == expected["uids"] and len(found["uids"]) == 10
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        assert found["metrics"] == pytest.approx(expected["metrics"], abs=0.02)  # percent


@pytest.mark.parametrize("method", RECOMPUTED)
def test_recomputed_activations_change_nothing_in_two_processes(method: str, two: dict[str, Any], folder: Path) -> None:
    whole, recomputed = (parameters(folder / f"{method}_{kind}" / "model_0.pt") for kind in ("whole", "recomputed"))
    assert_same(whole, recomputed)
