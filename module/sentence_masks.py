"""Masks of the two sentences of a pair."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sentence_masks(
    input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Masks of the premise and the hypothesis, special tokens included: two boolean (rows, tokens).

    The premise has token type 0, the hypothesis 1. If a row has no token of type 1, because the encoder has no types,
    the premise ends with the row's first separator; the separator is the row's last real token. The hypothesis of a row
    with one sentence is empty.

    Args:
        input_ids, token_type_ids, attention_mask: (rows, tokens); no attention mask means no padding.
    """
    real = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
    separator = input_ids.gather(1, (real.sum(1, keepdim=True) - 1).clamp(min=0))
    real = real.bool()
    ends = (input_ids == separator) & real
    second = ends.cumsum(1) > ends.long()  # there is a separator before this token
    if token_type_ids is None:
        return ~second & real, second & real
    typed = (token_type_ids == 1) & real
    has_types = typed.any(1, keepdim=True)
    first = (token_type_ids == 0).where(has_types, ~second)
    return first & real, typed.where(has_types, second & real)


def from_mtdnn_mask(excluded: Tensor, tokens: int) -> Tensor:
    """The boolean mask (rows, tokens) for a premise or hypothesis mask of MT-DNN's call, which is 1 at excluded tokens.

    Args:
        excluded: (rows, tokens) or narrower; tokens beyond its width are excluded.
        tokens: width of the batch.
    """
    return F.pad(excluded.long(), (0, tokens - excluded.size(1)), value=1) == 0
