"""Datasets of token JSON lines: one file, or several for a run."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from torch.utils.data import Dataset

from data_utils.errors import DataError
from data_utils.readers import read_token_json
from mt_dnn.data.token_arrays import open_token_arrays
from tasks import Task, get_task

if TYPE_CHECKING:
    from tasks.interfaces import Definition

logger = logging.getLogger(__name__)


class _InBatch(TypedDict, total=False):
    stands_in: bool
    positions: list[int]


class Example(_InBatch):
    """One example of one sequence or several, which stand one after the other.

    `token_id` and `type_id` are views (tokens,) into the dataset's arrays; `lengths` are the sequences' tokens; `label`
    is a number, or an array where the task's examples have several; `softlabel` is a teacher's (scores,).
    """

    uid: str
    label: Any
    token_id: np.ndarray
    type_id: np.ndarray
    lengths: tuple[int, ...]
    softlabel: np.ndarray | None
    task_id: int
    task: Task


def example_of(
    uid: str, tokens: np.ndarray, types: np.ndarray, task: Task, task_id: int = 0, label: Any = None
) -> Example:
    """An example of one sequence that is in no file."""
    return Example(
        uid=uid,
        label=label,
        token_id=tokens,
        type_id=types,
        lengths=(len(tokens),),
        softlabel=None,
        task_id=task_id,
        task=task,
    )


class Lazily(Sequence[Any]):
    """One thing of each of some examples, made when it is asked for."""

    def __init__(self, make: Callable[[int], Any], examples: np.ndarray):
        self._make = make
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._make(example) for example in self._examples[index]]
        return self._make(self._examples[index])


class SingleTaskDataset(Dataset[Example]):
    """One file of token JSON lines, such as `mnli_matched_dev.json`.

    The file is read once and then memory-mapped from its cache (`token_arrays.py`), so that processes share one
    copy of it and each reads the examples that it asks for.

    Args:
        path: the file.
        is_train: a training file must have labels, and its examples longer than `max_seq_len` are left out, as in
            MT-DNN; a file for evaluation keeps every example and may have no labels.
        task_id: the number of the task's head.
        task_def: the task's definition; its type says what a line holds.
        max_seq_len: in tokens.
        name: the dataset's name, such as `mnli_matched`; by default the file's.
        labeled: false for a training file of unlabeled examples; labels that it has are not read.

    Attributes:
        task: of the definition.
        lengths: tokens of each example's longest sequence, (examples,) int64.
        row_lengths: tokens of each sequence of all examples, (sequences,) int64.
        widest: the most sequences that an example has.
        labels: (examples,), int64 for classification and float32 for regression, a sequence of arrays where examples
            have several; None where the file has none.
        uids: the examples' ids.

    Raises:
        DataError: a line that cannot be used, with its number; a file that leaves no example.
    """

    lengths: np.ndarray
    row_lengths: np.ndarray
    widest: int
    labels: Any
    uids: Sequence[str]

    def __init__(
        self,
        path: Path | str,
        is_train: bool,
        task_id: int,
        task_def: Definition,
        max_seq_len: int = 512,
        name: str = "",
        labeled: bool = True,
    ):
        self.path = Path(path)
        self.name = name or self.path.stem
        self.task_id = task_id
        self.task_def = task_def
        self.task = get_task(task_def)
        self.longest = max_seq_len if is_train else None
        self._arrays = open_token_arrays(
            self.path, self.task, labeled, is_train and labeled and not self.task.own_labels
        )
        self._select()
        read = len(self._arrays)
        if not len(self):
            raise DataError(
                f"all {read} examples are longer than {max_seq_len} tokens; at least one is needed", self.path
            )
        left_out = read - len(self)
        note = f"; {left_out} longer than {max_seq_len} tokens left out" if left_out else ""
        logger.info("%s: %d examples%s", self.path, len(self), note)

    def _select(self) -> None:
        """The examples whose sequences are short enough."""
        arrays = self._arrays
        of_rows = np.diff(arrays.offsets)
        lengths = np.maximum.reduceat(of_rows, arrays.rows[:-1])
        fits = np.ones(len(lengths), bool) if self.longest is None else lengths <= self.longest
        self._examples = np.flatnonzero(fits)
        self.lengths = lengths[self._examples]
        counts = np.diff(arrays.rows)
        self.row_lengths = of_rows[np.repeat(fits, counts)]
        self.widest = int(counts[self._examples].max(initial=0))
        self._first_row = np.concatenate([[0], np.cumsum(counts[self._examples])])
        self.uids = Lazily(arrays.uid, self._examples)
        if not len(arrays.labels):
            self.labels = None
        elif len(arrays.label_offsets):
            self.labels = Lazily(arrays.label, self._examples)
        else:
            self.labels = arrays.labels[self._examples]

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which maps the arrays and makes the selection itself."""
        selected = {"_examples", "_first_row", "lengths", "row_lengths", "widest", "labels", "uids"}
        return {name: value for name, value in self.__dict__.items() if name not in selected}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._select()

    @property
    def largest_token(self) -> int:
        """The largest token id, of texts that are to be generated too."""
        largest = int(self._arrays.largest_token[0])
        return max(largest, int(self._arrays.labels.max(initial=0))) if self.task.generates else largest

    @property
    def largest_type(self) -> int:
        """The largest token type."""
        return int(self._arrays.types.max())

    @property
    def tokens(self) -> np.ndarray:
        """What each example takes in a batch where it is the longest, (examples,): sequences times tokens."""
        return self.lengths * self.widest

    @property
    def has_labels(self) -> bool:
        """Whether there are labels to score predictions by."""
        return self.labels is not None or self.task.own_labels

    @property
    def has_soft_labels(self) -> bool:
        """Whether examples have a teacher's scores."""
        return bool(len(self._arrays.soft_labels))

    def rows_of(self, index: int) -> range:
        """The places of an example's sequences among all of the dataset."""
        return range(self._first_row[index], self._first_row[index + 1])

    def samples(self) -> Iterator[dict[str, Any]]:
        """The examples as the file has them, read anew: what a task's evaluation needs beside tokens and labels."""
        kept = set(self._examples.tolist())
        lines = read_token_json(self.path, self.task.many_rows)
        return (sample for example, (_, sample) in enumerate(lines) if example in kept)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        arrays, example = self._arrays, self._examples[index]
        first, last = arrays.rows[example], arrays.rows[example + 1]
        bounds = arrays.offsets[first : last + 1]
        part = slice(bounds[0], bounds[-1])
        return Example(
            uid=arrays.uid(example),
            label=None if self.labels is None else self.labels[index],
            token_id=arrays.tokens[part],
            type_id=arrays.types[part],
            lengths=tuple(np.diff(bounds).tolist()),
            softlabel=arrays.soft_label(example),
            task_id=self.task_id,
            task=self.task,
        )


class MultiTaskDataset(Dataset[list[Example]]):
    """Several datasets; an item is a batch: the examples that a `MultiTaskBatchSampler` names.

    A process without a share of a batch gets one of its task's examples that counts nothing: all processes have to run
    a backward for one of them to have its gradient.
    """

    def __init__(self, datasets: Sequence[SingleTaskDataset]):
        self.datasets = datasets
        self._first = [0, *itertools.accumulate(len(dataset.row_lengths) for dataset in datasets)]

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def __getitem__(self, batch: tuple[int, Sequence[int]]) -> list[Example]:
        dataset_index, examples = batch
        dataset = self.datasets[dataset_index]
        if not len(examples):
            return [Example(**dataset[0], stands_in=True)]
        first = self._first[dataset_index]
        return [
            Example(**dataset[index], positions=[first + row for row in dataset.rows_of(index)]) for index in examples
        ]
