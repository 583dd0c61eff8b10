"""The inner search on one batch: initial noise, perturbed passes, gradient, ascent step, projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ball import SCOPES, is_finite
from .injection import NoiseInjection
from .method import SearchSettings
from .noise import default_generator, dropout_seed, forked_dropout, standard_noise

HALF_PRECISION_SCALE = 2.0**12
HALF_PRECISION_LIMIT = 2.0**15


class CachedDelta(NamedTuple):
    """δ of a batch's examples from an earlier epoch.

    Attributes:
        delta: (batch, tokens, hidden), zero at padding.
        known: (batch,), true at the examples that have a δ; the others start from initial noise.
        store: called with the new δ after the ascent step.
    """

    delta: Tensor
    known: Tensor
    store: Callable[[Tensor], None]


class Search:
    """The search of δ for one batch.

    Args:
        method: its hyperparameters.
        evaluate: the model's forward on this batch.
        injection: where noise enters the encoder that this forward runs.
        mask: (batch, tokens), 1 at real tokens.
        noise_seeds: one seed per example; without them torch's generator draws the noise and then the dropout masks.
        dropout_state: the state of the device's generator before the clean pass. `same_dropout` needs it; otherwise
            only `output_at` uses it.
        base: h of the clean pass, with its graph; by default h of the first perturbed pass.
        cached: δ from an earlier epoch, used instead of initial noise.
        check_base: raise an error if a later pass has another h than the first one.

    Attributes:
        mask: as given; padded to the length of h in the first pass.
        base: h, (batch, tokens, hidden). Every pass starts from it, so that one gradient of the embeddings is computed
            for all passes; that gradient is as large as the word table.
        delta: δ, same shape as h; exists after the first pass.
        skipped: (batch,), true at examples that met a value that is not finite.

    Raises:
        ValueError: `same_dropout` without `dropout_state`.
    """

    delta: Tensor
    skipped: Tensor

    def __init__(
        self,
        method: SearchSettings,
        evaluate: Callable[[], Any],
        injection: NoiseInjection,
        mask: Tensor,
        noise_seeds: Sequence[int] | None = None,
        dropout_state: Tensor | None = None,
        base: Tensor | None = None,
        cached: CachedDelta | None = None,
        check_base: bool = False,
    ):
        if method.same_dropout and dropout_state is None and method.needs_clean:
            raise ValueError("same_dropout needs dropout_state, the generator's state before the clean pass")
        if method.same_dropout and noise_seeds is None:
            # Noise drawn inside the fork would shift the dropout masks that the fork repeats.
            noise_seeds = torch.randint(2**62, (len(mask),)).tolist()
        self.method = method
        self.ball = method.ball
        self.evaluate = evaluate
        self.injection = injection
        self.mask = mask
        self.noise_seeds = noise_seeds
        self.dropout_state = dropout_state
        self.base = base
        self.cached = cached
        self.check_base = check_base
        self.passes = 0
        self.started = False

    # passes

    def ascent_output(self) -> Any:
        """f(h + δ), differentiable with respect to δ only."""
        return self._next_pass(self.ascent_pass)

    def final_output(self) -> Any:
        """f(h + δ), differentiable with respect to h only, so that the embeddings learn from R too."""
        return self._next_pass(self.final_pass)

    def joint_output(self) -> Any:
        """f(h + δ), differentiable with respect to h and δ: one graph for the ascent step and the parameters."""
        return self._next_pass(self.joint_pass)

    def output_at(self, delta: Tensor) -> Any:
        """f(h + `delta`) with the same dropout masks in every call: those of the clean pass, so that R(0) = 0.

        If `dropout_state` is not known, the masks are those of the next pass.
        """
        start = self._dropout_start() if self.dropout_state is None else self.dropout_state
        if start is None:
            start = default_generator(self.mask.device).get_state()
        return self._evaluate(lambda h: self._shared_base(h) + delta.to(h.dtype), start)

    def ascent_pass(self, h: Tensor) -> Tensor:
        return self._shared_base(h).detach() + self.delta.to(h.dtype)

    def final_pass(self, h: Tensor) -> Tensor:
        return self._learning_base(h) + self.delta.detach().to(h.dtype)

    def joint_pass(self, h: Tensor) -> Tensor:
        return self._learning_base(h) + self.delta.to(h.dtype)

    def _learning_base(self, h: Tensor) -> Tensor:
        base = self._shared_base(h)
        return base.detach() if self.method.detach_base else base

    def _next_pass(self, add_noise: Callable[[Tensor], Tensor]) -> Any:
        output = self._evaluate(add_noise, self._dropout_start())
        self.passes += 1
        return output

    def _evaluate(self, add_noise: Callable[[Tensor], Tensor], dropout_start: int | Tensor | None) -> Any:
        """The forward with noise. Forwards without gradients inside it, such as a reference model's, get no noise.

        Raises:
            ValueError: the forward embeds words twice, as a model does that encodes two texts one after the other, or
                as LED does to embed its own padding: δ belongs to one batch of tokens.
        """
        perturbed, enabled = False, torch.is_grad_enabled()

        def perturb_once(h: Tensor) -> Tensor:
            nonlocal perturbed
            if torch.is_grad_enabled() != enabled:
                return h
            if perturbed:
                raise ValueError(
                    f"{type(self.injection.encoder).__name__} embeds words twice in one forward; accepted: models that "
                    "embed a batch once, and batches that the encoder need not pad"
                )
            perturbed = True
            return add_noise(h)

        with self.injection.add(perturb_once), forked_dropout(self.mask.device, dropout_start):
            return self.evaluate()

    def _dropout_start(self) -> int | Tensor | None:
        if self.method.same_dropout and self.dropout_state is not None:
            return self.dropout_state
        if self.noise_seeds is None:
            return None
        return dropout_seed(self.noise_seeds, 0 if self.method.same_dropout else self.passes)

    def _shared_base(self, h: Tensor) -> Tensor:
        """The h that all passes share; the first call draws the initial δ.

        Raises:
            ValueError: h belongs to another batch than in the pass before; or, with `check_base`, its values differ.
        """
        if self.base is None:
            self.base = h
        if h.shape != self.base.shape:
            raise ValueError(
                f"{type(self.injection.encoder).__name__} embeds {' x '.join(map(str, h.shape))} numbers, in the pass "
                f"before {' x '.join(map(str, self.base.shape))}; accepted: passes on one batch"
            )
        if not self.started:
            self._start(self.base.detach())
            self.started = True
        elif self.check_base and not torch.equal(h.detach(), self.base.detach()):
            raise ValueError(
                f"{type(self.injection.encoder).__name__} embeds a batch differently in each pass, for example because "
                "it draws noise; run the clean pass of each batch within `with regularizer.clean(model):`"
            )
        return self.base

    # δ

    def _start(self, h: Tensor) -> None:
        """δ ← Π(σ · noise), or the cached δ."""
        method = self.method
        self.in_float16 = _computes_in_float16(h)
        dtype = torch.promote_types(h.dtype, torch.float32)
        h = h.to(dtype)
        noise = method.initial_noise.draw(self.mask, h.size(-1), dtype, self.noise_seeds)
        self.mask, noise = self.injection.padded_like(self.mask, h), self.injection.padded_like(noise, h)
        self.padding = (self.mask == 0).unsqueeze(-1)
        self.entries = self.mask.sum() * h.size(-1)
        noise_unit, self.unit = self.ball.units(h, self.mask)
        delta = method.initial_noise.sigma * method.noise_unit(noise_unit, self.mask, h.size(-1)) * noise
        if self.cached is not None:
            cached = self.injection.padded_like(self.cached.delta.to(dtype), h)
            delta = torch.where(self.cached.known.view(-1, 1, 1), cached, delta)
        delta = self.ball.project(delta, self.unit)
        self.delta = delta.requires_grad_(method.ascent_steps > 0)
        self.last_step = torch.zeros_like(delta)
        self.skipped = torch.zeros(len(h), dtype=torch.bool, device=h.device)
        self.emb_val = self._mean_size(h.masked_fill(self.padding, 0))

    def gradient(self, loss: Tensor, retain_graph: bool = False) -> Tensor:
        """∂loss/∂δ, (batch, tokens, hidden).

        Under float16 the loss is scaled up for the backward pass, because most gradients of δ underflow in float16.

        Raises:
            ValueError: the backward pass recomputes the encoder's embeddings, without δ.
        """
        scale = HALF_PRECISION_SCALE if self.in_float16 else 1.0
        if loss.dtype == torch.float16:  # the scale times the number of examples flows back through this loss
            scale = min(scale, HALF_PRECISION_LIMIT / len(self.mask))
        with self.injection.not_recomputed():
            scaled = loss if scale == 1 else loss * scale
            (gradient,) = torch.autograd.grad(scaled, self.delta, retain_graph=retain_graph)
        return gradient if scale == 1 else gradient / scale

    def ascend(self, gradient: Tensor, finite: Tensor) -> None:
        """δ ← Π(δ + η · direction(g)). An example whose logits or gradient are not finite keeps its δ.

        Args:
            gradient: g, (batch, tokens, hidden).
            finite: (batch,), whether an example's logits are finite.
        """
        delta = self.delta.detach()
        gradient = gradient.masked_fill(self.padding, 0)
        skipped = ~(finite & is_finite(gradient).flatten(1).all(1))
        by_example = skipped.view(-1, 1, 1)
        moved, step = self.ball.ascend(delta, gradient.masked_fill(by_example, 0), self.method.step_size, self.unit)
        self.last_step = step.masked_fill(by_example, 0)
        self.delta = torch.where(by_example, delta, moved).requires_grad_()
        self.skipped = self.skipped | skipped

    def ascend_in_backward(self, finite: Tensor) -> None:
        """Take the ascent step of δ, and store δ, during the backward pass of the training loss.

        The gradient of δ there is a positive multiple of the ascent loss's. `statistics` that were returned before are
        updated in place.
        """

        def step(gradient: Tensor) -> None:
            self.ascend(gradient.to(self.delta.dtype), finite)
            if self.cached is not None:
                self.cached.store(self.delta.detach())
            for reported, value in zip(self._reported, self._step_statistics(), strict=True):
                reported.copy_(value)

        self.delta.register_hook(step)

    def shuffled(self) -> Tensor:
        """δ with its entries shuffled within each scope and with random signs: the same size, no direction."""
        delta = self.delta.detach()
        seeds = [dropout_seed([seed], self.passes) for seed in self.noise_seeds or range(len(delta))]
        draws = standard_noise(self.mask, 2 * delta.size(-1), delta.dtype, seeds, "uniform")
        draws = draws.masked_fill(self.padding, 2)  # sorts padding last, so that it keeps its zeros
        scopes, order, signs = (x.flatten(SCOPES[self.ball.scope][0]) for x in (delta, *draws.chunk(2, -1)))
        # The real entries of a scope, in their order, go to the same places in random order.
        targets, sources = (order > 1).sort(stable=True).indices, order.sort(stable=True).indices
        shuffled = torch.zeros_like(scopes).scatter_(-1, targets, scopes.gather(-1, sources))
        return (shuffled * torch.where(signs < 0, -1.0, 1.0)).view_as(delta)

    # statistics

    def relative_sizes(self) -> Tensor:
        """‖δ‖₂ / ‖h‖₂ of each real token, (tokens,); tokens whose h is zero or not finite are left out."""
        assert self.base is not None
        delta, h = (torch.linalg.vector_norm(x.detach(), dim=-1, dtype=torch.float32) for x in (self.delta, self.base))
        ratios = (delta / h)[self.mask.bool()]
        return ratios[ratios.isfinite()]

    def statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`emb_val`, `eff_perturb`, `delta_size` and `skipped` of a `Regularization`."""
        self._reported = self._step_statistics()
        eff_perturb, skipped = self._reported
        return self.emb_val, eff_perturb, self._mean_size(self.delta), skipped

    def _step_statistics(self) -> tuple[Tensor, Tensor]:
        return self._mean_size(self.last_step), self.skipped.sum()

    def _mean_size(self, x: Tensor) -> Tensor:
        """The mean of |x| over real tokens; x is zero at padding."""
        return x.detach().abs().sum() / self.entries


def _computes_in_float16(h: Tensor) -> bool:
    """Whether the encoder computes in float16. Call it inside the forward, where autocast may be switched on."""
    device = h.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return autocast or h.dtype == torch.float16
