"""Classification of a sentence or a pair of sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from data_utils.metrics import CLASS_METRICS, Metric, metrics_of_classes
from tasks.base import Task
from tasks.interfaces import Batch, Examples
from tasks.registry import register_task
from tasks.table_rows import as_text
from tasks.values import Answer, Values


@register_task("Classification")
class ClassificationTask(Task):
    """One of `n_class` classes; scores are probabilities."""

    metrics = CLASS_METRICS
    distils = True
    answer_parts = ("probability", "classes")

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        return count_mistakes(entry)

    @classmethod
    def metrics_of(cls, n_class: int, named: bool) -> tuple[Metric, ...]:
        return metrics_of_classes(n_class)

    def predict(self, logits: Tensor, batch: Batch) -> tuple[Values, Values]:
        scores = logits.float().softmax(-1).cpu().numpy()
        return scores, scores.argmax(-1)

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """The name of a class, or its number where classes have no names.

        Programs write the same value in several ways: 1 as 1.0 in columns with missing cells, true as True or TRUE.
        """
        names, text = self.task_def.label_vocab, as_text(label)
        if names is None:
            return {"label": text.removesuffix(".0")}
        forms = [text, text.removesuffix(".0"), f"{text}.0"]
        if text.lower() in ("false", "true"):
            forms += [text.lower(), text.title(), text.upper()]
        return {"label": next((form for form in forms if form in names), text)}

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        names, labels = self.task_def.class_names(), self.answers(scores, predictions)
        rows = np.asarray(scores).tolist()
        return [
            Answer(label, row[int(index)], dict(zip(names, row, strict=True)))
            for label, row, index in zip(labels, rows, predictions, strict=True)
        ]


def count_mistakes(entry: Mapping[Any, Any]) -> list[str]:
    """A mistake if the YAML's mapping does not name `n_class` labels; returns what `Task.mistakes` does."""
    labels, n_class = entry.get("labels"), entry.get("n_class")
    if isinstance(labels, list) and type(n_class) is int and len(labels) != n_class:
        return [f"key 'labels': found {len(labels)} labels, accepted: as many as n_class ({n_class})"]
    return []
