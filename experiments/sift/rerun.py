"""Makes a run of a study again, from its file, and compares the new predictions with the stored ones.

    python -m experiments.sift.rerun experiments/sift/runs/glue-embedded-mpnet/runs/cola-plain-2018.json.gz

A trial's file, in `tuning/`, can be made again too. The exit code is 1 if a number differs. On another processor, or
with another version of a library, rounding differs and training amplifies it; such differences of the environment are
printed first. `ATEN_CPU_CAPABILITY=avx2` lets torch compute as on a processor without AVX-512.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_utils.errors import DataError, OneLineParser, run_command_line
from data_utils.progress import print_line
from experiments.sift.reporting.predictions import Predictions
from experiments.sift.reporting.results import STUDY_FILE, TUNED_FILE, Run, Tested, read_run, read_tuned
from experiments.sift.running.jobs import Jobs, end_runs_on_sigterm
from experiments.sift.running.layout import BF16, FULL, TF32, Folders, lay_out, set_precision
from experiments.sift.running.plan import run_specs, trial_specs
from experiments.sift.running.run_files import read_run_file, run_name
from experiments.sift.running.study import Study, read_study
from experiments.sift.running.study_run import RunSpec, environment


class Difference(NamedTuple):
    """Between the outputs of two runs on a test set.

    examples: of the set; answers: that differ; largest: difference of two probabilities, or of two scores.
    """

    examples: int
    answers: int
    largest: float

    def __str__(self) -> str:
        if self.largest == 0:
            return f"{self.examples} examples, the same predictions"
        differ = f"{self.answers} answers differ, probabilities or scores by up to {self.largest:.2g}"
        return f"{self.examples} examples, {differ}"


def rerun(path: Path, data_root: Path, canonical_root: Path, results: Path) -> bool:
    """Make the run of a file again, and print where its predictions differ.

    Args:
        path: STUDY/runs/NAME.json, compressed or not, or a trial's STUDY/tuning/NAME.json.
        data_root, canonical_root: as in `experiments.sift.matrix`.
        results: folder for the new run; an interrupted one continues there.

    Returns:
        whether all predictions, and all results of attacks, are equal.

    Raises:
        UserError: the file cannot be used; its data or settings are not those that the study has here; the run fails.
    """
    stored, folder = read_run(path), path.resolve().parent.parent
    if not (folder / STUDY_FILE).is_file():
        raise DataError(f"is in no study's folder; accepted: STUDY/runs/NAME.json with STUDY/{STUDY_FILE}", path)
    study = read_study(folder / STUDY_FILE)
    suffix = folder.name.rpartition("-")[2]
    precision = suffix if suffix in (TF32, BF16) else FULL
    set_precision(precision)
    spec = _spec_of(path, study, lay_out(study, data_root, canonical_root, results, precision))
    made_again = Path(spec.result)
    if made_again.exists():
        raise DataError("exists; accepted: remove it, or give another --results", made_again)
    if spec.key() != read_run_file(path).get("key"):
        raise DataError("was made with other data, settings or tests than the study has here", path)
    threads = stored.environment.get("threads", 1)
    here = environment() | {"threads": threads}
    for name in sorted({*here, *stored.environment}):
        there = stored.environment.get(name)
        if there != here.get(name):
            print_line(f"{name}: {here.get(name)} here, {there} in the file")
    Jobs(1, threads, study.metric).run([spec], "the run made again")
    return _compared(stored, read_run(made_again))


def _spec_of(path: Path, study: Study, folders: Folders) -> RunSpec:
    tuned = read_tuned(path.resolve().parent.parent / TUNED_FILE)
    trials = [spec for specs in trial_specs(study, folders).values() for spec in specs]
    wanted = (path.resolve().parent.name, run_name(path))
    for spec in [*run_specs(study, folders, tuned), *trials]:
        if (Path(spec.result).parent.name, spec.name) == wanted:
            return spec
    raise DataError(f"is no run of the study; accepted: STUDY/runs/NAME of a run in STUDY/{STUDY_FILE}", path)


def _compared(stored: Run, made: Run) -> bool:
    """Print the differences of two runs; returns whether there is none.

    Raises:
        DataError: the stored run lacks a test of the new one, or has other golds.
    """
    if stored.diverged or made.diverged:
        print_line(f"diverged: {bool(stored.diverged)} in the file, {bool(made.diverged)} here")
        return bool(stored.diverged) == bool(made.diverged)
    same = True
    for stage, tests in made.evaluation.items():
        for test, found in tests.items():
            before = stored.evaluation.get(stage, {}).get(test)
            if before is None or not np.array_equal(before.golds, found.golds):
                raise DataError(f"{stage}, {test}: found no predictions, or golds of another set", stored.path)
            difference = difference_of(before, found)
            same = same and difference.largest == 0
            print_line(f"{stage}, {test}: {difference}")
    if stored.robustness != made.robustness:
        print_line("attacks: other results")
        return False
    return same


def difference_of(one: Tested, other: Tested) -> Difference:
    """The difference of two runs' outputs on a test set, of the same kind and length."""
    if isinstance(one, Predictions) and isinstance(other, Predictions):
        outputs = np.abs(one.probabilities - other.probabilities)
    else:
        outputs = np.abs(one.predicted - other.predicted)
    return Difference(len(one.golds), int((one.predicted != other.predicted).sum()), float(outputs.max()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's file, STUDY/runs/NAME.json or .json.gz")
    parser.add_argument("--data_root", type=Path, default=Path("data/public"), help="(default: %(default)s)")
    parser.add_argument("--canonical_root", type=Path, default=Path("data/study"), help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("made_again"), help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    end_runs_on_sigterm()
    if not rerun(arguments.run, arguments.data_root, arguments.canonical_root, arguments.results):
        sys.exit(1)


if __name__ == "__main__":
    run_command_line(main)
