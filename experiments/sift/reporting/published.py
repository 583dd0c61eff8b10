"""Results of other papers next to a study's, with their source and why the two are not comparable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from data_utils.errors import DataError, nearest
from data_utils.metrics import Metric
from data_utils.storage.yaml_file import compose_yaml, construct_yaml
from experiments.sift.reporting.comparisons import mean_and_error, metric_sample, signed
from experiments.sift.reporting.document import Block, Paragraph, Table
from experiments.sift.reporting.results import STUDY_FILE, Study
from experiments.sift.reporting.statistics import Difference, compare

PUBLISHED_FILE = Path(__file__).with_name("published_results.yml")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Counterpart(_Entry):
    """A study's counterpart of a column: the mean of a measure over test sets after a stage."""

    tests: list[str]
    measure: Literal["ACC", "MCC", "Pearson", "Spearman"]
    stage: str


class PublishedTable(_Entry):
    """A table of a paper: rows by model with a value for each column, None where nothing is reported.

    gain: two of the rows, plain fine-tuning and a method, whose difference the report gives beside the study's own.
    """

    table: str
    unit: str
    columns: list[str]
    rows: dict[str, list[float | str | None]]
    not_comparable: str
    study: str | None = None
    ours: dict[str, Counterpart] = {}
    gain: tuple[str, str] | None = None

    @model_validator(mode="after")
    def _fits(self) -> PublishedTable:
        wrong = [name for name, row in self.rows.items() if len(row) != len(self.columns)]
        wrong += [name for name in self.ours if name not in self.columns]
        if wrong:
            raise ValueError(f"{wrong[0]}: does not fit the columns")
        unknown = [name for name in self.gain or () if name not in self.rows]
        if unknown:
            raise ValueError(f"gain: found {unknown[0]!r}, accepted: {', '.join(self.rows)}")
        return self


class Published(_Entry):
    paper: str
    tables: list[PublishedTable]


def read_published(path: Path = PUBLISHED_FILE) -> dict[str, Published]:
    """The papers of `published_results.yml`, by key.

    Raises:
        DataError: the file does not have its format.
    """
    try:
        node = compose_yaml(path)
        entries: Any = None if node is None else construct_yaml(node, path)
        return {key: Published.model_validate(entry) for key, entry in entries.items()}
    except (ValidationError, AttributeError) as error:
        raise DataError(f"no published numbers: {' '.join(str(error).split())}", path) from error


def published_blocks(study: Study, published: dict[str, Published]) -> list[Block]:
    """The papers' tables that a study names, with the study's rows below.

    Raises:
        DataError: the study names an unknown key.
    """
    blocks: list[Block] = []
    for key in study.definition.published:
        if key not in published:
            raise DataError(
                f"published: found {key!r}, accepted: {', '.join(published)}{nearest(key, published)}",
                f"{study.name}/{STUDY_FILE}",
            )
        for table in published[key].tables:
            if table.study in (None, study.definition.study):
                blocks += _blocks(study, published[key].paper, table)
    return blocks


def _blocks(study: Study, paper: str, table: PublishedTable) -> list[Block]:
    rows = [[name, *map(_text, row)] for name, row in table.rows.items()]
    if table.ours:
        for method in study.definition.comparison.methods:
            cells = [_counterpart(study, method, table.ours.get(column)) for column in table.columns]
            if any(cells):
                rows.append([f"here: {study.definition.encoder}, {method}", *cells])
    caption = f"{paper}, {table.table}: {table.unit}. Not comparable with the rows of this study"
    return [
        Table(caption, ["model", *table.columns], rows),
        *_gains(study, table),
        Paragraph(f"Not comparable: {table.not_comparable}."),
    ]


def _gains(study: Study, table: PublishedTable) -> list[Table]:
    """What the paper's method adds to its plain fine-tuning, and what the study's methods add to the study's."""
    if table.gain is None:
        return []
    plain, method = table.gain
    rows = [[f"{method} − {plain}", *map(_difference, table.rows[method], table.rows[plain])]]
    baseline, *methods = study.definition.comparison.methods
    for ours in methods:
        found = [_gain(study, ours, baseline, table.ours.get(column)) for column in table.columns]
        if any(found):
            cells = ["" if one is None else _with_interval(one) for one in found]
            rows.append([f"here: {ours} − {baseline}", *cells])
    caption = "Gain over plain fine-tuning, points. Here with the 95 % interval, paired over seeds and examples"
    return [Table(caption, ["gain", *table.columns], rows)]


def _difference(ours: float | str | None, theirs: float | str | None) -> str:
    if isinstance(ours, float) and isinstance(theirs, float):
        return signed(ours - theirs)
    return "not reported"


def _with_interval(found: Difference) -> str:
    return f"{signed(found.estimate)} ({signed(found.low)} to {signed(found.high)}), {found.seeds} seeds"


def _gain(study: Study, method: str, baseline: str, ours: Counterpart | None) -> Difference | None:
    """The difference of two methods' counterparts of a column; None without two seeds that both have."""
    if ours is None:
        return None
    setting, metric = study.definition.comparison.setting, Metric[ours.measure]
    runs = [study.of(setting, name) for name in (method, baseline)]
    if not all(runs) or not set(ours.tests) <= set(runs[0][0].evaluation.get(ours.stage, ())):
        return None
    first, second = ([metric_sample(metric, found, ours.stage, test) for test in ours.tests] for found in runs)
    return compare(first, second)


def _text(value: float | str | None) -> str:
    return "not reported" if value is None else value if isinstance(value, str) else f"{value:.1f}"


def _counterpart(study: Study, method: str, ours: Counterpart | None) -> str:
    if ours is None:
        return ""
    runs = study.of(study.definition.comparison.setting, method)
    values: Sequence[float] = [
        float(np.mean([run.evaluation[ours.stage][test].measures[ours.measure] for test in ours.tests]))
        for run in runs
        if all(test in run.evaluation.get(ours.stage, {}) for test in ours.tests)
    ]
    return mean_and_error(values) if values else ""
