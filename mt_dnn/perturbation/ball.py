"""Norms, ascent directions and projections of a perturbation, scope by scope.

Perturbations have shape (batch, tokens, hidden) and are zero at padding. A scope is what one norm is taken over: a
`token` (over hidden: one value a token) or a `sentence` (over tokens and hidden: one value an example).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NORMS = ("inf", "l2", "l1")
SCOPES = {"token": (-1,), "sentence": (-2, -1)}


def scope_norm(x: Tensor, norm_p: str, scope: str) -> Tensor:
    """‖x‖ of each scope, kept broadcastable: (batch, tokens, 1) or (batch, 1, 1).

    `inf` and `l1` give the maximum norm: `l1` is MT-DNN's name for the sign step, whose ball is that of `inf`.
    """
    if norm_p == "l2":
        return torch.linalg.vector_norm(x, dim=SCOPES[scope], keepdim=True)
    return x.abs().amax(dim=SCOPES[scope], keepdim=True)


def is_finite(x: Tensor) -> Tensor:
    """Where x is a finite number, by two operators; torch's own takes four."""
    return x - x == 0


def ascent_direction(gradient: Tensor, norm_p: str, scope: str, constant: float = 0.0) -> Tensor:
    """The direction of the steepest ascent in a ball of norm `norm_p`, scope by scope.

    `inf`: g / (‖g‖∞ + constant); `l2`: g / (‖g‖₂ + constant); `l1`: sign(g). A scope whose norm is zero or not finite
    has direction zero.
    """
    largest = scope_norm(gradient, "inf", scope)
    usable = (largest > 0) & (largest < math.inf)
    if norm_p == "l1":
        direction = gradient.sign()
    elif norm_p == "l2" and constant == 0:
        # By way of the largest entry, so that the squares of very small or large gradients stay in range.
        scaled = gradient / largest
        direction = scaled / scope_norm(scaled, "l2", scope)
    else:
        direction = gradient / (scope_norm(gradient, norm_p, scope) + constant)
    return torch.where(usable, direction, 0.0)


def project(delta: Tensor, radius: Tensor | float, norm_p: str, scope: str) -> Tensor:
    """The Euclidean projection of δ onto the ball of that radius (SMART, Algorithm 1: Π).

    Args:
        delta: (batch, tokens, hidden).
        radius: ε, one number or one a scope: (batch, tokens, 1) or (batch, 1, 1).
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
        The root mean square, the unit of σ; and the unit of ε and η: the same for `inf` and `l1`, the ℓ2 norm for `l2`.
    """
    real = h * mask.unsqueeze(-1).to(h.dtype)
    length = scope_norm(real, "l2", scope)
    tokens = mask.sum(-1).view(-1, 1, 1) if scope == "sentence" else torch.ones_like(mask).unsqueeze(-1)
    rms = length / (tokens * h.size(-1)).clamp(min=1).to(h.dtype).sqrt()
    return rms, length if norm_p == "l2" else rms
