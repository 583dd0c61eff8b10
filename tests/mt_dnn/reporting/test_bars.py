"""A run's bars and its log, in a terminal and in a file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import predict
from data_utils.progress import Bar
from tests.mt_dnn.runs import RUN, SIFT, TASK_DEF, tiny_run
from tests.terminal import Terminal, run_in_terminal, seen

ROOT = Path(__file__).parents[3]


def command(folder: Path) -> list[str]:
    flags = f"train.py --task_def {TASK_DEF} --data_dir {RUN / 'tinydata'} --train_datasets mnli --epochs 2 "
    flags += f"--test_datasets mnli_matched --init_checkpoint {RUN / 'tiny'} --output_dir {folder} "
    flags += f"--log_file {folder / 'log.txt'} --dataloader_num_workers 0 --log_per_updates 2"
    return [sys.executable, *flags.split(), *SIFT]


def test_in_a_narrow_terminal_the_log_is_whole_and_below_it_is_one_bar(tmp_path: Path) -> None:
    code, text = run_in_terminal(command(tmp_path), 40, ROOT)
    assert code == 0, text
    lines = seen(text, 40)
    (bar,) = [line for line in lines if re.fullmatch(r"100% 00:00 [\d.]+(/s|s/it)( loss \S+)?( R \S+)?", line)]
    assert "best epoch" in lines[lines.index(bar) + 1]
    lines.remove(bar)
    logged = (tmp_path / "log.txt").read_text().splitlines()
    assert len(logged) > 8 and lines == [*logged, ""]
    assert re.search(r"\r\d+% \d\d:\d\d [\d.]+(/s|s/it) loss 1.\d+ R \d\S*", text)
    assert "\rmnli_matched_dev" in text


def test_a_log_file_has_lines_alone(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr and "%|" not in done.stdout + done.stderr
    assert done.stdout == (tmp_path / "log.txt").read_text()


def test_scoring_a_file_shows_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_run(tmp_path, "--epochs", "1")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    words = f"--task_def {TASK_DEF} --task cola --prep_input {RUN / 'tinydata' / 'cola_dev.json'} --batch_size_eval 5 "
    words += f"--score {tmp_path / 'scores.json'} --checkpoint {tmp_path / 'model_0.pt'}"
    predict.main(words.split())
    assert re.search(r"\rcola_dev: +0%\|.*0/2 ", terminal.getvalue())
    assert terminal.getvalue().endswith("\r")  # its line is free again
    assert not list(Bar._instances)
