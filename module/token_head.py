"""A head with outputs for every token."""

from __future__ import annotations

from torch import nn

from module.dropout_wrapper import DropoutWrapper


def token_head(hidden_size: int, outputs: int, dropout_p: float) -> nn.Module:
    """Dropout, then a projection of every token: (rows, tokens, hidden) → (rows, tokens, outputs).

    Its keys in a checkpoint are those of MT-DNN: `1.weight` and `1.bias`; without dropout `weight` and `bias`.

    Args:
        hidden_size, outputs: input and output size.
        dropout_p: the share of the encoder's output that is dropped in training.
    """
    projection = nn.Linear(hidden_size, outputs)
    return nn.Sequential(DropoutWrapper(dropout_p), projection) if dropout_p > 0 else projection
