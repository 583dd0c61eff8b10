"""A study's folders: token files for training, tuning and tests, and checks of them before the first run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from data_utils.errors import DataError, UserError
from data_utils.progress import print_line
from data_utils.readers import read_token_json
from data_utils.storage.files import atomic_write
from data_utils.storage.text_files import read_lines, write_lines
from experiments.sift.attacks.robustness import evenly_spread
from experiments.sift.data.study_data import prepare
from experiments.sift.running.runs import development_data
from experiments.sift.running.study import TRAINED, Study
from tasks.definition import TaskDefs

FULL, TF32, BF16 = "full", "tf32", "bf16"  # precisions of matrix products
TF32_VARIABLE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"  # torch reads it; the runs' processes inherit it
MOST_SHARED = 0.01  # of a test set's texts, at most, may be in what is learned from


class Folders(NamedTuple):
    """A study's folders.

    tests: token files of the test sets; trials, trained: token files that tuning and training read, without test sets;
    results: RESULTS/STUDY.
    """

    tests: Path
    trials: Path
    trained: Path
    results: Path


def set_precision(precision: str) -> None:
    """Let the runs that this process starts compute in TF32, if `precision` is `TF32`."""
    if precision == TF32:
        os.environ[TF32_VARIABLE] = "1"


def check_metric(study: Study) -> None:
    """Check that runs measure the study's metric.

    Raises:
        UserError: they do not, or the study's `task_def` has no such task.
    """
    measured = [metric.name for metric in TaskDefs(study.task_def).get_task_def(study.task).metric_meta]
    if study.metric not in measured:
        where = f"metric_meta of {study.task!r} in {study.task_def}"
        raise UserError(f"{study.study}: metric: found {study.metric}, accepted: {', '.join(measured)} ({where})")


def lay_out(study: Study, data_root: Path, canonical_root: Path, results: Path, precision: str = FULL) -> Folders:
    """Prepare the study's data and make its folders, one folder of results for each precision.

    Args:
        data_root: folder of public data.
        canonical_root: folder for TSV files.
        results: folder of all studies' results.
        precision: `FULL`, `TF32` or `BF16`.

    Raises:
        UserError: data that is missing or cannot be used.
    """
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
            chosen = [lines[index] for index in evenly_spread(len(lines), study.test_examples)]
            write_lines(folders.tests / f"{test}.json", chosen)
    if study.tuning is not None:
        tuned = study.settings[study.comparison.setting].train
        development_data(tests, folders.trials, tuned, study.tuning.train_fraction)
    return folders


def check_apart(study: Study, folders: Folders) -> None:
    """Check that no model is tested on texts that it learned from; texts are the same if their tokens are.

    A few texts that differ in their letters may have the same tokens: a printed line gives their number.

    Raises:
        DataError: more than `MOST_SHARED` of a test set was learned.
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
                if shared > MOST_SHARED * len(texts):
                    raise DataError(f"{found}; accepted: a test set of other texts", path)
                if shared:
                    print_line(f"{path}: {found}")


def _texts(*paths: Path) -> set[tuple[int, ...]]:
    """The token ids of each text of token files."""
    return {tuple(sample["token_id"]) for path in paths for _, sample in read_token_json(path)}
