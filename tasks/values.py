"""Values that task types take and return: a network's inputs, entries of a score file, evaluations, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from data_utils.errors import DataError, nearest
from data_utils.prepro import Split
from module.sentence_masks import from_mtdnn_mask, sentence_masks
from tasks.interfaces import Definition

Values = np.ndarray | Sequence[Any]  # one of each example


class ModelInputs(NamedTuple):
    """The arguments of the network, (rows, tokens) each.

    Attributes:
        premise_mask, hyp_mask: 1 at tokens that do not belong to the premise, or to the hypothesis, as in MT-DNN; None
            to find them by the token types and special tokens.
    """

    input_ids: Tensor
    token_type_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    premise_mask: Tensor | None = None
    hyp_mask: Tensor | None = None
    y_input_ids: Tensor | None = None

    def sentences(self) -> tuple[Tensor, Tensor]:
        """The tokens of the premise and of the hypothesis, two boolean (rows, tokens)."""
        found = sentence_masks(self.input_ids, self.token_type_ids, self.attention_mask)
        given, width = (self.premise_mask, self.hyp_mask), self.input_ids.size(1)
        premise, hypothesis = (
            own if mask is None else from_mtdnn_mask(mask, width) for own, mask in zip(found, given, strict=True)
        )
        return premise, hypothesis


@dataclass(frozen=True)
class Entries:
    """A model's predictions for a dataset, as in a score file.

    Attributes:
        uids: the ids.
        predictions, scores: one for each id; of a classification arrays (examples,) and (examples, n_class).
    """

    uids: Sequence[str]
    predictions: Values
    scores: Values


class Evaluation(NamedTuple):
    """A dataset's results, in the dataset's order.

    Attributes:
        metrics: by name, in percent; empty without labels.
        predictions, scores, uids: those of the `Entries`.
        golds: the gold label of each entry; None without labels.
    """

    metrics: dict[str, float]
    predictions: Values
    scores: Values
    golds: Values | None
    uids: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """A model's answer to one text, as people read it.

    Attributes:
        label: the name of a class (its number where classes have no names), the number of a regression, the names of
            the labels that a text has, a label for each word, or a text; None if there was no text.
        probability: of `label`, from 0 to 1; a list if `label` is one; None if the task type has none.
        probabilities: of every class by name, or of every candidate in order; one such mapping for each word if
            `label` is a list of words' labels; None if the task type has none.
    """

    label: Any
    probability: Any = None
    probabilities: Any = None


NO_ANSWER = Answer(None)  # for an empty text


def check_classes(prediction: Sequence[Any], n_class: int) -> None:
    """Check that a score file's prediction consists of classes.

    Raises:
        ValueError: it does not.
    """
    if not all(type(index) is int and 0 <= index < n_class for index in prediction):
        raise ValueError(f"found the prediction {list(prediction)!r}; accepted: classes from 0 to {n_class - 1}")


def check_texts(predictions: Sequence[Any]) -> None:
    """Check that a score file's predictions are texts.

    Raises:
        ValueError: one is not.
    """
    for own in predictions:
        if not isinstance(own, str):
            raise ValueError(f"found the prediction {own!r}; accepted: a text")


def class_index(task_def: Definition, split: Split, number: int, text: object) -> int:
    """The index of a class. The TSV has its name, or its number if the definition has no names.

    Raises:
        DataError: there is no such class.
    """
    labels = task_def.label_vocab
    if labels is not None:
        if text in labels:
            return labels[str(text)]
        known = list(labels.tok2ind)
        hint = nearest(str(text), known)
        raise DataError(f"found the label {text!r}{hint}; accepted: {', '.join(known)}", split.path, number)
    try:
        index = int(str(text))
    except ValueError:
        index = -1
    if not 0 <= index < task_def.n_class:
        accepted = f"a whole number from 0 to {task_def.n_class - 1}"
        raise DataError(f"found the label {text!r}; accepted: {accepted}", split.path, number)
    return index
