"""Studies under a time limit: a tiny study, its runs in one file, and what happens when time is up."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import prepro_std
from data_utils.errors import UserError
from data_utils.storage.text_files import write_lines
from experiments.sift import archive, time_limited
from experiments.sift.reporting.results import read_study
from experiments.sift.running.study import read_study as read_definition
from experiments.sift.time_limited import run_until

TASK_DEF = Path("experiments/sift/sentiment_task_def.yml").resolve()


@pytest.fixture
def study(tmp_path: Path, tiny_encoder: Path) -> Path:
    """The YAML of a study with two runs, its token files in `results/data`."""
    root, words = tmp_path / "results" / "data", ("good", "fine", "bad", "poor")
    for part, (name, size) in enumerate({"train": 12, "dev": 4, "test": 6}.items()):
        labels = [("positive", "negative")[n % 4 // 2] for n in range(size)]
        lines = [f"{n}\t{labels[n]}\t{'so ' * part}{words[n % 4]} {words[n // 4]}" for n in range(size)]
        write_lines(root / f"sentiment_a_{name}.tsv", lines)
    prepro_std.main(["--model", str(tiny_encoder), "--root_dir", str(root), "--task_def", str(TASK_DEF)])
    content: dict[str, Any] = {
        "study": "small",
        "question": "Is it so?",
        "encoder": str(tiny_encoder),
        "task_def": str(TASK_DEF),
        "task": "sentiment",
        "metric": "ACC",
        "data": [],
        "comparison": {"methods": ["plain", "sift"], "setting": "a", "tests": ["sentiment_a_test"]},
        "settings": {"a": {"train": "sentiment_a", "tests": ["sentiment_a_test"]}},
        "flags": {"epochs": 1, "batch_size": 4, "log_per_updates": 1},
        "methods": {"plain": {}, "sift": {"adv_train": True, "adv_norm_level": "post_ln"}},
        "seeds": {"compared": 1, "others": 1, "first": 5},
    }
    path = tmp_path / "small.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def words(tmp_path: Path, study: Path, **flags: object) -> list[str]:
    given = {"data_root": tmp_path, "output": tmp_path / "out", "results": tmp_path / "results", "jobs": 2, **flags}
    return [
        str(study),
        "--methods",
        "plain,sift",
        *(w for name, value in given.items() for w in (f"--{name}", str(value))),
    ]


def test_all_finished_runs_are_packed_into_one_file(tmp_path: Path, study: Path):
    time_limited.main(words(tmp_path, study, precision="bf16"))
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as tar:
        names = sorted(tar.getnames())
        tar.extractall(tmp_path / "home", filter="data")
    name = f"{read_definition(study).folder}-bf16"
    expected = ("runs/a-plain-5.json.gz", "runs/a-sift-5.json.gz", "study.yml", "tuned.json")
    assert names == [f"{name}/{file}" for file in expected]
    runs = read_study(tmp_path / "home" / name).runs
    assert [run.config["bf16"] for run in runs] == [True, True]
    assert len(archive.save(tmp_path / "home" / name, tmp_path / "archive")) == 2
    assert (tmp_path / "archive" / "runs.csv").read_text() == (
        tmp_path / "results" / "archive" / "runs.csv"
    ).read_text()


def test_when_time_is_up_runs_are_stopped_and_the_finished_ones_packed(
    tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch
):
    def stopped(command: list[str], end: float) -> bool:
        assert command[1:3] == ["-m", "experiments.sift.matrix"] and end > time.monotonic()
        folder = tmp_path / "results" / "small-tiny-tf32"
        folder.mkdir()
        (folder / "study.yml").write_text(study.read_text())
        return False

    monkeypatch.setattr(time_limited, "run_until", stopped)
    time_limited.main(words(tmp_path, study))
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as tar:
        assert tar.getnames() == ["small-tiny-tf32/study.yml"]


def test_a_command_is_stopped_when_time_is_up_and_a_failure_is_an_error():
    begun = time.monotonic()
    assert not run_until([sys.executable, "-c", "import time; time.sleep(60)"], begun + 1)
    assert time.monotonic() - begun < 30
    assert run_until([sys.executable, "-c", ""], begun + 100)
    with pytest.raises(UserError, match="ended with 3"):
        run_until([sys.executable, "-c", "raise SystemExit(3)"], begun + 100)


def test_the_former_name_is_the_same_command():
    command = [sys.executable, "-m", "experiments.sift.borrowed", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--minutes" in shown
