"""FreeLB against its paper's Algorithm 1 written out: gradients, points of the ascent, size of the first noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mt_dnn.perturbation import (
    FreeLbPerturbation,
)
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.perturbation.noise import standard_noise
from tests.encoders import LEVELS, tiny_classifier, token_batch
from tests.mt_dnn.perturbation.objectives import SIZES, assert_same_gradients, gold_loss, gradients, with_noise
from tests.search import Trace, clean_logits, regularize, seeds_of


@pytest.mark.parametrize("level", LEVELS)
def test_freelb_with_one_step_and_no_noise_has_the_gradient_of_plain_fine_tuning(level: str) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    method = FreeLbPerturbation(noise_var=0.0, step_size=0.1, radius=0.1, k=1, level=level)
    found = regularize(method, model, batch, task_loss=gold_loss)
    plain = gold_loss(clean_logits(model, batch, level))
    assert torch.equal(found.loss, plain)
    assert_same_gradients(gradients(found.loss, model), gradients(plain, model), tolerance=0.0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_freelb_averages_the_gradients_at_the_points_of_its_ascent(level: str, scale: str) -> None:
    """Algorithm 1 written out: each δ_t is a constant for the parameters."""
    model = tiny_classifier()
    batch = token_batch(model.bert)
    real = batch.attention_mask.unsqueeze(-1).double()
    step_size, radius, sigma, k = 0.2, 0.3, 0.25, 3
    method = FreeLbPerturbation(
        noise_var=sigma, step_size=step_size, radius=radius, norm_p="l2", norm_level=1, k=k, level=level, scale=scale
    )
    found = regularize(method, model, batch, task_loss=gold_loss)

    seen: list[Tensor] = []
    with NoiseInjection(model.bert, level).add(lambda h: seen.append(h.detach()) or h):  # type: ignore[func-returns-value]
        model(*batch)
    length = (seen[0] * real).flatten(1).norm(dim=1).view(3, 1, 1)
    unit = length if scale == "relative" else torch.ones(3, 1, 1, dtype=torch.float64)
    entries = (batch.attention_mask.sum(1) * 16).view(3, 1, 1).double()
    uniform = standard_noise(batch.attention_mask, 16, torch.float64, seeds_of(3), "uniform")
    delta = sigma * unit / entries.sqrt() * uniform
    assert (delta.flatten(1).norm(dim=1) <= sigma * unit.flatten()).all()
    total, losses = dict[str, Tensor](), []
    for _ in range(k):
        delta.requires_grad_()
        loss = gold_loss(with_noise(model, batch, level, delta))
        losses.append(loss.detach())
        (slope,) = torch.autograd.grad(3 * loss, delta, retain_graph=True)
        for name, gradient in gradients(loss, model).items():
            total[name] = total.get(name, 0.0) + gradient / k
        moved = delta.detach() + step_size * unit * real * slope / (slope * real).flatten(1).norm(dim=1).view(3, 1, 1)
        norm = moved.flatten(1).norm(dim=1).view(3, 1, 1)
        delta = torch.where(norm > radius * unit, moved * (radius * unit / norm), moved)
    torch.testing.assert_close(found.loss, torch.stack(losses).mean(), rtol=1e-9, atol=0.0)
    assert_same_gradients(gradients(found.loss, model), total, tolerance=1e-9)
    assert losses[-1] > losses[0] + 1e-3


@pytest.mark.parametrize(("norm_p", "norm_level"), [("l2", 0), ("l2", 1), ("inf", 0)])
@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_freelbs_noise_is_as_large_as_sigma_allows(
    monkeypatch: pytest.MonkeyPatch, norm_p: str, norm_level: int, scale: str
) -> None:
    """Uniform entries: an ℓ2 norm of σ/√3 in the mean, a maximum just below σ."""
    model = tiny_classifier()
    batch = token_batch(model.bert, lengths=(24, 20, 24), width=24)
    trace = Trace(monkeypatch)
    method = FreeLbPerturbation(
        noise_var=0.3, step_size=0.0, norm_p=norm_p, norm_level=norm_level, k=2, projection="none", scale=scale
    )
    regularize(method, model, batch, task_loss=gold_loss)
    h = model.bert.embeddings.word_embeddings(batch.input_ids).detach()
    scopes = [(x[m.bool()], y[m.bool()]) for x, y, m in zip(trace.steps[0].delta, h, batch.attention_mask, strict=True)]
    if norm_level == 1:
        scopes = [(x.flatten().unsqueeze(0), y.flatten().unsqueeze(0)) for x, y in scopes]
    delta, size = (torch.cat(part) for part in zip(*scopes, strict=True)) if norm_level == 0 else (None, None)
    ratios = []
    for x, y in [(delta, size)] if delta is not None else scopes:
        assert x is not None and y is not None
        unit: Any = 1.0
        if scale == "relative":
            unit = y.norm(dim=1) if norm_p == "l2" else y.square().mean(1).sqrt()
        ratios.append((x.norm(dim=1) if norm_p == "l2" else x.abs().amax(1)) / unit)
    found = torch.cat(ratios)
    assert found.max() <= 0.3 + 1e-12
    expected = 0.3 / 3**0.5 if norm_p == "l2" else 0.3
    assert found.mean().item() == pytest.approx(expected, rel=0.1)


def test_freelb_needs_a_step() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        FreeLbPerturbation(**SIZES, k=0)
