"""The right answers in a table: which rows have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_utils.tables.no_label import MINUS_ONE, means_no_label
from tasks import Task
from tasks.table_rows import is_missing


def is_unlabeled(label: Any) -> bool:
    """Whether a row has no label: nothing, an empty text, or of several columns or words nothing in any."""
    if isinstance(label, tuple) or (isinstance(label, list) and label):
        return all(map(is_unlabeled, label))
    return is_missing(label) or (isinstance(label, str) and not label.strip())


def without_marks(task: Task, labels: Sequence[Any]) -> tuple[list[Any], dict[str, int]]:
    """Labels with None in the place of texts that stand for no label, such as -1, and how many there were of each.

    A text is taken so if the task has no label of that name. Of a regression, -1 is, if all rows have it. Tasks whose
    labels are texts of their own, such as spans, have no such texts.
    """
    kind, names = task.task_def.task_type.name, task.task_def.class_names()
    if kind not in ("Classification", "MultiLabel", "Regression"):
        return list(labels), {}
    given = [own for own in labels if not is_unlabeled(own)]
    minus_one_counts = kind == "Regression" and not all(str(own) in MINUS_ONE for own in given)

    def mark(label: Any) -> str | None:
        if isinstance(label, tuple):  # -1 in every column, as in Jigsaw's test set
            return next(iter(label)) if all(str(own) in MINUS_ONE for own in label) else None
        text = label if isinstance(label, list | dict) or label is None else str(label).strip()
        if not isinstance(text, str) or text in names or not means_no_label(text):
            return None
        return None if minus_one_counts and text in MINUS_ONE else text

    marks = [None if is_unlabeled(own) else mark(own) for own in labels]
    left = [None if own is not None else label for label, own in zip(labels, marks, strict=True)]
    return left, dict(Counter(str(own) for own in marks if own is not None))
