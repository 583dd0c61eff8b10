"""The methods: what each ascends on, and what it adds to the loss. The equations stand in docs/methods.md."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .base import AdversarialPerturbation, sum_of
from .divergences import KlCriterion, MseCriterion, NsKlCriterion
from .outputs import Comparison, Divergence
from .search import Search


class SmartPerturbation(AdversarialPerturbation):
    """Smoothness-inducing adversarial regularization at the word embeddings.

    R = D(f(h + δ), f(h)), with δ found by K steps of ascent on D within a ball around the word embeddings h.
    Paper: Jiang et al. 2020, "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through
    Principled Regularized Optimization", ACL, section 3.1 and Algorithm 1 (https://arxiv.org/abs/1911.03437).
    Arguments, shapes and errors as in `AdversarialPerturbation`.

    Examples:
        >>> smart = SmartPerturbation(norm_p="l2", radius=0.05, step_size=0.05, noise_var=1e-3, scale="relative")
        >>> R, emb_val, eff_perturb = smart.forward(model, logits, input_ids, token_type_ids, attention_mask)
    """

    name = "smart"


class SiftPerturbation(SmartPerturbation):
    """Scale-invariant fine-tuning: SMART's search at the normalized embeddings.

    It differs from `SmartPerturbation` by the injection point alone: the output of the embedding block's LayerNorm.
    Paper: He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", ICLR, section 5
    (https://arxiv.org/abs/2006.03654); the reading "output of the LayerNorm" is that of Wang, Kuang & Bharti 2021.
    Arguments, shapes and errors as in `SmartPerturbation`; an encoder without an embedding LayerNorm is refused.
    """

    default_level = "post_ln"


class AlumPerturbation(SmartPerturbation):
    """SMART's regularizer under a curriculum: the plain objective for the first half of the updates.

    Paper: Liu et al. 2020, "Adversarial Training for Large Neural Language Models" (https://arxiv.org/abs/2004.08994).
    """

    name = "alum"
    default_start_ratio = 0.5


class RandomPerturbation(AdversarialPerturbation):
    """R = D(f(h + δ), f(h)) with δ the initial noise: no search, K = 0.

    Paper: Bishop 1995, "Training with Noise is Equivalent to Tikhonov Regularization", Neural Computation 7(1).
    """

    name = "random"

    @property
    def ascent_steps(self) -> int:
        return 0


class R3fPerturbation(RandomPerturbation):
    """R = D(f(h + z), f(h)) with one sample z ~ U(−σ, σ) or N(0, σ²) an example; D is the symmetrized KL divergence.

    Paper: Aghajanyan et al. 2020, "Better Fine-Tuning by Reducing Representational Collapse", section 3
    (https://arxiv.org/abs/2008.03156). The draw aside it is `RandomPerturbation`.
    """

    name = "r3f"
    default_noise = "uniform"


class AdversarialTraining(AdversarialPerturbation):
    """R = ℓ(f(h + δ), y), with δ found by ascent on the same: the task loss on the gold label.

    With `l1`, K = 1, σ = 0 and η ≥ ε it is FGSM, with K > 1 PGD. Needs `task_loss`.
    Paper: Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples", ICLR
    (https://arxiv.org/abs/1412.6572); on embeddings: Miyato et al. 2017 (https://arxiv.org/abs/1605.07725).
    """

    name = "at"
    needs_clean = False
    learns_from_clean = False
    needs_labels = True

    def ascent_loss(self, output: Any, batch: Comparison) -> Tensor:
        return batch.labeled_loss(output) * batch.units(output)

    def final_loss(self, output: Any, batch: Comparison) -> Tensor:
        return batch.labeled_loss(output)


class VatPerturbation(AdversarialPerturbation):
    """R = KL(f(h) ‖ f(h + δ)), its target f(h) detached, with δ found by ascent on the same; squared error for numbers.

    Paper: Miyato et al. 2018, "Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised
    Learning", TPAMI, section 3 (https://arxiv.org/abs/1704.03976).
    """

    name = "vat"
    learns_from_clean = False

    def distance(self, perturbed: Tensor, clean: Tensor, batch: Comparison) -> Tensor:
        criterion = MseCriterion() if batch.view == "numbers" else KlCriterion()
        return batch.distance(perturbed, clean.detach(), criterion)


class FreeLbPerturbation(AdversarialTraining):
    """Instead of the task loss, its mean over the K points that the ascent visits: (1/K) Σ ℓ(f(h + δ_t), y).

    δ_0 is uniform with ‖δ_0‖ ≤ σ; δ_{t+1} = Π(δ_t + η·direction(∂ℓ/∂δ_t)). The K passes stay in one graph and one
    backward goes through all of them, so that memory for activations is K times that of a plain step.
    Paper: Zhu et al. 2020, "FreeLB: Enhanced Adversarial Training for Natural Language Understanding", ICLR,
    Algorithm 1 (https://arxiv.org/abs/1909.11764), which takes norms over sentences (`norm_level=1`).
    """

    name = "freelb"
    default_noise = "uniform"
    replaces_task_loss = True

    @property
    def ascent_steps(self) -> int:
        """K − 1: no step follows the last point."""
        return self.k - 1

    def check(self) -> None:
        super().check()
        if self.k < 1:
            raise ValueError(f"k is {self.k}; FreeLB needs at least 1 step")

    def noise_unit(self, unit: Tensor, mask: Tensor, hidden: int) -> Tensor:
        """σ bounds the norm of δ_0: its entries are smaller by the root of their number (in `l2`)."""
        if self.norm_p != "l2" or self.scale == "relative":
            return unit  # of `l2` the relative unit is the root mean square, and that factor is in it
        if self.scope == "token":
            return unit / math.sqrt(hidden)
        return unit / (mask.sum(1).clamp(min=1) * hidden).to(unit.dtype).sqrt().view(-1, 1, 1)

    def search(self, search: Search, batch: Comparison) -> Tensor:
        losses = []
        for step in range(self.k):
            output = search.joint_output()
            losses.append(self.final_loss(output, batch))
            if step < self.ascent_steps:
                gradient = search.gradient(losses[-1] * batch.units(output), retain_graph=True)
                search.ascend(gradient, batch.finite(output))
        return torch.stack(losses).mean()


class MtdnnReleasePerturbation(SmartPerturbation):
    """The arithmetic of MT-DNN's release, to compare with its numbers (preset `mtdnn_release`).

    Two deviations from the paper: the ascent is on the summed NsKl criterion (squared error for regression) whatever
    the task's divergence is, and R's arguments stand the other way round.
    """

    def ascent_loss(self, output: Any, batch: Comparison) -> Tensor:
        def release(perturbed: Tensor, clean: Tensor) -> Tensor:
            number = batch.view == "numbers" or (clean.size(-1) == 1 and batch.view != "labels")
            ascent: Divergence = MseCriterion() if number else NsKlCriterion()
            return batch.distance(perturbed, clean.detach(), ascent) * len(clean)

        return sum_of(release(perturbed, clean) for perturbed, clean in batch.pairs(output))

    def distance(self, perturbed: Tensor, clean: Tensor, batch: Comparison) -> Tensor:
        return batch.distance(clean, perturbed)


PERTURBATIONS: dict[str, type[AdversarialPerturbation]] = {
    method.name: method
    for method in (
        RandomPerturbation,
        AdversarialTraining,
        VatPerturbation,
        SmartPerturbation,
        AlumPerturbation,
        FreeLbPerturbation,
        R3fPerturbation,
    )
}
