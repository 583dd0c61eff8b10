"""How the logits of a model in somebody's loop are read: known from its class, configuration or labels, not guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .injection import UnsupportedLevelError, outermost_encoder
from .outputs import logits_of
from .wrappers import base_model, unwrapped

IGNORED_LABEL = -100  # transformers' mark of what has no label
PACKED = (
    "norms over sentences (norm_level=1), and rows that hold several texts (packing, padding-free); accepted: "
    "norm_level=0, norms over tokens, or padded texts"
)
# In the class names of transformers' models: how their logits over tokens are read.
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
        batch: its arguments; `labels` among them tell what the configuration does not.
        output: what it returned: logits, a tuple of them, or an output of transformers.

    Raises:
        ValueError: neither class nor configuration nor labels tell; the output is no logits.
    """
    logits = logits_of(output)
    if not all(isinstance(part, Tensor) for part in logits):
        raise ValueError("found more than logits in a forward's tuple; give the logits alone, or its output whole")
    if any(part.dim() == 0 for part in logits):
        raise ValueError("a number among the logits: a forward's tuple begins with its loss, give what comes after it")
    if len(logits) > 1:
        if len(logits) == 2 and logits[0].dim() == 2 and logits[0].shape == logits[1].shape:
            return "spans"
        raise ValueError(
            f"found {len(logits)} tensors of logits; accepted: one, or where spans start and end; or task_type="
        )
    head = head_of(model)
    return _view_over_tokens(head) if logits[0].dim() == 3 else _view_of_texts(head, batch, logits[0])


def view_of_labels(model: nn.Module, batch: Mapping[str, Any]) -> str:
    """The view where there is no clean pass to tell it: whether each token has a class as label."""
    labels, ids = batch.get("labels"), batch.get("input_ids")
    head = head_of(model)
    if is_encoder_decoder(head) and labels is not None and labels.dim() == 2:
        return "next_tokens"
    if labels is None or ids is None or labels.shape != ids.shape or labels.is_floating_point():
        return "classes"
    if _problem(head) == "multi_label_classification":
        return "labels"
    return _by_class(head) or "tokens"


def counted_tokens(model: nn.Module, batch: Mapping[str, Any], view: str) -> Tensor:
    """(rows, tokens), true at the tokens whose distribution counts: those with a label.

    A decoder's logits stand one token before their label; an encoder-decoder's stand at it.

    Raises:
        ValueError: an encoder-decoder's batch without labels, so that its target is not known.
    """
    if "shift_labels" in batch:
        return batch["shift_labels"] != IGNORED_LABEL
    labels, head = batch.get("labels"), head_of(model)
    if is_encoder_decoder(head):
        if labels is None:
            raise ValueError(f"{type(head).__name__}: give labels in the batch, the tokens that are to be generated")
        return labels != IGNORED_LABEL
    real = token_mask(batch) != 0
    counted = real if labels is None else labels != IGNORED_LABEL
    if view != "next_tokens":
        return counted
    following = torch.zeros_like(counted)
    following[:, :-1] = counted[:, 1:]
    return following & real if labels is None else following


def token_mask(batch: Mapping[str, Any]) -> Tensor:
    """(rows, tokens): 1 at real tokens; the choices of an example, where it has several, are rows of their own.

    Raises:
        ValueError: the batch does not say which tokens are real.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"found a batch that is a {type(batch).__name__}; accepted: the arguments of one forward by name, with "
            "input_ids; of several texts each has an R of its own"
        )
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if mask is None:
        if ids is None:
            raise ValueError(f"found a batch of {', '.join(batch) or 'nothing'}; accepted: one with input_ids")
        mask = torch.ones_like(ids)
        if is_packed(batch):  # where padding stands as texts of one token, which nothing reads
            mask = (batch["position_ids"] + F.pad(batch["position_ids"][:, 1:], (0, 1)) > 0).to(mask.dtype)
    elif (ids is not None and mask.shape != ids.shape) or mask.dim() > 3:
        found = " x ".join(map(str, mask.shape))
        wanted = "(rows, tokens)" if ids is None else " x ".join(map(str, ids.shape))
        raise ValueError(f"attention_mask of {found}; accepted: {wanted}, 1 at real tokens and 0 at padding")
    return mask.reshape(-1, mask.size(-1))


def is_packed(batch: Mapping[str, Any]) -> bool:
    """Whether rows of the batch hold several texts, one after the other, as packing without padding makes them."""
    positions = batch.get("position_ids")
    if batch.get("attention_mask") is not None or positions is None:
        return False
    return positions.dim() == 2 and bool((positions == 0).sum(-1).max() > 1)


def head_of(model: nn.Module) -> nn.Module:
    """The model of transformers whose class says what its logits are, inside wrappers, adapters and own modules."""
    try:
        return base_model(outermost_encoder(unwrapped(model)))
    except UnsupportedLevelError:
        return base_model(model)


def is_encoder_decoder(head: nn.Module) -> bool:
    return bool(getattr(getattr(head, "config", None), "is_encoder_decoder", False))


def _problem(head: nn.Module) -> str | None:
    return getattr(getattr(head, "config", None), "problem_type", None)


def _by_class(head: nn.Module) -> str | None:
    names = " ".join(kind.__name__ for kind in type(head).__mro__)
    return next((view for mark, view in BY_TOKEN.items() if mark in names), None)


def _view_over_tokens(head: nn.Module) -> str:
    view = _by_class(head)
    if view is None:
        raise ValueError(
            f"{type(head).__name__}: its class does not say how logits over tokens are read; give task_type='tokens' "
            "(a class a token), 'masked_tokens' (those with a label) or 'next_tokens' (one token before the label)"
        )
    return view


def _view_of_texts(head: nn.Module, batch: Mapping[str, Any], logits: Tensor) -> str:
    """Of logits (rows, classes), or of one number a row, (rows,)."""
    name = type(head).__name__
    problem = _problem(head)
    if problem in BY_PROBLEM:
        return BY_PROBLEM[problem]
    labels = batch.get("labels")
    columns = logits.size(-1) if logits.dim() > 1 else 1
    if labels is None and columns == 1 and "SequenceClassification" in name:
        return "numbers"  # transformers' own reading of one output
    if columns > 1 and any(mark in name for mark in ONE_OF_SEVERAL):
        return "classes"
    if columns > 1 and labels is not None and not labels.is_floating_point() and labels.numel() == len(logits):
        return "classes"
    found = "no labels" if labels is None else f"labels of {' x '.join(map(str, labels.shape))}, {labels.dtype}"
    raise ValueError(
        f"{name}: {columns} numbers a text, {found} in the batch and no config.problem_type do not say how they are "
        "read; give task_type='classes', 'labels' (several labels a text, each a yes or no) or 'numbers'"
    )
