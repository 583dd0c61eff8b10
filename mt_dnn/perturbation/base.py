"""What all methods share: hyperparameters, the call from MT-DNN and from other loops, the course of a search.

A method is a subclass in `methods.py`: it says what the ascent climbs and what is added to the loss. Methods know no
file, no flag and no trainer, need torch alone, and run on any model that holds an encoder with word embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .ball import NORMS, SCOPES
from .injection import LEVELS, NoiseInjection, find_encoder
from .measured_defaults import measured
from .method import Regularization
from .noise import NOISES
from .outputs import Comparison, Divergence, TaskLoss, default_divergence
from .regularizer import Forward, ModelRegularizer
from .search import Kept, Search

PROJECTIONS = ("project", "normalize", "none")
SCALES = ("absolute", "relative")

Method = TypeVar("Method", bound="AdversarialPerturbation")


class AdversarialPerturbation(nn.Module):
    """Base of the methods: R of a batch, at a perturbation δ found by K steps of ascent within a ball around h.

    Subclasses set `distance`, or `ascent_loss` and `final_loss`, or the course of the `search`.

    Args:
        epsilon: the constant beside the norm in the projection `normalize`; of no use otherwise.
        multi_gpu_on, fp16, encoder_type: accepted for MT-DNN's call; the search needs none of them.
        step_size: η of an ascent step.
        noise_var: σ, the standard deviation of the initial noise (of `uniform` noise: its bound).
        norm_p: `inf`, `l2`, or `l1` (the sign step; its ball is that of `inf`).
        k: K, the number of ascent steps.
        loss_map: the divergence D of each task id, called as D(f(h + δ), f(h)) and meaning over its rows;
            a task without one takes the symmetrized KL divergence (squared error for regression).
        norm_level: scope of a norm, 0 a token, 1 a sentence.
        radius: ε of the ball; None leaves the ball to `normalize`, the arithmetic of MT-DNN's release.
        projection: `project` (onto the ball of that radius), `normalize`, or `none` (DeBERTa's release); by default
            `project` where there is a radius, `normalize` where there is none.
        scale: `absolute`, or `relative`: ε, η and σ in units of h's size, scope by scope.
        level: injection point, see `NoiseInjection`; by default the class's own.
        noise_clamp: clamp the initial noise to ±2σ.
        detach_base: R's gradient does not flow into h itself.
        same_dropout: the perturbed passes repeat the dropout masks of the clean pass.
        noise: distribution of the initial noise, `normal` or `uniform`; by default the class's own.
        start_ratio: the share of the updates that is trained plainly before R is added; by default the class's own.

    Attributes:
        name: the method's name, as `--adv_opt` has it.
        needs_clean: whether R is computed from f(h); without it callers may leave the clean pass out.
        learns_from_clean: whether R's gradient flows into f(h) too.
        needs_labels: whether R is computed from the gold labels, by `task_loss`.
        replaces_task_loss: whether R stands in the place of the task loss instead of being added to it.
        shares_tokens: whether a search that measures its gain tells the size of its δ token by token, too.

    Raises:
        ValueError: a name that is not accepted, or a combination without meaning.
    """

    name: str
    default_level = "pre_ln"
    default_noise = "normal"
    default_start_ratio = 0.0
    needs_clean = True
    learns_from_clean = True
    needs_labels = False
    replaces_task_loss = False
    shares_tokens = False

    def __init__(
        self,
        epsilon: float = 1e-6,
        multi_gpu_on: bool = False,
        step_size: float = 1e-3,
        noise_var: float = 1e-5,
        norm_p: str = "inf",
        k: int = 1,
        fp16: bool = False,
        encoder_type: Any = None,
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
        noise: str | None = None,
        start_ratio: float | None = None,
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
        self.noise = noise or self.default_noise
        self.start_ratio = self.default_start_ratio if start_ratio is None else start_ratio
        self.check()

    @classmethod
    def with_defaults(cls: type[Method], **options: Any) -> Method:
        """The method with the measured hyperparameters of its level where `options` has none of its own.

        A radius given alone takes step size and initial noise with it.

        Args:
            options: keyword arguments of the class.
        """
        level = options.get("level") or cls.default_level
        values = measured(cls.name, level, options.get("radius"))
        values["norm_level"] = tuple(SCOPES).index(values.pop("norm_scope"))
        del values["alpha"]
        return cls(**(values | options))

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        *,
        task_type: Any = None,
        pairwise: int | Sequence[int] = 1,
        forward: Forward | None = None,
        task_loss: TaskLoss | None = None,
        **options: Any,
    ) -> ModelRegularizer:
        """This method bound to a model, for a training loop of your own: see `ModelRegularizer`.

        Args:
            options: hyperparameters, as in `with_defaults`.
        """
        perturbation = cls.with_defaults(**options)
        return ModelRegularizer(
            perturbation, model, task_type=task_type, pairwise=pairwise, forward=forward, task_loss=task_loss
        )

    def set_radius(self, radius: float) -> None:
        """Another radius; step size and initial noise are scaled with it, as in `with_defaults`.

        Raises:
            ValueError: the method has no radius, or this is none.
        """
        if self.radius is None or not radius > 0:
            raise ValueError(
                f"radius {radius} of {self.name}, whose radius is {self.radius}; accepted: a number above 0"
            )
        factor = radius / self.radius
        self.radius, self.step_size, self.noise_var = radius, self.step_size * factor, self.noise_var * factor

    @property
    def measured_alpha(self) -> float:
        """α, the weight of R that was measured for this method and level."""
        return measured(self.name, self.level)["alpha"]

    def begun(self, update: int, updates: int) -> bool:
        """Whether R is added in this update, counted from 0, of so many: not in the plain part of a curriculum."""
        # 0.07 of 100 updates are 7, and a little more in floating point
        return update >= self.start_ratio * updates - 1e-6

    def check(self) -> None:
        """See that the hyperparameters are accepted and go together."""
        for name, found, accepted in (
            ("norm_p", self.norm_p, NORMS),
            ("norm_level", self.scope, SCOPES),
            ("level", self.level, LEVELS),
            ("projection", self.projection, PROJECTIONS),
            ("scale", self.scale, SCALES),
            ("noise", self.noise, NOISES),
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
        if self.projection != "project" and self.radius is not None:
            raise ValueError(
                f"radius {self.radius} has no meaning with the projection {self.projection!r}; accepted: None"
            )
        if self.k < 0 or self.noise_var < 0 or self.step_size < 0:
            found_sizes = f"{self.k}, {self.noise_var}, {self.step_size}"
            raise ValueError(f"k, noise_var, step_size are {found_sizes}; accepted: 0 or more")
        if not 0 <= self.start_ratio <= 1:
            raise ValueError(f"start_ratio is {self.start_ratio}; accepted: 0 to 1")

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
        task_type: Any = "classes",
        pairwise: int | Sequence[int] = 1,
        *,
        noise_seeds: Sequence[int] | None = None,
        dropout_state: Tensor | None = None,
        task_loss: TaskLoss | None = None,
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
            task_loss=task_loss,
        )
        return found.loss, found.emb_val, found.eff_perturb

    def regularize(
        self,
        evaluate: Callable[[], Any],
        encoder: nn.Module | NoiseInjection,
        logits: Any,
        mask: Tensor,
        *,
        task_id: int = 0,
        task_type: Any = "classes",
        pairwise: int | Sequence[int] = 1,
        counted: Tensor | None = None,
        noise_seeds: Sequence[int] | None = None,
        dropout_state: Tensor | None = None,
        task_loss: TaskLoss | None = None,
        base: Tensor | None = None,
        kept: Kept | None = None,
        measure_gain: bool = False,
        verify: bool = False,
    ) -> Regularization:
        """Search δ for one batch and compute R (SMART, Algorithm 1, lines 4 to 9).

        Args:
            evaluate: the model's forward on this batch, called K + 1 times; returns logits, a tuple of them, or an
                output of transformers.
            encoder: the encoder that this forward runs, or its injection point where that was found before.
            logits: f(h), the clean pass, likewise; the gradient of R flows into it. None where `needs_clean` is false.
            mask: (batch, tokens), 1 at real tokens.
            task_id: chooses D from `loss_map`.
            task_type, pairwise, counted: how logits are viewed as distributions, see `Comparison`.
            noise_seeds: one seed an example (`noise.example_seeds`); without them torch's generator draws the noise,
                and dropout goes on in it.
            dropout_state: the generator's state before the clean pass, needed with `same_dropout`, of use to
                `measure_gain`.
            task_loss: ℓ(·, y) of an output of `evaluate`, where `needs_labels` is true.
            base: h of the clean pass, as `NoiseInjection.clean` gives it, so that the perturbed passes start from it;
                by default from that of the first perturbed pass.
            kept: δ of these examples from the epoch before. One pass then serves for R and for the one ascent step,
                whose gradient the backward of R gives [Shafahi et al. 2019]; for methods whose ascent climbs R.
            measure_gain: measure the two rises of the ascent gain too, at the cost of three forwards.
            verify: see that every pass has the same h, which a model that draws noise before it has not.
        """
        batch = Comparison(
            logits if self.needs_clean else None,
            mask,
            self._divergence(task_id, task_type),
            task_loss,
            task_type=task_type,
            pairwise=pairwise,
            counted=counted,
        )
        injection = encoder if isinstance(encoder, NoiseInjection) else NoiseInjection(encoder, self.level)
        search = Search(
            self, evaluate, injection, mask, noise_seeds, dropout_state, base, kept, verify and base is None
        )
        loss = self.search(search, batch) if kept is None else self._free_search(search, batch)
        rise, chance = self._rises(search, batch) if measure_gain and self.ascent_steps else (None, None)
        shares = search.token_shares() if measure_gain and self.shares_tokens else None
        return Regularization(loss, *search.statistics(), rise, chance, shares)

    @property
    def ascent_steps(self) -> int:
        """K."""
        return self.k

    def noise_unit(self, unit: Tensor, mask: Tensor, hidden: int) -> Tensor:
        """The unit of σ: `unit`, which is 1 or the root mean square of h, one a scope."""
        return unit

    def search(self, search: Search, batch: Comparison) -> Tensor:
        """K ascent steps, then R at the δ found."""
        for _ in range(self.ascent_steps):
            output = search.ascent_output()
            gradient = search.gradient(self.ascent_loss(output, batch))
            search.ascend(gradient, batch.finite(output))
        return self.final_loss(search.final_output(), batch)

    def _free_search(self, search: Search, batch: Comparison) -> Tensor:
        """R at the δ that was kept; δ takes its step in the backward."""
        output = search.joint_output()
        search.ascend_in_backward(batch.finite(output))
        return self.final_loss(output, batch)

    def ascent_loss(self, output: Any, batch: Comparison) -> Tensor:
        """ℓ_a, summed over examples, tokens or groups, so that an example's gradient does not depend on its batch."""
        return sum_of(
            self._distance(perturbed, clean.detach(), batch) * len(clean) for perturbed, clean in batch.pairs(output)
        )

    def final_loss(self, output: Any, batch: Comparison) -> Tensor:
        """R, the mean over examples."""
        return sum_of(self._distance(perturbed, clean, batch) for perturbed, clean in batch.pairs(output))

    def distance(self, perturbed: Tensor, clean: Tensor, batch: Comparison) -> Tensor:
        """How far perturbed from clean logits (rows, classes) are: the task's D, a mean over rows."""
        return batch.distance(perturbed, clean)

    def _distance(self, perturbed: Tensor, clean: Tensor, batch: Comparison) -> Tensor:
        return self.distance(perturbed, clean, batch) if len(clean) else perturbed.sum()

    def _divergence(self, task_id: int, task_type: Any) -> Divergence:
        return self.loss_map[task_id] if task_id < len(self.loss_map) else default_divergence(task_type)

    def _rises(self, search: Search, batch: Comparison) -> tuple[Tensor, Tensor]:
        """R(δ) − R(0) and R(δ′) − R(0), under the same dropout masks."""
        delta = search.delta.detach()
        # A trainer's loss runs forwards without gradients too, by which the search tells that they take no noise.
        with torch.set_grad_enabled(self.needs_labels):
            found, nothing, chance = (
                self.final_loss(search.repeated_output(noise), batch).detach()
                for noise in (delta, torch.zeros_like(delta), search.shuffled())
            )
        return found - nothing, chance - nothing


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *others = terms
    return sum(others, start=first)
