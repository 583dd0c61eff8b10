"""Which runs a study has: trials of the tuning, and every setting, method and seed."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from experiments.sift.running.layout import Folders
from experiments.sift.running.runs import Record, cross_entropy
from experiments.sift.running.study import TRAINED, Flags, Study
from experiments.sift.running.study_run import RunSpec, finished

DEV = "_dev"
WORST = {"ACC": 0.0, "MCC": -100.0, "Pearson": -100.0}  # the lowest value of each metric, in percent


class Trial(NamedTuple):
    """A trial of a method's tuning.

    flags: that it tries; value, loss: means over the tuning's seeds on the development set, of the study's metric in
    percent and of the cross-entropy (of a regression, the squared error).
    """

    flags: Flags
    value: float
    loss: float


def trial_specs(study: Study, folders: Folders) -> dict[tuple[str, int], list[RunSpec]]:
    """The runs of the tuning by method and number of the trial, one run a seed.

    They are tested on the development set; the folder that they read has no test set.
    """
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
    """The trials of each method from finished tuning runs.

    A run that diverged has the metric's worst value. A metric that is not defined, as of a model that answers every
    text with the same number, counts as 0.
    """
    trials: dict[str, list[Trial]] = {}
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
            value = test["metrics"][study.metric]
            values.append(0.0 if value is None or math.isnan(value) else value)
            losses.append(_loss(test))
        flags = study.tuning.grid[method][number]
        trials.setdefault(method, []).append(Trial(flags, mean(values), mean(losses)))
    return trials


def _loss(test: Mapping[str, Any]) -> float:
    """The mean loss on a test set of a run's file."""
    golds = np.array(test["golds"])
    if "scores" in test:
        return float(((np.array(test["scores"]) - golds) ** 2).mean())
    return cross_entropy(np.array(test["probabilities"]), golds)


def best_flags(trials: Sequence[Trial]) -> Flags:
    """The flags of the trial with the highest metric; among equal ones, with the lowest loss."""
    return max(trials, key=lambda trial: (round(trial.value, 6), -trial.loss)).flags


def all_tied(trials: Sequence[Trial]) -> bool:
    """Whether several trials all have the same metric, as when every model gives the same answer to all examples."""
    return len(trials) > 1 and len({round(trial.value, 6) for trial in trials}) == 1


def run_specs(study: Study, folders: Folders, tuned: Mapping[str, Flags]) -> list[RunSpec]:
    """All runs, the comparison's first, seed by seed: an interrupted study has every method for its first seeds."""
    specs = []
    for name, setting in study.settings.items():
        for method, method_flags in study.methods.items():
            for seed in study.seeds_of(method, name):
                robustness = study.robustness.measured if study.is_attacked(name, seed) else {}
                spec = _spec(
                    study, folders, f"runs/{name}-{method}-{seed}", name, method, seed,
                    train_dir=folders.trained, train=setting.train, test_dir=folders.tests, tests=setting.tests,
                    stages={stage: part.model_dump() for stage, part in setting.stages.items()},
                    flags=study.flags | method_flags | tuned.get(method, {}), robustness=robustness,
                )  # fmt: skip
                specs.append(spec)
    comparison = study.comparison

    def order(spec: RunSpec) -> tuple[bool, int]:
        return not (spec.setting == comparison.setting and spec.method in comparison.methods), spec.seed

    return sorted(specs, key=order)


def _spec(study: Study, folders: Folders, name: str, setting: str, method: str, seed: int, **parts: Any) -> RunSpec:
    paths = {key: str(value) for key, value in parts.items() if isinstance(value, Path)}
    return RunSpec(
        study=study.study, setting=setting, method=method, seed=seed, encoder=study.encoder,
        task_def=study.task_def, task=study.task, result=str(folders.results / f"{name}.json"),
        work=str(folders.results / "work" / name), **(parts | paths),
    )  # fmt: skip


def _record(spec: RunSpec) -> Record:
    record = finished(spec)
    assert record is not None, spec.name
    return record
