"""The forwards that a loss of sentence-transformers runs, and their texts in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt_dnn.perturbation.wrappers import unwrapped


class TextForward(NamedTuple):
    """A forward of a sentence-transformers model.

    features: `input_ids` (rows, tokens) and so on, as they were before the model added its results; output: the result
    that was recorded, (rows, size).
    """

    features: dict[str, Any]
    output: Tensor


@contextmanager
def recorded_texts(model: nn.Module, result: str) -> Iterator[list[TextForward]]:
    """A list to which each forward with gradients of the model is added while the block runs.

    Args:
        model: wrapped or not.
        result: the key of the model's result, such as `sentence_embedding`.
    """
    forwards: list[TextForward] = []
    features: list[dict[str, Any]] = []

    def before(_: nn.Module, args: tuple[dict[str, Any], ...]) -> None:
        features.append(dict(args[0]))

    def after(_: nn.Module, __: Any, output: Mapping[str, Any]) -> None:
        given = features.pop()
        if torch.is_grad_enabled():
            forwards.append(TextForward(given, output[result]))

    inner = unwrapped(model)
    handles = [inner.register_forward_pre_hook(before), inner.register_forward_hook(after)]
    try:
        yield forwards
    finally:
        for handle in handles:
            handle.remove()


def merged_texts(batches: Sequence[Mapping[str, Any]], pad_token: int = 0, left: bool = False) -> dict[str, Any]:
    """The texts of several batches as one batch, in their order, padded to the longest.

    Args:
        batches: features of sentence-transformers. Tensors of the shape of `input_ids`, (rows, tokens), are padded;
            everything else has to be the same in all batches.
        pad_token: what `input_ids` are padded with; other tensors with 0.
        left: pad before the texts, not after them.

    Raises:
        ValueError: the batches differ in more than their texts, or texts of several lengths have no attention mask.
    """
    first = batches[0]
    if len(batches) == 1:
        return dict(first)
    names = {name for batch in batches for name in batch}
    longest = max(batch["input_ids"].size(1) for batch in batches)
    if "attention_mask" not in names and any(batch["input_ids"].size(1) < longest for batch in batches):
        raise ValueError("columns of several lengths without attention_mask; accepted: batches with attention_mask")

    def padded(batch: Mapping[str, Any], name: str) -> Tensor:
        missing = longest - batch["input_ids"].size(1)
        return F.pad(batch[name], (missing, 0) if left else (0, missing), value=pad_token if name == "input_ids" else 0)

    merged: dict[str, Any] = {}
    for name in names:
        values = [batch.get(name) for batch in batches]
        if all(_is_by_token(batch, name) for batch in batches):
            merged[name] = torch.cat([padded(batch, name) for batch in batches])
        elif all(_is_same(value, values[0]) for value in values[1:]):
            merged[name] = values[0]
        else:
            raise ValueError(
                f"the texts of a batch have different {name!r}; accepted: columns that differ in their texts alone "
                "(include_prompt=True where columns have different prompts)"
            )
    return merged


def _is_by_token(batch: Mapping[str, Any], name: str) -> bool:
    value = batch.get(name)
    return isinstance(value, Tensor) and value.shape == batch["input_ids"].shape


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    return type(value) is type(other) and not isinstance(value, Tensor) and bool(value == other)
