"""Runs of four processes with sharded parameters, one of which is killed: one message, no hang, and a resume."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import mt_dnn.model
from mt_dnn.training.objective import TrainingObjective
from tests.mt_dnn.runs import SIFT
from tests.test_faults_disk import at
from tests.test_faults_processes import LOST, assert_goes_on, nothing_left_behind

__all__ = ["nothing_left_behind"]  # a fixture


def kill_while_saving(rank: int) -> None:
    """One process dies in the second checkpoint, while the others gather its shares."""
    if rank == 3:
        at(mt_dnn.model, "whole", 2, lambda: os.kill(os.getpid(), signal.SIGKILL))()


def kill_in_update(rank: int) -> None:
    """One process dies in an update of the second epoch, while the others gather its shares of a layer."""
    if rank == 1:
        at(TrainingObjective, "forward", 5, lambda: os.kill(os.getpid(), signal.SIGKILL))()


@pytest.mark.parametrize("kill", [kill_in_update, pytest.param(kill_while_saving, marks=pytest.mark.slow)])
def test_a_run_of_four_sharded_processes_goes_on_where_one_was_killed(kill: Any, tmp_path: Path) -> None:
    text = assert_goes_on(tmp_path, 4, (*SIFT, "--fsdp"), kill)
    assert text.count(LOST) == text.count("error: ") == 1 and "Traceback" not in text, text
