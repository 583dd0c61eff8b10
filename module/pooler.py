"""The pooled representation of a sequence."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN


class Pooler(nn.Module):
    """Dropout on the first token's vector, a dense layer, an activation: (batch, tokens, hidden) → (batch, hidden).

    Args:
        hidden_size: size of the encoder's output.
        dropout_p: the share of entries dropped before the dense layer.
        actf: name of the activation in transformers (`tanh`, `relu`, `gelu`, …); None for no activation.

    Raises:
        KeyError: an unknown activation.
    """

    def __init__(self, hidden_size: int, dropout_p: float = 0.1, actf: str | None = None):
        super().__init__()
        self.dropout = nn.Dropout(dropout_p)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = nn.Identity() if actf is None else ACT2FN[actf]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(self.dropout(hidden_states[:, 0])))
