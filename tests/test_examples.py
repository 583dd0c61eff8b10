"""The examples, run as a user runs them, on their own sentences with the embedded encoder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.storage.text_files import read_lines
from examples.plain_pytorch import LABELS, read_sentences

ROOT = Path(__file__).parents[1]
SENTENCES = ROOT / "examples" / "sentiment.tsv"


def run(module: str, *flags: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, "-m", f"examples.{module}", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first sixteen sentences: twelve to train on, four to test on."""
    path = tmp_path_factory.mktemp("examples") / "few.tsv"
    path.write_text("".join(line + "\n" for line in SENTENCES.read_text().splitlines()[:16]))
    return path


def test_sentences_are_balanced_and_none_is_in_both_parts() -> None:
    train, test = read_sentences(SENTENCES)
    assert len(train) + len(test) == len(list(read_lines(SENTENCES))) == 78
    assert {sentence["text"] for sentence in train}.isdisjoint(sentence["text"] for sentence in test)
    for part in (train, test):
        assert sum(sentence["label"] for sentence in part) == len(part) / 2


def test_the_plain_loop_trains_both_ways_and_prints_the_results(few: Path) -> None:
    finished = run("plain_pytorch", "--data", str(few), "--epochs", "4")
    assert finished.returncode == 0, finished.stderr[-2000:]
    lines = [line for line in finished.stdout.splitlines() if line]
    assert [line.split(":")[0].strip() for line in lines] == ["plain", "SiFT"]
    losses = [float(line.split("cross-entropy ")[1]) for line in lines]
    assert all("of 4 correct" in line for line in lines)
    assert all(0.3 < loss < 1.2 for loss in losses)
    assert losses[0] != losses[1]


def test_trainer_trains_both_ways_and_logs_the_regularizer(few: Path) -> None:
    finished = run("hf_trainer", "--data", str(few), "--epochs", "3")
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.count("plain: accuracy") == finished.stdout.count("SiFT : accuracy") == 1
    plain, sift = finished.stdout.split("plain: accuracy")
    assert "adv_loss" in sift and "adv_loss" not in plain


def test_two_processes_print_each_result_once(few: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
    finished = run("hf_trainer", "--data", str(few), "--epochs", "1", launcher=launcher)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.count("plain: accuracy") == finished.stdout.count("SiFT : accuracy") == 1


@pytest.mark.parametrize("module", ["plain_pytorch", "hf_trainer"])
@pytest.mark.parametrize(("text", "message"), [(None, "no such file"), ("good\tfine\n", "negative or positive, a tab")])
def test_a_mistake_ends_in_a_line(module: str, text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    if text is not None:
        path.write_text(text)
    finished = run(module, "--data", str(path))
    assert finished.returncode == 2
    assert str(path) in finished.stderr and message in finished.stderr.lower()
    assert finished.stderr.count("\n") == 1
    assert LABELS == ("negative", "positive")
