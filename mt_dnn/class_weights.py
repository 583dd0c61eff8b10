"""Weights of the classes in a classification's cross-entropy: `--class_weights`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from data_utils.errors import FlagError, nearest
from data_utils.task_def import TaskType
from mt_dnn.config import Config
from mt_dnn.run_data import RunData

BALANCED = "balanced"

logger = logging.getLogger(__name__)


def class_weights(config: Config, data: RunData) -> dict[int, list[float]]:
    """The weights that `--class_weights` asks for, by task id, in the order of the classes; empty without the flag.

    `balanced` gives each class c of each classification task n / (k · n_c), from the n examples that the task is
    trained on, k its classes. Their mean over these examples is 1, so that the loss keeps its size beside α·R.

    Raises:
        FlagError: no classification to weigh; numbers where several are trained; not a number for each class, or a
            number that is none of a weight; a class without examples, whose balanced weight is none.
    """
    given = config.training.class_weights
    if given is None:
        return {}
    ids = [number for number, task in enumerate(data.task_defs) if task.task_type == TaskType.Classification]
    if not ids:
        kinds = zip(data.tasks, data.task_defs, strict=True)
        found = ", ".join(f"{name} ({task.task_type.name})" for name, task in kinds)
        raise FlagError(f"--class_weights: found {found}, accepted: a Classification among the trained tasks")
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
    golds = np.concatenate([dataset.labels for dataset in data.train if dataset.task_id == task_id])
    labels = data.task_defs[task_id].class_names()
    missing = [label for index, label in enumerate(labels) if index not in golds]
    if missing:
        raise FlagError(
            f"--class_weights {BALANCED}: task {data.tasks[task_id]} has no training example of "
            f"{', '.join(missing)}, accepted: examples of every class, or a number for each"
        )
    return compute_class_weight(BALANCED, classes=np.arange(len(labels)), y=golds).tolist()


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
            f"least 0, not all 0, split by commas, for the classes of {task}: {', '.join(labels)}"
        )
    return weights
