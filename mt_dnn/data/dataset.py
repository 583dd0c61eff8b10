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
    """One example of one sequence, or of several that are concatenated.

    `token_id` and `type_id` are views (tokens,) into the dataset's arrays; `lengths` has the tokens of each sequence;
    `label` is a number, or an array if the task's examples have several; `softlabel` has a teacher's (scores,).
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
    """An example of one sequence that comes from no file."""
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


class LazySequence(Sequence[Any]):
    """A value of each of some examples, computed when it is read."""

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

    The file is read once and then memory-mapped from its cache (`token_arrays.py`), so that processes share one copy
    and each reads only the examples that it needs.

    Args:
        path: the file.
        is_train: a training file must have labels, and examples longer than `max_seq_len` are left out, as in
            MT-DNN. A file for evaluation keeps every example and may have no labels.
        task_id: the number of the task's head.
        task_def: the task's definition; its type decides what a line holds.
        max_seq_len: in tokens.
        name: the dataset's name, such as `mnli_matched`; by default the file's.
        labeled: false for a training file of unlabeled examples; its labels, if any, are not read.

    Attributes:
        task: of the definition.
        lengths: tokens of each example's longest sequence, (examples,) int64.
        row_lengths: tokens of each sequence of all examples, (sequences,) int64.
        widest: the largest number of sequences in an example.
        labels: (examples,), int64 for classification and float32 for regression; a sequence of arrays if examples
            have several labels; None if the file has none.
        uids: the examples' ids.

    Raises:
        DataError: a line cannot be used (with its number), or no example is left.
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
        """Select the examples whose sequences are short enough."""
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
        self.uids = LazySequence(arrays.uid, self._examples)
        if not len(arrays.labels):
            self.labels = None
        elif len(arrays.label_offsets):
            self.labels = LazySequence(arrays.label, self._examples)
        else:
            self.labels = arrays.labels[self._examples]

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, which maps the arrays and selects the examples itself."""
        selected = {"_examples", "_first_row", "lengths", "row_lengths", "widest", "labels", "uids"}
        return {name: value for name, value in self.__dict__.items() if name not in selected}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._select()

    @property
    def largest_token(self) -> int:
        """The largest token id, target texts of generation included."""
        largest = int(self._arrays.largest_token[0])
        return max(largest, int(self._arrays.labels.max(initial=0))) if self.task.generates else largest

    @property
    def largest_type(self) -> int:
        """The largest token type."""
        return int(self._arrays.types.max())

    @property
    def tokens(self) -> np.ndarray:
        """Tokens, with padding, that each example takes in a batch if it is the longest there, (examples,)."""
        return self.lengths * self.widest

    @property
    def has_labels(self) -> bool:
        """Whether there are labels to score predictions with."""
        return self.labels is not None or self.task.own_labels

    @property
    def has_soft_labels(self) -> bool:
        """Whether examples have a teacher's scores."""
        return bool(len(self._arrays.soft_labels))

    def rows_of(self, index: int) -> range:
        """The indices of an example's sequences among all sequences of the dataset."""
        return range(self._first_row[index], self._first_row[index + 1])

    def samples(self) -> Iterator[dict[str, Any]]:
        """Read the examples from the file again, with all fields: evaluations need more than tokens and labels."""
        selected = set(self._examples.tolist())
        lines = read_token_json(self.path, self.task.many_rows)
        return (sample for example, (_, sample) in enumerate(lines) if example in selected)

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
    """Several datasets. An item is a batch: the examples that a `MultiTaskBatchSampler` names.

    If a process gets no example of a batch, it gets a stand-in that does not count: for the gradient of one process,
    all have to run a backward pass.
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
