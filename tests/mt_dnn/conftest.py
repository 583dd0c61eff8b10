"""Small datasets for the tests of batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mt_dnn.batcher import SingleTaskDataset
from tasks.definition import TaskDefs

TASKS = """
mnli: {data_format: PremiseAndOneHypothesis, task_type: Classification, n_class: 3, metric_meta: [ACC],
       loss: CeCriterion}
stsb: {data_format: PremiseAndOneHypothesis, task_type: Regression, n_class: 1, metric_meta: [Pearson],
       loss: MseCriterion}
"""


def example(uid: int, label: object = 1, length: int = 4) -> dict[str, Any]:
    second = length // 2
    return {
        "uid": str(uid),
        "label": label,
        "token_id": [101, *range(1000 + uid, 1000 + uid + length - 1)],
        "type_id": [0] * (length - second) + [1] * second,
        "attention_mask": [1] * length,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batcher")
    (path / "tasks.yml").write_text(TASKS)
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Callable[..., SingleTaskDataset]:
    """Makes a dataset of the given lines: dataset(lines, task="mnli", is_train=True, …)."""
    task_defs = TaskDefs(folder / "tasks.yml")

    def make(
        lines: Sequence[dict[str, Any]], task: str = "mnli", is_train: bool = True, file: str = "data", **options
    ) -> SingleTaskDataset:
        path = folder / f"{file}.json"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return SingleTaskDataset(path, is_train, options.pop("task_id", 0), task_defs.get_task_def(task), **options)

    return make


@pytest.fixture(scope="module")
def corpus(dataset: Callable[..., SingleTaskDataset]) -> Callable[..., SingleTaskDataset]:
    """Makes a dataset of `size` examples of skewed lengths (mean 12, some of 40 and more), sorted in the file."""

    def make(size: int, **options) -> SingleTaskDataset:
        lengths = np.sort(np.random.default_rng(size).gamma(3, 4, size).astype(int) + 2)
        return dataset([example(uid, length=int(length)) for uid, length in enumerate(lengths)], **options)

    return make
