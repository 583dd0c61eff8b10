"""SMART as MT-DNN's release computes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..chunks import LogitRows
from ..divergences import MseCriterion, NsKlCriterion
from ..outputs import Comparison, Divergence
from ..search import sum_of
from .smart import SmartPerturbation


class MtdnnReleasePerturbation(SmartPerturbation):
    """SMART with the arithmetic of MT-DNN's release, to reproduce its numbers (preset `mtdnn_release`).

    It deviates from the paper twice: the ascent ignores the task's divergence, and the arguments of R are exchanged.

    Paper: Jiang et al. 2020, "SMART" (https://arxiv.org/abs/1911.03437), in the code of
    https://github.com/namisan/mt-dnn.

    Climbs: the summed NsKl criterion of f(h + δ) and f(h), for regression the squared error.

    Adds: R = D(f(h), f(h + δ)) at the δ found.

    Other arguments, and errors: `AdversarialPerturbation`.

    Args:
        epsilon: the small constant of the projection `normalize`; `radius` stays None.
        step_size: η, the length of an ascent step.
        noise_var: σ of the initial noise.

    Shape:
        `input_ids`, `token_type_ids`, `attention_mask`: (batch, tokens). `logits`: (batch, classes).
        Returns three scalars: R, emb_val, eff_perturb.

    Examples:
        >>> release = MtdnnReleasePerturbation(epsilon=1e-6, step_size=1e-5, noise_var=1e-5, norm_p="inf", k=1)
        >>> R, emb_val, eff_perturb = release(model, logits, input_ids, token_type_ids, attention_mask)
    """

    def ascent_loss(self, output: Any, comparison: Comparison) -> Tensor:
        def criterion(perturbed: LogitRows, clean: LogitRows) -> Tensor:
            number = comparison.view == "numbers" or (clean.size(-1) == 1 and comparison.view != "labels")
            divergence: Divergence = MseCriterion() if number else NsKlCriterion()
            return comparison.distance(perturbed, clean.detach(), divergence) * len(clean)

        return sum_of(criterion(perturbed, clean) for perturbed, clean in comparison.pairs(output))

    def distance(self, perturbed: LogitRows, clean: LogitRows, comparison: Comparison) -> Tensor:
        return comparison.distance(clean, perturbed)
