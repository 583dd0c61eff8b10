"""Runs of one process that are killed, starved or fed with nonsense, and resumes that do not fit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

import mt_dnn.checkpoints.checkpoint
import train
from data_utils.storage.files import TEMPORARY
from mt_dnn.model import MTDNNModel
from mt_dnn.training.objective import TrainingObjective
from tests.faults import command
from tests.test_faults_disk import assert_told, at, flags


def test_what_a_kill_left_half_written_is_gone_when_the_run_goes_on(tmp_path: Path) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    run = tmp_path / "run"
    ended = command(train.main, flags(run), at(mt_dnn.checkpoints.checkpoint, "write_tensors", 2, die))
    assert ended.code == -signal.SIGKILL
    (half,) = [path for path in run.iterdir() if path.name.endswith(TEMPORARY)]
    again = command(train.main, flags(run, "--resume"))
    assert again.code == 0, again.output
    assert half.name.startswith(".model_1.pt.") and not half.exists()


def test_losses_that_are_no_numbers_end_the_run_with_the_last_checkpoint_kept(tmp_path: Path) -> None:
    def spoil() -> None:
        update = MTDNNModel.update

        def spoilt(model: MTDNNModel, *batches: Any, **options: Any) -> Any:
            if model.updates >= 3:
                with torch.no_grad():
                    model.network.scoring_list[0][1].bias.fill_(float("nan"))
            return update(model, *batches, **options)

        MTDNNModel.update = spoilt  # type: ignore[method-assign]

    ended = command(train.main, flags(tmp_path / "run", "--max_skipped", 2), spoil)
    assert_told(
        ended,
        r"2 updates in a row had a loss or a gradient that is not finite \(the last: update 5, task cola, examples .*"
        r"\); the last checkpoint in \S+ is kept. Try a smaller --learning_rate, --adv_radius or --adv_alpha",
    )
    assert "epoch 2, update 4, task cola, examples" in ended.output
    assert [path.name for path in (tmp_path / "run").glob("model_*.pt")] == ["model_0.pt"]


def test_too_little_memory_names_the_flags_that_help(tmp_path: Path) -> None:
    def happen() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")

    ended = command(train.main, flags(tmp_path / "run"), at(TrainingObjective, "forward", 4, happen))
    assert_told(ended, "out of memory; what helps: a smaller --batch_size with --grad_accumulation_step, .*--bf16 .*")
    assert (tmp_path / "run" / "model_0.pt").is_file()


# resumes


def test_a_resume_says_which_flags_are_others(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command(train.main, flags(run)).code == 0
    first = ["--resume", "--model_ckpt", run / "model_0.pt"]
    same = command(train.main, flags(run, *first))
    assert same.code == 0 and "other flags" not in same.output
    other = command(train.main, flags(run, *first, "--learning_rate", "1e-4", "--adv_train"))
    assert other.code == 0
    (line,) = [line for line in other.output.splitlines() if "goes on with other flags than the checkpoint's: " in line]
    assert "--learning_rate 0.001 there, 0.0001 here" in line and "--adv_train False there, True here" in line
    refused = command(train.main, flags(run, *first, "--batch_size", 5))
    assert_told(refused, r".*model_0.pt: was written with other flags, which .* keep: --batch_size 8 there, 5 here")


def test_a_resume_on_other_data_is_refused(tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    assert command(train.main, flags(run)).code == 0
    data.mkdir()
    for path in Path(flags(run)[3]).glob("cola_*.json"):
        (data / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    ended = command(train.main, flags(run, "--data_dir", data, "--resume"))
    assert_told(ended, r".*: was written by a run on other data: cola_train has 24 examples of \d+ tokens there, 23 .*")
