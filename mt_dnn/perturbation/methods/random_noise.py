"""Random-perturbation regularization: the control without a search."""

from __future__ import annotations

from ..base import AdversarialPerturbation


class RandomPerturbation(AdversarialPerturbation):
    """Random-perturbation regularization: δ is the initial noise, there is no search.

    Paper: Bishop 1995, "Training with Noise is Equivalent to Tikhonov Regularization", Neural Computation 7(1)
    (https://doi.org/10.1162/neco.1995.7.1.108).

    Climbs: nothing, K = 0.

    Adds: R = D(f(h + δ), f(h)) with δ ~ N(0, σ²).

    Other arguments, and errors: `AdversarialPerturbation`.

    Args:
        noise_var: σ.
        noise: `normal`, or `uniform` for δ ~ U(−σ, σ).
        projection: `none`, since noise without a search needs no ball.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: (batch, classes).
        Returns three scalars: R, emb_val, eff_perturb (0).

    Examples:
        >>> noise = RandomPerturbation(noise_var=0.01, projection="none")
        >>> R, emb_val, eff_perturb = noise(model, logits, input_ids, token_type_ids, attention_mask)
    """

    name = "random"

    @property
    def ascent_steps(self) -> int:
        return 0
