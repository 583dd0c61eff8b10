"""Classification of a sentence or a pair of sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from data_utils.metrics import CLASS_METRICS, Metric, metrics_of_classes
from tasks.base import Task
from tasks.interfaces import Batch
from tasks.registry import register_task
from tasks.values import Values


@register_task("Classification")
class ClassificationTask(Task):
    """One of `n_class` classes; scores are probabilities."""

    metrics = CLASS_METRICS
    distils = True

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        return count_mistakes(entry)

    @classmethod
    def metrics_of(cls, n_class: int, named: bool) -> tuple[Metric, ...]:
        return metrics_of_classes(n_class)

    def predict(self, logits: Tensor, batch: Batch) -> tuple[Values, Values]:
        scores = logits.float().softmax(-1).cpu().numpy()
        return scores, scores.argmax(-1)


def count_mistakes(entry: Mapping[Any, Any]) -> list[str]:
    """Whether the YAML's mapping names another number of labels than `n_class`; as `Task.mistakes`."""
    labels, n_class = entry.get("labels"), entry.get("n_class")
    if isinstance(labels, list) and type(n_class) is int and len(labels) != n_class:
        return [f"key 'labels': found {len(labels)} labels, accepted: as many as n_class ({n_class})"]
    return []
