"""The ascent gain: R at the found perturbation against R at the same entries shuffled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mt_dnn.perturbation import (
    PERTURBATIONS,
    FreeLbPerturbation,
    RandomPerturbation,
    SmartPerturbation,
)
from mt_dnn.perturbation.delta import Delta
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.perturbation.noise import standard_noise
from tests.encoders import tiny_classifier, token_batch
from tests.mt_dnn.perturbation.objectives import SIZES, gold_loss, with_noise
from tests.search import Trace, regularize, seeds_of


@pytest.mark.parametrize("norm_level", [0, 1])
def test_shuffled_has_the_entries_of_delta_in_other_places_with_random_signs(
    monkeypatch: pytest.MonkeyPatch, norm_level: int
) -> None:
    import mt_dnn.perturbation.search

    searches: list[Any] = []
    original = mt_dnn.perturbation.search.Search.statistics
    monkeypatch.setattr(
        mt_dnn.perturbation.search.Search, "statistics", lambda self: searches.append(self) or original(self)
    )
    model = tiny_classifier()
    batch = token_batch(model.bert)
    regularize(SmartPerturbation(**SIZES, norm_level=norm_level), model, batch)
    (found,) = searches[0].deltas.values()
    delta, chance = found.value.detach(), found.shuffled(2)
    assert torch.equal(chance, found.shuffled(2))
    for row, mask in enumerate(batch.attention_mask.bool()):
        assert not chance[row, ~mask].any()
        before, after = delta[row, mask].abs(), chance[row, mask].abs()
        scopes = (before.flatten(), after.flatten()) if norm_level == 1 else (before, after)
        torch.testing.assert_close(scopes[1].sort(-1).values, scopes[0].sort(-1).values, rtol=0, atol=0)
        by_token = torch.equal(after.sort(-1).values, before.sort(-1).values)
        assert by_token == (norm_level == 0)
    moved = (chance.abs() != delta.abs())[batch.attention_mask.bool()].double().mean()
    assert moved > 0.8
    negative = (chance[batch.attention_mask.bool()] < 0).double().mean()
    assert 0.4 < negative < 0.6


@pytest.mark.parametrize("norm_level", [0, 1])
def test_shuffled_depends_on_neither_padding_nor_batch(norm_level: int) -> None:
    def shuffled(mask: Tensor, delta: Tensor, seeds: list[int]) -> Tensor:
        method, place = SmartPerturbation(**SIZES, norm_level=norm_level), NoiseInjection(tiny_classifier().bert)
        found = Delta(method, place, mask, seeds, torch.zeros_like(delta))
        found.value = delta
        return found.shuffled(0)

    seeds = seeds_of(2)
    delta = torch.randn(2, 4, 6)
    both = shuffled(torch.ones(2, 4), delta, seeds)
    alone = torch.zeros(1, 7, 6)
    places = [1, 2, 4, 6]
    mask = torch.zeros(1, 7)
    mask[0, places], alone[0, places] = 1, delta[1]
    found = shuffled(mask, alone, seeds[1:])
    assert torch.equal(found[0, places], both[1])
    assert not found[0, [0, 3, 5]].any()
    assert not torch.equal(both, delta)


@pytest.mark.parametrize("name", ["at", "vat", "smart", "alum", "freelb"])
def test_the_gains_rises_are_measured_under_the_same_dropout_and_leave_no_trace(name: str) -> None:
    model = tiny_classifier(dropout=0.2)
    batch = token_batch(model.bert)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    clean = model(*batch)
    after = torch.get_rng_state()
    method = PERTURBATIONS[name](noise_var=0.005, step_size=0.1, radius=0.1, k=2, same_dropout=True)
    options: dict[str, Any] = {"dropout_state": state, "task_loss": gold_loss}
    found = regularize(method, model, batch, clean, measure_gain=True, **options)
    assert torch.equal(torch.get_rng_state(), after)
    plain = regularize(method, model, batch, clean, **options)
    assert torch.equal(plain.loss, found.loss)
    assert plain.ascent_rise is None and plain.chance_rise is None
    assert found.ascent_rise is not None and found.chance_rise is not None
    assert not found.ascent_rise.requires_grad
    assert found.ascent_rise > 1.5 * found.chance_rise.abs()


def test_without_an_ascent_there_is_no_gain() -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    random, one_point = RandomPerturbation(noise_var=0.1, projection="none"), FreeLbPerturbation(**SIZES, k=1)
    assert regularize(random, model, batch, measure_gain=True).ascent_rise is None
    assert regularize(one_point, model, batch, task_loss=gold_loss, measure_gain=True).ascent_rise is None


def test_the_rises_are_the_differences_that_the_definition_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import mt_dnn.perturbation.search

    model = tiny_classifier()
    batch = token_batch(model.bert)
    chance = 0.05 * standard_noise(batch.attention_mask, 16, torch.float64, seeds_of(3, update=7))
    monkeypatch.setattr(mt_dnn.perturbation.delta.Delta, "shuffled", lambda self, number: chance)
    trace = Trace(monkeypatch)
    clean = model(*batch)
    found = regularize(SmartPerturbation(**SIZES), model, batch, clean, measure_gain=True)

    def divergence(delta: Tensor) -> Tensor:
        log_p, log_q = with_noise(model, batch, "pre_ln", delta).log_softmax(-1), clean.log_softmax(-1)
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()

    assert found.ascent_rise is not None and found.chance_rise is not None
    torch.testing.assert_close(found.ascent_rise, divergence(trace.deltas[-1]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.chance_rise, divergence(chance), rtol=1e-9, atol=1e-12)
