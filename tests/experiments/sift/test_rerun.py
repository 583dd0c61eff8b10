"""A run is made again from its file, and every difference is told."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_utils.errors import DataError
from experiments.sift import matrix, rerun
from experiments.sift.reporting.predictions import PredictedNumbers, Predictions
from experiments.sift.rerun import Difference, difference_of
from experiments.sift.running.jobs import Jobs
from experiments.sift.running.layout import TF32_VARIABLE, Folders
from experiments.sift.running.study import Study
from experiments.sift.running.study_run import RunSpec, execute


class Inside(Jobs):
    """Runs in this process."""

    def run(self, specs: Sequence[RunSpec], title: str) -> None:  # type: ignore[override]
        for spec in specs:
            execute(spec)


Again = Callable[[Path], bool]


@pytest.fixture
def done(study: Study, folders: Folders) -> Path:
    """The folder of a finished study of one seed."""
    small = study.model_copy(update={"seeds": study.seeds.model_copy(update={"compared": 1})})
    matrix.run_study(small, folders, Inside(1, 1, "ACC"))
    return folders.results


@pytest.fixture
def again(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Again:
    monkeypatch.setattr(rerun, "Jobs", Inside)
    return lambda path: rerun.rerun(path, tmp_path, tmp_path / "canonical", tmp_path / "again")


def edit(path: Path, change: Callable[[Any], None]) -> None:
    file = json.loads(path.read_text())
    change(file)
    path.write_text(json.dumps(file))


def test_a_run_of_the_archive_made_again_in_its_own_process_gives_the_same(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = done / "runs" / "near-sift-5.json"
    packed = path.with_suffix(".json.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    folders = ["--data_root", str(tmp_path), "--canonical_root", str(tmp_path / "canonical")]
    rerun.main([str(packed), *folders, "--results", str(tmp_path / "again")])
    made = json.loads((tmp_path / "again" / done.name / "runs" / path.name).read_text())
    stored = json.loads(gzip.decompress(packed.read_bytes()))
    assert made["evaluation"] == stored["evaluation"] and made["updates"] == stored["updates"]
    out = capsys.readouterr().out
    assert "trained, sentiment_a_test: 10 examples, the same predictions\n" in out
    assert "and b, sentiment_b_test: 12 examples, the same predictions\n" in out


def test_a_trial_is_made_again_too(done: Path, again: Again, capsys: pytest.CaptureFixture[str]):
    assert again(done / "tuning" / "sift-1-1000.json")
    assert "trained, sentiment_a_dev: 8 examples, the same predictions\n" in capsys.readouterr().out


def test_another_number_and_another_environment_are_told(done: Path, again: Again, capsys: pytest.CaptureFixture[str]):
    path = done / "runs" / "near-plain-5.json"

    def change(file: Any) -> None:
        file["environment"]["torch"] = "1.0"
        row = file["evaluation"]["trained"]["sentiment_a_test"]["probabilities"][0]
        larger = row.index(max(row))
        row[larger], row[1 - larger] = row[larger] + 1e-3, row[1 - larger] - 1e-3

    edit(path, change)
    assert not again(path)
    out = capsys.readouterr().out
    assert "torch: " in out and " here, 1.0 in the file\n" in out
    assert "sentiment_a_test: 10 examples, 0 answers differ, probabilities or scores by up to 0.001\n" in out
    assert "trained, sentiment_b_test: 12 examples, the same predictions\n" in out


def test_a_run_with_another_attack_or_that_diverged_is_not_the_same(done: Path, again: Again, tmp_path: Path):
    path = done / "runs" / "near-plain-5.json"
    made = tmp_path / "again" / done.name / "runs" / path.name
    whole = path.read_text()
    character = {"clean": [1], "attacked": [0], "queries": [3]}
    edit(path, lambda file: file["robustness"].update(characters={"sentiment_a_test": character}))
    assert not again(path)
    made.unlink()
    path.write_text(whole)
    edit(path, lambda file: file.update(diverged="at update 3", evaluation={}, robustness={}))
    assert not again(path)


def test_a_run_that_cannot_be_compared_is_refused_before_it_starts(
    done: Path, again: Again, tmp_path: Path, token_dir: Path
):
    path = done / "runs" / "near-plain-5.json"
    other = path.with_name("near-plain-99.json")
    other.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"near-plain-99.json: is no run of the study; accepted: STUDY/runs/NAME"):
        again(other)
    made = tmp_path / "again" / done.name / "runs" / path.name
    made.parent.mkdir(parents=True)
    made.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="exists; accepted: remove it, or give another --results"):
        again(path)
    made.unlink()
    test = token_dir / "sentiment_a_test.json"
    test.write_text("".join(test.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match="was made with other data, settings or tests than the study has here"):
        again(path)
    assert not made.exists()


def test_a_damaged_file_is_not_taken_for_the_same_run(done: Path, again: Again, tmp_path: Path):
    path = done / "runs" / "near-plain-5.json"
    made = tmp_path / "again" / done.name / "runs" / path.name
    whole = path.read_text()

    def without_a_test(file: Any) -> None:
        del file["evaluation"]["trained"]["sentiment_a_test"]

    def with_one_example(file: Any) -> None:
        test = file["evaluation"]["trained"]["sentiment_a_test"]
        file["evaluation"]["trained"]["sentiment_a_test"] = {
            "golds": test["golds"][:1], "probabilities": test["probabilities"][:1], "metrics": {},
        }  # fmt: skip

    for damage in (without_a_test, with_one_example):
        path.write_text(whole)
        edit(path, damage)
        with pytest.raises(DataError, match="trained, sentiment_a_test: found no predictions, or golds of another set"):
            again(path)
        made.unlink()
    alone = tmp_path / "alone.json"
    alone.write_text(whole)
    with pytest.raises(DataError, match=r"alone.json: is in no study's folder; accepted: STUDY/runs/NAME.json"):
        again(alone)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_run_is_made_again_in_its_precision(
    done: Path, again: Again, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
):
    """The folder's name has it."""
    monkeypatch.delenv(TF32_VARIABLE, raising=False)
    folder = done.rename(done.with_name(f"{done.name}-{precision}"))
    assert again(folder / "runs" / "near-plain-5.json")
    assert (os.environ.pop(TF32_VARIABLE, None) == "1") == (precision == "tf32")
    assert (tmp_path / "again" / folder.name / "runs" / "near-plain-5.json").is_file()


def test_differences_by_hand():
    golds = np.array([0, 1, 1])
    one = Predictions(golds, np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]))
    other = Predictions(golds, np.array([[0.9, 0.1], [0.65, 0.35], [0.2, 0.8]]))
    assert difference_of(one, one) == Difference(3, 0, 0.0)
    assert difference_of(one, other) == pytest.approx((3, 1, 0.25))
    numbers = PredictedNumbers(golds.astype(float), np.array([0.5, 1.0, 2.0]))
    moved = PredictedNumbers(golds.astype(float), np.array([0.5, 1.5, 2.0]))
    assert difference_of(numbers, moved) == Difference(3, 1, 0.5)
