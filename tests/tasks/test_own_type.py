"""docs/task_types.md, followed as it stands: its file, its YAML, its lines."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_utils.storage.text_files import write_lines
from tests.tasks.learning import write_small_encoder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "task_types.md").read_text(encoding="utf-8")
GOOD = ["battery", "screen", "camera"]
OTHERS = ["the", "box", "came", "in", "brown"]


def block(language: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[0]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with one file more."""
    folder = tmp_path_factory.mktemp("own") / "project"
    kept = (
        "tasks",
        "data_utils",
        "module",
        "mt_dnn",
        "experiments",
        "train.py",
        "prepro_std.py",
        "predict.py",
        "calc_metrics.py",
    )
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "tasks" / "count.py").write_text(block("python"))
    (folder / "reviews.yml").write_text(block("yaml"))
    return folder


def lines(count: int, seed: int) -> Iterator[str]:
    """As many readers are helped as good things are named, once, twice or not at all each."""
    draw = random.Random(seed)
    for number in range(count):
        words = draw.choices(GOOD, k=draw.randint(0, 4)) + draw.choices(OTHERS, k=draw.randint(1, 3))
        draw.shuffle(words)
        yield f"{number}\t{sum(word in GOOD for word in words)}\t{' '.join(words)}"


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_new_type_is_a_file_and_a_yaml(checkout: Path):
    data = checkout / "data" / "reviews"
    encoder = write_small_encoder(checkout / "small", GOOD + OTHERS)
    write_lines(data / "helpful_train.tsv", lines(600, 1))
    write_lines(data / "helpful_dev.tsv", lines(100, 2))
    prepared = run(
        checkout, "prepro_std.py", "--model", str(encoder), "--task_def", "reviews.yml", "--root_dir", str(data)
    )
    assert prepared.returncode == 0, prepared.stderr
    first = json.loads((data / "small" / "helpful_train.json").read_text().split("\n")[0])
    assert type(first["label"]) is int
    flags = (
        f"--task_def reviews.yml --data_dir {data / 'small'} --init_checkpoint {encoder} --train_datasets helpful "
        "--test_datasets helpful --adv_train --adv_norm_level post_ln --epochs 6 --batch_size 16 --optimizer adamw "
        "--learning_rate 3e-3 --dataloader_num_workers 0 --bert_dropout_p 0 --dropout_p 0 --output_dir out"
    )
    trained = run(checkout, "train.py", *flags.split())
    assert trained.returncode == 0, trained.stderr
    history = json.loads((checkout / "out" / "results.json").read_text())["history"]
    assert history[-1]["metrics"]["helpful_dev"]["Pearson"] > 95

    scored = run(
        checkout, "predict.py", "--task_def", "reviews.yml", "--task", "helpful", "--with_label", "--prep_input",
        str(data / "small" / "helpful_dev.json"), "--checkpoint", "out/model_5.pt", "--score", "scores.json",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    found = json.loads((checkout / "scores.json").read_text())
    assert found["metrics"] == pytest.approx(history[-1]["metrics"]["helpful_dev"], abs=1e-6)
    assert len(found["predictions"]) == 100 and len(found["scores"]) == 100

    told = run(
        checkout, "calc_metrics.py", "--task_def", "reviews.yml", "--task", "helpful", "--std_input",
        str(data / "small" / "helpful_dev.json"), "--score", "scores.json",
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == pytest.approx(found["metrics"])

    (data / "helpful_dev.tsv").write_text("0\t-1\tthe box\n")
    wrong = run(
        checkout, "prepro_std.py", "--model", str(encoder), "--task_def", "reviews.yml", "--root_dir", str(data)
    )
    assert wrong.returncode == 2 and "helpful_dev.tsv, line 1: found the label '-1'" in wrong.stderr


def test_a_checkpoint_of_a_type_that_is_not_there_is_told_in_a_line(checkout: Path):
    scored = run(ROOT, "predict.py", "--prep_input", "none.json", "--checkpoint", str(checkout / "out" / "model_5.pt"))
    assert scored.returncode == 2
    assert len(scored.stderr.strip().splitlines()) == 1 and "a custom one needs its file in tasks/" in scored.stderr
