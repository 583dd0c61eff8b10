"""One run of a study: training, further stages, tests and attacks; writes one JSON file at the end.

    python -m experiments.sift.running.study_run SPEC.json

`experiments.sift.matrix` writes SPEC.json and starts this. A killed run continues from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from data_utils.errors import DataError, DivergedError, NotFiniteError, OneLineParser, run_command_line
from data_utils.storage.files import atomic_write
from data_utils.storage.text_files import read_json, read_json_lines, with_null
from experiments.sift.attacks.robustness import measure_robustness
from experiments.sift.running.runs import Record, run_key, score, settings_of
from experiments.sift.running.study import TRAINED, command_line
from mt_dnn.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from mt_dnn.configuration.config import Config, parse_args
from mt_dnn.reporting.telemetry import METRICS_FILE
from mt_dnn.training.trainer import train

DIGITS = 5  # decimals of a probability in a result


@dataclass(frozen=True)
class RunSpec:
    """Everything that defines a run.

    study, setting, method: names; seed, encoder, task_def, task: as in a study.
    train_dir: folder of the training and development sets, without test sets; train: the dataset in it.
    test_dir: folder of the token files of `tests` (names without `.json`) and of the stages' tests.
    stages: name → `train`, `tests` and `flags`.
    flags: of `train.py`, except those that the other fields determine.
    robustness: the attacks, see `measure_robustness`; empty for none.
    result: path of the file to write; work: folder for checkpoints, removed at the end.
    """

    study: str
    setting: str
    method: str
    seed: int
    encoder: str
    task_def: str
    task: str
    train_dir: str
    train: str
    test_dir: str
    tests: Sequence[str]
    stages: Mapping[str, Mapping[str, Any]]
    flags: Mapping[str, Any]
    robustness: Mapping[str, Any]
    result: str
    work: str

    @property
    def name(self) -> str:
        return Path(self.result).stem

    def config(
        self,
        stage: str = TRAINED,
        output_dir: str = "checkpoint",
        resume: bool = False,
        model_ckpt: Path | None = None,
    ) -> Config:
        """The configuration of a stage, parsed from flags of `train.py`.

        Args:
            stage: `TRAINED`, or one of `stages`.
            resume: continue from `model_ckpt`, or without it from the newest checkpoint in `output_dir`.
        """
        further = None if stage == TRAINED else self.stages[stage]
        flags = {
            "init_checkpoint": self.encoder,
            "task_def": self.task_def,
            "data_dir": self.train_dir,
            "train_datasets": self.train if further is None else further["train"],
            "test_datasets": self.train,
            "dataloader_num_workers": 0,
            "seed": self.seed,
            "output_dir": output_dir,
            "log_file": Path(output_dir, "train.log"),
            **self.flags,
            **({} if further is None else further["flags"]),
        }
        if resume:
            flags["resume"] = "true"
        if model_ckpt is not None:
            flags["model_ckpt"] = model_ckpt
        return parse_args(command_line(flags))

    def key(self) -> str:
        """A hash of everything that determines the result except the code: flags, data, stages, tests, attacks."""
        parts = [
            (stage, *self.tests_of(stage), run_key(self.config(stage), map(self.path, self.tests_of(stage))))
            for stage in (TRAINED, *self.stages)
        ]
        return hashlib.sha256(json.dumps([parts, dict(self.robustness)], sort_keys=True).encode()).hexdigest()[:16]

    def path(self, test: str) -> Path:
        return Path(self.test_dir) / f"{test}.json"

    def tests_of(self, stage: str) -> Sequence[str]:
        return self.tests if stage == TRAINED else self.stages[stage]["tests"]


def finished(spec: RunSpec) -> Record | None:
    """The run's stored result; None if there is none, or one with other settings or data."""
    try:
        record = json.loads(Path(spec.result).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("key") == spec.key() else None


def execute(spec: RunSpec) -> Record:
    """Train, test and write the result; returns it. A second process with the same work folder waits for the first.

    A run that diverged has a result too, with the message as `diverged`: another start would diverge again.

    Raises:
        UserError: any other error of `train`, or a file that cannot be written.
    """
    work = Path(spec.work)
    with _lock(work):
        done = finished(spec)
        if done is not None:
            return done
        key, start = spec.key(), time.perf_counter()
        _remove_other_run(work, key)
        try:
            found = _measure(spec, work)
        except (DivergedError, NotFiniteError) as error:
            course = {"config": settings_of(spec.config()), "history": [], "updates": []}
            found = {**course, "stages": {}, "evaluation": {}, "robustness": {}, "diverged": str(error)}
        record = {
            "key": key,
            "study": spec.study,
            "setting": spec.setting,
            "encoder": spec.encoder,
            "method": spec.method,
            "seed": spec.seed,
            "environment": environment(),
            "seconds": time.perf_counter() - start,
            **found,
        }
        with atomic_write(spec.result) as file:
            json.dump(with_null(record), file)
        shutil.rmtree(work, ignore_errors=True)
    return record


def _measure(spec: RunSpec, work: Path) -> dict[str, Any]:
    """Train, test and attack; returns the result without the names: each stage's training, tests, attacks.

    Raises:
        DivergedError, NotFiniteError: training diverged, or the model's scores are not finite.
    """
    checkpoint = _train(spec, TRAINED, work / "trained", None)
    course = _training_record(spec, TRAINED, work / "trained")
    evaluation = {TRAINED: _test(spec, TRAINED, checkpoint)}
    robustness = _attack(spec, checkpoint)
    stages = {}
    for number, stage in enumerate(spec.stages):
        further = _train(spec, stage, work / f"stage_{number}", checkpoint)
        stages[stage] = _training_record(spec, stage, work / f"stage_{number}")
        evaluation[stage] = _test(spec, stage, further)
    return {**course, "stages": stages, "evaluation": evaluation, "robustness": robustness}


@contextmanager
def _lock(work: Path) -> Iterator[None]:
    """Lock a work folder against other processes within the block; the lock ends with the process."""
    path = work.with_name(f"{work.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", path) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_other_run(work: Path, key: str) -> None:
    """Empty the work folder unless its files are from a run with this key."""
    mark = work / "key"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != key:
        shutil.rmtree(work, ignore_errors=True)
        with atomic_write(mark) as file:
            file.write(key)


def _train(spec: RunSpec, stage: str, folder: Path, start: Path | None) -> Path:
    """Train a stage, from its newest checkpoint if it has one; returns its last checkpoint.

    Args:
        start: a checkpoint whose parameters, heads included, are the initial ones; None for the encoder's.
    """
    if any(folder.glob("model_*.pt")):
        config = spec.config(stage, str(folder), resume=True)
    elif start is None:
        config = spec.config(stage, str(folder))
    else:
        bare = folder / "start.pt"
        content = load_checkpoint(start)
        save_checkpoint(bare, {name: content[name] for name in ("state", "config")} | {"optimizer": {}, "progress": {}})
        config = spec.config(stage, str(folder), resume=True, model_ckpt=bare)
    train(config)
    return folder / f"model_{config.training.epochs - 1}.pt"


def _training_record(spec: RunSpec, stage: str, folder: Path) -> dict[str, Any]:
    """A stage's flags, its metrics by epoch, and its values by update."""
    lines = [line for _, line in read_json_lines(folder / METRICS_FILE)]
    return {
        "config": settings_of(spec.config(stage)),
        "history": read_json(folder / "results.json")["history"],
        "updates": [line for line in lines if line["kind"] == "update"],
    }


def _test(spec: RunSpec, stage: str, checkpoint: Path) -> dict[str, Any]:
    """Golds, probabilities (or scores) and metrics of a stage's tests."""
    found = {}
    for test in spec.tests_of(stage):
        scored = score(checkpoint, spec.path(test), Path(spec.task_def), spec.task)
        found[test] = {"golds": scored.golds.tolist(), **_outputs(scored.probabilities), "metrics": scored.metrics}
    return found


def _outputs(scores: np.ndarray) -> dict[str, Any]:
    """A model's outputs as a result has them: rounded probabilities, or the numbers of a regression, (examples, 1)."""
    if scores.shape[1] == 1:
        return {"scores": [float(f"{score:.9g}") for score in scores[:, 0]]}  # all digits of single precision
    return {"probabilities": rounded(scores).tolist()}


def rounded(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities (examples, classes) rounded to `DIGITS`, except in rows where that makes the two largest equal."""
    shortened = probabilities.astype(np.float64).round(DIGITS)
    largest = np.sort(shortened, axis=1)[:, -2:]
    tied = largest[:, 0] == largest[:, 1]
    shortened[tied] = probabilities[tied]
    return shortened


def _attack(spec: RunSpec, checkpoint: Path) -> dict[str, Any]:
    if not spec.robustness:
        return {}
    tests = [spec.path(test) for test in spec.robustness["tests"]]
    return measure_robustness(checkpoint, tests, spec.robustness, spec.encoder)


def environment() -> dict[str, Any]:
    """Versions and hardware, on which a result may depend in addition to its settings."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description="One run of a study.")
    parser.add_argument("spec", type=Path, metavar="SPEC.json", help="written by experiments.sift.matrix")
    path = parser.parse_args(argv).spec
    try:
        spec = RunSpec(**read_json(path))
    except TypeError as error:
        raise DataError(f"is no run's spec ({error}); accepted: a file that matrix.py wrote", path) from error
    execute(spec)


def write_spec(spec: RunSpec, path: Path) -> None:
    with atomic_write(path) as file:
        json.dump(asdict(spec), file, indent=1)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_command_line(main)
