"""SiFT: scale-invariant fine-tuning."""

from __future__ import annotations

from .smart import SmartPerturbation


class SiftPerturbation(SmartPerturbation):
    """SiFT, scale-invariant fine-tuning: SMART's search at the normalized embeddings.

    It differs from `SmartPerturbation` only in the injection point: the output of the embedding block's LayerNorm.

    Paper: He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", ICLR, section 5
    (https://arxiv.org/abs/2006.03654); that "normalized" means the LayerNorm's output is the reading of Wang, Kuang &
    Bharti 2021.

    Climbs: D(f(h + δ), f(h)), as SMART does, with h the LayerNorm's output.

    Adds: R = D(f(h + δ), f(h)) at the δ found.

    Other arguments, and errors: `AdversarialPerturbation`; an encoder without a LayerNorm after its word embeddings
    raises `UnsupportedLevelError`.

    Args:
        radius: ε, the radius of the ball around h.
        step_size: η, the length of an ascent step.
        noise_var: σ of the initial noise, above 0.
        level: `post_ln`, or `deberta` for the injection point of DeBERTa's release.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: (batch, classes).
        Returns three scalars: R, emb_val, eff_perturb.

    Examples:
        >>> sift = SiftPerturbation(radius=0.05, step_size=0.05, noise_var=1e-3)
        >>> R, emb_val, eff_perturb = sift(model, logits, input_ids, token_type_ids, attention_mask)
    """

    default_level = "post_ln"
