from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_utils.errors import DataError, FlagError, UserError
from data_utils.storage.text_files import write_lines
from experiments.sift import matrix, report
from experiments.sift.running import study_run
from experiments.sift.running.jobs import Jobs
from experiments.sift.running.layout import Folders, check_apart, lay_out
from experiments.sift.running.plan import Trial, all_tied, best_flags, run_specs, trial_specs, trials_of
from experiments.sift.running.runs import Record
from experiments.sift.running.study import TRAINED, Robustness, Seeds, Study
from experiments.sift.running.study_run import RunSpec, execute, finished, rounded
from mt_dnn.configuration.config import Config
from mt_dnn.training.trainer import train
from tests.terminal import Terminal, drawn_to_the_end


def test_tests_are_cut_evenly_over_the_file_and_nothing_else_is(
    study: Study, folders: Folders, tmp_path: Path, token_dir: Path
):
    cut = lay_out(study.model_copy(update={"test_examples": 3}), tmp_path, token_dir.parent, tmp_path / "cut")
    for test, places in {"sentiment_a_test": (0, 3, 6), "sentiment_b_test": (0, 4, 8)}.items():
        whole = (token_dir / f"{test}.json").read_text().splitlines()
        assert (cut.tests / f"{test}.json").read_text().splitlines() == [whole[place] for place in places]
    for path in folders.trained.iterdir():
        assert (cut.trained / path.name).read_bytes() == path.read_bytes()
    before, after = first_spec(study, folders), first_spec(study, cut)
    assert before.key() != after.key()  # a run on whole sets is not taken for one on cut ones


def test_a_run_is_another_where_a_stage_or_a_test_has_another_name(study: Study, folders: Folders):
    spec = first_spec(study, folders)
    (stage, part), *_ = spec.stages.items()
    again = Path(spec.test_dir, "sentiment_a2_test.json")
    again.write_bytes(Path(spec.test_dir, "sentiment_a_test.json").read_bytes())
    renamed = [replace(spec, stages={f"{stage}s": part}), replace(spec, tests=["sentiment_a2_test", *spec.tests[1:]])]
    assert len({one.key() for one in (spec, *renamed)}) == 3


def test_a_test_set_of_texts_that_were_learned_is_refused(
    study: Study, folders: Folders, capsys: pytest.CaptureFixture[str]
):
    check_apart(study, folders)
    capsys.readouterr()
    learned = (folders.trained / "sentiment_a_train.json").read_text().splitlines()
    others = [
        {"uid": "x", "label": 0, "token_id": [5] * size, "type_id": [0] * size, "attention_mask": [1] * size}
        for size in range(20, 119)
    ]
    path = folders.tests / "sentiment_b_test.json"
    for own, refused in ((learned[:1], False), (learned[:2], True)):
        write_lines(path, [*own, *map(json.dumps, others)])
        found = f"{len(own)} of {len(own) + 99} texts are in the training or development set of near, trained"
        if refused:
            with pytest.raises(DataError, match=f"sentiment_b_test.json: {found}; accepted: a test set of other texts"):
                check_apart(study, folders)
        else:
            check_apart(study, folders)
            assert f"{path}: {found}\n" in capsys.readouterr().out


def test_a_metric_that_the_task_does_not_measure_is_told_before_any_run(study: Study, tmp_path: Path):
    path = tmp_path / "study.yml"
    path.write_text(yaml.safe_dump(study.model_dump() | {"metric": "MCC"}))
    with pytest.raises(UserError, match=r"small: metric: found MCC, accepted: ACC, F1MAC \(metric_meta of 'sentiment'"):
        matrix.main([str(path), "--results", str(tmp_path / "results")])
    assert not (tmp_path / "results").exists()


class Inside(Jobs):
    """Runs in this process, one after the other."""

    def __init__(self) -> None:
        super().__init__(1, 1, "ACC", lambda line: self.lines.append(line))
        self.lines: list[str] = []
        self.done: list[str] = []

    def run(self, specs: Any, title: str) -> None:
        for spec in specs:
            if finished(spec) is None:
                execute(spec)
                self.done.append(spec.name)


def first_spec(study: Study, folders: Folders, method: str = "sift") -> RunSpec:
    return next(spec for spec in run_specs(study, folders, {}) if spec.method == method)


def without_time(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "seconds"}


def test_tuning_and_training_read_folders_without_a_test_set(study: Study, folders: Folders):
    specs = [spec for runs in trial_specs(study, folders).values() for spec in runs]
    assert {spec.name for spec in specs} == {"plain-0-1000", "plain-1-1000", "sift-0-1000", "sift-1-1000"}
    for spec in specs:
        assert Path(spec.test_dir) == Path(spec.train_dir) == folders.trials
        assert spec.tests == ["sentiment_a_dev"] and not spec.stages and not spec.robustness
    assert {path.name for path in folders.trials.iterdir()} == {"sentiment_a_train.json", "sentiment_a_dev.json"}
    assert len((folders.trials / "sentiment_a_train.json").read_text().splitlines()) == 24 // 2
    assert {Path(spec.train_dir) for spec in run_specs(study, folders, {})} == {folders.trained}
    assert {path.name for path in folders.trained.iterdir()} == {
        "sentiment_a_train.json", "sentiment_a_dev.json", "sentiment_b_train.json",
    }  # fmt: skip


def test_the_best_trial_has_the_highest_metric_and_of_equals_the_lowest_loss():
    trials = [Trial({"a": 1}, 80.0, 0.2), Trial({"a": 2}, 81.0, 0.9), Trial({"a": 3}, 81.0, 0.5)]
    assert best_flags(trials) == {"a": 3}


def test_trials_with_equal_metrics_are_tied():
    trials = [Trial({"a": 1}, 0.0, 0.2), Trial({"a": 2}, 1e-9, 0.9)]
    assert all_tied(trials)
    assert not all_tied([*trials, Trial({"a": 3}, 0.1, 0.5)])
    assert not all_tied(trials[:1])


def test_a_study_is_tuned_and_run_and_nothing_runs_twice(study: Study, folders: Folders):
    jobs = Inside()
    matrix.run_study(study, folders, jobs)
    assert jobs.done[:4] == ["plain-0-1000", "plain-1-1000", "sift-0-1000", "sift-1-1000"]
    assert jobs.done[4:] == ["near-plain-5", "near-sift-5", "near-plain-6", "near-sift-6"]
    tuned = json.loads((folders.results / "tuned.json").read_text())
    trials = trials_of(trial_specs(study, folders), study)
    for method, found in trials.items():
        assert tuned[method]["chosen"] == best_flags(found)
        for trial, kept in zip(found, tuned[method]["trials"], strict=True):
            assert kept == {"flags": trial.flags, "value": trial.value, "loss": trial.loss}
    record = json.loads((folders.results / "runs" / "near-sift-5.json").read_text())
    for name, value in tuned["sift"]["chosen"].items():
        assert record["config"][name] == value
    assert not list((folders.results / "work").rglob("*.pt"))

    again = Inside()
    matrix.run_study(study, folders, again)
    assert again.done == []
    matrix.run_study(study.model_copy(update={"flags": study.flags | {"batch_size": 6}}), folders, again)
    assert sorted(again.done) == sorted(jobs.done)


def test_a_run_that_diverges_is_a_result_and_stops_no_study(study: Study, folders: Folders, tmp_path: Path):
    """Another start of it would diverge too. A trial that does is the worst; what cannot be compared is named."""
    assert study.tuning is not None
    wild = {"learning_rate": 1e30}
    tuning = study.tuning.model_copy(update={"grid": {"plain": [wild, {}], "sift": [wild, wild]}})
    study = study.model_copy(update={"tuning": tuning, "seeds": Seeds(compared=1, others=1, first=5)})
    jobs = Inside()
    matrix.run_study(study, folders, jobs)
    assert len(jobs.done) == 6
    again = Inside()
    matrix.run_study(study, folders, again)
    assert again.done == []
    tuned = json.loads((folders.results / "tuned.json").read_text())
    assert (tuned["plain"]["chosen"], tuned["plain"]["trials"][0]["value"]) == ({}, 0.0)
    record = json.loads((folders.results / "runs" / "near-sift-5.json").read_text())
    assert record["evaluation"] == {} and "finite" in record["diverged"]
    report.main([str(folders.results.parent), "--output", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "- small-tiny, near: sift: diverged: seeds 5\n" in text
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "learning_rate 1e+30" in line]
    assert ["", "near", "plain", "learning_rate 1e+30", "1 diverged", "", ""] in rows


def test_a_result_holds_what_its_numbers_follow_from(study: Study, folders: Folders):
    spec = first_spec(study, folders)
    record = execute(spec)
    assert json.loads(Path(spec.result).read_text()) == record
    assert (record["study"], record["setting"], record["method"], record["seed"]) == ("small", "near", "sift", 5)
    assert {stage: list(tests) for stage, tests in record["evaluation"].items()} == {
        TRAINED: ["sentiment_a_test", "sentiment_b_test"], "and b": ["sentiment_b_test"],
    }  # fmt: skip
    for tests in record["evaluation"].values():
        for name, found in tests.items():
            lines = [json.loads(line) for line in (Path(spec.test_dir) / f"{name}.json").read_text().splitlines()]
            assert found["golds"] == [line["label"] for line in lines]
            right = np.array(found["probabilities"]).argmax(1) == np.array(found["golds"])
            assert found["metrics"]["ACC"] == pytest.approx(100 * right.mean())
    assert [entry["epoch"] for entry in record["history"]] == [0, 1]
    further = record["stages"]["and b"]
    assert further["config"] == record["config"] | {"epochs": 3, "train_datasets": further["config"]["train_datasets"]}
    assert list(further["config"]["train_datasets"]) == ["sentiment_b"]
    assert [entry["epoch"] for entry in further["history"]] == [0, 1, 2] and further["updates"][-1]["update"] == 6
    assert {name for entry in record["history"] for name in entry["metrics"]} == {"sentiment_a_dev"}
    assert [line["update"] for line in record["updates"]] == [1, 2, 4, 6, 8, 10, 12]
    assert record["environment"]["threads"] >= 1 and record["robustness"] == {}


def test_models_of_the_first_seeds_are_attacked(study: Study, folders: Folders):
    measured = {"tests": ["sentiment_b_test"], "pgd": {"levels": ["post_ln"], "radii": [0.1, 0.9], "examples": 7}}
    attacked = study.model_copy(update={"robustness": Robustness(seeds=1, measured=measured)})
    specs = run_specs(attacked, folders, {})
    assert [spec.name for spec in specs if spec.robustness] == ["near-plain-5", "near-sift-5"]
    found = execute(specs[0])["robustness"]["pgd"]["sentiment_b_test"]["post_ln"]
    assert found["radii"] == [0, 0.1, 0.9]
    assert [len(row) for row in found["correct"]] == [7, 7, 7]


def test_a_stage_begins_with_the_trained_model_and_learns_from_its_own_data(
    study: Study, folders: Folders, tmp_path: Path
):
    acting = tmp_path / "acting.yml"  # with an activation, which the stage's heads keep
    acting.write_text(Path(study.task_def).read_text().replace("n_class: 2", "n_class: 2\n  actf: relu"))
    spec = replace(first_spec(study, folders), task_def=str(acting))
    still = {"and b": {**spec.stages["and b"], "flags": {"epochs": 1, "learning_rate": 1e-12}}}
    unmoved = execute(replace(spec, stages=still))["evaluation"]
    assert unmoved["and b"]["sentiment_b_test"] == unmoved[TRAINED]["sentiment_b_test"]
    moved = execute(spec)["evaluation"]
    assert moved[TRAINED] == unmoved[TRAINED]
    assert moved["and b"]["sentiment_b_test"] != moved[TRAINED]["sentiment_b_test"]


def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    study: Study, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = first_spec(study, folders)
    whole = execute(replace(spec, result=str(tmp_path / "whole.json"), work=str(tmp_path / "whole")))
    study_run.write_spec(spec, tmp_path / "spec.json")
    command = [sys.executable, "-m", "experiments.sift.running.study_run", str(tmp_path / "spec.json")]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process, for sums depend on it
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=one_thread)
    checkpoint = Path(spec.work) / "trained" / "model_0.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path(spec.result).exists()
    started: list[Config] = []
    monkeypatch.setattr(study_run, "train", lambda config: started.append(config) or train(config))
    assert without_time(execute(spec)) == without_time(whole)
    first = started[0].training
    assert first.resume and first.model_ckpt is None and Path(first.output_dir) == checkpoint.parent


def test_what_another_configuration_began_is_not_gone_on_with(study: Study, folders: Folders):
    spec = first_spec(study, folders)
    leftover = Path(spec.work) / "trained" / "model_0.pt"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"of other settings")
    (Path(spec.work) / "key").write_text("another")
    execute(spec)
    assert finished(spec) is not None


def test_a_result_of_other_data_does_not_count(study: Study, folders: Folders):
    spec = first_spec(study, folders, "plain")
    execute(spec)
    assert finished(spec) is not None
    assert finished(replace(spec, robustness={"tests": ["sentiment_a_test"]})) is None
    path = Path(spec.test_dir) / "sentiment_b_test.json"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert finished(spec) is None


def test_rounding_makes_no_tie_that_would_change_a_prediction():
    probabilities = np.array([[0.4999991, 0.5000009], [0.123456789, 0.876543211], [0.5, 0.5]], dtype=np.float32)
    found = rounded(probabilities)
    assert found.argmax(1).tolist() == probabilities.argmax(1).tolist() == [1, 1, 0]
    assert found[1].tolist() == [0.12346, 0.87654]


def test_processes_side_by_side_and_a_failure_that_stops_no_other(
    study: Study, folders: Folders, monkeypatch: pytest.MonkeyPatch
):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    drawn_to_the_end(monkeypatch)
    lines: list[str] = []
    plain, sift, *_ = run_specs(study, folders, {})
    broken = replace(plain, result=plain.result.replace("plain", "broken"), work=f"{plain.work}-broken", encoder="none")
    with pytest.raises(UserError, match="1 of 3 runs failed; the first, near-broken-5: error: encoder 'none'"):
        Jobs(2, 1, "ACC", lines.append).run([broken, plain, sift], "small")
    assert re.search(r"\rsmall: +67%\|.*2/3 \[\d\d:\d\d<\d\d:\d\d, .*run", terminal.getvalue())
    assert lines[0] == "small: 3 runs, 0 of them done before"
    assert sorted(line.split()[2] for line in lines[1:] if "seed" in line) == ["plain", "sift"]
    assert finished(plain) is not None and finished(sift) is not None


@pytest.mark.slow
def test_a_matrix_killed_at_random_points_ends_in_the_same_report(tmp_path: Path, study: Study, token_dir: Path):
    path = tmp_path / "study.yml"
    attacks = {"tests": ["sentiment_b_test"], "pgd": {"radii": [0.05], "examples": 4}}
    path.write_text(yaml.safe_dump(study.model_dump() | {"robustness": {"seeds": 2, "measured": attacks}}))

    def command(results: str) -> list[str]:
        places = ["--canonical_root", str(token_dir.parent), "--results", str(tmp_path / results)]
        return [sys.executable, "-m", "experiments.sift.matrix", str(path), *places, "--jobs", "2"]

    begun = time.monotonic()
    subprocess.run(command("whole"), check=True)
    waits = (time.monotonic() - begun) * np.random.default_rng().uniform(0.1, 0.3, size=4)
    print(f"killed after {waits.round(1)} s")
    killed = 0
    for wait in waits:
        process = subprocess.Popen(command("killed"))
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed >= 2
    subprocess.run(command("killed"), check=True)
    for results in ("whole", "killed"):
        report.main([str(tmp_path / results)])
    for name in ("report.md", "report.html", "runs.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("flag", ["jobs", "threads"])
def test_a_flag_that_cannot_be_used_is_told(flag: str):
    with pytest.raises(FlagError, match=f"--{flag}: found '0', accepted: an integer, at least 1"):
        matrix.parse_args(["study.yml", f"--{flag}", "0"])
