"""A head over tokens."""

from __future__ import annotations

from torch import Tensor, nn

from module.dropout_wrapper import DropoutWrapper


class TokenHead(nn.Linear):
    """Dropout, then a projection of every token: (rows, tokens, hidden) → (rows, tokens, outputs).

    Args:
        hidden_size, outputs: sizes.
        dropout_p: of the encoder's output.
    """

    def __init__(self, hidden_size: int, outputs: int, dropout_p: float):
        super().__init__(hidden_size, outputs)
        self.dropout = DropoutWrapper(dropout_p)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(self.dropout(hidden_states))
