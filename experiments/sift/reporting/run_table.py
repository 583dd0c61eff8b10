"""All measures of all runs as one CSV table, for your own statistics and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.sift.reporting.results import Run, Study
from experiments.sift.running.study import TRAINED

COLUMNS = ("study", "encoder", "setting", "method", "seed", "stage", "test", "examples", "measure", "value")
Measured = tuple[str, str, int, str, float]  # stage, test, examples, measure, value


def run_table(studies: Sequence[Study]) -> str:
    """The table as CSV with the columns `COLUMNS`, a row for each measure of each run.

    measure: ACC, F1MAC, MCC, ECE and, under attack, accuracy (`PGD LEVEL RADIUS`; `characters clean` and `characters
    attacked`, before and after the attack on letters), all in percent; Brier, from 0 to 1.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for study in studies:
        names = (study.definition.study, study.definition.encoder)
        for run in study.runs:
            for *place, value in (*_tested(run), *_attacked(run)):
                writer.writerow((*names, run.setting, run.method, run.seed, *place, f"{value:.6g}"))
    return text.getvalue()


def _tested(run: Run) -> Iterator[Measured]:
    for stage, tests in run.evaluation.items():
        for test, found in tests.items():
            for measure, value in found.measures.items():
                yield stage, test, len(found.golds), measure, value


def _attacked(run: Run) -> Iterator[Measured]:
    """The measures under attack; attacked is the model of the first stage."""
    for test, levels in run.robustness.pgd.items():
        for level, found in levels.items():
            for radius, right in zip(found.radii, found.correct, strict=True):
                yield TRAINED, test, len(right), f"PGD {level} {radius:g}", 100 * float(np.mean(right))
    for test, letters in run.robustness.characters.items():
        for when, right in (("clean", letters.clean), ("attacked", letters.attacked)):
            yield TRAINED, test, len(right), f"characters {when}", 100 * float(np.mean(right))
