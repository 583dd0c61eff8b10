"""The head of a masked language model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN


class MaskLmHead(nn.Module):
    """Dense, activation, LayerNorm, then the scores of all words: (…, hidden) → (…, words) [Devlin et al. 2019].

    The scores are products with the encoder's own word table, which is given with every call, plus a bias of each word.

    Args:
        hidden_size: of the encoder's output.
        embedding_size, words: of the word table, (words, embedding_size).
        actf: the activation, as transformers names it.
        eps: of the LayerNorm.
    """

    def __init__(self, hidden_size: int, embedding_size: int, words: int, actf: str = "gelu", eps: float = 1e-12):
        super().__init__()
        self.dense = nn.Linear(hidden_size, embedding_size)
        self.activation = ACT2FN[actf]
        self.norm = nn.LayerNorm(embedding_size, eps=eps)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, hidden_states: Tensor, word_table: Tensor) -> Tensor:
        return F.linear(self.norm(self.activation(self.dense(hidden_states))), word_table, self.bias)
