"""The recipes for BERT and DeBERTa from public files to the report, on tiny random encoders of these architectures."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.sift import report
from experiments.sift.matrix import run_study
from experiments.sift.running import study_run
from experiments.sift.running.layout import lay_out
from experiments.sift.running.plan import run_specs
from experiments.sift.running.study import Seeds, read_study
from tests.encoder_folder import write_encoder
from tests.experiments.sift.study_files import write_all
from tests.experiments.sift.test_matrix import Inside

FAMILIES = {"bert": "bert-base-uncased", "deberta": "microsoft/deberta-base", "deberta_v3": "microsoft/deberta-v3-base"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["cola", pytest.param("hate", marks=pytest.mark.slow)])
def test_a_recipe_runs_end_to_end(tmp_path: Path, name: str, family: str):
    encoder = write_encoder(tmp_path / f"tiny-{family}", family)
    write_all(tmp_path / "public")
    study = read_study(f"experiments/sift/studies/{name}.yml")
    recipes = {str(encoder): study.recipes[FAMILIES[family]]}
    study = study.model_copy(update={"recipes": recipes, "seeds": Seeds(compared=2, others=1)})
    study = study.with_encoder(str(encoder)).with_methods(["plain", "smart", "sift"])
    if name == "hate":
        study = study.model_copy(update={"settings": {"balanced": study.settings["balanced"]}})
    folders = lay_out(study, tmp_path / "public", tmp_path / "canonical", tmp_path / "results")
    jobs = Inside()
    run_study(study, folders, jobs)
    assert len(jobs.done) == 6 and folders.results.name == f"{name}-tiny-{family}"
    smart = next(spec for spec in run_specs(study, folders, {}) if spec.method == "smart").config()
    assert (smart.training.optimizer, smart.training.epochs, smart.adversarial.adv_radius) == ("adamax", 6, 1e-5)

    report.main([str(tmp_path / "results"), "--output", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "Missing" not in text and "2 seeds" in text
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert study_run.finished(run_specs(study, folders, {})[0]) is not None
