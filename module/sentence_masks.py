"""Which tokens of a pair of sentences belong to the first, and which to the second."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sentence_masks(
    input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens of the premise and of the hypothesis, special tokens included: two boolean (rows, tokens).

    Token types tell them, 0 and 1. Of a row that has no token of type 1, as for encoders without types, the premise
    ends with the first separator; the separator is what the row's last real token is. A row of one sentence has no
    token of a hypothesis.
    """
    real = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
    separator = input_ids.gather(1, (real.sum(1, keepdim=True) - 1).clamp(min=0))
    real = real.bool()
    ends = (input_ids == separator) & real
    second = ends.cumsum(1) > ends.long()  # a separator has been met before
    if token_type_ids is None:
        return ~second & real, second & real
    typed = (token_type_ids == 1) & real
    has_types = typed.any(1, keepdim=True)
    first = (token_type_ids == 0).where(has_types, ~second)
    return first & real, typed.where(has_types, second & real)


def kept_tokens(left_out: Tensor, tokens: int) -> Tensor:
    """A premise or hypothesis mask of MT-DNN's call, 1 at what is left out, as a boolean mask of what is kept.

    Args:
        left_out: (rows, tokens) or narrower; tokens beyond its width are left out.
        tokens: of the batch.
    """
    return F.pad(left_out.long(), (0, tokens - left_out.size(1)), value=1) == 0
