"""Texts as a dataset in memory, like those that `mt_dnn/data/` makes of token files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.prepro import Split, Tokenization
from data_utils.tokenizer import tokenizer_errors
from mt_dnn.data.dataset import Example
from tasks import Task

CHUNK = 1000  # texts that are tokenized together
CUT = "cut"  # key of a sample: whether its text was cut


class TextTokenization(Tokenization):
    """The tokenization of `prepro_std.py`; examples also say whether their text was cut."""

    def encode(self, texts: Sequence[str | tuple[str, str]], lines: Sequence[int] = ()) -> Iterator[dict[str, Any]]:
        with tokenizer_errors(self.spec.name):
            found = self._backend().encode_batch_fast(list(texts))
        for encoded in found:
            yield {**self._example(encoded), CUT: bool(encoded.overflowing)}


class TextExamples:
    """Examples made of texts, for a task's evaluation (`tasks.interfaces.Examples`).

    Args:
        name: for messages and the log.
        task, task_id: of the head.
        samples: in the form of a token file's lines.

    Attributes:
        labels: as in `SingleTaskDataset`; None if a sample has no label.
    """

    def __init__(self, name: str, task: Task, task_id: int, samples: Sequence[Mapping[str, Any]]):
        self.name, self.path = name, Path(name)
        self.task, self.task_id = task, task_id
        self._samples = samples
        self._rows = [sample["token_id"] if task.many_rows else [sample["token_id"]] for sample in samples]
        self._types = [sample["type_id"] if task.many_rows else [sample["type_id"]] for sample in samples]
        self.lengths = np.array([max(map(len, rows)) for rows in self._rows], dtype=np.int64)
        self.uids = [str(sample["uid"]) for sample in samples]
        self.labels: Any = None
        if samples and all("label" in sample for sample in samples):
            found = [np.array(task.read_label(sample), dtype=task.label_type) for sample in samples]
            self.labels = found if task.many_labels else np.array(found)

    @property
    def has_labels(self) -> bool:
        """Whether there are labels to measure predictions by."""
        return self.labels is not None

    @property
    def tokens(self) -> np.ndarray:
        """What each example takes in a batch where it is the longest, (examples,): sequences times tokens."""
        return self.lengths * max(map(len, self._rows), default=1)

    @property
    def largest_token(self) -> int:
        return max(max(row) for rows in self._rows for row in rows)

    @property
    def largest_type(self) -> int:
        return max(max(row) for rows in self._types for row in rows)

    def samples(self) -> Iterator[dict[str, Any]]:
        return (dict(sample) for sample in self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        """An example without its label, which a prediction must not see."""
        rows, types = self._rows[index], self._types[index]
        return Example(
            uid=self.uids[index],
            label=None,
            token_id=np.array([token for row in rows for token in row]),
            type_id=np.array([own for row in types for own in row]),
            lengths=tuple(map(len, rows)),
            softlabel=None,
            task_id=self.task_id,
            task=self.task,
        )


def tokenize_rows(
    name: str, task: Task, lines: Sequence[tuple[int, dict[str, Any]]], text: TextTokenization
) -> Iterator[dict[str, Any]]:
    """The samples of lines, one or several for each line.

    Args:
        name: where the lines come from, for messages.
        lines: their numbers, and their fields as a canonical TSV has them.

    Raises:
        DataError: a label that is not accepted; names the line.
    """
    split = Split(Path(name), task, is_train=False)
    for start in range(0, len(lines), CHUNK):
        yield from task.tokenize_texts(split, lines[start : start + CHUNK], text)
