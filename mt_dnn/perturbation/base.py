"""The base of all methods: hyperparameters, the call from MT-DNN and from other training loops, the search.

A method is a subclass in `methods/`: it defines what the ascent climbs and what is added to the loss. Methods know no
files, flags or trainers. They need torch only, and run on any model that contains an encoder with word embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .ball import SCOPES, Ball
from .chunks import LogitRows
from .delta import CachedDelta
from .injection import NoiseInjection, find_encoder
from .levels import check_levels, level_name
from .measured_defaults import measured
from .method import Regularization, check_ascent_loss
from .noise import InitialNoise
from .outputs import Comparison, Divergence, TaskLoss, default_divergence
from .places import find_places
from .regularizer import Forward, ModelRegularizer
from .search import Search, sum_of

Method = TypeVar("Method", bound="AdversarialPerturbation")


class AdversarialPerturbation(nn.Module):
    """Base of the methods: R of a batch, at a perturbation δ found by K ascent steps within a ball around h.

    A subclass overrides `distance`; or `ascent_loss` and `final_loss`; or the complete `search`.

    The first ten arguments are those of MT-DNN's `SmartPerturbation`, in its order.

    Args:
        epsilon: the small constant in the projection `normalize`; other projections ignore it.
        multi_gpu_on, fp16, encoder_type: accepted for MT-DNN's call and ignored.
        step_size: η, the length of an ascent step.
        noise_var: σ, the standard deviation of the initial noise; for `uniform` noise its bound.
        norm_p: the norm of the ball: `inf`, `l2`, or `l1` (the sign step; its ball is that of `inf`).
        k: K, the number of ascent steps.
        loss_map: the divergence D of each task id, called as D(f(h + δ), f(h)), a mean over rows. The default is the
            symmetrized KL divergence, for regression the squared error.
        norm_level: scope of a norm, 0 for a token, 1 for a sentence.
        radius: ε, the radius of the ball; None selects the projection `normalize`, the arithmetic of MT-DNN's release.
        projection: `project` (onto the ball), `normalize`, or `none` (DeBERTa's release). The default is `project` with
            a radius, `normalize` without.
        scale: `absolute`, or `relative`: ε, η and σ are multiplied by the size of h, scope by scope.
        level: the injection point, see `NoiseInjection`; or several, as `("hidden:0", "hidden:4")`, each with a δ of
            its own (`Search`). The default depends on the class.
        noise_clamp: clamp the initial noise to ±2σ.
        detach_base: stop the gradient of R at h, so that the embeddings do not learn from R; of several places at the
            first one.
        same_dropout: the perturbed passes repeat the dropout masks of the clean pass.
        noise: distribution of the initial noise, `normal` or `uniform`; the default depends on the class.
        start_ratio: the share of the updates without R at the start of training; the default depends on the class.

    Attributes:
        name: the method's name, the value of `--adv_opt`.
        needs_clean: R depends on f(h); if false, the caller may skip the clean pass.
        learns_from_clean: the gradient of R flows into f(h) too.
        needs_labels: R depends on the gold labels, through `task_loss`.
        replaces_task_loss: R replaces the task loss instead of being added to it.
        takes_ascent_loss: the ascent may climb another loss than R descends.
        reports_relative_sizes: a call that measures the gain also returns the relative size of δ at each token.

    Raises:
        ValueError: an unknown name, a number out of range, or arguments that exclude each other.
    """

    name: str
    default_level = "pre_ln"
    default_noise = "normal"
    default_start_ratio = 0.0
    needs_clean = True
    learns_from_clean = True
    needs_labels = False
    replaces_task_loss = False
    takes_ascent_loss = False
    reports_relative_sizes = False

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
        level: str | Sequence[str] | None = None,
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
        self.level = level_name(level or self.default_level)
        self.noise_clamp = noise_clamp
        self.detach_base = detach_base
        self.same_dropout = same_dropout
        self.noise = noise or self.default_noise
        self.start_ratio = self.default_start_ratio if start_ratio is None else start_ratio
        self.check()

    @classmethod
    def with_defaults(cls: type[Method], **options: Any) -> Method:
        """The method with the hyperparameters that were measured for its level; `options` override them.

        If you set only the radius, step size and initial noise are scaled with it.

        Args:
            options: keyword arguments of the class.
        """
        level = level_name(options.get("level") or cls.default_level)
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
        ascent_loss: TaskLoss | None = None,
        **options: Any,
    ) -> ModelRegularizer:
        """This method bound to a model, for a custom training loop; the arguments are those of `ModelRegularizer`.

        Args:
            options: hyperparameters, as in `with_defaults`.
        """
        return ModelRegularizer(
            cls.with_defaults(**options),
            model,
            task_type=task_type,
            pairwise=pairwise,
            forward=forward,
            task_loss=task_loss,
            ascent_loss=ascent_loss,
        )

    @property
    def ball(self) -> Ball:
        """Norm, scope, radius, projection and scale of the search."""
        return Ball(self.norm_p, self.scope, self.radius, self.projection, self.scale, self.epsilon)

    @property
    def initial_noise(self) -> InitialNoise:
        """Distribution, σ and clamping of the initial noise."""
        return InitialNoise(self.noise, self.noise_var, self.noise_clamp)

    @property
    def ascent_steps(self) -> int:
        """K."""
        return self.k

    @property
    def measured_alpha(self) -> float:
        """α, the weight of R that was measured for this method and level."""
        return measured(self.name, self.level)["alpha"]

    def set_radius(self, radius: float) -> None:
        """Change the radius; step size and initial noise are scaled with it, as in `with_defaults`.

        Raises:
            ValueError: the method has no radius, or the new one is not above 0.
        """
        if self.radius is None or not radius > 0:
            raise ValueError(
                f"radius {radius} of {self.name}, whose radius is {self.radius}; accepted: a number above 0"
            )
        factor = radius / self.radius
        self.radius, self.step_size, self.noise_var = radius, self.step_size * factor, self.noise_var * factor

    def is_active(self, update: int, total_updates: int) -> bool:
        """Whether R is added in this update (counted from 0): false during the first `start_ratio` of the updates."""
        # 1e-6: in floating point 0.07 · 100 is a little more than 7.
        return update >= self.start_ratio * total_updates - 1e-6

    begun = is_active  # the old name, until 0.2

    def check(self) -> None:
        """Check that the hyperparameters are accepted and fit together.

        Raises:
            ValueError: they do not.
        """
        check_levels(self.level)
        _ = self.ball, self.initial_noise  # each checks its own values
        if self.k < 0 or self.noise_var < 0 or self.step_size < 0:
            sizes = f"{self.k}, {self.noise_var}, {self.step_size}"
            raise ValueError(f"k, noise_var, step_size are {sizes}; accepted: 0 or more")
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
        """R of one batch, for a model with MT-DNN's call.

        Args:
            model: called as `model(input_ids, token_type_ids, attention_mask, premise_mask, hyp_mask, task_id)`.
            logits: f(h), the clean pass; the other arguments are as in `regularize`.
            input_ids, token_type_ids, attention_mask: (batch, tokens); no attention mask means no padding.

        Returns:
            R, emb_val, eff_perturb: scalars, see `Regularization`.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        result = self.regularize(
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
        return result.loss, result.emb_val, result.eff_perturb

    def regularize(
        self,
        evaluate: Callable[[], Any],
        encoder: nn.Module | NoiseInjection | Sequence[NoiseInjection],
        logits: Any,
        mask: Tensor,
        *,
        task_id: int = 0,
        task_type: Any = "classes",
        pairwise: int | Sequence[int] = 1,
        loss_mask: Tensor | None = None,
        noise_seeds: Sequence[int] | None = None,
        dropout_state: Tensor | None = None,
        task_loss: TaskLoss | None = None,
        ascent_loss: TaskLoss | None = None,
        noise_mask: Tensor | None = None,
        base: Tensor | Sequence[Tensor] | None = None,
        cached: CachedDelta | None = None,
        measure_gain: bool = False,
        check_base: bool = False,
    ) -> Regularization:
        """Search δ for one batch and compute R (SMART, Algorithm 1, lines 4 to 9).

        Args:
            evaluate: the model's forward on this batch, called K + 1 times; returns logits, a tuple of them, or an
                output of transformers.
            encoder: the encoder that this forward runs, or its injection point if the caller has it already; of several
                places all points, from `find_places`.
            logits: f(h), the clean pass, in the same form; the gradient of R flows into it. None if `needs_clean` is
                false.
            mask: (batch, tokens), 1 at real tokens.
            task_id: selects D from `loss_map`.
            task_type, pairwise, loss_mask: how logits are read as distributions, see `Comparison`.
            noise_seeds: one seed per example (`noise.example_seeds`); without them torch's generator draws the noise
                and then the dropout masks.
            dropout_state: the generator's state before the clean pass; needed with `same_dropout`, used by
                `measure_gain`.
            task_loss: ℓ(·, y) of an output of `evaluate`, if `needs_labels` is true.
            ascent_loss: what the ascent climbs instead, if `takes_ascent_loss` is true. It is taken as it is; its scale
                matters only without the projection `project`.
            noise_mask: (rows, tokens), 1 at the tokens that get noise; by default all real ones. See `Search`.
            base: h of the clean pass, from `NoiseInjection.clean`, which the perturbed passes start from; by default
                they start from h of the first perturbed pass. Of several places the h of each, from `clean_pass`.
            cached: δ of these examples from an earlier epoch. Then one pass serves for R and for the one ascent step,
                whose gradient comes from the backward pass of R [Shafahi et al. 2019]. The ascent must climb R.
            measure_gain: measure the two terms of the ascent gain too, at the cost of three forwards.
            check_base: check that every pass has the same h; models that draw noise before it do not.
        """
        comparison = Comparison(
            logits if self.needs_clean else None,
            mask,
            self._divergence(task_id, task_type),
            task_loss,
            task_type=task_type,
            pairwise=pairwise,
            loss_mask=loss_mask,
            ascent_loss=ascent_loss,
        )
        check_ascent_loss(self, ascent_loss)
        places = (encoder,) if isinstance(encoder, NoiseInjection) else encoder
        if isinstance(places, nn.Module):
            places = find_places(places, self.level)
        bases = (base,) if isinstance(base, Tensor) else base
        check_base = check_base and bases is None
        search = Search(self, evaluate, places, mask, noise_seeds, dropout_state, bases, cached, check_base, noise_mask)
        loss = self.search(search, comparison) if cached is None else self._search_in_backward(search, comparison)
        rise, chance = self._gain_terms(search, comparison) if measure_gain and self.ascent_steps else (None, None)
        sizes = search.relative_sizes() if measure_gain and self.reports_relative_sizes else None
        return Regularization(loss, *search.statistics(), rise, chance, sizes)

    def search(self, search: Search, comparison: Comparison) -> Tensor:
        """K ascent steps from the initial noise, then R at the δ found."""
        for _ in range(self.ascent_steps):
            self._ascend(search, comparison)
        return self.final_loss(search.final_output(), comparison)

    def _ascend(self, search: Search, comparison: Comparison) -> None:
        """One ascent step. Its output, which may be gigabytes of logits, is freed before the next pass."""
        output = search.ascent_output()
        gradients = search.gradient(self.ascent_loss(output, comparison))
        search.ascend(gradients, comparison.finite(output))

    def _search_in_backward(self, search: Search, comparison: Comparison) -> Tensor:
        """R at the cached δ; δ takes its ascent step in the backward pass of R."""
        output = search.joint_output()
        search.ascend_in_backward(comparison.finite(output))
        return self.final_loss(output, comparison)

    def noise_unit(self, unit: Tensor, mask: Tensor, hidden: int) -> Tensor:
        """The unit of σ.

        Args:
            unit: 1, or with relative noise the root mean square of h, one per scope.
            mask: (batch, tokens), 1 at real tokens.
            hidden: size of the last dimension of h.
        """
        return unit

    def ascent_loss(self, output: Any, comparison: Comparison) -> Tensor:
        """ℓ_a, what the ascent climbs: a sum over examples, so that an example's gradient does not depend on its batch.

        For tasks with a distribution per token or group, the sum is over tokens or groups.
        """
        return sum_of(
            self.distance(perturbed, clean.detach(), comparison) * len(clean)
            for perturbed, clean in comparison.pairs(output)
        )

    def final_loss(self, output: Any, comparison: Comparison) -> Tensor:
        """R, the mean over examples."""
        return sum_of(self.distance(perturbed, clean, comparison) for perturbed, clean in comparison.pairs(output))

    def distance(self, perturbed: LogitRows, clean: LogitRows, comparison: Comparison) -> Tensor:
        """The distance of perturbed from clean logits, both (rows, classes): the task's D, a mean over rows.

        Over a large vocabulary they may be `Rows`, whose `tensor()` is a copy.
        """
        return comparison.distance(perturbed, clean)

    def _divergence(self, task_id: int, task_type: Any) -> Divergence:
        return self.loss_map[task_id] if task_id < len(self.loss_map) else default_divergence(task_type)

    def _gain_terms(self, search: Search, comparison: Comparison) -> tuple[Tensor, Tensor]:
        """R(δ) − R(0) and R(δ′) − R(0), with the same dropout masks; of the ascent loss, if R is another one."""
        climbed = self.final_loss if comparison.ascent_loss is None else self.ascent_loss
        # A task loss may run forwards without gradients, which the search recognizes by that; so gradients stay on.
        with torch.set_grad_enabled(self.needs_labels):
            at_delta, at_zero, at_shuffled = (
                climbed(search.output_at(noise), comparison).detach()
                for noise in (
                    lambda delta: delta.value.detach(),
                    lambda delta: torch.zeros_like(delta.value),
                    lambda delta: delta.shuffled(search.passes),
                )
            )
        return at_delta - at_zero, at_shuffled - at_zero
