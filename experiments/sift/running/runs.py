"""A run of the demo, the sweep or the bench: its flags, its measures, and the file of finished runs."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_utils.errors import DataError
from data_utils.pretrained import EMBEDDED_NAME, folder_name
from data_utils.readers import read_score_file, read_token_json
from data_utils.storage.text_files import read_json_lines, read_lines, write_lines
from experiments.preparation import command as preparation
from experiments.sift.data import hutto
from mt_dnn.configuration.config import Config, parse_args
from mt_dnn.prediction import command as prediction
from mt_dnn.reporting.telemetry import METRICS_FILE, PLACES
from mt_dnn.training.trainer import train

TASK = "sentiment"
TRAINED_DATASET = f"{TASK}_{hutto.TRAINED_DOMAIN}"
TASK_DEF = Path(__file__).parents[1] / "sentiment_task_def.yml"
CANONICAL_DATA = Path("data/canonical_data")

FIRST_SEED = 2018
# The same for every method; the order of batches depends on the seed only.
SHARED_FLAGS: Mapping[str, object] = {
    "optimizer": "adamw",
    "batch_size": 32,
    "batch_size_eval": 128,
    "learning_rate": 1e-4,
    "dataloader_num_workers": 0,
    "log_per_updates": 25,
}

Record = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A way to fine-tune: its name in tables, and the flags of `train.py` that select it."""

    name: str
    flags: Mapping[str, object] = field(default_factory=dict)


PLAIN = Method("plain")
SMART = Method("SMART", {"adv_train": "true", "adv_norm_level": "pre_ln"})
SIFT = Method("SiFT", {"adv_train": "true", "adv_norm_level": "post_ln"})
# Cheaper variants of SiFT.
SIFT_FREE = Method("SiFT-free", {**SIFT.flags, "adv_free": "true"})
SIFT_EVERY_2 = Method("SiFT-every-2", {**SIFT.flags, "adv_every": 2})
METHODS = {method.name.lower(): method for method in (PLAIN, SMART, SIFT, SIFT_FREE, SIFT_EVERY_2)}


def prepare_data(encoder: str = EMBEDDED_NAME, root: Path = CANONICAL_DATA) -> Path:
    """Download the four domains if needed, write canonical TSV and token files; returns the folder of token files."""
    hutto.prepare(root)
    preparation.main(["--model", encoder, "--root_dir", str(root), "--task_def", str(TASK_DEF)])
    return root / folder_name(encoder)


def development_data(source: Path, folder: Path, dataset: str, train_fraction: float = 1.0) -> Path:
    """Copy a dataset's development set and the first part of its training set to `folder`, which gets no test set.

    Args:
        train_fraction: share of the training set, whose order is random.

    Returns:
        `folder`.
    """
    for split, share in (("train", train_fraction), ("dev", 1.0)):
        name = f"{dataset}_{split}.json"
        lines = [line for _, line in read_lines(source / name)]
        write_lines(folder / name, lines[: math.ceil(share * len(lines))])
    return folder


def configure(
    method: Method, seed: int, *, encoder: str, data_dir: Path, epochs: int, output_dir: str = "checkpoint"
) -> Config:
    """The configuration of a run, parsed from flags of `train.py`."""
    flags = {
        "init_checkpoint": encoder,
        "task_def": TASK_DEF,
        "data_dir": data_dir,
        "train_datasets": TRAINED_DATASET,
        "test_datasets": TRAINED_DATASET,
        **SHARED_FLAGS,
        "epochs": epochs,
        "seed": seed,
        "output_dir": output_dir,
        "log_file": Path(output_dir, "train.log"),
        **method.flags,
    }
    return parse_args([word for name, value in flags.items() for word in (f"--{name}", str(value))])


def settings_of(config: Config) -> dict[str, Any]:
    """The flags that decide what a run computes."""
    return {name: value for name, value in config.to_flat().items() if name not in PLACES}


def run_key(config: Config, evaluated: Iterable[Path]) -> str:
    """A hash of everything that determines a run's numbers except the code: flags, task definition, data files.

    After a change of the code, start with an empty output folder. A flag at its default is left out, so that keys stay
    the same when a flag is added; `adv_` flags are never left out, because their defaults depend on the method.
    """
    defaults = Config().to_flat()
    settings = {
        name: value
        for name, value in settings_of(config).items()
        if name.startswith("adv_") or name not in defaults or value != defaults[name]
    }
    trained = [Path(config.data_dir) / f"{dataset}_train.json" for dataset in config.data.train_datasets]
    files = [Path(config.data.task_def), *trained, *evaluated]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashlib.sha256(json.dumps([settings, hashes], sort_keys=True).encode()).hexdigest()[:16]


class RunStore:
    """Finished runs in a file of JSON lines.

    Args:
        path: JSON lines, a run each with its `key`; the first run creates the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, Record]:
        """The finished runs by key; incomplete and damaged lines are ignored."""
        if not self.path.exists():
            return {}
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
        return {
            record["key"]: record
            for record in records
            if isinstance(record, dict) and isinstance(record.get("key"), str)
        }

    def add(self, record: Record) -> None:
        """Append a run in a single write, so that several processes may fill one file.

        Raises:
            DataError: the file cannot be written.
        """
        line = json.dumps(record) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = self.path.read_bytes() if self.path.exists() else b""
            cut = bool(before) and not before.endswith(b"\n")
            with self.path.open("ab", buffering=0) as file:
                file.write(("\n" * cut + line).encode())
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror or error}", self.path) from error


def run(
    method: Method, seed: int, store: RunStore, *, encoder: str, data_dir: Path, epochs: int, evaluated: Sequence[Path]
) -> Record:
    """A run's record: from `store` if the run is there; otherwise it is trained, evaluated and added.

    Args:
        evaluated: token files with labels, evaluated after the last epoch.

    Returns:
        `key`, `method`, `seed`, `seconds_per_update` (median), `evaluation` (file name without `.json` to `ACC` and
        `F1MAC` in percent, `loss`, the mean cross-entropy, and `examples`), `search` (see `search_figures`), and
        `config`, all flags.
    """
    options = {"encoder": encoder, "data_dir": data_dir, "epochs": epochs}
    key = run_key(configure(method, seed, **options), evaluated)  # type: ignore[arg-type]
    stored = store.read().get(key)
    if stored is not None:
        return stored
    with _scratch_folder(store.path.parent) as folder:
        config = configure(method, seed, **options, output_dir=folder)  # type: ignore[arg-type]
        result = train(config)
        evaluation = {path.stem: evaluate(Path(folder), epochs - 1, path) for path in evaluated}
        search = search_figures(Path(folder, METRICS_FILE))
    record = {
        "key": key,
        "method": method.name,
        "seed": seed,
        "seconds_per_update": result.seconds_per_update,
        "evaluation": evaluation,
        "search": search,
        "config": settings_of(config),
    }
    store.add(record)
    return record


def _scratch_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder for a run's checkpoints, which are large with the optimizer's state."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="run-", dir=parent)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", parent) from error


class Scored(NamedTuple):
    """A token file's golds (examples,), a model's probabilities (examples, classes), and metrics in percent."""

    golds: np.ndarray
    probabilities: np.ndarray
    metrics: dict[str, float]


def score(checkpoint: Path, path: Path, task_def: Path = TASK_DEF, task: str = TASK) -> Scored:
    """Score a token file with labels by an epoch's checkpoint, or read the score file next to it if there is one."""
    epoch = checkpoint.stem.removeprefix("model_")
    score_file = checkpoint.parent / f"{path.stem}_scores_epoch_{epoch}.json"
    if not score_file.is_file():  # the trainer writes those of its own data sets
        names = {"task_def": task_def, "task": task, "prep_input": path, "score": score_file, "checkpoint": checkpoint}
        words = [word for name, value in names.items() for word in (f"--{name}", str(value))]
        prediction.main([*words, "--with_label", "--batch_size_eval", str(SHARED_FLAGS["batch_size_eval"])])
    scores = read_score_file(score_file)
    golds = np.array([sample["label"] for _, sample in read_token_json(path)])
    return Scored(golds, np.array(scores["scores"]).reshape(len(golds), -1), dict(scores["metrics"]))


def evaluate(output_dir: Path, epoch: int, path: Path) -> dict[str, float]:
    """Score a token file: `ACC`, `F1MAC` in percent, `loss`, the mean cross-entropy, `examples`, their number."""
    scored = score(output_dir / f"model_{epoch}.pt", path)
    loss = cross_entropy(scored.probabilities, scored.golds)
    return {**scored.metrics, "loss": loss, "examples": len(scored.golds)}


def search_figures(path: Path) -> dict[str, float | None]:
    """What a run's `metrics.jsonl` says of its searches, over logged updates.

    Returns:
        `ascent_rise` and `chance_rise`, the mean rises of R by the search and by random noise (None without a search),
        and `skipped`, the largest share of skipped examples.
    """
    lines = [line for _, line in read_json_lines(path)]
    updates = [line for line in lines if "ascent_rise" in line]
    rises = {
        name: float(np.mean([line[name] for line in updates])) if updates else None
        for name in ("ascent_rise", "chance_rise")
    }
    return {**rises, "skipped": max((line.get("skipped", 0.0) for line in lines), default=0.0)}


def cross_entropy(probabilities: np.ndarray, golds: np.ndarray) -> float:
    """The mean of -log P(gold); probabilities (examples, classes), golds (examples,), class numbers."""
    gold_probabilities = probabilities[np.arange(len(golds)), golds]
    return float(-np.log(np.maximum(gold_probabilities, np.finfo(np.float32).tiny)).mean())
