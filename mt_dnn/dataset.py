"""Datasets of token JSON lines: one file, or several for a run."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from torch.utils.data import Dataset

from data_utils.errors import DataError
from mt_dnn.token_arrays import TokenArrays, open_token_arrays

if TYPE_CHECKING:
    from experiments.exp_def import TaskDef

logger = logging.getLogger(__name__)


class _InBatch(TypedDict, total=False):
    stands_in: bool
    position: int


class Example(_InBatch):
    """One example: `token_id` and `type_id` are views (tokens,) into the dataset's arrays."""

    uid: str
    label: np.generic | None
    token_id: np.ndarray
    type_id: np.ndarray
    task_id: int


class Uids(Sequence[str]):
    """The ids of some examples, made into text when they are asked for."""

    def __init__(self, arrays: TokenArrays, rows: np.ndarray):
        self._arrays = arrays
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._arrays.uid(row) for row in self._rows[index]]
        return self._arrays.uid(self._rows[index])


class SingleTaskDataset(Dataset[Example]):
    """One file of token JSON lines, such as `mnli_matched_dev.json`, of a classification or regression task.

    The file is read once and then memory-mapped from its cache (`mt_dnn/token_arrays.py`), so that processes share one
    copy of it and each reads the examples that it asks for.

    Args:
        path: the file.
        is_train: a training file must have labels, and its examples longer than `max_seq_len` are left out, as in
            MT-DNN; a file for evaluation keeps every example and may have no labels.
        task_id: the number of the task's head.
        task_def: the task's definition; its type and number of classes say what a label may be.
        max_seq_len: in tokens.
        name: the dataset's name, such as `mnli_matched`; by default the file's.
        labeled: false for a training file of unlabeled examples; labels that it has are not read.

    Attributes:
        lengths: tokens of each example, (examples,) int64.
        labels: (examples,), int64 for classification and float32 for regression; None where the file has none.
        uids: the examples' ids.
        largest_token: the largest token id in the file.

    Raises:
        DataError: a line that cannot be used, with its number; a file that leaves no example.
    """

    lengths: np.ndarray
    labels: np.ndarray | None
    uids: Sequence[str]

    def __init__(
        self,
        path: Path | str,
        is_train: bool,
        task_id: int,
        task_def: TaskDef,
        max_seq_len: int = 512,
        name: str = "",
        labeled: bool = True,
    ):
        self.path = Path(path)
        self.name = name or self.path.stem
        self.task_id = task_id
        self.task_def = task_def
        self.longest = max_seq_len if is_train else None
        self._arrays = open_token_arrays(self.path, task_def, labeled, needs_labels=is_train and labeled)
        self._select()
        read = len(self._arrays)
        if not len(self):
            raise DataError(
                f"all {read} examples are longer than {max_seq_len} tokens; at least one is needed", self.path
            )
        logger.info(
            "%s: %d examples; %d longer than %d tokens left out", self.path, len(self), read - len(self), max_seq_len
        )

    def _select(self) -> None:
        """The examples that are short enough."""
        lengths = np.diff(self._arrays.offsets)
        fits = np.ones(len(lengths), bool) if self.longest is None else lengths <= self.longest
        self._rows = np.flatnonzero(fits)
        self.lengths = lengths[self._rows]
        self.labels = self._arrays.labels[self._rows] if len(self._arrays.labels) else None
        self.uids = Uids(self._arrays, self._rows)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which maps the arrays and makes the selection itself."""
        selected = {"_rows", "lengths", "labels", "uids"}
        return {name: value for name, value in self.__dict__.items() if name not in selected}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._select()

    @property
    def largest_token(self) -> int:
        return int(self._arrays.largest_token[0])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[index]
        part = slice(self._arrays.offsets[row], self._arrays.offsets[row + 1])
        return Example(
            uid=self._arrays.uid(row),
            label=None if self.labels is None else self.labels[index],
            token_id=self._arrays.tokens[part],
            type_id=self._arrays.types[part],
            task_id=self.task_id,
        )


class MultiTaskDataset(Dataset[list[Example]]):
    """Several datasets; an item is a batch: the examples that a `MultiTaskBatchSampler` names.

    A process without a share of a batch gets one of its task's examples that counts nothing: all processes have to run
    a backward for one of them to have its gradient.
    """

    def __init__(self, datasets: Sequence[SingleTaskDataset]):
        self.datasets = datasets
        self._first = [0, *itertools.accumulate(len(dataset) for dataset in datasets)]

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def __getitem__(self, batch: tuple[int, Sequence[int]]) -> list[Example]:
        dataset_index, examples = batch
        dataset = self.datasets[dataset_index]
        if not len(examples):
            return [Example(**dataset[0], stands_in=True)]
        first = self._first[dataset_index]
        return [Example(**dataset[index], position=first + index) for index in examples]
