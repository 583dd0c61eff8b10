"""Where the worst perturbation is known: f = ⟨w, h⟩ with squared loss, R(δ) = (w·δ)².

The largest w·δ in a ball is ε times the dual norm of w, summed over scopes: ε Σ‖w‖₁ for the maximum norm (a token's or
a sentence's ball alike), ε Σ_t ‖w_t‖₂ for ℓ2 by token, ε ‖w‖₂ for ℓ2 by sentence. With K = 12 steps of η = ε/2 the
search reaches R of the worst δ to 1 %.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt_dnn.loss import MseCriterion
from mt_dnn.perturbation import SmartPerturbation
from tests.encoders import LinearModel, TokenBatch
from tests.search import linear_batch, linear_model, mean_output, search_linear

RADIUS = 0.02
K = 12
STEP_SIZE = RADIUS / 2
LEVEL = {"token": 0, "sentence": 1}
CASES = [(norm_p, scope) for norm_p in ("inf", "l1", "l2") for scope in ("token", "sentence")]


def worst_loss(model: LinearModel, batch: TokenBatch, norm_p: str, scope: str, radius: Tensor) -> Tensor:
    """max (w·δ)² of each example, for a radius a token or a sentence, broadcastable to (batch, tokens)."""
    weight = (model.weight * batch.attention_mask.unsqueeze(-1)).detach()
    if norm_p != "l2":
        return (radius * weight.abs().sum(-1)).sum(-1).square()
    if scope == "token":
        return (radius * weight.square().sum(-1).sqrt()).sum(-1).square()
    return radius.squeeze(-1).square() * weight.square().sum((1, 2))


def method(norm_p: str, scope: str, **options: object) -> SmartPerturbation:
    settings = {"step_size": STEP_SIZE, "noise_var": 1e-3, "k": K, "radius": RADIUS, "loss_map": [MseCriterion()]}
    return SmartPerturbation(norm_p=norm_p, norm_level=LEVEL[scope], **{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("norm_p", "scope"), CASES)
def test_the_search_reaches_the_worst_loss_to_one_percent(norm_p: str, scope: str) -> None:
    model, batch = linear_model(), linear_batch()
    worst = worst_loss(model, batch, norm_p, scope, torch.full((1, 1), RADIUS, dtype=torch.float64)).mean().item()
    found = search_linear(method(norm_p, scope), model, batch)
    assert found.loss.item() <= worst * (1 + 1e-9)
    assert found.loss.item() >= 0.99 * worst
    chance = search_linear(method(norm_p, scope, k=0, noise_var=1.0), model, batch)
    assert chance.loss.item() < 0.8 * worst


@pytest.mark.parametrize(("norm_p", "scope"), CASES)
def test_the_perturbation_found_is_the_worst_one(norm_p: str, scope: str) -> None:
    model, batch = linear_model(), linear_batch()
    search_linear(method(norm_p, scope), model, batch)
    delta = model.delta(batch.input_ids)
    weight = (model.weight * batch.attention_mask.unsqueeze(-1)).detach()
    if norm_p != "l2":
        expected = RADIUS * weight.sign()
    elif scope == "token":
        expected = RADIUS * torch.nn.functional.normalize(weight, dim=-1)
    else:
        expected = RADIUS * weight / weight.square().sum((1, 2), keepdim=True).sqrt()
    side = torch.sign((delta * weight).sum((1, 2), keepdim=True))
    torch.testing.assert_close(side * delta, expected, rtol=0.0, atol=0.05 * RADIUS)


@pytest.mark.parametrize(("norm_p", "scope"), CASES)
def test_with_relative_scale_the_ball_is_that_of_each_scopes_size(norm_p: str, scope: str) -> None:
    """ε is a share of the ℓ2 norm of h for `l2`, of its root mean square for `inf` and `l1`."""
    model, batch = linear_model(), linear_batch()
    h = model.word.weight.detach()[batch.input_ids] * batch.attention_mask.unsqueeze(-1)
    squares = h.square().sum(-1)
    entries = h.size(-1) * batch.attention_mask.double()
    if scope == "sentence":
        squares, entries = squares.sum(-1, keepdim=True), entries.sum(-1, keepdim=True)
    size = (squares if norm_p == "l2" else squares / entries.clamp(min=1)).sqrt()
    worst = worst_loss(model, batch, norm_p, scope, RADIUS * size).mean().item()
    found = search_linear(method(norm_p, scope, scale="relative"), model, batch).loss.item()
    assert 0.99 * worst <= found <= worst * (1 + 1e-9)


def test_fast_gradient_sign_from_zero() -> None:
    """One sign step from δ = 0 with η ≥ ε ends at ε·sign(w)."""
    model, batch = linear_model(zero_table=True), linear_batch()
    fgsm = method("l1", "token", noise_var=0.0, k=1, step_size=2 * RADIUS, loss_map=[mean_output])
    search_linear(fgsm, model, batch)
    expected = RADIUS * model.weight.detach().sign() * batch.attention_mask.unsqueeze(-1)
    torch.testing.assert_close(model.delta(batch.input_ids), expected, rtol=0.0, atol=1e-15)
