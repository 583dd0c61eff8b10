"""The view of a model's logits, derived from its class, its configuration or the labels; unclear cases are errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .injection import UnsupportedLevelError, outermost_encoder
from .outputs import logits_of
from .wrappers import base_model, unwrapped

IGNORED_LABEL = -100  # transformers' label of tokens without one
PACKED = (
    "norms over sentences (norm_level=1) with several texts in a row (packing, padding-free); accepted: norm_level=0, "
    "norms over tokens, or one padded text per row"
)
# The view of logits per token, by a part of the name of transformers' class.
BY_TOKEN = {
    "CausalLM": "next_tokens",
    "LMHead": "next_tokens",
    "ConditionalGeneration": "next_tokens",
    "Seq2SeqLM": "next_tokens",
    "EncoderDecoder": "next_tokens",
    "MaskedLM": "masked_tokens",
    "TokenClassification": "tokens",
}
ONE_OF_SEVERAL = ("MultipleChoice", "NextSentencePrediction")
BY_PROBLEM = {
    "single_label_classification": "classes",
    "multi_label_classification": "labels",
    "regression": "numbers",
}


def view_of_output(model: nn.Module, batch: Mapping[str, Any], output: Any) -> str:
    """The view of a model's output.

    Args:
        model: wrapped or not.
        batch: its arguments; `labels` decide if the configuration does not.
        output: what it returned: logits, a tuple of them, or an output of transformers.

    Raises:
        ValueError: class, configuration and labels leave it open; or the output is not logits.
    """
    logits = logits_of(output)
    if not all(isinstance(part, Tensor) for part in logits):
        raise ValueError("found more than logits in a forward's tuple; give the logits only, or the complete output")
    if any(part.dim() == 0 for part in logits):
        raise ValueError("a number among the logits: a forward's tuple begins with its loss, give what follows it")
    if len(logits) > 1:
        if len(logits) == 2 and logits[0].dim() == 2 and logits[0].shape == logits[1].shape:
            return "spans"
        raise ValueError(
            f"found {len(logits)} tensors of logits; accepted: one, or two for start and end of spans; or task_type="
        )
    head = head_of(model)
    return _view_over_tokens(head) if logits[0].dim() == 3 else _view_of_texts(head, batch, logits[0])


def view_of_labels(model: nn.Module, batch: Mapping[str, Any]) -> str:
    """The view if there is no clean pass: derived from the model and the shape of `labels`."""
    labels, ids = batch.get("labels"), batch.get("input_ids")
    head = head_of(model)
    if is_encoder_decoder(head) and labels is not None and labels.dim() == 2:
        return "next_tokens"
    if labels is None or ids is None or labels.shape != ids.shape or labels.is_floating_point():
        return "classes"
    if _problem_type(head) == "multi_label_classification":
        return "labels"
    return _view_by_class(head) or "tokens"


def loss_mask_of(model: nn.Module, batch: Mapping[str, Any], view: str) -> Tensor:
    """(rows, tokens), true at the tokens whose distributions are compared: those with a label.

    The logits of a decoder-only model are one token before their label, those of an encoder-decoder at it.

    Raises:
        ValueError: an encoder-decoder's batch has no labels, so its target is unknown.
    """
    if "shift_labels" in batch:
        return batch["shift_labels"] != IGNORED_LABEL
    labels, head = batch.get("labels"), head_of(model)
    if is_encoder_decoder(head):
        if labels is None:
            raise ValueError(f"{type(head).__name__}: give labels in the batch, the tokens to be generated")
        return labels != IGNORED_LABEL
    real = token_mask(batch) != 0
    labeled = real if labels is None else labels != IGNORED_LABEL
    if view != "next_tokens":
        return labeled
    before_label = torch.zeros_like(labeled)
    before_label[:, :-1] = labeled[:, 1:]
    return before_label & real if labels is None else before_label


def token_mask(batch: Mapping[str, Any]) -> Tensor:
    """(rows, tokens), 1 at real tokens. If an example has several choices, each choice is a row.

    Raises:
        ValueError: the batch does not tell which tokens are real.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"found a batch that is a {type(batch).__name__}; accepted: the arguments of one forward by name, with "
            "input_ids; call the regularizer once per forward"
        )
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if mask is None:
        if ids is None:
            raise ValueError(f"found a batch of {', '.join(batch) or 'nothing'}; accepted: one with input_ids")
        mask = torch.ones_like(ids)
        if is_packed(batch):  # padding there consists of texts of one token, which are ignored
            mask = (batch["position_ids"] + F.pad(batch["position_ids"][:, 1:], (0, 1)) > 0).to(mask.dtype)
    elif (ids is not None and mask.shape != ids.shape) or mask.dim() > 3:
        found = " x ".join(map(str, mask.shape))
        wanted = "(rows, tokens)" if ids is None else " x ".join(map(str, ids.shape))
        raise ValueError(f"attention_mask of {found}; accepted: {wanted}, 1 at real tokens and 0 at padding")
    return mask.reshape(-1, mask.size(-1))


def is_packed(batch: Mapping[str, Any]) -> bool:
    """Whether rows of the batch contain several texts, one after the other (packing without padding)."""
    positions = batch.get("position_ids")
    if batch.get("attention_mask") is not None or positions is None:
        return False
    return positions.dim() == 2 and bool((positions == 0).sum(-1).max() > 1)


def head_of(model: nn.Module) -> nn.Module:
    """The transformers model whose class determines the view, inside wrappers, adapters and custom modules."""
    try:
        return base_model(outermost_encoder(unwrapped(model)))
    except UnsupportedLevelError:
        return base_model(model)


def is_encoder_decoder(head: nn.Module) -> bool:
    return bool(getattr(getattr(head, "config", None), "is_encoder_decoder", False))


def _problem_type(head: nn.Module) -> str | None:
    return getattr(getattr(head, "config", None), "problem_type", None)


def _view_by_class(head: nn.Module) -> str | None:
    names = " ".join(kind.__name__ for kind in type(head).__mro__)
    return next((view for part, view in BY_TOKEN.items() if part in names), None)


def _view_over_tokens(head: nn.Module) -> str:
    view = _view_by_class(head)
    if view is None:
        raise ValueError(
            f"{type(head).__name__}: its class does not say how logits over tokens are read; give task_type='tokens' "
            "(a class per token), 'masked_tokens' (tokens with a label) or 'next_tokens' (one token before the label)"
        )
    return view


def _view_of_texts(head: nn.Module, batch: Mapping[str, Any], logits: Tensor) -> str:
    """The view of logits (rows, classes), or of one number per row, (rows,)."""
    name = type(head).__name__
    problem = _problem_type(head)
    if problem in BY_PROBLEM:
        return BY_PROBLEM[problem]
    labels = batch.get("labels")
    columns = logits.size(-1) if logits.dim() > 1 else 1
    if labels is None and columns == 1 and "SequenceClassification" in name:
        return "numbers"  # transformers treats one output as regression
    if columns > 1 and any(part in name for part in ONE_OF_SEVERAL):
        return "classes"
    if columns > 1 and labels is not None and not labels.is_floating_point() and labels.numel() == len(logits):
        return "classes"
    found = "no labels" if labels is None else f"labels of {' x '.join(map(str, labels.shape))}, {labels.dtype}"
    raise ValueError(
        f"{name}: {columns} numbers a text, {found} in the batch and no config.problem_type do not say how they are "
        "read; give task_type='classes', 'labels' (several yes-or-no labels a text) or 'numbers'"
    )
