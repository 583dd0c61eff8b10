"""Dropout over the tokens of an example."""

from __future__ import annotations

from torch import Tensor, nn


class DropoutWrapper(nn.Dropout):
    """Dropout of entries; variational: the same entries of all tokens of an example [Gal & Ghahramani 2016].

    Vectors (rows, hidden) have ordinary dropout; for states (rows, tokens, hidden) a mask (rows, 1, hidden) is drawn.

    Args:
        dropout_p: share of entries dropped in training; the others are divided by 1 − dropout_p.
        variational: `--vb_dropout`; without it each token has a mask of its own.
    """

    def __init__(self, dropout_p: float = 0.0, variational: bool = True):
        super().__init__(dropout_p)
        self.variational = variational

    def forward(self, input: Tensor) -> Tensor:
        if self.variational and self.training and self.p > 0 and input.dim() == 3:
            return input * super().forward(input.new_ones(len(input), 1, input.size(-1)))
        return super().forward(input)
