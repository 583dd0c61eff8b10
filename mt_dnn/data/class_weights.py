"""Weights of classes in the loss of the gold labels: `--class_weights`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from data_utils.errors import FlagError, nearest
from mt_dnn.configuration.config import Config
from mt_dnn.data.run_data import RunData

BALANCED = "balanced"

logger = logging.getLogger(__name__)


def class_weights(config: Config, data: RunData) -> dict[int, list[float]]:
    """The weights of `--class_weights` by task id, in the order of the labels; empty without the flag.

    `balanced` weights each class c of a classification task by n / (k · n_c), with n training examples, k classes and
    n_c examples of the class. The mean over examples is 1, so that the loss keeps its size relative to α·R. Each label
    of a MultiLabel task is weighted by (n − n_l) / n_l, with n_l examples that have the label, so that its positives
    count as much as its negatives.

    Raises:
        FlagError: no task has classes to weight; numbers are given for several tasks; there is not one number of at
            least 0 for each label; a class has no examples; all or no examples have a label.
    """
    given = config.training.class_weights
    if given is None:
        return {}
    ids = [number for number, task in enumerate(data.task_defs) if task.task_type.name in BALANCES]
    if not ids:
        kinds = zip(data.tasks, data.task_defs, strict=True)
        found = ", ".join(f"{name} ({task.task_type.name})" for name, task in kinds)
        raise FlagError(f"--class_weights: found {found}, accepted: a {' or '.join(BALANCES)} among the trained tasks")
    if given == (BALANCED,):
        weights = {task_id: _balanced(data, task_id) for task_id in ids}
    elif len(ids) > 1:
        names = ", ".join(data.tasks[task_id] for task_id in ids)
        raise FlagError(f"--class_weights: found numbers for several classifications ({names}), accepted: {BALANCED}")
    else:
        weights = {ids[0]: _numbers(given, data.tasks[ids[0]], data.task_defs[ids[0]].class_names())}
    for task_id, own in weights.items():
        shown = ", ".join(
            f"{label} {weight:.4g}" for label, weight in zip(data.task_defs[task_id].class_names(), own, strict=True)
        )
        logger.info("--class_weights: %s: %s", data.tasks[task_id], shown)
    return weights


def _balanced(data: RunData, task_id: int) -> list[float]:
    golds = np.concatenate([np.array(dataset.labels[:]) for dataset in data.train if dataset.task_id == task_id])
    task_def = data.task_defs[task_id]
    try:
        return BALANCES[task_def.task_type.name](golds, task_def.class_names())
    except ValueError as error:
        raise FlagError(f"--class_weights {BALANCED}: task {data.tasks[task_id]} has {error}") from error


def _balanced_classes(golds: np.ndarray, labels: Sequence[str]) -> list[float]:
    """n / (k · n_c) from class indices (n,)."""
    missing = [label for index, label in enumerate(labels) if index not in golds]
    if missing:
        raise ValueError(
            f"no training example of {', '.join(missing)}, accepted: examples of every class, or a number for each"
        )
    return compute_class_weight(BALANCED, classes=np.arange(len(labels)), y=golds).tolist()


def _balanced_labels(golds: np.ndarray, labels: Sequence[str]) -> list[float]:
    """(n − n_l) / n_l from the label matrix (n, labels); n_l is the sum of a column, which may hold fractions."""
    positive = golds.sum(0, dtype=np.float64)
    negative = len(golds) - positive
    for counts, how in ((positive, "with"), (negative, "without")):
        missing = [label for label, count in zip(labels, counts, strict=True) if not count]
        if missing:
            raise ValueError(
                f"no training example {how} {', '.join(missing)}, accepted: examples with and without each label, or a "
                "number for each"
            )
    return (negative / positive).tolist()


# By the name of the task type.
BALANCES: dict[str, Callable[[np.ndarray, Sequence[str]], list[float]]] = {
    "Classification": _balanced_classes,
    "MultiLabel": _balanced_labels,
}


def _numbers(given: Sequence[str], task: str, labels: Sequence[str]) -> list[float]:
    try:
        weights = [float(text) for text in given]
        usable = all(math.isfinite(weight) and weight >= 0 for weight in weights) and any(weights)
    except ValueError:
        usable = False
    if not usable or len(weights) != len(labels):
        hint = nearest(",".join(given), [BALANCED])
        raise FlagError(
            f"--class_weights: found {','.join(given)!r}{hint}, accepted: {BALANCED}, or {len(labels)} numbers of at "
            f"least 0, not all 0, split by commas, for the labels of {task}: {', '.join(labels)}"
        )
    return weights
