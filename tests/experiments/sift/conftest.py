"""A small study of two made-up datasets, with a tiny encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prepro_std
from data_utils.storage.text_files import write_lines
from experiments.sift.running import layout
from experiments.sift.running.layout import Folders, lay_out
from experiments.sift.running.study import Study

TASK_DEF = Path("experiments/sift/sentiment_task_def.yml").resolve()
SIZES = {"a_train": 24, "a_dev": 8, "a_test": 10, "b_train": 6, "b_test": 12}


@pytest.fixture
def token_dir(tmp_path: Path, tiny_encoder: Path) -> Path:
    """Token files of two made-up datasets, a and b, of one task; no text is in two of them."""
    root = tmp_path / "canonical"
    known = ("good", "fine", "bad", "poor")
    for part, (name, size) in enumerate(SIZES.items()):
        words = [known[(part + number * number) % 4] for number in range(size)]
        labels = ["positive" if word in ("good", "fine") else "negative" for word in words]
        lines = [
            f"{n}\t{label}\t{word} {'so ' * part}{known[n % 4]} {known[n // 4 % 4]} {known[n // 16]}"
            for n, (label, word) in enumerate(zip(labels, words, strict=True))
        ]
        write_lines(root / f"sentiment_{name}.tsv", lines)
    prepro_std.main(["--model", str(tiny_encoder), "--root_dir", str(root), "--task_def", str(TASK_DEF)])
    return root / tiny_encoder.name


@pytest.fixture
def study(tiny_encoder: Path) -> Study:
    further = {"train": "sentiment_b", "tests": ["sentiment_b_test"], "flags": {"epochs": 3}}
    content: dict[str, Any] = {
        "study": "small",
        "question": "Is it so?",
        "encoder": str(tiny_encoder),
        "task_def": str(TASK_DEF),
        "task": "sentiment",
        "metric": "ACC",
        "data": [],
        "comparison": {"methods": ["plain", "sift"], "setting": "near", "tests": ["sentiment_b_test"]},
        "settings": {
            "near": {
                "train": "sentiment_a", "tests": ["sentiment_a_test", "sentiment_b_test"], "stages": {"and b": further},
            },
        },
        "flags": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "log_per_updates": 2},
        "methods": {"plain": {}, "sift": {"adv_train": True, "adv_norm_level": "post_ln"}},
        "seeds": {"compared": 2, "others": 1, "first": 5},
        "tuning": {
            "train_fraction": 0.5,
            "grid": {"plain": [{}, {"learning_rate": 0.001}], "sift": [{"adv_alpha": 1}, {"adv_alpha": 2}]},
        },
    }  # fmt: skip
    return Study.model_validate(content)


@pytest.fixture
def folders(tmp_path: Path, study: Study, token_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    monkeypatch.setattr(layout, "prepare", lambda *arguments: token_dir)
    return lay_out(study, tmp_path, token_dir.parent, tmp_path / "results")
