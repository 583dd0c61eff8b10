"""ALUM: SMART's regularizer under a curriculum."""

from __future__ import annotations

from .smart import SmartPerturbation


class AlumPerturbation(SmartPerturbation):
    """ALUM, SMART's regularizer under a curriculum: the first half of the updates trains without it.

    Paper: Liu et al. 2020, "Adversarial Training for Large Neural Language Models" (https://arxiv.org/abs/2004.08994).

    Climbs: D(f(h + δ), f(h)), as SMART does.

    Adds: R = D(f(h + δ), f(h)) at the δ found, from update number `start_ratio` · (all updates) on.

    Other arguments, and errors: `AdversarialPerturbation`.

    Args:
        start_ratio: the share of the updates without R, 0 to 1. A training loop asks `is_active` before each update.
        radius: ε, the radius of the ball around h.
        step_size: η, the length of an ascent step.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: (batch, classes).
        Returns three scalars: R, emb_val, eff_perturb.

    Examples:
        >>> alum = AlumPerturbation(radius=0.01, step_size=0.01, noise_var=1e-3, start_ratio=0.5)
        >>> R, *_ = alum(model, logits, input_ids, token_type_ids, attention_mask) if alum.is_active(80, 100) else (0,)
    """

    name = "alum"
    default_start_ratio = 0.5
