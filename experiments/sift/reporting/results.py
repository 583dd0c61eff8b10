"""Reads a study's results: definition, runs, and every metric, recomputed from the stored predictions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from data_utils.errors import DataError
from data_utils.storage.text_files import read_json
from experiments.sift.reporting.predictions import PredictedNumbers, Predictions
from experiments.sift.running.run_files import read_run_file, run_files
from experiments.sift.running.runs import settings_of
from experiments.sift.running.study import Study as Definition
from experiments.sift.running.study import command_line
from experiments.sift.running.study import read_study as read_definition
from mt_dnn.configuration.config import parse_args

TOLERANCE = 1e-4  # percentage points between a stored metric and the recomputed one
STUDY_FILE = "study.yml"
TUNED_FILE = "tuned.json"

Tested = Predictions | PredictedNumbers
Flags = Annotated[list[Annotated[int, Field(ge=0, le=1)]], Field(min_length=1)]


class _Schema(BaseModel):
    """The keys of a file that the report needs; others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Probability = Annotated[float, Field(ge=0, le=1 + 1e-6, allow_inf_nan=False)]  # sums of single precision may exceed 1

# A metric that is not defined, such as the correlation of a constant, is null there and nan here.
Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class _Stored(_Schema):
    """A test set: probabilities of a classification, or scores of a regression."""

    golds: list[int] | list[FiniteFloat] = Field(min_length=1)
    probabilities: list[list[Probability]] = []
    scores: list[FiniteFloat] = []
    metrics: dict[str, Measured]


class PgdResult(_Schema):
    """Result of PGD: radii, and for each radius whether each example was classified right, 0 or 1."""

    radii: list[float] = Field(min_length=1)
    correct: list[Flags]

    @model_validator(mode="after")
    def _rows_fit(self) -> PgdResult:
        if len(self.correct) != len(self.radii) or len({len(row) for row in self.correct}) != 1:
            raise ValueError("accepted: correct with a row for each radius, all of equal length")
        return self


class CharacterResult(_Schema):
    """Result of the character attack: whether each example was right before and after it, 0 or 1; queries; some texts
    that it changed, before and after."""

    clean: Flags
    attacked: Flags
    queries: list[int]
    examples: list[tuple[str, str]] = []

    @model_validator(mode="after")
    def _columns_fit(self) -> CharacterResult:
        if not len(self.clean) == len(self.attacked) == len(self.queries):
            raise ValueError("accepted: clean, attacked and queries of equal length")
        return self


class Robustness(_Schema):
    pgd: dict[str, dict[str, PgdResult]] = {}
    characters: dict[str, CharacterResult] = {}


class Epoch(_Schema):
    epoch: int
    metrics: dict[str, dict[str, Measured]]


class _Tuned(_Schema):
    chosen: dict[str, Any]


_TUNED = TypeAdapter(dict[str, _Tuned])


class _RunFile(_Schema):
    setting: str
    method: str
    seed: int
    config: dict[str, Any]
    environment: dict[str, Any]
    history: list[Epoch]
    updates: list[dict[str, Any]] = []
    evaluation: dict[str, dict[str, _Stored]] = {}
    robustness: Robustness = Robustness()
    diverged: str | None = None


@dataclass(frozen=True)
class Run:
    """The content of a run's file: predictions by stage and test as `evaluation`, the other keys unchanged.

    diverged: for a run whose training diverged, the message; such a run has no numbers.
    """

    path: Path
    setting: str
    method: str
    seed: int
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    history: Sequence[Epoch]
    updates: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Mapping[str, Tested]]
    robustness: Robustness
    diverged: str | None

    def dev_scores(self, metric: str, train: str) -> list[float]:
        """A metric by epoch, on the development set of `train` or on the only set that was evaluated in training."""
        scores = []
        for epoch in self.history:
            names = [name for name in (f"{train}_dev", train, *epoch.metrics) if name in epoch.metrics]
            if names and metric in epoch.metrics[names[0]]:
                scores.append(epoch.metrics[names[0]][metric])
        return scores


@dataclass(frozen=True)
class Study:
    """A study: definition, runs and tuning runs, in the definition's order and then by seed.

    name: of its folder; the definition's name is the same for all encoders.
    tuned: the flags that tuning chose, by method.
    diverged: runs without numbers.
    unlisted: how many runs were left out because the definition has no such setting, method or seed.
    """

    name: str
    definition: Definition
    runs: Sequence[Run]
    tuning: Sequence[Run]
    tuned: Mapping[str, Mapping[str, Any]]
    diverged: Sequence[Run] = ()
    unlisted: int = 0

    def of(self, setting: str, method: str) -> list[Run]:
        return [run for run in self.runs if (run.setting, run.method) == (setting, method)]

    def methods(self, setting: str) -> list[str]:
        """The methods with a run in a setting, in the definition's order."""
        return [method for method in self.definition.methods if self.of(setting, method)]

    def missing(self) -> list[str]:
        """The runs and attacks that the definition has and the folder lacks, a line each."""
        lines = []
        for setting in self.definition.settings:
            for method in self.definition.methods:
                runs, seeds = self.of(setting, method), self.definition.seeds_of(method, setting)
                diverged = [run.seed for run in self.diverged if (run.setting, run.method) == (setting, method)]
                if diverged:
                    lines.append(f"{self.name}, {setting}: {method}: diverged: seeds {', '.join(map(str, diverged))}")
                if len(runs) + len(diverged) < len(seeds):
                    lines.append(f"{self.name}, {setting}: {method}: {len(runs)} of {len(seeds)} seeds")
                unattacked = [run.seed for run in runs if not (run.robustness.pgd or run.robustness.characters)]
                unattacked = [seed for seed in unattacked if self.definition.is_attacked(setting, seed)]
                if unattacked:
                    shown = ", ".join(map(str, unattacked))
                    lines.append(f"{self.name}, {setting}: {method}: not attacked: seeds {shown}")
        return lines


def read_studies(results: Path) -> list[Study]:
    """All studies in a folder of results, sorted by name.

    Raises:
        DataError: there is none, or a file cannot be used.
    """
    folders = sorted(path.parent for path in results.glob(f"*/{STUDY_FILE}"))
    if not folders:
        raise DataError(f"found no study; expected: STUDY/{STUDY_FILE} and STUDY/runs/*.json", results)
    return [read_study(folder) for folder in folders]


def read_study(folder: Path) -> Study:
    """Read a study's folder: `study.yml`, `runs/`, and `tuned.json` and `tuning/` if it was tuned.

    Raises:
        DataError: a file is damaged or has another format, its metrics differ from those of its predictions, or files
            contradict one another.
    """
    definition = read_definition(folder / STUDY_FILE)
    found = [read_run(path) for path in run_files(folder / "runs")]
    tuning = [read_run(path) for path in run_files(folder / "tuning")]
    methods, settings = list(definition.methods), list(definition.settings)

    def listed(runs: Sequence[Run]) -> list[Run]:
        known = [run for run in runs if run.method in methods and run.setting in settings]
        return sorted(known, key=lambda run: (settings.index(run.setting), methods.index(run.method), run.seed))

    runs = [run for run in listed(found) if run.seed in definition.seeds_of(run.method, run.setting)]
    tuned = read_tuned(folder / TUNED_FILE)
    unlisted = len(found) - len(runs)
    _check_flags(definition, tuned, runs)
    diverged = [run for run in runs if run.diverged is not None]
    runs = [run for run in runs if run.diverged is None]
    _check_runs(definition, runs)
    _check_attacks(runs)
    return Study(folder.name, definition, runs, listed(tuning), tuned, diverged, unlisted)


def read_tuned(path: Path) -> dict[str, dict[str, Any]]:
    """The flags that tuning chose, by method, from `tuned.json`; none if there is no such file.

    Raises:
        DataError: the file cannot be used.
    """
    if not path.exists():
        return {}
    try:
        return {method: found.chosen for method, found in _TUNED.validate_python(read_json(path)).items()}
    except ValidationError as error:
        raise DataError(f"does not say what tuning chose: {_first_mistake(error)}", path) from error


def given_flags(*parts: Mapping[str, Any], also: Collection[str] = ()) -> dict[str, Any]:
    """Flags with their values as in a run's `config`.

    Args:
        parts: flags of a definition; later parts override earlier ones.
        also: names of further flags, which have their defaults.
    """
    flags: dict[str, Any] = {}
    for part in parts:
        flags |= part
    config = settings_of(parse_args(command_line(flags)))
    return {name: value for name, value in config.items() if name in flags or name in also}


def read_run(path: Path) -> Run:
    """Read a run's file.

    Raises:
        DataError: it cannot be used, or its metrics differ from those of its predictions.
    """
    try:
        file = _RunFile.model_validate(read_run_file(path))
    except ValidationError as error:
        raise DataError(f"no run of a study: {_first_mistake(error)}", path) from error
    evaluation = {
        stage: {test: _checked(stored, f"stage {stage!r}, test {test!r}", path) for test, stored in tests.items()}
        for stage, tests in file.evaluation.items()
    }
    rest = {name: getattr(file, name) for name in _RunFile.model_fields if name != "evaluation"}
    return Run(path=path, evaluation=evaluation, **rest)


def _checked(stored: _Stored, where: str, path: Path) -> Tested:
    found = _predicted_numbers(stored, where, path) if stored.scores else _predictions(stored, where, path)
    for name, value in found.measures.items():
        given = stored.metrics.get(name, value)
        if not (math.isnan(value) or abs(given - value) <= TOLERANCE):
            raise DataError(f"{where}: {name} is {given:.2f} in the file, {value:.2f} by its predictions", path)
    return found


def _predictions(stored: _Stored, where: str, path: Path) -> Predictions:
    golds, widths = np.array(stored.golds), {len(row) for row in stored.probabilities}
    whole = golds.dtype.kind == "i" and len(stored.probabilities) == len(golds) and len(widths) == 1
    if not whole or not 0 <= golds.min() <= golds.max() < max(widths):
        raise DataError(
            f"{where}: found {len(golds)} golds up to {golds.max()} and {len(stored.probabilities)} rows of "
            f"probabilities with {sorted(widths)} classes; accepted: a row for each example, a number for each class",
            path,
        )
    return Predictions(golds, np.array(stored.probabilities))


def _predicted_numbers(stored: _Stored, where: str, path: Path) -> PredictedNumbers:
    if len(stored.scores) != len(stored.golds) or stored.probabilities:
        raise DataError(
            f"{where}: found {len(stored.golds)} golds, {len(stored.scores)} scores and {len(stored.probabilities)} "
            "rows of probabilities; accepted: a score for each example, and no probabilities",
            path,
        )
    # The file has all digits of single precision, no more: in it these are the very numbers of the model.
    scores = np.array(stored.scores, dtype=np.float32).astype(float)
    return PredictedNumbers(np.array(stored.golds, dtype=float), scores)


def _check_runs(definition: Definition, runs: Sequence[Run]) -> None:
    """Check that there is one run for each setting, method and seed, with all tests, on the same examples."""
    seen: dict[tuple[str, str, int], Path] = {}
    golds: dict[str, tuple[np.ndarray, Path]] = {}
    for run in runs:
        place = (run.setting, run.method, run.seed)
        if place in seen:
            names = f"{run.setting}, {run.method}, seed {run.seed}"
            raise DataError(f"found a second run of {names} (and {seen[place].name}); remove the older one", run.path)
        seen[place] = run.path
        setting = definition.settings[run.setting]
        for stage in setting.all_stages:
            for test in setting.tests_of(stage):
                if test not in run.evaluation.get(stage, {}):
                    raise DataError(f"found no stage {stage!r}, test {test!r}, which {STUDY_FILE} names", run.path)
                found = run.evaluation[stage][test].golds
                first, path = golds.setdefault(test, (found, run.path))
                if not np.array_equal(found, first):
                    raise DataError(f"test {test!r}: its golds are not those of {path.name}", run.path)


def _check_flags(definition: Definition, tuned: Mapping[str, Mapping[str, Any]], runs: Sequence[Run]) -> None:
    """Check that every run has the flags that definition and tuning give its method."""
    for method in definition.methods:
        expected = given_flags(definition.flags, definition.methods[method], tuned.get(method, {}))
        for run in (run for run in runs if run.method == method):
            for name, value in expected.items():
                if run.config.get(name) != value:
                    raise DataError(
                        f"was run with {name} {run.config.get(name)}, {STUDY_FILE} and {TUNED_FILE} have {value}; run "
                        "the matrix again, or remove the file",
                        run.path,
                    )


def _check_attacks(runs: Sequence[Run]) -> None:
    """Check that all runs were attacked with the same radii, on the same number of examples."""
    seen: dict[tuple[str, ...], tuple[object, Path]] = {}
    for run in runs:
        attacks: dict[tuple[str, ...], object] = {
            (run.setting, test, level): (found.radii, len(found.correct[0]))
            for test, levels in run.robustness.pgd.items()
            for level, found in levels.items()
        }
        attacks |= {(run.setting, test): len(found.clean) for test, found in run.robustness.characters.items()}
        for place, attack in attacks.items():
            first, path = seen.setdefault(place, (attack, run.path))
            if attack != first:
                raise DataError(
                    f"{', '.join(place[1:])}: attacked with other radii or on another number of examples than "
                    f"{path.name}; run the matrix again, or remove the older one",
                    run.path,
                )


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in mistake["loc"])
    return f"{where + ': ' if where else ''}{mistake['msg'][0].lower()}{mistake['msg'][1:]}"
