"""Several labels for a sentence or a pair of sentences: any number of them, all or none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from data_utils.errors import DataError
from data_utils.metrics import LABEL_METRICS, Metric, calc_label_metrics, labels_without_area
from data_utils.prepro import Split
from data_utils.tables.table import TRUTHS
from data_utils.task_def import LossCriterion
from tasks.base import SMALLEST, Task
from tasks.classification import count_mistakes
from tasks.interfaces import Batch, Examples
from tasks.registry import register_task
from tasks.table_rows import as_list, as_text
from tasks.values import Answer, Entries, Values

THRESHOLD = 0.5  # of a probability, and of a gold label that is a fraction
SHOWN = 60  # characters of a label in a message


@register_task("MultiLabel")
class MultiLabelTask(Task):
    """An independent yes or no for each of `n_class` labels; scores are the probabilities of yes.

    In TSVs and token files, an example's label is a list such as `[0, 1, 0]`: a number for each name in the
    definition's `labels`, 1 if the text has that label. Fractions, such as the share of annotators who said yes, are
    used by the loss as they are; metrics count 0.5 and more as 1.
    """

    default_loss = LossCriterion.BceCriterion
    losses = (LossCriterion.BceCriterion,)
    metrics = LABEL_METRICS
    label_type = np.float32
    many_labels = True
    distils = True
    answer_parts = ("probability", "classes")
    view = "labels"

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        if entry.get("labels") is None:
            return ["key 'labels': missing, accepted: a list with the name of each label"]
        return count_mistakes(entry)

    @classmethod
    def pools(cls) -> bool:
        """False: the stochastic answer network's logits are one distribution over classes."""
        return False

    def parse_label(self, split: Split, number: int, text: str) -> list[float]:
        """The list in a text such as `[0, 1, 0]`."""
        try:
            label = json.loads(text)
        except (ValueError, RecursionError):
            label = None
        if not self.accepts_label(label, ()):
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
            raise DataError(f"found the label {shown!r}; accepted: {self.accepted_labels}", split.path, number)
        return label

    @property
    def accepted_labels(self) -> str:
        names = ", ".join(self.task_def.class_names())
        return f"a list of {self.task_def.n_class} numbers from 0 to 1, in JSON, a number each for {names}"

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        if not isinstance(label, list) or len(label) != self.task_def.n_class:
            return False
        return all(type(own) in (int, float) and 0 <= own <= 1 for own in label)  # false for NaN too

    def soft_label(self, scores: np.ndarray) -> np.ndarray:
        """Log-odds of probabilities."""
        return np.log(scores.clip(min=SMALLEST)) - np.log((1 - scores).clip(min=SMALLEST))

    def taught_label(self, scores: np.ndarray) -> list[int]:
        return _labels_of(scores).tolist()

    def predict(self, logits: Tensor, batch: Batch) -> tuple[Values, Values]:
        """Probabilities and 0 or 1, (examples, n_class) each."""
        scores = logits.float().sigmoid().cpu().numpy()
        return scores, _labels_of(scores)

    def golds(self, dataset: Examples) -> np.ndarray:
        """0 or 1, (examples, n_class)."""
        return _labels_of(np.stack(dataset.labels))

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """Metrics of the matrix of texts and labels; see `calc_label_metrics`."""
        return calc_label_metrics(metrics, golds, np.asarray(entries.predictions), np.asarray(entries.scores))

    def notes(self, metrics: Sequence[Metric], golds: Any) -> list[str]:
        if Metric.AUC not in metrics:
            return []
        names, undefined = self.task_def.class_names(), labels_without_area(golds)
        if not undefined:
            return []
        left_out = ", ".join(names[index] for index in undefined)
        defined = len(names) - len(undefined)
        return [f"AUC is the mean over {defined} of {len(names)} labels; all examples have, or none has: {left_out}"]

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        count = self.task_def.n_class
        for own in predictions:
            if not isinstance(own, list) or len(own) != count or not set(own) <= {0, 1}:
                raise ValueError(f"found the prediction {own!r}; accepted: a list of {count} numbers, each 0 or 1")
        return [(count,)] * len(predictions)

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """The names of each example's labels, as a list in JSON."""
        names = self.task_def.class_names()
        return [
            json.dumps([name for name, found in zip(names, own, strict=True) if found], ensure_ascii=False)
            for own in np.asarray(predictions).tolist()
        ]

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """A 0 or 1 for each label, in the definition's order, or a list with the names of the text's labels."""
        names, found = self.task_def.class_names(), as_list(label)
        if found is None and len(names) == 1:
            found = [label]
        if found is None:
            accepted = f"a list of some of {', '.join(names)}; --label_separator says what divides a text"
            raise ValueError(f"found {as_text(label)[:SHOWN]!r}, accepted: {accepted}")
        texts = [as_text(own) for own in found]
        by_name = not texts or any(text in names for text in texts)
        wrong = next((text for text in texts if text not in names and (by_name or text.lower() not in TRUTHS)), None)
        if wrong is not None:
            accepted = f"0 or 1 for each label, or a list of some of {', '.join(names)}"
            raise ValueError(f"found {wrong[:SHOWN]!r}, accepted: {accepted}")
        values = [int(name in texts) for name in names] if by_name else [TRUTHS[text.lower()] for text in texts]
        return {"label": json.dumps(values)}

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """For each text the names of its labels, and their probabilities."""
        names = self.task_def.class_names()
        found = []
        for row, own in zip(np.asarray(scores).tolist(), np.asarray(predictions).tolist(), strict=True):
            places = [place for place, has in enumerate(own) if has]
            by_name = dict(zip(names, row, strict=True))
            found.append(Answer([names[place] for place in places], [row[place] for place in places], by_name))
        return found


def _labels_of(probabilities: np.ndarray) -> np.ndarray:
    """1 if a probability is at least 0.5, else 0."""
    return (probabilities >= THRESHOLD).astype(np.int64)
