"""Adversarial regularizers: the inner search for a perturbation, and the methods built on it.

`SmartPerturbation` searches at the raw word embeddings, `SiftPerturbation` at normalized embeddings; the search is the
same. They know no file, no flag and no trainer, need torch alone, and run on any model that holds an encoder with word
embeddings. The equations stand in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_utils.task_def import EncoderModelType, TaskType
from module.ball import NORMS, SCOPES, ascent_direction, embedding_size, project, scope_norm
from module.noise import dropout_seed, forked_dropout, gaussian_noise
from module.noise_injection import LEVELS, NoiseInjection, find_encoder
from mt_dnn.loss import MseCriterion, NsKlCriterion, SymKlCriterion

PROJECTIONS = ("project", "normalize", "none")
SCALES = ("absolute", "relative")
# The constant beside ‖g‖ in the direction of projection "none", as in DeBERTa's release.
DIRECTION_CONSTANT = 1e-6

Divergence = Callable[..., Tensor]


class Regularization(NamedTuple):
    """What one search over a batch gives; all scalar tensors, means over the entries of real tokens.

    loss: R, the only one with a gradient; emb_val: mean |h|; eff_perturb: mean size of what the last ascent step added;
    delta_size: mean |δ|; skipped: number of examples whose ascent met a value that is not finite.
    """

    loss: Tensor
    emb_val: Tensor
    eff_perturb: Tensor
    delta_size: Tensor
    skipped: Tensor


class SmartPerturbation(nn.Module):
    """Smoothness-inducing adversarial regularization at the word embeddings.

    R = D(f(h + δ), f(h)), with δ found by K steps of ascent on D within a ball around the word embeddings h.
    Paper: Jiang et al. 2020, "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through
    Principled Regularized Optimization", ACL, section 3.1 and Algorithm 1 (https://arxiv.org/abs/1911.03437).

    Args:
        epsilon: the constant beside the norm in the projection `normalize`; of no use otherwise.
        multi_gpu_on, fp16, encoder_type: accepted for MT-DNN's call; the search needs none of them.
        step_size: η of an ascent step.
        noise_var: σ, the standard deviation of the initial noise.
        norm_p: `inf`, `l2`, or `l1` (the sign step; its ball is that of `inf`).
        k: K, the number of ascent steps.
        loss_map: the divergence D of each task id, called as D(input=f(h + δ), target=f(h)) and meaning over its rows;
            a task without one takes the symmetrized KL divergence (squared error for regression).
        norm_level: scope of a norm, 0 a token, 1 a sentence.
        radius: ε of the ball; None leaves the ball to `normalize`, the arithmetic of MT-DNN's release.
        projection: `project` (onto the ball of that radius), `normalize`, or `none` (DeBERTa's release); by default
            `project` where there is a radius, `normalize` where there is none.
        scale: `absolute`, or `relative`: ε, η and σ in units of h's size, scope by scope.
        level: injection point, see `NoiseInjection`.
        noise_clamp: clamp the initial noise to ±2σ.
        detach_base: R's gradient does not flow into h itself.
        same_dropout: the perturbed passes repeat the dropout masks of the clean pass.

    Raises:
        ValueError: a name that is not accepted, or a combination without meaning.

    Example:
        >>> smart = SmartPerturbation(norm_p="l2", radius=0.05, step_size=0.05, noise_var=1e-3, scale="relative")
        >>> R, emb_val, eff_perturb = smart.forward(model, logits, input_ids, token_type_ids, attention_mask)
    """

    default_level = "pre_ln"

    def __init__(
        self,
        epsilon: float = 1e-6,
        multi_gpu_on: bool = False,
        step_size: float = 1e-3,
        noise_var: float = 1e-5,
        norm_p: str = "inf",
        k: int = 1,
        fp16: bool = False,
        encoder_type: EncoderModelType = EncoderModelType.BERT,
        loss_map: Sequence[Divergence] = (),
        norm_level: int = 0,
        *,
        radius: float | None = None,
        projection: str | None = None,
        scale: str = "absolute",
        level: str | None = None,
        noise_clamp: bool = False,
        detach_base: bool = False,
        same_dropout: bool = False,
    ):
        super().__init__()
        self.epsilon = epsilon
        self.step_size = step_size
        self.noise_var = noise_var
        self.norm_p = norm_p
        self.k = k
        self.loss_map = loss_map
        self.scope = tuple(SCOPES)[norm_level] if norm_level in (0, 1) else str(norm_level)
        self.radius = radius
        self.projection = projection or ("normalize" if radius is None else "project")
        self.scale = scale
        self.level = level or self.default_level
        self.noise_clamp = noise_clamp
        self.detach_base = detach_base
        self.same_dropout = same_dropout
        self._check()

    def _check(self) -> None:
        for name, found, accepted in (
            ("norm_p", self.norm_p, NORMS),
            ("norm_level", self.scope, SCOPES),
            ("level", self.level, LEVELS),
            ("projection", self.projection, PROJECTIONS),
            ("scale", self.scale, SCALES),
        ):
            if found not in accepted:
                raise ValueError(f"{name} is {found!r}; accepted: {', '.join(accepted)}")
        if self.projection == "project" and not (self.radius is not None and self.radius > 0):
            raise ValueError(f"the projection 'project' needs a radius above 0, found {self.radius}")
        if self.projection == "normalize" and not self.epsilon > 0:
            raise ValueError(f"the projection 'normalize' needs an epsilon above 0, found {self.epsilon}")
        if self.projection == "normalize" and self.norm_p == "l1":
            raise ValueError("the projection 'normalize' has no meaning with norm_p 'l1'; accepted: inf, l2")
        if self.projection == "normalize" and self.scale == "relative":
            raise ValueError("the projection 'normalize' has no meaning with scale 'relative'")
        if self.k < 0 or self.noise_var < 0 or self.step_size < 0:
            found_sizes = f"{self.k}, {self.noise_var}, {self.step_size}"
            raise ValueError(f"k, noise_var, step_size are {found_sizes}; accepted: 0 or more")

    def forward(
        self,
        model: nn.Module,
        logits: Tensor,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        attention_mask: Tensor | None,
        premise_mask: Tensor | None = None,
        hyp_mask: Tensor | None = None,
        task_id: int = 0,
        task_type: TaskType = TaskType.Classification,
        pairwise: int = 1,
        *,
        noise_seeds: Sequence[int] | None = None,
        dropout_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R of one batch, for a model called as MT-DNN's: returns (R, emb_val, eff_perturb).

        Args: as in `regularize`; `model` is called as
            `model(input_ids, token_type_ids, attention_mask, premise_mask, hyp_mask, task_id)`, its tensors of shape
            (batch, tokens); no attention mask means no padding.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = self.regularize(
            lambda: model(input_ids, token_type_ids, attention_mask, premise_mask, hyp_mask, task_id),
            find_encoder(model),
            logits,
            mask,
            task_id=task_id,
            task_type=task_type,
            pairwise=pairwise,
            noise_seeds=noise_seeds,
            dropout_state=dropout_state,
        )
        return found.loss, found.emb_val, found.eff_perturb

    def regularize(
        self,
        evaluate: Callable[[], Tensor],
        encoder: nn.Module,
        logits: Tensor,
        mask: Tensor,
        *,
        task_id: int = 0,
        task_type: TaskType = TaskType.Classification,
        pairwise: int = 1,
        noise_seeds: Sequence[int] | None = None,
        dropout_state: Tensor | None = None,
    ) -> Regularization:
        """Search δ for one batch and compute R (SMART, Algorithm 1, lines 4 to 9).

        Args:
            evaluate: the model's forward on this batch, called K + 1 times: logits of the shape of `logits`.
            encoder: the encoder that this forward runs, where the noise enters.
            logits: f(h), the clean pass, (batch, classes); the gradient of R flows into it.
            mask: (batch, tokens), 1 at real tokens.
            task_id: chooses D from `loss_map`.
            task_type, pairwise: how logits are viewed as distributions; ranking has `pairwise` rows a group.
            noise_seeds: one seed an example (`module.noise.example_seeds`); without them torch's generator draws the
                noise, and dropout goes on in it.
            dropout_state: the generator's state before the clean pass, needed with `same_dropout`.
        """
        view = _distributions(task_type, pairwise)
        clean = view(logits)
        divergence = self._divergence(task_id, task_type)
        injection = NoiseInjection(encoder, self.level)
        if self.same_dropout and noise_seeds is None:
            # Noise drawn within the fork would shift the masks that the fork repeats.
            noise_seeds = torch.randint(2**62, (len(mask),)).tolist()
        search = _Search(self, mask, noise_seeds)

        def perturbed_logits(noise: Callable[[Tensor], Tensor], perturbed_pass: int) -> Tensor:
            start = self._dropout_start(noise_seeds, dropout_state, perturbed_pass)
            with injection.add(noise), forked_dropout(mask.device, start):
                return view(evaluate())

        for step in range(self.k):
            perturbed = perturbed_logits(search.ascent_pass, step)
            loss = self.ascent_loss(perturbed, clean.detach(), divergence)
            (gradient,) = torch.autograd.grad(loss, search.delta)
            search.ascend(gradient, perturbed.isfinite().reshape(len(mask), -1).all(1))
        perturbed = perturbed_logits(search.final_pass, self.k)
        return Regularization(self.final_loss(perturbed, clean, divergence), *search.statistics())

    def ascent_loss(self, perturbed: Tensor, clean: Tensor, divergence: Divergence) -> Tensor:
        """ℓ_a, summed over examples, so that an example's gradient does not depend on its batch."""
        return divergence(perturbed, clean) * len(clean)

    def final_loss(self, perturbed: Tensor, clean: Tensor, divergence: Divergence) -> Tensor:
        """R, the mean over examples."""
        return divergence(perturbed, clean)

    def _divergence(self, task_id: int, task_type: TaskType) -> Divergence:
        if task_id < len(self.loss_map):
            return self.loss_map[task_id]
        return MseCriterion() if task_type == TaskType.Regression else SymKlCriterion()

    def _dropout_start(
        self, noise_seeds: Sequence[int] | None, dropout_state: Tensor | None, perturbed_pass: int
    ) -> int | Tensor | None:
        if self.same_dropout:
            if dropout_state is None:
                raise ValueError("same_dropout needs dropout_state, the generator's state before the clean pass")
            return dropout_state
        return None if noise_seeds is None else dropout_seed(noise_seeds, perturbed_pass)


class SiftPerturbation(SmartPerturbation):
    """Scale-invariant fine-tuning: SMART's search at the normalized embeddings.

    It differs from `SmartPerturbation` by the injection point alone: the output of the embedding block's LayerNorm.
    Paper: He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", ICLR, section 5
    (https://arxiv.org/abs/2006.03654); the reading "output of the LayerNorm" is that of Wang, Kuang & Bharti 2021.
    Arguments, shapes and errors as in `SmartPerturbation`; an encoder without an embedding LayerNorm is refused.
    """

    default_level = "post_ln"


class MtdnnReleasePerturbation(SmartPerturbation):
    """The arithmetic of MT-DNN's release, to compare with its numbers (preset `mtdnn_release`).

    Two deviations from the paper: the ascent is on the summed NsKl criterion (squared error for regression) whatever
    the task's divergence is, and R's arguments stand the other way round.
    """

    def ascent_loss(self, perturbed: Tensor, clean: Tensor, divergence: Divergence) -> Tensor:
        ascent: Divergence = MseCriterion() if clean.size(-1) == 1 else NsKlCriterion()
        return ascent(perturbed, clean) * len(clean)

    def final_loss(self, perturbed: Tensor, clean: Tensor, divergence: Divergence) -> Tensor:
        return divergence(clean, perturbed)


PERTURBATIONS: dict[str, type[SmartPerturbation]] = {"smart": SmartPerturbation}


class _Search:
    """The perturbation δ of one batch on its way: initial noise, ascent steps, projection."""

    delta: Tensor

    def __init__(self, method: SmartPerturbation, mask: Tensor, noise_seeds: Sequence[int] | None):
        self.method = method
        self.mask = mask
        self.noise_seeds = noise_seeds
        self.started = False

    def ascent_pass(self, h: Tensor) -> Tensor:
        """h + δ, differentiable in δ alone; the first call draws the initial δ, for it is the first to see h."""
        return self._base(h.detach()) + self.delta.to(h.dtype)

    def final_pass(self, h: Tensor) -> Tensor:
        """h + δ, differentiable in h alone, so that the embeddings learn from R too."""
        return self._base(h.detach() if self.method.detach_base else h) + self.delta.detach().to(h.dtype)

    def _base(self, h: Tensor) -> Tensor:
        if not self.started:
            self._start(h.detach())
        return h

    def _start(self, h: Tensor) -> None:
        method = self.method
        dtype = torch.promote_types(h.dtype, torch.float32)
        h = h.to(dtype)
        self.real = self.mask.unsqueeze(-1).to(dtype)
        self.entries = self.mask.sum() * h.size(-1)
        self.noise_unit = self.unit = torch.ones((), dtype=dtype, device=h.device)
        if method.scale == "relative":
            self.noise_unit, self.unit = embedding_size(h, self.mask, method.norm_p, method.scope)
        noise = gaussian_noise(self.mask, h.size(-1), dtype, self.noise_seeds)
        if method.noise_clamp:
            noise = noise.clamp(-2, 2)
        delta = method.noise_var * self.noise_unit * noise
        if method.projection == "project":
            delta = self._project(delta)
        self.delta = delta.requires_grad_(method.k > 0)
        self.added = torch.zeros_like(delta)
        self.skipped = torch.zeros(len(h), dtype=torch.bool, device=h.device)
        self.emb_val = self._mean_size(h)
        self.started = True

    def ascend(self, gradient: Tensor, finite: Tensor) -> None:
        """One step; an example whose logits (`finite`, (batch,)) or gradient are not finite keeps its δ."""
        method, delta = self.method, self.delta.detach()
        finite = finite & (gradient.isfinite().all(-1) | (self.mask == 0)).all(1)
        gradient = torch.where(finite.view(-1, 1, 1) & (self.real > 0), gradient, 0.0)
        if method.projection == "normalize":
            step = method.step_size * gradient
            moved = delta + step
            norm = scope_norm(moved, method.norm_p, method.scope) + method.epsilon
            moved, added = moved / norm, step / norm
        else:
            constant = DIRECTION_CONSTANT if method.projection == "none" else 0.0
            direction = ascent_direction(gradient, method.norm_p, method.scope, constant)
            moved = delta + method.step_size * self.unit * direction
            if method.projection == "project":
                moved = self._project(moved)
            added = moved - delta
        keep = ~finite.view(-1, 1, 1)
        self.added = torch.where(keep, 0.0, added)
        self.delta = torch.where(keep, delta, moved).requires_grad_()
        self.skipped = self.skipped | ~finite

    def _project(self, delta: Tensor) -> Tensor:
        radius = self.method.radius
        assert radius is not None
        return project(delta, radius * self.unit, self.method.norm_p, self.method.scope)

    def statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.emb_val, self._mean_size(self.added), self._mean_size(self.delta), self.skipped.sum()

    def _mean_size(self, x: Tensor) -> Tensor:
        return (x.detach().abs() * self.real).sum() / self.entries


def _distributions(task_type: TaskType, pairwise: int) -> Callable[[Tensor], Tensor]:
    """How a task type's logits are viewed, one distribution (or one output) a row."""
    if task_type == TaskType.Ranking:
        return lambda logits: logits.view(-1, pairwise)
    if task_type in (TaskType.Classification, TaskType.Regression):
        return lambda logits: logits
    raise ValueError(f"no perturbation for {task_type.name}; accepted: Classification, Regression, Ranking")
