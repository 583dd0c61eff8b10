"""What task types take and give: a network's inputs, the entries of a score file and what they may be, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from module.sentence_masks import kept_tokens, sentence_masks

Values = np.ndarray | Sequence[Any]  # one of each example


class ModelInputs(NamedTuple):
    """What the network is called with, (rows, tokens) each; see `Network.forward`.

    premise_mask, hyp_mask: 1 at the tokens that do not belong to the premise, or the hypothesis, as in MT-DNN; None
    where the tokens themselves tell.
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
            own if mask is None else kept_tokens(mask, width) for own, mask in zip(found, given, strict=True)
        )
        return premise, hypothesis


@dataclass(frozen=True)
class Entries:
    """What a model says of a dataset, as a score file holds it.

    uids: the ids; predictions, scores: one an id (of classification arrays (examples,) and (examples, n_class)).
    """

    uids: Sequence[str]
    predictions: Values
    scores: Values


class Evaluation(NamedTuple):
    """A dataset's results in the dataset's order.

    metrics: by name, in percent (empty without labels); predictions, scores, uids: those of the `Entries`; golds: what
    the labels say of each, or None.
    """

    metrics: dict[str, float]
    predictions: Values
    scores: Values
    golds: Values | None
    uids: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """What a model says of one text, as people read it.

    Attributes:
        label: the name of a class (its number where classes have no names), the number of a regression, the names of
            the labels that a text has, a label for each word, or a text; None where there was no text to answer.
        probability: of `label`, from 0 to 1; a list where `label` is one; None where the task type has none.
        probabilities: of every class by its name, or of every candidate in their order; a list of such where `label`
            has an item a word; None where the task type has none.
    """

    label: Any
    probability: Any = None
    probabilities: Any = None


NO_ANSWER = Answer(None)  # to an empty text


def check_classes(prediction: Sequence[Any], n_class: int) -> None:
    """See that a score file's prediction is made of classes.

    Raises:
        ValueError: it is not.
    """
    if not all(type(index) is int and 0 <= index < n_class for index in prediction):
        raise ValueError(f"found the prediction {list(prediction)!r}; accepted: classes from 0 to {n_class - 1}")


def check_texts(predictions: Sequence[Any]) -> None:
    """See that a score file's predictions are texts.

    Raises:
        ValueError: one is not.
    """
    for own in predictions:
        if not isinstance(own, str):
            raise ValueError(f"found the prediction {own!r}; accepted: a text")
