"""Two processes (gloo) train and evaluate as one does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.readers import read_score_file
from tests.mt_dnn.runs import RUN, SIFT, TASK_DEF, assert_same, parameters, tiny_run

ROOT = Path(__file__).parents[2]
NO_DROPOUT = ("--dropout_p", "0", "--bert_dropout_p", "0", "--batch_size", "7")


UNLABELED = ("--adv_train", "--adv_opt", "vat", "--unlabeled_datasets", "mnli", "--bregman_mu", "2")


BY_TOKENS = (*SIFT, "--max_tokens_per_batch", "150")


@pytest.mark.parametrize(
    "method",
    [SIFT, UNLABELED, ("--adv_train", "--adv_opt", "freelb"), BY_TOKENS],
    ids=["sift", "unlabeled vat, bregman", "freelb", "sift by tokens"],
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
    assert finished.stdout.count("best epoch") == 1
    reports = [(path / "metrics.jsonl").read_text().splitlines() for path in (tmp_path / "one", two)]
    for ours, theirs in zip(*reports, strict=True):
        expected, found = json.loads(ours), json.loads(theirs)
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"ascent_gain"}:  # the ratio of two small numbers
            value = expected[name]
            assert found[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-6)), name
