"""Numbers of other papers beside a study's: their file, their reasons, and gains with intervals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from data_utils.errors import DataError
from experiments.sift import report
from experiments.sift.reporting.comparisons import named_comparison, signed
from experiments.sift.reporting.document import Table
from experiments.sift.reporting.published import (
    Counterpart,
    Published,
    PublishedTable,
    published_blocks,
    read_published,
)
from experiments.sift.reporting.results import read_study
from tests.experiments.sift.study_results import definition, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("study"), examples=61, gains={"plain": -0.2, "sift": 0.5})


def test_a_published_gain_stands_beside_ours_with_its_interval(results: Path):
    study = read_study(results / "cola")
    ours = Counterpart(tests=["cola_out_test"], measure="MCC", stage="trained")
    paper = PublishedTable(
        table="table 1",
        unit="percent",
        columns=["CoLA", "MNLI"],
        rows={"BERT": [54.7, "84.5/84.4"], "SMART, BERT": [59.1, "85.6/86.0"]},
        not_comparable="another encoder",
        ours={"CoLA": ours},
        gain=("BERT", "SMART, BERT"),
    )
    study = replace(study, definition=study.definition.model_copy(update={"published": ["smart"]}))
    _, gains, _ = published_blocks(study, {"smart": Published(paper="SMART", tables=[paper])})
    assert isinstance(gains, Table)
    assert gains.rows[0] == ["SMART, BERT − BERT", "+4.40", "not reported"]

    values = {
        method: [run.evaluation["trained"]["cola_out_test"].measures["MCC"] for run in study.of("cola", method)]
        for method in ("plain", "smart", "sift")
    }
    planned = named_comparison(study)[1]  # of the same test set, so it has the same intervals
    for method, row in zip(("smart", "sift"), gains.rows[1:], strict=True):
        gain = np.mean(values[method]) - np.mean(values["plain"])
        (sentence,) = (one for one in planned if one.startswith(f"{method} − plain"))
        low, high = sentence.split("95 % interval ")[1].split(",")[0].split(" to ")
        assert row == [f"here: {method} − plain", f"{signed(gain)} ({low} to {high}), 4 seeds", ""]


def test_a_gain_of_a_row_that_is_not_there_is_refused():
    fields = {"table": "t", "unit": "u", "columns": ["A"], "rows": {"plain": [1.0]}, "not_comparable": "x"}
    with pytest.raises(ValidationError, match="gain: found 'SMART', accepted: plain"):
        PublishedTable.model_validate({**fields, "gain": ["plain", "SMART"]})


def test_every_published_table_says_why_it_is_not_comparable():
    for published in read_published().values():
        assert published.paper
        assert all(table.table and len(table.not_comparable) > 20 for table in published.tables)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: {paper: x}", "tables"), ("a: [", "is no YAML"), ("[]", "no published")],
)
def test_a_damaged_file_of_published_numbers_is_told(tmp_path: Path, text: str, message: str):
    path = tmp_path / "published.yml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_published(path)


def test_a_key_of_published_numbers_that_is_not_there_is_told(tmp_path: Path):
    results = write_results(tmp_path / "results", ["cola"], examples=20)
    study = definition("cola") | {"published": ["smart_glue"]}
    (results / "cola" / "study.yml").write_text(yaml.safe_dump(study))
    with pytest.raises(DataError, match=r"published: found 'smart_glue', accepted: .*did you mean 'smart_glue_dev'"):
        report.main([str(results)])
    assert not (results / "report.md").exists()
