"""The inner search of one batch: initial noise, perturbed passes, ascent steps, projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ball import SCOPES, ascent_direction, embedding_size, is_finite, project, scope_norm
from .injection import NoiseInjection
from .method import SearchSettings
from .noise import default_generator, dropout_seed, forked_dropout, standard_noise

# The constant beside ‖g‖ in the direction of projection "none", as in DeBERTa's release.
DIRECTION_CONSTANT = 1e-6
HALF_PRECISION_SCALE = 2.0**12
HALF_PRECISION_LIMIT = 2.0**15


class Kept(NamedTuple):
    """δ that was kept of the examples of a batch.

    delta: (batch, tokens, hidden), zero at padding; known: (batch,), whether an example has one; keep: takes the new δ.
    """

    delta: Tensor
    known: Tensor
    keep: Callable[[Tensor], None]


class Search:
    """The perturbation δ of one batch on its way.

    Args:
        method: its hyperparameters.
        evaluate: the model's forward on this batch.
        injection: where the noise enters the encoder that this forward runs.
        mask: (batch, tokens), 1 at real tokens.
        noise_seeds: one seed an example; without them torch's generator draws the noise, and dropout goes on in it.
        dropout_state: the state of the device's generator before the clean pass, needed with `same_dropout`; without
            that, `repeated_output` alone uses it.
        base: h of the clean pass, with its graph; by default that of the first perturbed pass.
        kept: δ to begin with, in place of the initial noise where an example has one.
        verify: see that later passes have the h of the first one.

    Attributes:
        mask: as given; once a pass has come by, as long as h, which some encoders pad.
        base: h, (batch, tokens, hidden), from which every pass starts, so that one gradient of the embeddings is
            computed however many passes there are: it is as large as the table.
        delta: δ, likewise; there once a pass has come by the injection point.
        skipped: (batch,), the examples that met a value that is not finite.
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
        kept: Kept | None = None,
        verify: bool = False,
    ):
        if method.same_dropout and dropout_state is None and method.needs_clean:
            raise ValueError("same_dropout needs dropout_state, the generator's state before the clean pass")
        if method.same_dropout and noise_seeds is None:
            # Noise drawn within the fork would shift the masks that the fork repeats.
            noise_seeds = torch.randint(2**62, (len(mask),)).tolist()
        self.method = method
        self.evaluate = evaluate
        self.injection = injection
        self.mask = mask
        self.noise_seeds = noise_seeds
        self.dropout_state = dropout_state
        self.base = base
        self.kept = kept
        self.verify = verify
        self.passes = 0
        self.started = False

    # passes

    def ascent_output(self) -> Any:
        """f(h + δ), differentiable in δ alone."""
        return self._next_pass(self.ascent_pass)

    def final_output(self) -> Any:
        """f(h + δ), differentiable in h alone, so that the embeddings learn from R too."""
        return self._next_pass(self.final_pass)

    def joint_output(self) -> Any:
        """f(h + δ), differentiable in h and in δ: one graph for an ascent step and for the parameters."""
        return self._next_pass(self.joint_pass)

    def repeated_output(self, delta: Tensor) -> Any:
        """f(h + `delta`) under the same dropout masks in every call: the clean pass's, so that δ = 0 gives R = 0.

        Where `dropout_state` is not known they are those of the pass that comes next.
        """
        start = self._dropout_start() if self.dropout_state is None else self.dropout_state
        if start is None:
            start = default_generator(self.mask.device).get_state()
        return self._evaluate(lambda h: self._start_from(h) + delta.to(h.dtype), start)

    def ascent_pass(self, h: Tensor) -> Tensor:
        return self._start_from(h).detach() + self.delta.to(h.dtype)

    def final_pass(self, h: Tensor) -> Tensor:
        return self._attached(h) + self.delta.detach().to(h.dtype)

    def joint_pass(self, h: Tensor) -> Tensor:
        return self._attached(h) + self.delta.to(h.dtype)

    def _attached(self, h: Tensor) -> Tensor:
        base = self._start_from(h)
        return base.detach() if self.method.detach_base else base

    def _next_pass(self, noise: Callable[[Tensor], Tensor]) -> Any:
        output = self._evaluate(noise, self._dropout_start())
        self.passes += 1
        return output

    def _evaluate(self, noise: Callable[[Tensor], Tensor], dropout_start: int | Tensor | None) -> Any:
        """The forward with noise; those without gradients that run beside it, such as a reference model's, have none.

        Raises:
            ValueError: it came by the injection point twice, as a model does that encodes two texts one after the
                other, or LED to look its own padding up: δ is that of one batch of tokens.
        """
        came_by, enabled = False, torch.is_grad_enabled()

        def once(h: Tensor) -> Tensor:
            nonlocal came_by
            if torch.is_grad_enabled() != enabled:
                return h
            if came_by:
                raise ValueError(
                    f"{type(self.injection.encoder).__name__} embeds words twice in one forward; accepted: models that "
                    "embed a batch once, and batches that the encoder need not pad"
                )
            came_by = True
            return noise(h)

        with self.injection.add(once), forked_dropout(self.mask.device, dropout_start):
            return self.evaluate()

    def _dropout_start(self) -> int | Tensor | None:
        if self.method.same_dropout and self.dropout_state is not None:
            return self.dropout_state
        if self.noise_seeds is None:
            return None
        return dropout_seed(self.noise_seeds, 0 if self.method.same_dropout else self.passes)

    # δ

    def _start_from(self, h: Tensor) -> Tensor:
        """The h that all passes share; draws the initial δ when the first pass comes by with its own.

        Raises:
            ValueError: it is of another batch than that of the pass before; or, with `verify`, another h.
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
        elif self.verify and not torch.equal(h.detach(), self.base.detach()):
            raise ValueError(
                f"{type(self.injection.encoder).__name__} embeds one batch otherwise in each pass, as where it draws "
                "noise of its own; run the clean pass of each batch within `with regularizer.clean(model):`"
            )
        return self.base

    def _start(self, h: Tensor) -> None:
        method = self.method
        self.in_float16 = _is_in_float16(h)
        dtype = torch.promote_types(h.dtype, torch.float32)
        h = h.to(dtype)
        noise = standard_noise(self.mask, h.size(-1), dtype, self.noise_seeds, method.noise)
        self.mask, noise = self.injection.fitted(self.mask, h), self.injection.fitted(noise, h)
        self.padding = (self.mask == 0).unsqueeze(-1)
        self.entries = self.mask.sum() * h.size(-1)
        if method.scale == "relative":
            noise_unit, self.unit = embedding_size(h, self.mask, method.norm_p, method.scope)
        else:
            noise_unit = self.unit = torch.ones((), dtype=dtype, device=h.device)
        if method.noise_clamp:
            noise = noise.clamp(-2, 2)
        delta = method.noise_var * method.noise_unit(noise_unit, self.mask, h.size(-1)) * noise
        if self.kept is not None:
            kept = self.injection.fitted(self.kept.delta.to(dtype), h)
            delta = torch.where(self.kept.known.view(-1, 1, 1), kept, delta)
        if method.projection == "project":
            delta = self._project(delta)
        self.delta = delta.requires_grad_(method.ascent_steps > 0)
        self.added = torch.zeros_like(delta)
        self.skipped = torch.zeros(len(h), dtype=torch.bool, device=h.device)
        self.emb_val = self._mean_size(h.masked_fill(self.padding, 0))

    def gradient(self, loss: Tensor, retain_graph: bool = False) -> Tensor:
        """∂loss/∂δ, (batch, tokens, hidden).

        Under float16 it is taken of a multiple of the loss, for most gradients of δ are too small for that type.

        Raises:
            ValueError: the encoder is computed anew in the backward, where δ would be missing.
        """
        scale = HALF_PRECISION_SCALE if self.in_float16 else 1.0
        if loss.dtype == torch.float16:  # through which the multiple goes back times the number of examples
            scale = min(scale, HALF_PRECISION_LIMIT / len(self.mask))
        with self.injection.not_recomputed():
            scaled = loss if scale == 1 else loss * scale
            (gradient,) = torch.autograd.grad(scaled, self.delta, retain_graph=retain_graph)
        return gradient if scale == 1 else gradient / scale

    def ascend(self, gradient: Tensor, finite: Tensor) -> None:
        """One step; an example whose logits (`finite`, (batch,)) or gradient are not finite keeps its δ."""
        method, delta = self.method, self.delta.detach()
        gradient = gradient.masked_fill(self.padding, 0)
        keep = ~(finite & is_finite(gradient).flatten(1).all(1))
        by_example = keep.view(-1, 1, 1)
        gradient = gradient.masked_fill(by_example, 0)
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
        self.added = added.masked_fill(by_example, 0)
        self.delta = torch.where(by_example, delta, moved).requires_grad_()
        self.skipped = self.skipped | keep

    def ascend_in_backward(self, finite: Tensor) -> None:
        """Let δ take its step and be kept when the backward of the training loss comes by, whose gradient of δ is a
        positive multiple of the ascent's. `statistics` that were given out before are brought up to date then."""

        def step(gradient: Tensor) -> None:
            self.ascend(gradient.to(self.delta.dtype), finite)
            if self.kept is not None:
                self.kept.keep(self.delta.detach())
            for reported, value in zip(self._reported, self._of_the_step(), strict=True):
                reported.copy_(value)

        self.delta.register_hook(step)

    def _project(self, delta: Tensor) -> Tensor:
        radius = self.method.radius
        assert radius is not None
        return project(delta, radius * self.unit, self.method.norm_p, self.method.scope)

    def shuffled(self) -> Tensor:
        """δ with its entries shuffled within each scope, each with a random sign: as large as δ, without direction."""
        delta = self.delta.detach()
        seeds = [dropout_seed([seed], self.passes) for seed in self.noise_seeds or range(len(delta))]
        draws = standard_noise(self.mask, 2 * delta.size(-1), delta.dtype, seeds, "uniform")
        draws = draws.masked_fill(self.padding, 2)  # after all others, so that padding keeps its zeros
        scopes, order, signs = (x.flatten(SCOPES[self.method.scope][0]) for x in (delta, *draws.chunk(2, -1)))
        # From the real entries of a scope in their order to the same in a random one.
        places, sources = (order > 1).sort(stable=True).indices, order.sort(stable=True).indices
        shuffled = torch.zeros_like(scopes).scatter_(-1, places, scopes.gather(-1, sources))
        return (shuffled * torch.where(signs < 0, -1.0, 1.0)).view_as(delta)

    def token_shares(self) -> Tensor:
        """‖δ‖₂/‖h‖₂ of each real token, (tokens,); without those whose h is zero, or where a number is not finite."""
        assert self.base is not None
        delta, h = (torch.linalg.vector_norm(x.detach(), dim=-1, dtype=torch.float32) for x in (self.delta, self.base))
        shares = (delta / h)[self.mask.bool()]
        return shares[shares.isfinite()]

    def statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self._reported = self._of_the_step()
        eff_perturb, skipped = self._reported
        return self.emb_val, eff_perturb, self._mean_size(self.delta), skipped

    def _of_the_step(self) -> tuple[Tensor, Tensor]:
        return self._mean_size(self.added), self.skipped.sum()

    def _mean_size(self, x: Tensor) -> Tensor:
        """The mean of |x| over real tokens, of x that is zero elsewhere."""
        return x.detach().abs().sum() / self.entries


def _is_in_float16(h: Tensor) -> bool:
    """Whether the encoder computes in float16; to be asked within its forward, where autocast may begin and end."""
    device = h.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return autocast or h.dtype == torch.float16
