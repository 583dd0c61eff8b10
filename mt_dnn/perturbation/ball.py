"""The ball in which δ is searched: norms, ascent directions, projections.

δ has shape (batch, tokens, hidden) and is zero at padding. A norm is taken over a scope: `token` (over hidden, one norm
per token) or `sentence` (over tokens and hidden, one norm per example).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NORMS = ("inf", "l2", "l1")
SCOPES = {"token": (-1,), "sentence": (-2, -1)}
PROJECTIONS = ("project", "normalize", "none")
SCALES = ("absolute", "relative")
# Added to ‖g‖ in the direction of the projection "none", as in DeBERTa's release.
DIRECTION_CONSTANT = 1e-6


@dataclass(frozen=True)
class Ball:
    """The set in which δ is searched, and how an ascent step stays in it.

    Args:
        norm_p: `inf`, `l2`, or `l1` (the sign step; its ball is that of `inf`).
        scope: `token` or `sentence`.
        radius: ε; None unless `projection` is `project`.
        projection: `project` onto the ball; `normalize`, δ / (‖δ‖ + epsilon), as in MT-DNN's release; or `none`, as in
            DeBERTa's.
        scale: `absolute`, or `relative`: ε, η and σ are multiplied by the size of h, scope by scope.
        epsilon: the small constant of `normalize`; other projections ignore it.

    Raises:
        ValueError: an unknown name, or values that exclude each other.
    """

    norm_p: str = "inf"
    scope: str = "token"
    radius: float | None = None
    projection: str = "normalize"
    scale: str = "absolute"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_name("norm_p", self.norm_p, NORMS)
        check_name("norm_level", self.scope, tuple(SCOPES))
        check_name("projection", self.projection, PROJECTIONS)
        check_name("scale", self.scale, SCALES)
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

    def units(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The unit of σ, and the unit of ε and η: 1, or the size of h in each scope if `scale` is `relative`.

        Args: as in `embedding_size`.
        """
        if self.scale == "relative":
            return embedding_size(h, mask, self.norm_p, self.scope)
        one = torch.ones((), dtype=h.dtype, device=h.device)
        return one, one

    def project(self, delta: Tensor, unit: Tensor) -> Tensor:
        """Π(δ), δ projected onto the ball of radius ε · unit; δ itself if there is no radius."""
        if self.radius is None:
            return delta
        return project(delta, self.radius * unit, self.norm_p, self.scope)

    def ascend(self, delta: Tensor, gradient: Tensor, step_size: float, unit: Tensor) -> tuple[Tensor, Tensor]:
        """One ascent step: Π(δ + η · unit · direction(g)); with `normalize` (δ + η·g) / (‖δ + η·g‖ + epsilon).

        Args:
            delta, gradient: δ and g, (batch, tokens, hidden), zero at padding.
            step_size: η.
            unit: of η and ε, from `units`.

        Returns:
            The new δ, and what the step contributed to it.
        """
        if self.projection == "normalize":
            step = step_size * gradient
            moved = delta + step
            norm = scope_norm(moved, self.norm_p, self.scope) + self.epsilon
            return moved / norm, step / norm
        constant = DIRECTION_CONSTANT if self.projection == "none" else 0.0
        direction = ascent_direction(gradient, self.norm_p, self.scope, constant)
        moved = self.project(delta + step_size * unit * direction, unit)
        return moved, moved - delta


def check_name(argument: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raises a ValueError if an argument's value is not one of the accepted names."""
    if value not in accepted:
        raise ValueError(f"{argument} is {value!r}; accepted: {', '.join(accepted)}")


def scope_norm(x: Tensor, norm_p: str, scope: str) -> Tensor:
    """‖x‖ of each scope, broadcastable to x: (batch, tokens, 1) or (batch, 1, 1).

    `inf` and `l1` give the maximum norm: `l1` is MT-DNN's name for the sign step, whose ball is that of `inf`.
    """
    if norm_p == "l2":
        return torch.linalg.vector_norm(x, dim=SCOPES[scope], keepdim=True)
    return x.abs().amax(dim=SCOPES[scope], keepdim=True)


def is_finite(x: Tensor) -> Tensor:
    """Where x is a finite number. Takes two operators; `torch.isfinite` takes four."""
    return x - x == 0


def ascent_direction(gradient: Tensor, norm_p: str, scope: str, constant: float = 0.0) -> Tensor:
    """The direction of steepest ascent in a ball of norm `norm_p`, scope by scope.

    `inf`: g / (‖g‖∞ + constant); `l2`: g / (‖g‖₂ + constant); `l1`: sign(g). The direction of a scope is zero if its
    norm is zero or not finite.
    """
    largest = scope_norm(gradient, "inf", scope)
    usable = (largest > 0) & (largest < math.inf)
    if norm_p == "l1":
        direction = gradient.sign()
    elif norm_p == "l2" and constant == 0:
        # Divide by the largest entry first, so that squares of very small or large gradients stay in range.
        scaled = gradient / largest
        direction = scaled / scope_norm(scaled, "l2", scope)
    else:
        direction = gradient / (scope_norm(gradient, norm_p, scope) + constant)
    return torch.where(usable, direction, 0.0)


def project(delta: Tensor, radius: Tensor | float, norm_p: str, scope: str) -> Tensor:
    """The Euclidean projection of δ onto the ball of that radius (SMART, Algorithm 1: Π).

    Args:
        delta: (batch, tokens, hidden).
        radius: ε, one number or one per scope: (batch, tokens, 1) or (batch, 1, 1).
    """
    if norm_p == "l2":
        norm = scope_norm(delta, "l2", scope)
        return torch.where(norm > radius, delta * (radius / norm), delta)
    radius = torch.as_tensor(radius, dtype=delta.dtype, device=delta.device)
    return torch.clamp(delta, -radius, radius)


def embedding_size(h: Tensor, mask: Tensor, norm_p: str, scope: str) -> tuple[Tensor, Tensor]:
    """How large h is at its real tokens, scope by scope, for relative noise.

    Args:
        h: (batch, tokens, hidden), the clean tensor at the injection point.
        mask: (batch, tokens), 1 at real tokens.

    Returns:
        The root mean square, which is the unit of σ; and the unit of ε and η: the same for `inf` and `l1`, the ℓ2 norm
        for `l2`.
    """
    real = h.masked_fill(mask.unsqueeze(-1) == 0, 0)
    length = scope_norm(real, "l2", scope)
    entries = torch.tensor(h.size(-1), dtype=h.dtype)
    if scope == "sentence":
        entries = (mask.sum(-1).view(-1, 1, 1) * h.size(-1)).clamp(min=1).to(h.dtype)
    rms = length / entries.sqrt()
    return rms, length if norm_p == "l2" else rms
