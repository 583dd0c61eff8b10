"""A study of a regression: its runs, its measures, their bootstrap and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import pearsonr, spearmanr

import prepro_std
from data_utils.errors import DataError
from data_utils.metrics import Metric
from data_utils.storage.text_files import write_lines
from experiments.sift import report
from experiments.sift.reporting import results as results_module
from experiments.sift.reporting.results import read_study
from experiments.sift.reporting.statistics import _counts, sample
from experiments.sift.running import layout, plan
from experiments.sift.running.plan import best_flags, run_specs, trial_specs, trials_of
from experiments.sift.running.study import Study
from experiments.sift.running.study_run import RunSpec, _outputs, execute

TASK_DEF = Path("experiments/glue/glue_task_def.yml").resolve()
SIZES = {"train": 12, "dev": 6, "test": 9}


@pytest.fixture
def study(tiny_encoder: Path) -> Study:
    content: dict[str, Any] = {
        "study": "alike",
        "question": "Is it so?",
        "encoder": str(tiny_encoder),
        "task_def": str(TASK_DEF),
        "task": "stsb",
        "metric": "Pearson",
        "data": [],
        "comparison": {"methods": ["plain", "sift"], "setting": "stsb", "tests": ["stsb_test"]},
        "settings": {"stsb": {"train": "stsb", "tests": ["stsb_test"]}},
        "flags": {"epochs": 1, "batch_size": 6, "learning_rate": 0.01, "log_per_updates": 1},
        "methods": {"plain": {}, "sift": {"adv_train": True, "adv_norm_level": "post_ln"}},
        "seeds": {"compared": 2, "others": 2, "first": 5},
        "tuning": {"grid": {"plain": [{}], "sift": [{}]}},
    }
    return Study.model_validate(content)


@pytest.fixture
def results(tmp_path: Path, study: Study, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole study: trained, tested, its files written."""
    root, words = tmp_path / "canonical", ("good", "fine", "bad", "poor")
    for part, (name, size) in enumerate(SIZES.items()):
        lines = [
            f"{n}\t{n % 6}.{part + 1}\t{words[n % 4]} {'so ' * part}{words[n // 4]}\t{words[part]} {n}"
            for n in range(size)
        ]
        write_lines(root / f"stsb_{name}.tsv", lines)
    prepro_std.main(["--model", str(tiny_encoder), "--root_dir", str(root), "--task_def", str(TASK_DEF)])
    monkeypatch.setattr(layout, "prepare", lambda *arguments: root / tiny_encoder.name)
    folders = layout.lay_out(study, tmp_path, root, tmp_path / "results")
    layout.check_metric(study)
    trials = trial_specs(study, folders)
    for spec in [*(spec for runs in trials.values() for spec in runs), *run_specs(study, folders, {})]:
        execute(spec)
    for trial in (trial for found in trials_of(trials, study).values() for trial in found):
        assert -100 <= trial.value <= 100 and trial.loss > 0
    (folders.results / "study.yml").write_text(yaml.safe_dump(study.model_dump(), sort_keys=False))
    return folders.results


def test_a_study_of_a_regression_ends_in_a_report(results: Path, tmp_path: Path):
    run = read_study(results).runs[0]
    stored = json.loads(run.path.read_text())["evaluation"]["trained"]["stsb_test"]
    assert stored["golds"] == [float(f"{n % 6}.3") for n in range(9)] and "probabilities" not in stored
    measures = run.evaluation["trained"]["stsb_test"].measures
    expected = {"Pearson": pearsonr, "Spearman": spearmanr}
    assert measures == pytest.approx(
        {name: 100 * correlate(stored["golds"], stored["scores"]).statistic for name, correlate in expected.items()}
    )
    assert stored["metrics"] == pytest.approx(measures, abs=1e-3)

    report.main([str(results.parent), "--output", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Pearson correlation" in text and "stsb_test: Spearman correlation" in text
    assert "Brier" not in text and "ECE" not in text
    rows = (tmp_path / "report" / "runs.csv").read_text().splitlines()
    assert {row.split(",")[8] for row in rows[1:]} == {"Pearson", "Spearman"}


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored["scores"].pop(),
        lambda stored: stored.update(probabilities=[[0.5, 0.5]] * 9),
        lambda stored: stored.update(scores=stored["scores"][::-1]),
        lambda stored: stored["scores"].__setitem__(0, float("nan")),
    ],
)
def test_a_damaged_run_of_a_regression_is_refused(results: Path, change: Any):
    path = sorted((results / "runs").glob("*.json"))[0]
    file = json.loads(path.read_text())
    change(file["evaluation"]["trained"]["stsb_test"])
    path.write_text(json.dumps(file))
    with pytest.raises(DataError, match=path.name):
        read_study(results)


@pytest.mark.parametrize(("metric", "correlate"), [(Metric.Pearson, pearsonr), (Metric.Spearman, spearmanr)])
def test_the_bootstrap_of_a_correlation_is_that_of_the_drawn_examples(metric: Metric, correlate: Any):
    generator = np.random.default_rng(0)
    golds = (generator.random(30) * 5).round(1)
    scores = 0.5 * golds + generator.normal(size=(3, 30)) + 1000  # far from zero, for precision
    scores[1] = scores[1].round()  # many equal ones
    scores[2] = 1.0
    found = sample(metric, [1, 2, 3], golds, scores, resamples=4)
    drawn = [np.repeat(np.arange(30), row.astype(int)) for row in _counts(30, 4)]
    for row, places in zip([found.values, *found.resampled], drawn, strict=True):
        expected = [100 * correlate(golds[places], one[places]).statistic for one in scores[:2]]
        assert row == pytest.approx([*expected, 0.0])


def test_scores_that_are_nearly_all_the_same_are_read_as_the_model_gave_them():
    """Correlations depend on their last digits, and the report refuses a file whose metrics it does not find again."""
    generator = np.random.default_rng(0)
    golds, scores = generator.random(50) * 5, (2.5 + 1e-6 * generator.normal(size=(50, 1))).astype(np.float32)
    assert len(np.unique(scores)) > 5
    stored = results_module._Stored(golds=golds.tolist(), scores=_outputs(scores)["scores"], metrics={})
    found = results_module._predicted_numbers(stored, "stsb_test", Path("run.json"))
    assert np.array_equal(found.predicted, scores[:, 0].astype(float))
    assert found.measures["Pearson"] == 100 * pearsonr(golds, scores[:, 0].astype(float)).statistic


def test_a_run_whose_correlation_is_not_defined_is_reported(results: Path, tmp_path: Path):
    """A model that answers every text with the same number: null in the run's file, nan in the report."""
    path = sorted((results / "runs").glob("*.json"))[0]
    file = json.loads(path.read_text())
    file["history"][0]["metrics"]["stsb_dev"] = dict.fromkeys(("Pearson", "Spearman"))
    stored = file["evaluation"]["trained"]["stsb_test"]
    stored["scores"], stored["metrics"] = [2.5] * len(stored["scores"]), dict.fromkeys(("Pearson", "Spearman"))
    path.write_text(json.dumps(file))
    (run,) = (run for run in read_study(results).runs if run.path == path)
    assert np.isnan(run.dev_scores("Pearson", "stsb")).all()
    assert np.isnan(list(run.evaluation["trained"]["stsb_test"].measures.values())).all()
    report.main([str(results.parent), "--output", str(tmp_path / "report")])
    assert "nan" in (tmp_path / "report" / "report.md").read_text()


def test_a_trial_whose_metric_is_not_defined_is_never_chosen(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert study.tuning is not None
    tuning = study.tuning.model_copy(update={"grid": {"plain": [{"seed": 1}, {"seed": 2}]}})
    tried = study.model_copy(update={"tuning": tuning})
    folders = layout.Folders(*(tmp_path for _ in layout.Folders._fields))
    metrics = {"1": None, "2": 12.5}

    def record(spec: RunSpec) -> dict[str, Any]:
        value = metrics[str(spec.flags["seed"])]
        test = {"golds": [1.0, 2.0], "scores": [1.0, 1.0], "metrics": {"Pearson": value}}
        return {"evaluation": {"trained": {spec.tests[0]: test}}}

    monkeypatch.setattr(plan, "finished", record)
    (trials,) = trials_of(trial_specs(tried, folders), tried).values()
    assert [trial.value for trial in trials] == [0.0, 12.5] and best_flags(trials) == {"seed": 2}
