"""The head of a masked language model."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN


class MaskLmHead(nn.Module):
    """Dense layer, activation, LayerNorm, then the scores of all words: (…, hidden) → (…, words) [Devlin et al. 2019].

    Scores are products with the encoder's word table, an argument of every call, plus a bias for each word.

    Args:
        hidden_size: size of the encoder's output.
        embedding_size, words: sizes of the word table, (words, embedding_size).
        actf: name of the activation in transformers.
        eps: eps of the LayerNorm.
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
        """Copy the parameters of transformers' masked language model; layers are matched by type and size.

        Args:
            model: a masked language model with the same encoder.
            missing: names of the parameters that the model's file did not have.

        Returns:
            True if the model has such a head and its file had the parameters; otherwise nothing is copied.
        """
        encoder_modules = set(model.base_model.modules())
        head = {name: module for name, module in model.named_modules() if module not in encoder_modules and name}
        targets: tuple[nn.Module, ...] = (self.dense, self.norm)
        sources: list[tuple[str, nn.Module]] = []
        for target in targets:
            matches = [
                (name, module)
                for name, module in head.items()
                if type(module) is type(target) and _sizes(module) == _sizes(target)
            ]
            if len(matches) != 1:
                return False
            sources += matches
        biases = {
            f"{name}.bias": module.bias
            for name, module in head.items()
            if isinstance(getattr(module, "bias", None), Tensor) and module.bias.shape == self.bias.shape
        }
        present = [bias for name, bias in biases.items() if name not in missing]
        if not present or {f"{name}.{part}" for name, _ in sources for part in ("weight", "bias")} & set(missing):
            return False
        for target, (_, source) in zip(targets, sources, strict=True):
            target.load_state_dict(source.state_dict())
        self.bias.copy_(present[0])
        return True


def _sizes(layer: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in layer.named_parameters(recurse=False)}
