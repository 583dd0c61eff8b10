"""NEFTune: noise on the word vectors in the task loss's own pass."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..ball import check_name
from .adversarial_training import AdversarialTraining

LENGTHS = ("padded", "real")


class NeftunePerturbation(AdversarialTraining):
    """NEFTune, noisy embeddings fine-tuning: the task loss under uniform noise on the word vectors, in one pass.

    There is no search and no second pass. In evaluation there is no noise.

    Paper: Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning", ICLR 2024, Algorithm 1
    (https://arxiv.org/abs/2310.05914).

    Climbs: nothing, K = 0.

    Adds: R = ℓ(f(h + δ), y) with δ ~ U(−1, 1) · σ / √(L · hidden), which replaces the task loss. L is the number of
    tokens of the text, and hidden the size of a word vector.

    Other arguments, and errors: `AdversarialPerturbation`; a call without `task_loss` raises a ValueError.

    Args:
        noise_var: σ, the paper's α: 5, 10 or 15 there.
        length: what L counts: `real`, each text's own tokens, so that its noise depends neither on its batch nor on
            the number of processes; or `padded`, the tokens of the batch's longest text, as transformers' Trainer and
            the paper's code do.
        projection: `none`, since noise without a search needs no ball.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: ignored.
        `task_loss` takes the output of the model and returns a scalar.
        Returns three scalars: R, emb_val, eff_perturb (0).

    Examples:
        >>> noisy = NeftunePerturbation(noise_var=5.0, projection="none")
        >>> R, *_ = noisy(model, None, input_ids, None, attention_mask, task_loss=lambda z: F.cross_entropy(z, labels))
    """

    name = "neftune"
    default_noise = "uniform"
    replaces_task_loss = True
    takes_ascent_loss = False

    def __init__(self, *arguments: Any, length: str = "real", **options: Any):
        self._length = length
        super().__init__(*arguments, **options)

    @property
    def ascent_steps(self) -> int:
        return 0

    def check(self) -> None:
        super().check()
        check_name("length", self._length, LENGTHS)

    def noise_unit(self, unit: Tensor, mask: Tensor, hidden: int) -> Tensor:
        """1 / √(L · hidden), times the size of h with relative noise."""
        if self._length == "padded":
            return unit / math.sqrt(mask.size(1) * hidden)
        return unit / (mask.sum(1).clamp(min=1) * hidden).to(unit.dtype).sqrt().view(-1, 1, 1)
