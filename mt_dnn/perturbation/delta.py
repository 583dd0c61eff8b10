"""δ at one place: its initial noise, the ball around h there, its ascent steps and its sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .ball import SCOPES
from .divergences import at_least_single
from .injection import NoiseInjection
from .method import SearchSettings
from .noise import dropout_seed, standard_noise


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


class Delta:
    """δ of one batch at one place, and its ball.

    Args:
        method: the hyperparameters.
        injection: the place.
        mask: (batch, tokens), 1 at the real tokens that get noise.
        noise_seeds: one seed per example; without them torch's generator draws the noise.
        h: the clean pass's tensor at the place, (batch, tokens, hidden), which the ball is around. Further rows, which
            share a δ with the first ones, are left out.
        cached: δ from an earlier epoch, used instead of initial noise.

    Attributes:
        value: δ, (batch, tokens, hidden), zero at padding.
        h: as given, without further rows; detached.
        mask: as given; padded to the length of h.
        padding: (batch, tokens, 1), true at padding.
        entries: number of entries of real tokens, a scalar.
        unit: of ε and η, see `Ball.units`.
        last_step: what the last ascent step contributed to δ.
        size_of_h: the sum of |h| over real tokens, a scalar.
    """

    def __init__(
        self,
        method: SearchSettings,
        injection: NoiseInjection,
        mask: Tensor,
        noise_seeds: Sequence[int] | None,
        h: Tensor,
        cached: CachedDelta | None = None,
    ):
        self.method = method
        self.noise_seeds = noise_seeds
        dtype = at_least_single(h.dtype)
        self.h = (h if len(h) == len(mask) else h[: len(mask)]).detach()
        h = self.h.to(dtype)
        noise = method.initial_noise.draw(mask, h.size(-1), dtype, noise_seeds)
        self.mask, noise = injection.padded_like(mask, h), injection.padded_like(noise, h)
        self.padding = (self.mask == 0).unsqueeze(-1)
        self.entries = self.mask.sum() * h.size(-1)
        noise_unit, self.unit = method.ball.units(h, self.mask)
        delta = method.initial_noise.sigma * method.noise_unit(noise_unit, self.mask, h.size(-1)) * noise
        if cached is not None:
            kept = injection.padded_like(cached.delta.to(dtype), h)
            delta = torch.where(cached.known.view(-1, 1, 1), kept, delta)
        delta = method.ball.project(delta, self.unit)
        self.value = delta.requires_grad_(method.ascent_steps > 0)
        self.last_step = torch.zeros_like(delta)
        self.size_of_h = h.masked_fill(self.padding, 0).abs().sum()

    def ascend(self, gradient: Tensor, skipped: Tensor) -> None:
        """δ ← Π(δ + η · direction(g)).

        Args:
            gradient: g, (batch, tokens, hidden), zero at padding.
            skipped: (batch,), true at examples that keep their δ.
        """
        delta, by_example = self.value.detach(), skipped.view(-1, 1, 1)
        gradient = gradient.masked_fill(by_example, 0)
        moved, step = self.method.ball.ascend(delta, gradient, self.method.step_size, self.unit)
        self.last_step = step.masked_fill(by_example, 0)
        self.value = torch.where(by_example, delta, moved).requires_grad_()

    def shuffled(self, number: int) -> Tensor:
        """δ with its entries shuffled within each scope and with random signs: the same size, no direction.

        Args:
            number: selects the draw.
        """
        delta = self.value.detach()
        seeds = [dropout_seed([seed], number) for seed in self.noise_seeds or range(len(delta))]
        draws = standard_noise(self.mask, 2 * delta.size(-1), delta.dtype, seeds, "uniform")
        draws = draws.masked_fill(self.padding, 2)  # sorts padding last, so that it keeps its zeros
        scopes, order, signs = (x.flatten(SCOPES[self.method.ball.scope][0]) for x in (delta, *draws.chunk(2, -1)))
        # The real entries of a scope, in their order, go to the same places in random order.
        targets, sources = (order > 1).sort(stable=True).indices, order.sort(stable=True).indices
        shuffled = torch.zeros_like(scopes).scatter_(-1, targets, scopes.gather(-1, sources))
        return (shuffled * torch.where(signs < 0, -1.0, 1.0)).view_as(delta)

    def relative_sizes(self) -> Tensor:
        """‖δ‖₂ / ‖h‖₂ of each real token, (tokens,); tokens whose h is zero or not finite are left out."""
        delta, h = (torch.linalg.vector_norm(x.detach(), dim=-1, dtype=torch.float32) for x in (self.value, self.h))
        ratios = (delta / h)[self.mask.bool()]
        return ratios[ratios.isfinite()]
