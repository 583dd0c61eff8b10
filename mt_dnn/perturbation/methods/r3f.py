"""R3F: random-perturbation regularization with uniform noise."""

from __future__ import annotations

from .random_noise import RandomPerturbation


class R3fPerturbation(RandomPerturbation):
    """R3F, robust representations through regularized finetuning: uniform noise, no search.

    It differs from `RandomPerturbation` only in the default distribution of the noise.

    Paper: Aghajanyan et al. 2020, "Better Fine-Tuning by Reducing Representational Collapse", section 3
    (https://arxiv.org/abs/2008.03156).

    Climbs: nothing, K = 0.

    Adds: R = D(f(h + δ), f(h)) with δ ~ U(−σ, σ) and D the symmetrized KL divergence.

    Other arguments, and errors: `AdversarialPerturbation`.

    Args:
        noise_var: σ.
        noise: `uniform`, or `normal` for δ ~ N(0, σ²); the paper has both.
        projection: `none`, since noise without a search needs no ball.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: (batch, classes).
        Returns three scalars: R, emb_val, eff_perturb (0).

    Examples:
        >>> r3f = R3fPerturbation(noise_var=0.01, projection="none")
        >>> R, emb_val, eff_perturb = r3f(model, logits, input_ids, token_type_ids, attention_mask)
    """

    name = "r3f"
    default_noise = "uniform"
