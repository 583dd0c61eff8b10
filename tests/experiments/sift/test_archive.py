"""Finished runs in the repository: compressed, restored, and every number recomputed from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.errors import DataError
from experiments.sift import archive, report
from experiments.sift.archive import ARCHIVE, TABLE, restore, save
from experiments.sift.reporting.results import read_studies
from experiments.sift.reporting.run_table import run_table
from experiments.sift.running.run_files import read_run_file, run_files
from tests.experiments.sift.study_results import write_results


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results", ["cola"], examples=30) / "cola"


def test_the_tables_of_the_repository_are_those_of_its_runs():
    """Reading also compares every stored metric with the one of its probabilities."""
    assert run_table(read_studies(ARCHIVE)) == (ARCHIVE / TABLE).read_text(encoding="utf-8")


def test_a_report_of_the_archive_is_the_report_of_the_results(study: Path, tmp_path: Path):
    save(study, tmp_path / "archive")
    for folder in ("results", "archive"):
        report.main([str(tmp_path / folder), "--output", str(tmp_path / f"report_{folder}")])
    ours, theirs = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / f"report_{folder}").rglob("*.*"))}
        for folder in ("archive", "results")
    )
    assert ours == theirs
    assert (tmp_path / "archive" / TABLE).read_bytes() == ours["runs.csv"]


def test_what_was_saved_before_is_left_and_what_is_new_is_named(study: Path, tmp_path: Path):
    kept = study / "runs" / "later.json"
    path = run_files(study / "runs")[0]
    path.rename(kept.with_suffix(".aside"))
    first = save(study, tmp_path / "archive")
    assert len(first) == 22 and all(name.endswith(".json.gz") for name in first)
    assert save(study, tmp_path / "archive") == []
    kept.with_suffix(".aside").rename(kept)
    assert save(study, tmp_path / "archive") == ["runs/later.json.gz"]
    file = json.loads(kept.read_text())
    file["seconds"] = -1
    kept.write_text(json.dumps(file))
    assert save(study, tmp_path / "archive") == ["runs/later.json.gz"]


def test_another_machine_goes_on_from_the_archive(study: Path, tmp_path: Path):
    save(study, tmp_path / "archive")
    results = tmp_path / "elsewhere"
    names = restore("cola", results, tmp_path / "archive")
    assert len(names) == 8 + 15
    for path in run_files(study / "runs") + run_files(study / "tuning"):
        again = results / "cola" / path.relative_to(study)
        assert json.loads(again.read_text()) == json.loads(path.read_text())
    assert (results / "cola" / "study.yml").read_bytes() == (study / "study.yml").read_bytes()
    assert restore("cola", results, tmp_path / "archive") == []
    with pytest.raises(DataError, match="found no study 'colla', accepted: cola"):
        restore("colla", results, tmp_path / "archive")


def test_a_number_that_its_probabilities_do_not_give_is_not_saved(study: Path, tmp_path: Path):
    path = run_files(study / "runs")[0]
    file = json.loads(path.read_text())
    file["evaluation"]["trained"]["cola_out_test"]["metrics"]["MCC"] += 1
    path.write_text(json.dumps(file))
    with pytest.raises(DataError, match="MCC is .* in the file, .* by its predictions"):
        save(study, tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize("damage", [lambda packed: packed[:40], lambda packed: b"no gzip", lambda packed: b""])
def test_a_damaged_file_of_the_archive_is_told_in_a_line(study: Path, tmp_path: Path, damage):
    save(study, tmp_path / "archive")
    path = run_files(tmp_path / "archive" / "cola" / "runs")[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"cola-.*\.json\.gz.*(gzip|JSON)"):
        read_run_file(path)


def test_the_commands(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    archive.main(["save", str(study), "--archive", str(tmp_path / "archive")])
    assert capsys.readouterr().out.endswith("23 files\n")
    archive.main(["restore", "cola", "--archive", str(tmp_path / "archive"), "--results", str(tmp_path / "new")])
    assert capsys.readouterr().out.endswith("23 files\n")
