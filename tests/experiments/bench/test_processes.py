"""The measurement of several processes against one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from data_utils.errors import UserError
from experiments.bench import processes
from tests.mt_dnn.runs import RUN, TASK_DEF

FLAGS = (
    f"--task_def {TASK_DEF} --data_dir {RUN / 'tinydata'} --train_datasets mnli --test_datasets mnli_matched "
    f"--init_checkpoint {RUN / 'tiny'} --batch_size 10"
).split()


def test_a_block_counts_the_examples_of_its_updates_over_epochs(tmp_path: Path) -> None:
    flags = [*FLAGS, "--dataloader_num_workers", "0"]
    run = processes.Run([*flags, "--output_dir", str(tmp_path), "--log_file", str(tmp_path / "log.txt")])
    blocks = [run.block(3), run.block(3)]  # an epoch is 10, 10 and 4 examples in some order
    assert [block.examples for block in blocks] == [24, 24]
    assert all(0 < block.wall < 60 and block.processor > 0 for block in blocks)
    assert run.trainer.model.updates == 6


@pytest.mark.slow
def test_the_report_has_a_line_for_each_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    processes.main([*FLAGS, "--blocks", "1", "--updates", "2"])
    header, *lines = capsys.readouterr().out.splitlines()[-4:]
    assert "examples/s" in header
    assert [re.split("  +", line)[0] for line in lines] == [
        "one process",
        "2 processes, the same batches",
        "2 processes, 10 examples each",
    ]
    assert all(float(number) > 0 for line in lines for number in re.findall(r"\d+\.\d+", line))


def test_a_mistake_of_the_user_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    flags = [*FLAGS, "--data_dir", str(tmp_path), "--processes", "1", "--blocks", "1"]
    with pytest.raises(UserError, match=r"mnli_train\.json: missing"):
        processes.main(flags)
