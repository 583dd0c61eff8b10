"""SMART: smoothness-inducing adversarial regularization."""

from __future__ import annotations

from ..base import AdversarialPerturbation


class SmartPerturbation(AdversarialPerturbation):
    """SMART, smoothness-inducing adversarial regularization, at the word embeddings.

    Paper: Jiang et al. 2020, "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through
    Principled Regularized Optimization", ACL, section 3.1 and Algorithm 1 (https://arxiv.org/abs/1911.03437).

    Climbs: D(f(h + δ), f(h)), the task's divergence of perturbed and clean predictions.

    Adds: R = D(f(h + δ), f(h)) at the δ found.

    Other arguments, and errors: `AdversarialPerturbation`.

    Args:
        radius: ε, the radius of the ball around h.
        step_size: η, the length of an ascent step.
        noise_var: σ of the initial noise, above 0: D has no gradient at δ = 0.
        k: K, the number of ascent steps.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: (batch, classes).
        Returns three scalars: R, emb_val, eff_perturb.

    Examples:
        >>> smart = SmartPerturbation(radius=0.01, step_size=0.01, noise_var=1e-3)
        >>> R, emb_val, eff_perturb = smart(model, logits, input_ids, token_type_ids, attention_mask)
    """

    name = "smart"
