"""All runs of a study: data, trials on the development set, then every setting, method and seed.

    python -m experiments.sift.matrix experiments/sift/studies/sentiment.yml --results study_results --jobs 2

Each run writes one file, RESULTS/STUDY/runs/NAME.json; a run whose file is there is not run again. You can stop or kill
the command at any time and repeat it: it continues. `python -m experiments.sift.report RESULTS` writes the report.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from data_utils.errors import OneLineParser, at_least, run_command_line
from data_utils.storage.files import atomic_write, writable_folder
from experiments.sift.reporting.results import STUDY_FILE, TUNED_FILE
from experiments.sift.running.jobs import Jobs, end_runs_on_sigterm
from experiments.sift.running.layout import (
    BF16,
    FULL,
    TF32,
    Folders,
    check_apart,
    check_metric,
    lay_out,
    set_precision,
)
from experiments.sift.running.plan import all_tied, best_flags, run_specs, trial_specs, trials_of
from experiments.sift.running.study import Study, read_study


def run_study(study: Study, folders: Folders, jobs: Jobs) -> None:
    """Tune, then run. Writes the study's definition to `study.yml` and the tuning's result to `tuned.json`.

    Raises:
        UserError: a mistake in the study's flags; runs that failed.
    """
    with atomic_write(folders.results / STUDY_FILE) as file:
        yaml.safe_dump(study.model_dump(), file, sort_keys=False, allow_unicode=True)
    specs = trial_specs(study, folders)
    for _, runs in sorted(specs.items()):
        runs[0].key()  # parses the flags: a mistake ends the command before hours of work
    for spec in run_specs(study, folders, {}):
        spec.key()
    jobs.run([spec for runs in specs.values() for spec in runs], "tuning")
    trials = trials_of(specs, study) if specs else {}
    tuned = {method: best_flags(tried) for method, tried in trials.items()}
    for method, tried in trials.items():
        if all_tied(tried):
            jobs.report(f"{method}: all trials have {study.metric} {tried[0].value:.1f}; chosen by the loss")
    content = {
        method: {"chosen": tuned[method], "trials": [trial._asdict() for trial in tried]}
        for method, tried in trials.items()
    }
    with atomic_write(folders.results / TUNED_FILE) as file:
        json.dump(content, file, indent=1)
    jobs.run(run_specs(study, folders, tuned), study.study)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="the study's YAML")
    parser.add_argument("--data_root", default="data/public", help="folder of public data (default: %(default)s)")
    parser.add_argument("--canonical_root", default="data/study", help="folder of TSV files (default: %(default)s)")
    parser.add_argument("--results", default="study_results", help="folder of results (default: %(default)s)")
    parser.add_argument("--encoder", help="another encoder; the study's recipe for it, if any, sets the flags")
    parser.add_argument("--methods", help="run these of the study's methods, comma-separated (default: all)")
    parser.add_argument(
        "--precision",
        choices=(FULL, TF32, BF16),
        default=FULL,
        help="precision of matrix products; tf32: for GPUs that have it; bf16: torch's mixed precision "
        "(default: %(default)s)",
    )
    parser.add_argument("--jobs", type=at_least(1), default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="threads per run (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    study = read_study(arguments.study)
    if arguments.encoder is not None:
        study = study.with_encoder(arguments.encoder)
    if arguments.methods is not None:
        study = study.with_methods([name.strip() for name in arguments.methods.split(",")])
    if arguments.precision == BF16:
        study = study.model_copy(update={"flags": study.flags | {"bf16": True}})
    set_precision(arguments.precision)
    check_metric(study)
    results = writable_folder(arguments.results)
    end_runs_on_sigterm()
    folders = lay_out(study, Path(arguments.data_root), Path(arguments.canonical_root), results, arguments.precision)
    check_apart(study, folders)
    jobs = Jobs(arguments.jobs, arguments.threads, study.metric)
    run_study(study, folders, jobs)
    print(f"done; the report: python -m experiments.sift.report {arguments.results}")


if __name__ == "__main__":
    run_command_line(main)
