"""The inner search, step by step: initial noise, ascent, projection, the final pass (docs/methods.md, "The search")."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mt_dnn.loss import KlCriterion, MseCriterion, SymKlCriterion
from mt_dnn.perturbation import SmartPerturbation
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.perturbation.noise import standard_noise
from tests.encoders import (
    FAMILIES,
    LEVELS,
    LinearModel,
    TokenBatch,
    remove_norm_eps,
    scale_tables,
    tiny_classifier,
    token_batch,
)
from tests.search import (
    Trace,
    clean_logits,
    linear_batch,
    linear_model,
    mean_output,
    regularize,
    search_linear,
    seeds_of,
)

NORMS = ("inf", "l2", "l1")
SCOPES = (0, 1)


def drawn_noise(batch: TokenBatch, hidden: int = 5) -> Tensor:
    """N(0, I) as the search draws it for this batch, from the seeds of `search_linear`."""
    mask = batch.attention_mask
    return standard_noise(mask, hidden, torch.float64, seeds_of(mask.size(0)))


def size_of(x: Tensor, norm_p: str, level: int) -> Tensor:
    """‖x‖ of the ball's norm by token (batch, tokens) or by sentence (batch,)."""
    entries = x if level == 0 else x.flatten(1)
    return entries.square().sum(-1).sqrt() if norm_p == "l2" else entries.abs().amax(-1)


def real_rows(batch: TokenBatch) -> Tensor:
    return batch.attention_mask.bool()


# initial noise


@pytest.mark.parametrize("sigma", [0.01, 1.0])
@pytest.mark.parametrize(("radius", "projection"), [(None, "normalize"), (None, "none")])
def test_without_a_ball_the_search_starts_at_the_raw_noise(sigma: float, radius: float | None, projection: str) -> None:
    model, batch = linear_model(zero_table=True), linear_batch()
    search_linear(SmartPerturbation(noise_var=sigma, k=0, radius=radius, projection=projection), model, batch)
    torch.testing.assert_close(model.delta(batch.input_ids), sigma * drawn_noise(batch), rtol=0.0, atol=1e-15)


@pytest.mark.parametrize("norm_level", SCOPES)
@pytest.mark.parametrize("norm_p", NORMS)
def test_project_starts_within_the_ball(norm_p: str, norm_level: int) -> None:
    model, batch = linear_model(zero_table=True), linear_batch()
    method = SmartPerturbation(noise_var=1.0, norm_p=norm_p, k=0, norm_level=norm_level, radius=0.1)
    search_linear(method, model, batch)
    noise, delta = drawn_noise(batch), model.delta(batch.input_ids)
    if norm_p == "l2":
        size = size_of(noise, norm_p, norm_level)
        expected = noise * (0.1 / size.clamp(min=1e-12)).view(3, -1, 1)
    else:
        expected = noise.clamp(-0.1, 0.1)
    torch.testing.assert_close(delta, expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("relative", [False, True])
def test_the_clamp_is_at_two_standard_deviations(relative: bool) -> None:
    tokens, hidden, sigma = 40, 50, 0.3
    mask = torch.ones(1, tokens, dtype=torch.long)
    batch = TokenBatch(torch.arange(tokens).unsqueeze(0), None, mask)
    table = torch.full((tokens, hidden), 4.0, dtype=torch.float64)
    model = LinearModel(table, torch.ones(hidden, dtype=torch.float64))
    scale = "relative" if relative else "absolute"
    clamped, free = (
        SmartPerturbation(noise_var=sigma, k=0, projection="none", scale=scale, noise_clamp=clamp)
        for clamp in (True, False)
    )
    unit = 4.0 if relative else 1.0
    search_linear(free, model, batch)
    raw = model.delta(batch.input_ids)
    assert raw.abs().max() > 2.5 * sigma * unit
    torch.testing.assert_close(raw, unit * sigma * drawn_noise(batch, hidden))
    search_linear(clamped, model, batch)
    limit = 2 * sigma * unit
    torch.testing.assert_close(model.delta(batch.input_ids), raw.clamp(-limit, limit), rtol=0.0, atol=1e-12)


# ascent step and projection


@pytest.mark.parametrize("norm_level", SCOPES)
@pytest.mark.parametrize("norm_p", NORMS)
def test_one_step_without_projection(norm_p: str, norm_level: int) -> None:
    """δ ← δ + η·g / ‖g‖, with DeBERTa's 1e-6 beside the norm (sign(g) for `l1`)."""
    model, batch = linear_model(zero_table=True), linear_batch()
    method = SmartPerturbation(
        noise_var=0.1, step_size=0.5, norm_p=norm_p, norm_level=norm_level, projection="none", loss_map=[mean_output]
    )
    result = search_linear(method, model, batch)
    gradient = model.weight.detach() * batch.attention_mask.unsqueeze(-1)
    size = size_of(gradient, norm_p, norm_level).view(3, -1, 1) + 1e-6
    step = 0.5 * (gradient.sign() if norm_p == "l1" else gradient / size)
    delta = model.delta(batch.input_ids)
    torch.testing.assert_close(delta, 0.1 * drawn_noise(batch) + step, rtol=0.0, atol=1e-9)
    real = real_rows(batch)
    assert result.eff_perturb.item() == pytest.approx(step[real].abs().mean().item(), rel=1e-6)
    assert result.delta_size.item() == pytest.approx(delta[real].abs().mean().item(), rel=1e-6)


@pytest.mark.parametrize("norm_level", SCOPES)
@pytest.mark.parametrize("norm_p", NORMS)
def test_three_steps_of_algorithm_1(norm_p: str, norm_level: int) -> None:
    """δ ← Π(δ + η·direction(g)), written out, with a step that leaves the ball."""
    model, batch = linear_model(zero_table=True), linear_batch()
    radius, step_size = 0.2, 0.12
    method = SmartPerturbation(
        noise_var=0.05,
        step_size=step_size,
        norm_p=norm_p,
        k=3,
        norm_level=norm_level,
        radius=radius,
        loss_map=[mean_output],
    )
    search_linear(method, model, batch)

    def project(x: Tensor) -> Tensor:
        if norm_p != "l2":
            return x.clamp(-radius, radius)
        size = size_of(x, norm_p, norm_level).view(3, -1, 1)
        return x * torch.where(size > radius, radius / size.clamp(min=1e-12), 1.0)

    gradient = model.weight.detach() * batch.attention_mask.unsqueeze(-1)
    size = size_of(gradient, norm_p, norm_level).view(3, -1, 1).clamp(min=1e-12)
    direction = gradient.sign() if norm_p == "l1" else gradient / size
    expected = project(0.05 * drawn_noise(batch))
    for _ in range(3):
        expected = project(expected + step_size * direction)
    torch.testing.assert_close(model.delta(batch.input_ids), expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("norm_level", SCOPES)
@pytest.mark.parametrize("norm_p", ["inf", "l2"])
@pytest.mark.parametrize("k", [1, 2])
def test_normalize_at_every_norm_and_scope(norm_p: str, norm_level: int, k: int) -> None:
    """u = δ + η·g with the gradient as it is, δ ← u / (‖u‖ + ε): what crashes in MT-DNN for `l2` and sentences."""
    model, batch = linear_model(zero_table=True), linear_batch()
    method = SmartPerturbation(
        1e-2, False, 0.5, 0.1, norm_p, k, norm_level=norm_level, loss_map=[mean_output], projection="normalize"
    )
    result = search_linear(method, model, batch)
    gradient = model.weight.detach() * batch.attention_mask.unsqueeze(-1)
    expected = 0.1 * drawn_noise(batch)
    for _ in range(k):
        unnormalized = expected + 0.5 * gradient
        size = size_of(unnormalized, norm_p, norm_level).view(3, -1, 1)
        expected = unnormalized / (size + 1e-2)
    torch.testing.assert_close(model.delta(batch.input_ids), expected, rtol=0.0, atol=1e-12)
    added = (0.5 * gradient / size.clamp(min=1e-12))[real_rows(batch)].abs().mean().item()
    assert result.eff_perturb.item() == pytest.approx(added, rel=0.02)


def test_a_radius_chooses_project_and_none_chooses_normalize() -> None:
    assert SmartPerturbation(radius=0.1).projection == "project"
    assert SmartPerturbation().projection == "normalize"
    assert SmartPerturbation(projection="none").projection == "none"


@pytest.mark.parametrize("norm_p", NORMS)
def test_without_a_direction_nothing_moves(norm_p: str) -> None:
    """A zero gradient (σ = 0 under a divergence that is smallest at δ = 0) has direction zero."""
    model, batch = linear_model(), linear_batch()
    method = SmartPerturbation(noise_var=0.0, step_size=1.0, norm_p=norm_p, k=2, radius=0.5, loss_map=[MseCriterion()])
    result = search_linear(method, model, batch)
    assert torch.equal(model.delta(batch.input_ids), torch.zeros(3, 4, 5, dtype=torch.float64))
    assert result.loss.item() == 0.0
    assert result.eff_perturb.item() == 0.0
    assert result.skipped.item() == 0


# relative scale


@pytest.mark.parametrize("norm_level", SCOPES)
@pytest.mark.parametrize("norm_p", NORMS)
def test_relative_scale_multiplies_noise_step_and_radius(norm_p: str, norm_level: int) -> None:
    """σ by the root mean square of h's real entries; ε and η by it too, but for `l2` by the ℓ2 norm."""
    model, batch = linear_model(), linear_batch()
    h = model.word.weight.detach()[batch.input_ids] * batch.attention_mask.unsqueeze(-1)
    squares, entries = h.square().sum(-1, keepdim=True), 5.0 * batch.attention_mask.unsqueeze(-1)
    if norm_level == 1:
        squares, entries = squares.sum(1, keepdim=True), entries.sum(1, keepdim=True)
    root_mean_square = (squares / entries.clamp(min=1)).sqrt()
    unit = squares.sqrt() if norm_p == "l2" else root_mean_square
    gradient = model.weight.detach() * batch.attention_mask.unsqueeze(-1)
    size = size_of(gradient, norm_p, norm_level).view(3, -1, 1)
    direction = gradient.sign() if norm_p == "l1" else gradient / (size + 1e-6)

    def method(**options: Any) -> SmartPerturbation:
        return SmartPerturbation(
            norm_p=norm_p, norm_level=norm_level, scale="relative", loss_map=[mean_output], **options
        )

    search_linear(method(noise_var=0.1, k=0, projection="none"), model, batch)
    expected = 0.1 * root_mean_square * drawn_noise(batch)
    torch.testing.assert_close(model.delta(batch.input_ids), expected, rtol=0.0, atol=1e-12)
    search_linear(method(noise_var=0.0, step_size=0.2, k=1, projection="none"), model, batch)
    torch.testing.assert_close(model.delta(batch.input_ids), 0.2 * unit * direction, rtol=0.0, atol=1e-6)
    search_linear(method(noise_var=0.1, step_size=50.0, k=1, radius=0.05), model, batch)
    found = size_of(model.delta(batch.input_ids), norm_p, norm_level)
    torch.testing.assert_close(found.view(3, -1, 1), (0.05 * unit).expand(3, -1, 1), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize(("radius", "projection"), [(0.1, "project"), (None, "none")])
@pytest.mark.parametrize("norm_p", NORMS)
def test_relative_noise_at_a_row_of_zeros_is_zero(norm_p: str, radius: float | None, projection: str) -> None:
    model, batch = linear_model(), linear_batch()
    with torch.no_grad():
        model.word.weight[batch.input_ids[0, 1]] = 0.0
    method = SmartPerturbation(
        noise_var=0.1,
        step_size=0.2,
        norm_p=norm_p,
        k=2,
        radius=radius,
        projection=projection,
        scale="relative",
        loss_map=[mean_output],
    )
    result = search_linear(method, model, batch)
    delta = model.delta(batch.input_ids)
    assert not delta[0, 1].any()
    assert delta[0, 0].abs().min() > 0
    assert all(value.isfinite() for value in result[:5])
    result.loss.backward()
    assert model.word.weight.grad is not None
    assert model.word.weight.grad.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norm_p", NORMS)
def test_relative_pre_ln_does_not_feel_the_scale_of_the_tables(family: str, norm_p: str) -> None:
    model = tiny_classifier(family)
    remove_norm_eps(model)
    batch = token_batch(model.bert)
    relative, absolute = (
        SmartPerturbation(noise_var=0.01, step_size=0.1, norm_p=norm_p, radius=0.1, scale=scale, k=2)
        for scale in ("relative", "absolute")
    )
    before, before_absolute = regularize(relative, model, batch).loss, regularize(absolute, model, batch).loss
    scale_tables(model.bert, 9.0)
    after, after_absolute = regularize(relative, model, batch).loss, regularize(absolute, model, batch).loss
    assert before.item() > 1e-6
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0.0)
    assert after_absolute.item() < 0.5 * before_absolute.item()


# the gradient


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("divergence", [KlCriterion(), SymKlCriterion()])
def test_gradient_of_the_ascent_is_that_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch, family: str, level: str, divergence: Any
) -> None:
    """g = ∂/∂δ Σ_examples KL(f(h) ‖ f(h + δ)), target detached: of the two halves of the symmetrized divergence the
    other one has its first distribution detached and the target is none of the ascent's.
    """
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    trace = Trace(monkeypatch)
    method = SmartPerturbation(noise_var=0.1, k=1, radius=10.0, level=level, loss_map=[divergence])
    clean = clean_logits(model, batch, level)
    regularize(method, model, batch, clean)
    ((delta, gradient),) = trace.steps
    injection = NoiseInjection(model.bert, level)
    target = clean.detach().log_softmax(-1)

    def ascent_loss(noise: Tensor) -> Tensor:
        with torch.no_grad(), injection.add(noise):
            log_p = model(*batch).log_softmax(-1)
        return (target.exp() * (target - log_p)).sum()

    real = batch.attention_mask.unsqueeze(-1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(delta.shape, generator=generator, dtype=torch.float64) * real
        step = 1e-5
        difference = (ascent_loss(delta + step * direction) - ascent_loss(delta - step * direction)) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-9)
    assert gradient[batch.attention_mask.bool()].abs().max() > 1e-4
