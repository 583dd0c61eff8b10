"""VAT: virtual adversarial training."""

from __future__ import annotations

from torch import Tensor

from ..base import AdversarialPerturbation
from ..chunks import LogitRows
from ..divergences import KlCriterion, MseCriterion
from ..outputs import Comparison


class VatPerturbation(AdversarialPerturbation):
    """VAT, virtual adversarial training: the clean prediction is the label of the perturbed point.

    Paper: Miyato et al. 2018, "Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised
    Learning", TPAMI, section 3 (https://arxiv.org/abs/1704.03976).

    Climbs: KL(f(h) ‖ f(h + δ)), for regression the squared error; f(h) is detached.

    Adds: R = KL(f(h) ‖ f(h + δ)) at the δ found, f(h) detached. It needs no labels.

    Other arguments, and errors: `AdversarialPerturbation`; `loss_map` is ignored.

    Args:
        norm_p: `l2` in the paper.
        norm_level: 1 in the paper, norms over sentences.
        step_size: η; far above σ in the paper, so that δ is the direction of the gradient.
        radius: ε, the radius of the ball around h.
        noise_var: σ of the initial noise, above 0: KL has no gradient at δ = 0.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: (batch, classes).
        Returns three scalars: R, emb_val, eff_perturb.

    Examples:
        >>> vat = VatPerturbation(norm_p="l2", norm_level=1, radius=0.1, step_size=1.0, noise_var=1e-4)
        >>> R, emb_val, eff_perturb = vat(model, logits, input_ids, token_type_ids, attention_mask)
    """

    name = "vat"
    learns_from_clean = False

    def distance(self, perturbed: LogitRows, clean: LogitRows, comparison: Comparison) -> Tensor:
        criterion = MseCriterion() if comparison.view == "numbers" else KlCriterion()
        return comparison.distance(perturbed, clean.detach(), criterion)
