"""Adversarial training on the gold labels: FGSM and PGD."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..base import AdversarialPerturbation
from ..outputs import Comparison


class AdversarialTraining(AdversarialPerturbation):
    """Adversarial training: the task loss on the gold label at a perturbed point. FGSM with K = 1, PGD with K > 1.

    Paper: Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples", ICLR
    (https://arxiv.org/abs/1412.6572); on word embeddings Miyato et al. 2017, "Adversarial Training Methods for
    Semi-Supervised Text Classification", ICLR (https://arxiv.org/abs/1605.07725).

    Climbs: ℓ(f(h + δ), y), the task loss; or `ascent_loss`, for a targeted attack minus the loss of the target.

    Adds: R = ℓ(f(h + δ), y) at the δ found. It needs no clean logits.

    Other arguments, and errors: `AdversarialPerturbation`; a call without `task_loss` raises a ValueError.

    Args:
        norm_p: `l1` for the sign step of FGSM.
        noise_var: σ; 0 for FGSM.
        step_size: η; at least ε for FGSM.
        radius: ε, the radius of the ball around h.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: ignored.
        `task_loss` and `ascent_loss` take the output of the model and return a scalar.
        Returns three scalars: R, emb_val, eff_perturb.

    Examples:
        >>> fgsm = AdversarialTraining(norm_p="l1", noise_var=0.0, step_size=0.01, radius=0.01)
        >>> R, *_ = fgsm(model, None, input_ids, None, attention_mask, task_loss=lambda z: F.cross_entropy(z, labels))
    """

    name = "at"
    needs_clean = False
    learns_from_clean = False
    needs_labels = True
    takes_ascent_loss = True

    def ascent_loss(self, output: Any, comparison: Comparison) -> Tensor:
        if comparison.ascent_loss is not None:
            return comparison.ascent_loss(output)
        return comparison.labeled_loss(output) * comparison.loss_denominator(output)

    def final_loss(self, output: Any, comparison: Comparison) -> Tensor:
        return comparison.labeled_loss(output)
