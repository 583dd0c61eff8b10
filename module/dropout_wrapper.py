"""Variational dropout."""

from __future__ import annotations

from torch import Tensor, nn


class DropoutWrapper(nn.Dropout):
    """Dropout with one mask per example, shared by all its tokens [Gal & Ghahramani 2016].

    The mask of states (rows, tokens, hidden) is (rows, 1, hidden). Vectors (rows, hidden) get ordinary dropout.

    Args:
        dropout_p: the share of entries dropped in training; the others are divided by 1 − dropout_p.
        variational: share the mask (`--vb_dropout`); otherwise dropout is ordinary.
    """

    def __init__(self, dropout_p: float = 0.0, variational: bool = True):
        super().__init__(dropout_p)
        self.variational = variational

    def forward(self, input: Tensor) -> Tensor:
        if self.variational and self.training and self.p > 0 and input.dim() == 3:
            return input * super().forward(input.new_ones(len(input), 1, input.size(-1)))
        return super().forward(input)
