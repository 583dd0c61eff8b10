"""The head of a masked language model."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
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

    @torch.no_grad()
    def take_over(self, model: PreTrainedModel, missing: Collection[str]) -> bool:
        """Take the parameters of transformers' masked language model, found by their kinds and sizes.

        Args:
            model: with the same encoder.
            missing: the parameters that the file of the model did not have.

        Returns:
            Whether the model has such a head, and its file had it.
        """
        inner = set(model.base_model.modules())
        outer = {name: module for name, module in model.named_modules() if module not in inner and name}
        own_layers: tuple[nn.Module, ...] = (self.dense, self.norm)
        taken: list[tuple[str, nn.Module]] = []
        for own in own_layers:
            alike = [pair for pair in outer.items() if type(pair[1]) is type(own) and _sizes(pair[1]) == _sizes(own)]
            if len(alike) != 1:
                return False
            taken += alike
        biases = {
            f"{name}.bias": module.bias
            for name, module in outer.items()
            if isinstance(getattr(module, "bias", None), Tensor) and module.bias.shape == self.bias.shape
        }
        there = [bias for name, bias in biases.items() if name not in missing]
        if not there or {f"{name}.{part}" for name, _ in taken for part in ("weight", "bias")} & set(missing):
            return False
        for own, (_, theirs) in zip(own_layers, taken, strict=True):
            own.load_state_dict(theirs.state_dict())
        self.bias.copy_(there[0])
        return True


def _sizes(layer: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in layer.named_parameters(recurse=False)}
