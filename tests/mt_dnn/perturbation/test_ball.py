"""Norms, directions and projections against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mt_dnn.perturbation import SmartPerturbation
from mt_dnn.perturbation.ball import Ball, ascent_direction, embedding_size, project, scope_norm
from mt_dnn.perturbation.noise import InitialNoise

NORMS = ("inf", "l2", "l1")
SCOPES = ("token", "sentence")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scopes_of(x: Tensor, scope: str) -> Tensor:
    """(scopes, entries): one row a token or a sentence."""
    return x.flatten(0, 1) if scope == "token" else x.flatten(1)


def definition(x: Tensor, norm_p: str) -> Tensor:
    """‖x‖ of each row, the ball's norm: that of `l1`, the sign step, is ℓ∞."""
    return x.square().sum(-1).sqrt() if norm_p == "l2" else x.abs().amax(-1)


def norms(x: Tensor, norm_p: str, scope: str) -> Tensor:
    return definition(scopes_of(x, scope), norm_p)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm_p", NORMS)
def test_scope_norm(norm_p: str, scope: str) -> None:
    x = random(3, 5, 4)
    result = scope_norm(x, norm_p, scope)
    assert result.shape == ((3, 5, 1) if scope == "token" else (3, 1, 1))
    torch.testing.assert_close(result.flatten(), norms(x, norm_p, scope))


def test_scope_norm_of_known_numbers() -> None:
    x = torch.tensor([[[3.0, -4.0], [0.0, 12.0]]])
    assert scope_norm(x, "l2", "token").tolist() == [[[5.0], [12.0]]]
    assert scope_norm(x, "l2", "sentence").tolist() == [[[13.0]]]
    assert scope_norm(x, "inf", "token").tolist() == [[[4.0], [12.0]]]
    assert scope_norm(x, "l1", "sentence").tolist() == [[[12.0]]]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm_p", ["inf", "l2"])
def test_direction_is_the_gradient_over_its_norm(norm_p: str, scope: str) -> None:
    gradient = 1e-4 * random(3, 5, 4)
    direction = ascent_direction(gradient, norm_p, scope)
    expected = scopes_of(gradient, scope) / norms(gradient, norm_p, scope).unsqueeze(-1)
    torch.testing.assert_close(scopes_of(direction, scope), expected)
    torch.testing.assert_close(norms(direction, norm_p, scope), torch.ones_like(norms(direction, norm_p, scope)))


@pytest.mark.parametrize("scope", SCOPES)
def test_direction_of_l1_is_the_sign(scope: str) -> None:
    gradient = random(3, 5, 4) * 1e-9
    gradient[0, 0, 0] = 0.0
    direction = ascent_direction(gradient, "l1", scope)
    assert torch.equal(direction, torch.sign(gradient))
    assert set(direction.unique().tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("norm_p", ["inf", "l2"])
def test_the_constant_is_added_to_the_norm(norm_p: str) -> None:
    gradient = 1e-6 * random(2, 3, 4)
    expected = gradient / (norms(gradient, norm_p, "token").view(2, 3, 1) + 1e-6)
    torch.testing.assert_close(ascent_direction(gradient, norm_p, "token", 1e-6), expected)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm_p", NORMS)
def test_a_token_without_a_usable_norm_has_direction_zero(norm_p: str, bad: float) -> None:
    gradient = random(2, 3, 4)
    expected = ascent_direction(gradient, norm_p, "token")
    if bad == 0.0:
        gradient[0, 1] = 0.0
    else:
        gradient[0, 1, 2] = bad
    direction = ascent_direction(gradient, norm_p, "token")
    assert torch.equal(direction[0, 1], torch.zeros(4, dtype=torch.float64))
    others = torch.ones(2, 3, dtype=torch.bool)
    others[0, 1] = False
    torch.testing.assert_close(direction[others], expected[others])


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("norm_p", NORMS)
def test_a_sentence_without_a_usable_norm_has_direction_zero(norm_p: str, bad: float) -> None:
    gradient = random(2, 3, 4)
    expected = ascent_direction(gradient, norm_p, "sentence")
    if bad == 0.0:
        gradient[0] = 0.0
    else:
        gradient[0, 1, 2] = bad
    direction = ascent_direction(gradient, norm_p, "sentence")
    assert torch.equal(direction[0], torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(direction[1], expected[1])


@pytest.mark.parametrize("norm_p", NORMS)
def test_a_small_gradient_in_single_precision_has_a_direction(norm_p: str) -> None:
    """Squares of 1e-25 are zero in single precision, the gradient is not."""
    gradient = (1e-25 * random(2, 3, 4)).float()
    direction = ascent_direction(gradient, norm_p, "token")
    expected = gradient.double() / norms(gradient.double(), norm_p, "token").view(2, 3, 1)
    if norm_p == "l1":
        expected = expected.sign()
    torch.testing.assert_close(direction.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm_p", NORMS)
def test_projection_is_the_closest_point_of_the_ball(norm_p: str, scope: str) -> None:
    """Variational inequality: ⟨δ − Πδ, y − Πδ⟩ ≤ 0 for every y in the ball characterizes the Euclidean projection."""
    radius = 0.8
    delta = random(4, 3, 5)
    projected = project(delta, radius, norm_p, scope)
    assert norms(projected, norm_p, scope).max() <= radius * (1 + 1e-12)
    residual = scopes_of(delta - projected, scope)
    for seed in range(20):
        point = scopes_of(random(4, 3, 5, seed=seed + 1), scope)
        point = point * radius / definition(point, norm_p).unsqueeze(-1)
        assert (residual * (point - scopes_of(projected, scope))).sum(-1).max() <= 1e-12


@pytest.mark.parametrize("scope", SCOPES)
def test_projection_onto_the_maximum_norm_is_a_clamp(scope: str) -> None:
    delta = random(2, 3, 4)
    for norm_p in ("inf", "l1"):
        assert torch.equal(project(delta, 0.5, norm_p, scope), delta.clamp(-0.5, 0.5))


def test_projection_onto_the_l2_ball_rescales_what_exceeds_it_alone() -> None:
    delta = torch.tensor([[[3.0, 4.0], [0.3, -0.4], [0.0, 0.0]]], dtype=torch.float64)
    projected = project(delta, 1.0, "l2", "token")
    torch.testing.assert_close(projected[0, 0], torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert torch.equal(projected[0, 1:], delta[0, 1:])
    assert torch.equal(project(delta, 6.0, "l2", "sentence"), delta)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm_p", NORMS)
def test_projection_with_a_radius_a_scope(norm_p: str, scope: str) -> None:
    delta = random(3, 5, 4)
    radius = torch.rand((3, 5, 1) if scope == "token" else (3, 1, 1), dtype=torch.float64) * 0.5
    radius[0, 0] = 0.0
    projected = project(delta, radius, norm_p, scope)
    assert projected.isfinite().all()
    torch.testing.assert_close(norms(projected, norm_p, scope), radius.flatten())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm_p", NORMS)
def test_size_is_taken_over_real_entries(norm_p: str, scope: str) -> None:
    h = random(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    unit, radius_unit = embedding_size(h, mask, norm_p, scope)
    for example, length in ((0, 4), (1, 2)):
        if scope == "token":
            squares = h[example, :length].square()
            root_mean_square, length_l2 = squares.mean(-1).sqrt(), squares.sum(-1).sqrt()
            found, found_radius = unit[example, :length, 0], radius_unit[example, :length, 0]
        else:
            squares = h[example, :length].square()
            root_mean_square, length_l2 = squares.mean().sqrt(), squares.sum().sqrt()
            found, found_radius = unit[example, 0, 0], radius_unit[example, 0, 0]
        torch.testing.assert_close(found, root_mean_square)
        torch.testing.assert_close(found_radius, length_l2 if norm_p == "l2" else root_mean_square)


@pytest.mark.parametrize("norm_p", NORMS)
def test_size_of_a_row_of_zeros_is_zero(norm_p: str) -> None:
    h = torch.zeros(1, 2, 3)
    h[0, 1] = 2.0
    for size in embedding_size(h, torch.ones(1, 2), norm_p, "token"):
        assert size[0, 0].item() == 0.0
        assert size[0, 1].item() > 0.0


# the ball of a method


def test_a_methods_ball_and_noise_follow_its_attributes_and_are_checked() -> None:
    method = SmartPerturbation(
        norm_p="l2", norm_level=1, radius=0.2, scale="relative", noise_var=0.3, noise="uniform", noise_clamp=True
    )
    assert method.ball == Ball("l2", "sentence", 0.2, "project", "relative", 1e-6)
    assert method.initial_noise == InitialNoise("uniform", 0.3, True)
    method.radius = 0.4
    assert method.ball.radius == 0.4
    method.radius = -1.0
    with pytest.raises(ValueError, match="needs a radius above 0, found -1.0"):
        _ = method.ball


@pytest.mark.parametrize("norm_p", ["inf", "l2"])
def test_a_step_of_each_projection_on_known_numbers(norm_p: str) -> None:
    delta, gradient = torch.tensor([[[0.3, 0.4]]]), torch.tensor([[[3.0, 4.0]]])
    one = torch.ones(())
    length = 4.0 if norm_p == "inf" else 5.0
    moved, step = Ball(norm_p, projection="none").ascend(delta, gradient, 0.5, one)
    expected = 0.5 * gradient / (length + 1e-6)
    torch.testing.assert_close((moved, step), (delta + expected, expected))
    moved, step = Ball(norm_p, radius=0.1, projection="project").ascend(delta, gradient, 0.5, one)
    ball = torch.tensor([[[0.1, 0.1]]]) if norm_p == "inf" else torch.tensor([[[0.06, 0.08]]])
    torch.testing.assert_close((moved, step), (ball, ball - delta))
    moved, step = Ball(norm_p, projection="normalize", epsilon=1e-6).ascend(delta, gradient, 0.5, one)
    raw = delta + 0.5 * gradient
    norm = raw.max() if norm_p == "inf" else raw.norm()
    torch.testing.assert_close((moved, step), (raw / (norm + 1e-6), 0.5 * gradient / (norm + 1e-6)))
