"""FreeLB: adversarial training that averages over the points of its ascent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..outputs import Comparison
from ..search import Search
from .adversarial_training import AdversarialTraining


class FreeLbPerturbation(AdversarialTraining):
    """FreeLB, free large-batch adversarial training: the task loss averaged over the K points of its ascent.

    The graphs of the K passes are kept for one backward pass, so activations take K times the memory of a plain step.

    Paper: Zhu et al. 2020, "FreeLB: Enhanced Adversarial Training for Natural Language Understanding", ICLR,
    Algorithm 1 (https://arxiv.org/abs/1909.11764).

    Climbs: ℓ(f(h + δ), y), the task loss, from uniform noise with ‖δ₀‖ ≤ σ.

    Adds: R = (1/K) Σ ℓ(f(h + δ_t), y) over t = 0 … K − 1, which replaces the task loss.

    Other arguments, and errors: `AdversarialPerturbation`; a call without `task_loss` raises a ValueError.

    Args:
        k: K, the number of points, at least 1.
        norm_p: `l2` in the paper.
        norm_level: 1 in the paper, norms over sentences.
        noise_var: σ, the bound of the norm of the initial noise.
        step_size: η, the length of an ascent step.
        radius: ε, the radius of the ball around h.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: ignored.
        `task_loss` takes the output of the model and returns a scalar.
        Returns three scalars: R, emb_val, eff_perturb.

    Examples:
        >>> freelb = FreeLbPerturbation(k=3, norm_p="l2", norm_level=1, noise_var=0.05, step_size=0.1, radius=0.2)
        >>> R, *_ = freelb(model, None, input_ids, None, attention_mask, task_loss=lambda z: F.cross_entropy(z, labels))
    """

    name = "freelb"
    default_noise = "uniform"
    replaces_task_loss = True
    takes_ascent_loss = False

    @property
    def ascent_steps(self) -> int:
        """K − 1: no step follows the last point."""
        return self.k - 1

    def check(self) -> None:
        super().check()
        if self.k < 1:
            raise ValueError(f"k is {self.k}; FreeLB needs at least 1 step")

    def noise_unit(self, unit: Tensor, mask: Tensor, hidden: int) -> Tensor:
        """For `l2`, σ bounds the norm of δ₀, so entries are divided by the square root of their number."""
        if self.norm_p != "l2" or self.scale == "relative":
            return unit  # with relative `l2` noise the unit is the root mean square, which contains that factor
        if self.scope == "token":
            return unit / math.sqrt(hidden)
        return unit / (mask.sum(1).clamp(min=1) * hidden).to(unit.dtype).sqrt().view(-1, 1, 1)

    def search(self, search: Search, comparison: Comparison) -> Tensor:
        """The mean task loss over the points of the ascent."""
        losses = []
        for step in range(self.k):
            output = search.joint_output()
            losses.append(self.final_loss(output, comparison))
            if step < self.ascent_steps:
                gradients = search.gradient(losses[-1] * comparison.loss_denominator(output), retain_graph=True)
                search.ascend(gradients, comparison.finite(output))
        return torch.stack(losses).mean()
