"""All runs of a study: data, trials on the development set, then every setting, method and seed; several side by side.

    python -m experiments.sift.matrix experiments/sift/studies/sentiment.yml --results study_results --jobs 2

Results are files, one a run, in `RESULTS/STUDY/runs`; what is there is not run again. The command may be stopped or
killed at any point, and goes on when it is repeated. `python -m experiments.sift.report RESULTS` tells what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import yaml

from data_utils.errors import DataError, OneLineParser, UserError, at_least, run_command_line
from data_utils.files import atomic_write, writable_folder
from data_utils.progress import progress, tell
from data_utils.readers import read_token_json
from data_utils.text_files import read_lines, write_lines
from experiments.sift.attacks.robustness import evenly_spread
from experiments.sift.data.study_data import prepare
from experiments.sift.reporting.results import STUDY_FILE, TUNED_FILE
from experiments.sift.running.runs import Record, cross_entropy, development_data
from experiments.sift.running.study import TRAINED, Flags, Study, read_study
from experiments.sift.running.study_run import RunSpec, finished, write_spec
from tasks.definition import TaskDefs

POLL_SECONDS = 0.5
FULL, TF32, BF16 = "full", "tf32", "bf16"
TF32_VARIABLE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"  # torch's own; the matrix products of every run then
DEV = "_dev"
WORST = {"ACC": 0.0, "MCC": -100.0, "Pearson": -100.0}
SHARED = 0.01  # of a test set's texts, at most, may be in what is learned from


class Folders(NamedTuple):
    """Where a study's files lie. tests: token files; trials, trained: those that tuning and training read, without
    tests; results: RESULTS/STUDY."""

    tests: Path
    trials: Path
    trained: Path
    results: Path


class Trial(NamedTuple):
    """A trial of a method's tuning: its flags, and over the tuning's seeds the means of the study's metric on the
    development set, in percent, and of the cross-entropy, of a regression the squared error."""

    flags: Flags
    value: float
    loss: float


def check_metric(study: Study) -> None:
    """See that runs measure what the study compares, before hours of work.

    Raises:
        UserError: they do not, or the task is not in the study's `task_def`.
    """
    measured = [metric.name for metric in TaskDefs(study.task_def).get_task_def(study.task).metric_meta]
    if study.metric not in measured:
        where = f"metric_meta of {study.task!r} in {study.task_def}"
        raise UserError(f"{study.study}: metric: found {study.metric}, accepted: {', '.join(measured)} ({where})")


def lay_out(study: Study, data_root: Path, canonical_root: Path, results: Path, precision: str = FULL) -> Folders:
    """Make the data, and the folders that training reads; each precision has a folder of results of its own."""
    tests = prepare(study.data, data_root, canonical_root, study.encoder, Path(study.task_def))
    folder = results / (study.folder if precision == FULL else f"{study.folder}-{precision}")
    folders = Folders(tests, folder / "data" / "trials", folder / "data" / "trained", folder)
    for setting in study.settings.values():
        development_data(tests, folders.trained, setting.train)
        for stage in setting.stages.values():
            with atomic_write(folders.trained / f"{stage.train}_train.json", "wb") as file:
                file.write((tests / f"{stage.train}_train.json").read_bytes())
    if study.test_examples is not None:
        folders = folders._replace(tests=folder / "data" / "tests")
        for test in study.all_tests:
            lines = [line for _, line in read_lines(tests / f"{test}.json")]
            kept = [lines[index] for index in evenly_spread(len(lines), study.test_examples)]
            write_lines(folders.tests / f"{test}.json", kept)
    if study.tuning is not None:
        tuned = study.settings[study.comparison.setting].train
        development_data(tests, folders.trials, tuned, study.tuning.train_fraction)
    return folders


def check_apart(study: Study, folders: Folders) -> None:
    """See that a model is not tested on what it learned from, by the tokens of each text.

    A few texts that differ in their letters alone may be one text to the tokenizer: a line tells how many.

    Raises:
        DataError: more than `SHARED` of a test set.
    """
    tested = {test: _texts(folders.tests / f"{test}.json") for test in study.all_tests}
    for name, setting in study.settings.items():
        learned = _texts(folders.trained / f"{setting.train}_train.json", folders.trained / f"{setting.train}_dev.json")
        for stage in setting.all_stages:
            seen = learned
            if stage != TRAINED:
                seen = learned | _texts(folders.trained / f"{setting.stages[stage].train}_train.json")
            for test in setting.tests_of(stage):
                texts, path = tested[test], folders.tests / f"{test}.json"
                shared = len(texts & seen)
                found = f"{shared} of {len(texts)} texts are in the training or development set of {name}, {stage}"
                if shared > SHARED * len(texts):
                    raise DataError(f"{found}; accepted: a test set of other texts", path)
                if shared:
                    tell(f"{path}: {found}")


def _texts(*paths: Path) -> set[tuple[int, ...]]:
    """The texts of token files, each by its tokens."""
    return {tuple(sample["token_id"]) for path in paths for _, sample in read_token_json(path)}


def trial_specs(study: Study, folders: Folders) -> dict[tuple[str, int], list[RunSpec]]:
    """The runs of the tuning, a seed each, by method and number of the trial. They see no test set: the folder that
    they read has none, and the development set is what they are tested on."""
    if study.tuning is None:
        return {}
    tuning, setting = study.tuning, study.settings[study.comparison.setting]
    specs = {}
    for method, trials in tuning.grid.items():
        for number, flags in enumerate(trials):
            specs[method, number] = [
                _spec(
                    study, folders, f"tuning/{method}-{number}-{seed}", study.comparison.setting, method, seed,
                    train_dir=folders.trials, train=setting.train, test_dir=folders.trials,
                    tests=[f"{setting.train}{DEV}"], stages={},
                    flags=study.flags | study.methods[method] | flags | tuning.flags, robustness={},
                )
                for seed in range(tuning.first_seed, tuning.first_seed + tuning.seeds)
            ]  # fmt: skip
    return specs


def trials_of(specs: Mapping[tuple[str, int], Sequence[RunSpec]], study: Study) -> dict[str, list[Trial]]:
    """What the finished tuning runs say, by method; one that diverged has the worst value that there is."""
    found: dict[str, list[Trial]] = {}
    assert study.tuning is not None
    for (method, number), runs in specs.items():
        values, losses = [], []
        for spec in runs:
            record = _record(spec)
            if "diverged" in record:
                values.append(WORST[study.metric])
                losses.append(sys.float_info.max / len(runs))
                continue
            test = record["evaluation"][TRAINED][spec.tests[0]]
            values.append(test["metrics"][study.metric])
            losses.append(_loss(test))
        found.setdefault(method, []).append(Trial(study.tuning.grid[method][number], mean(values), mean(losses)))
    return found


def _loss(test: Mapping[str, Any]) -> float:
    """The mean loss of a result's test set."""
    golds = np.array(test["golds"])
    if "scores" in test:
        return float(((np.array(test["scores"]) - golds) ** 2).mean())
    return cross_entropy(np.array(test["probabilities"]), golds)


def chosen(trials: Sequence[Trial]) -> Flags:
    """The flags of the best trial: the highest metric; of equal ones the lowest loss."""
    return max(trials, key=lambda trial: (round(trial.value, 6), -trial.loss)).flags


def all_alike(trials: Sequence[Trial]) -> bool:
    """Whether the metric tells no trial from another, as where every model gives one answer to all."""
    return len(trials) > 1 and len({round(trial.value, 6) for trial in trials}) == 1


def run_specs(study: Study, folders: Folders, tuned: Mapping[str, Flags]) -> list[RunSpec]:
    """All runs: those of the comparison first, seed by seed, so that an interrupted study has whole rounds."""
    planned = []
    for name, setting in study.settings.items():
        for method, own in study.methods.items():
            for seed in study.seeds_of(method, name):
                robustness = study.robustness.measured if study.is_attacked(name, seed) else {}
                spec = _spec(
                    study, folders, f"runs/{name}-{method}-{seed}", name, method, seed,
                    train_dir=folders.trained, train=setting.train, test_dir=folders.tests, tests=setting.tests,
                    stages={stage: part.model_dump() for stage, part in setting.stages.items()},
                    flags=study.flags | own | tuned.get(method, {}), robustness=robustness,
                )  # fmt: skip
                planned.append(spec)
    named = study.comparison

    def order(spec: RunSpec) -> tuple[bool, int]:
        return not (spec.setting == named.setting and spec.method in named.methods), spec.seed

    return sorted(planned, key=order)


def _spec(study: Study, folders: Folders, name: str, setting: str, method: str, seed: int, **parts: Any) -> RunSpec:
    paths = {key: str(value) for key, value in parts.items() if isinstance(value, Path)}
    return RunSpec(
        study=study.study, setting=setting, method=method, seed=seed, encoder=study.encoder,
        task_def=study.task_def, task=study.task, result=str(folders.results / f"{name}.json"),
        work=str(folders.results / "work" / name), **(parts | paths),
    )  # fmt: skip


def _record(spec: RunSpec) -> Record:
    found = finished(spec)
    assert found is not None, spec.name
    return found


class Jobs:
    """Processes side by side, each with `threads` threads; when one ends, a line tells `metric` of its tests.

    Raises in `run`:
        UserError: runs that failed, after all others are done.
    """

    def __init__(self, count: int, threads: int, metric: str, tell: Callable[[str], None] = tell):
        self.count, self.threads, self.metric, self.tell = count, threads, metric, tell
        self.running: dict[subprocess.Popen[bytes], tuple[RunSpec, float]] = {}

    def run(self, specs: Iterable[RunSpec], title: str) -> None:
        """Run what is not finished, in its order."""
        planned = list(specs)
        waiting = [spec for spec in planned if finished(spec) is None]
        total, seconds, failed = len(planned), [], []
        self.tell(f"{title}: {total} runs, {total - len(waiting)} of them done before")
        done = total - len(waiting)
        with progress(total=total, initial=done, name=title, unit="run") as bar:
            try:
                while waiting or self.running:
                    while waiting and len(self.running) < self.count:
                        spec = waiting.pop(0)
                        self.running[self._start(spec)] = (spec, time.monotonic())
                    bar.refresh()
                    time.sleep(POLL_SECONDS)
                    for process in [process for process in self.running if process.poll() is not None]:
                        spec, begun = self.running.pop(process)
                        record = finished(spec)
                        if record is None:
                            failed.append(spec)
                            self.tell(f"{spec.name}: failed; see {_log(spec)}")
                            continue
                        done += 1
                        bar.update()
                        seconds.append(time.monotonic() - begun)
                        left = mean(seconds) * (len(waiting) + len(self.running)) / self.count / 60
                        time_left = f"{seconds[-1]:.0f} s, about {left:.0f} min left"
                        self.tell(f"{done}/{total} {_line(record, self.metric)} ({time_left})")
            finally:
                for process in self.running:
                    process.terminate()
                for process in self.running:
                    process.wait()
                self.running.clear()
        if failed:
            reason = _last_line(_log(failed[0]))
            raise UserError(f"{len(failed)} of {total} runs failed; the first, {failed[0].name}: {reason}")

    def _start(self, spec: RunSpec) -> subprocess.Popen[bytes]:
        path = Path(f"{spec.work}.spec.json")
        write_spec(spec, path)
        threads = str(self.threads)
        variables = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with _log(spec).open("wb") as log:
            command = [sys.executable, "-m", "experiments.sift.running.study_run", str(path)]
            return subprocess.Popen(command, stdout=log, stderr=log, env=variables)


def _log(spec: RunSpec) -> Path:
    return Path(f"{spec.work}.log")


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _line(record: Record, metric: str) -> str:
    """A finished run in a line: its names, and a metric of each test."""
    shown = ["diverged"] if "diverged" in record else []
    for stage, tests in record["evaluation"].items():
        values = ", ".join(f"{test} {found['metrics'][metric]:.1f}" for test, found in tests.items())
        shown.append(values if stage == TRAINED else f"{stage}: {values}")
    return f"{record['setting']} {record['method']} seed {record['seed']}: {'; '.join(shown)}"


def run_study(study: Study, folders: Folders, jobs: Jobs) -> None:
    """Tune, then run; `study.yml` and `tuned.json` say what was run."""
    with atomic_write(folders.results / STUDY_FILE) as file:
        yaml.safe_dump(study.model_dump(), file, sort_keys=False, allow_unicode=True)
    specs = trial_specs(study, folders)
    for _, runs in sorted(specs.items()):
        runs[0].key()  # mistakes in flags, before hours of work
    for spec in run_specs(study, folders, {}):
        spec.key()
    jobs.run([spec for runs in specs.values() for spec in runs], "tuning")
    trials = trials_of(specs, study) if specs else {}
    tuned = {method: chosen(found) for method, found in trials.items()}
    for method, found in trials.items():
        if all_alike(found):
            jobs.tell(f"{method}: all trials have {study.metric} {found[0].value:.1f}; the loss chose")
    content = {
        method: {"chosen": tuned[method], "trials": [trial._asdict() for trial in found]}
        for method, found in trials.items()
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
    parser.add_argument("--encoder", help="another encoder than the study's, by its recipe where it has one")
    parser.add_argument("--methods", help="some of the study's methods, split by commas (default: all)")
    parser.add_argument(
        "--precision",
        choices=(FULL, TF32, BF16),
        default=FULL,
        help="of matrix products; tf32: on GPUs that have it; bf16: torch's mixed precision (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=at_least(1), default=1, help="runs side by side (default: %(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="threads of a run (default: %(default)s)")
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
    if arguments.precision == TF32:
        os.environ[TF32_VARIABLE] = "1"
    check_metric(study)
    results = writable_folder(arguments.results)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the runs are ended too
    folders = lay_out(study, Path(arguments.data_root), Path(arguments.canonical_root), results, arguments.precision)
    check_apart(study, folders)
    jobs = Jobs(arguments.jobs, arguments.threads, study.metric)
    run_study(study, folders, jobs)
    print(f"done; the report: python -m experiments.sift.report {arguments.results}")


if __name__ == "__main__":
    run_command_line(main)
