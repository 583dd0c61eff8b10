"""What tells the methods apart: what each ascends on and what it adds to the loss (METHODS section 4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt_dnn.loss import JSCriterion
from mt_dnn.perturbation import (
    PERTURBATIONS,
    AdversarialTraining,
    AlumPerturbation,
    FreeLbPerturbation,
    R3fPerturbation,
    RandomPerturbation,
    SmartPerturbation,
    VatPerturbation,
)
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.perturbation.noise import standard_noise
from mt_dnn.perturbation.search import Search
from tests.encoders import LEVELS, Classifier, TokenBatch, tiny_classifier, token_batch
from tests.search import Trace, clean_logits, regularize, seeds_of

LABELS = torch.tensor([0, 2, 1])
SIZES: dict[str, Any] = {"noise_var": 0.05, "step_size": 0.05, "radius": 0.1}
NO_BALL: dict[str, Any] = {"noise_var": 0.05, "projection": "none"}


def gold_loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS)


def with_noise(model: Classifier, batch: TokenBatch, level: str, delta: Tensor) -> Tensor:
    with NoiseInjection(model.bert, level).add(delta):
        logits: Tensor = model(*batch)
    return logits


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def assert_same_gradients(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=1e-8, atol=tolerance)
    assert max(float(gradient.abs().max()) for gradient in first.values()) > 1e-3


def test_the_registry_holds_each_method_under_its_name() -> None:
    assert list(PERTURBATIONS) == ["random", "at", "vat", "smart", "alum", "freelb", "r3f"]
    assert all(method.name == name for name, method in PERTURBATIONS.items())


# adversarial training


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("norm_level", [0, 1])
def test_fgsm_is_exactly_the_sign_of_the_gradient_times_the_radius(
    monkeypatch: pytest.MonkeyPatch, level: str, norm_level: int
) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    zero = torch.zeros(3, 7, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gold_loss(with_noise(model, batch, level, zero)), zero)
    trace = Trace(monkeypatch)
    method = AdversarialTraining(
        noise_var=0.0, step_size=0.5, radius=0.3, norm_p="l1", k=1, norm_level=norm_level, level=level
    )
    found = regularize(method, model, batch, task_loss=gold_loss)
    expected = 0.3 * gradient.sign() * batch.attention_mask.unsqueeze(-1)
    assert torch.equal(trace.deltas[-1], expected)
    torch.testing.assert_close(found.loss, gold_loss(with_noise(model, batch, level, expected)))
    assert found.loss > gold_loss(clean_logits(model, batch, level)) + 1e-3


def test_adversarial_training_uses_neither_the_clean_logits_nor_the_tasks_divergence() -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError("the divergence has no part in adversarial training")

    model = tiny_classifier()
    batch = token_batch(model.bert)
    method = AdversarialTraining(**SIZES, k=2, loss_map=[never])
    with_clean = regularize(method, model, batch, task_loss=gold_loss).loss
    without = method.regularize(
        lambda: model(*batch), model.bert, None, batch.attention_mask, noise_seeds=seeds_of(3), task_loss=gold_loss
    ).loss
    assert torch.equal(with_clean, without)


@pytest.mark.parametrize("method", [AdversarialTraining, FreeLbPerturbation])
def test_methods_on_gold_labels_say_that_they_need_them(method: type[AdversarialTraining]) -> None:
    model = tiny_classifier()
    with pytest.raises(ValueError, match="task_loss"):
        regularize(method(**SIZES), model, token_batch(model.bert))


# virtual adversarial training


class LinearSoftmax(nn.Module):
    """Logits W·(mean of h over real tokens)."""

    def __init__(self, vocabulary: int = 20, hidden: int = 6, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.word = nn.Embedding(vocabulary, hidden).double()
        self.weight = nn.Parameter(torch.randn(classes, hidden, generator=generator, dtype=torch.float64))
        with torch.no_grad():
            self.word.weight.copy_(torch.randn(vocabulary, hidden, generator=generator))

    def get_input_embeddings(self) -> nn.Module:
        return self.word

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        real = mask.unsqueeze(-1).double()
        return (self.word(ids) * real).sum(1) / real.sum(1) @ self.weight.T


def test_vats_first_direction_on_a_linear_softmax_model_is_the_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """∂/∂δ KL(p ‖ softmax(z + Wδ)) = Wᵀ(softmax(z + Wδ) − p), by token over the number of tokens."""
    model = LinearSoftmax()
    ids, mask = torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    clean = model(ids, mask)
    trace = Trace(monkeypatch)
    method = VatPerturbation(noise_var=1e-3, step_size=10.0, norm_p="l2", k=1, norm_level=1, radius=0.5)
    found = method.regularize(lambda: model(ids, mask), model, clean, mask, noise_seeds=seeds_of(2))
    noise = 1e-3 * standard_noise(mask, 6, torch.float64, seeds_of(2))
    lengths = mask.sum(1, keepdim=True).double()
    logits = clean.detach() + (noise.sum(1) / lengths) @ model.weight.detach().T
    slope = (logits.softmax(-1) - clean.detach().softmax(-1)) @ model.weight.detach() / lengths
    expected_gradient = slope.unsqueeze(1) * mask.unsqueeze(-1)
    torch.testing.assert_close(trace.steps[0].gradient, expected_gradient, rtol=1e-6, atol=1e-12)
    moved = noise + 10.0 * expected_gradient / expected_gradient.flatten(1).norm(dim=1).view(2, 1, 1)
    expected = 0.5 * moved / moved.flatten(1).norm(dim=1).view(2, 1, 1)
    torch.testing.assert_close(trace.deltas[-1], expected, rtol=1e-5, atol=1e-9)
    shifted = clean + (expected.sum(1) / lengths) @ model.weight.T
    p = clean.detach().softmax(-1)
    kl = (p * (p.log() - shifted.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(found.loss, kl, rtol=1e-6, atol=1e-12)


def test_vats_target_is_detached_and_its_divergence_is_kl_whatever_the_task_says() -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    clean = clean_logits(model, batch).detach().requires_grad_()
    found = regularize(VatPerturbation(**SIZES, loss_map=[JSCriterion()]), model, batch, clean)
    assert torch.autograd.grad(found.loss, clean, allow_unused=True, retain_graph=True) == (None,)
    plain = regularize(VatPerturbation(**SIZES), model, batch, clean)
    assert torch.equal(plain.loss, found.loss)
    smart = regularize(SmartPerturbation(**SIZES), model, batch, clean)
    assert torch.autograd.grad(smart.loss, clean)[0].abs().max() > 1e-6


# random noise


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", [RandomPerturbation, R3fPerturbation])
def test_random_noise_is_compared_without_a_search(level: str, method: type[RandomPerturbation]) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    forwards: list[int] = []
    model.bert.register_forward_hook(lambda *_: forwards.append(1))
    clean = clean_logits(model, batch, level)
    perturbation = method(noise_var=0.1, projection="none", k=5, level=level)
    found = regularize(perturbation, model, batch, clean)
    assert len(forwards) == 2
    noise = 0.1 * standard_noise(batch.attention_mask, 16, torch.float64, seeds_of(3), perturbation.noise)
    log_p, log_q = with_noise(model, batch, level, noise).log_softmax(-1), clean.log_softmax(-1)
    torch.testing.assert_close(found.loss, ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean())
    assert found.eff_perturb == 0
    assert found.loss > 1e-6


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_r3f_is_random_noise_with_the_same_draw(noise: str) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    options: dict[str, Any] = {"noise_var": 0.1, "projection": "none", "noise": noise}
    r3f = regularize(R3fPerturbation(**options), model, batch)
    random = regularize(RandomPerturbation(**options), model, batch)
    assert torch.equal(r3f.loss, random.loss)
    assert R3fPerturbation(**NO_BALL).noise == "uniform"
    assert RandomPerturbation(**NO_BALL).noise == "normal"


def test_uniform_noise_stays_within_its_bound_and_fills_it() -> None:
    noise = standard_noise(torch.ones(2, 50), 100, torch.float64, seeds_of(2), "uniform")
    assert noise.abs().max() <= 1
    assert noise.abs().mean().item() == pytest.approx(0.5, abs=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    alone = standard_noise(torch.ones(1, 50), 100, torch.float64, seeds_of(2)[1:], "uniform")
    assert torch.equal(alone[0], noise[1])


# ALUM


def test_alum_is_smart_under_a_curriculum() -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    alum, smart = AlumPerturbation(**SIZES, k=2), SmartPerturbation(**SIZES, k=2)
    assert torch.equal(regularize(alum, model, batch).loss, regularize(smart, model, batch).loss)
    assert (alum.start_ratio, smart.start_ratio) == (0.5, 0.0)
    assert AlumPerturbation(**SIZES, start_ratio=0.2).start_ratio == 0.2
    with pytest.raises(ValueError, match="start_ratio is 1.5; accepted: 0 to 1"):
        AlumPerturbation(**SIZES, start_ratio=1.5)


@pytest.mark.parametrize(("percent", "updates"), [(0, 100), (7, 100), (28, 25), (50, 7), (14, 50), (100, 100)])
def test_the_regularizer_begins_with_the_first_update_of_its_share(percent: int, updates: int) -> None:
    """0.07 · 100, 0.28 · 25 and 0.14 · 50 are a little more than 7 in floating point."""
    alum = AlumPerturbation(**SIZES, start_ratio=percent / 100)
    begun = [alum.begun(update, updates) for update in range(updates)]
    assert begun == [100 * update >= percent * updates for update in range(updates)]


# FreeLB


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


# the ascent gain


@pytest.mark.parametrize("norm_level", [0, 1])
def test_chance_has_the_entries_of_delta_in_another_place_and_sign(
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
    delta, chance = searches[0].delta.detach(), searches[0].shuffled()
    assert torch.equal(chance, searches[0].shuffled())
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
def test_chance_of_an_example_depends_on_neither_padding_nor_batch(norm_level: int) -> None:
    def shuffled(mask: Tensor, delta: Tensor, seeds: list[int]) -> Tensor:
        found = Search(SmartPerturbation(**SIZES, norm_level=norm_level), lambda: None, None, mask, seeds)  # type: ignore[arg-type]
        found.delta, found.padding = delta, (mask == 0).unsqueeze(-1)
        return found.shuffled()

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
    monkeypatch.setattr(mt_dnn.perturbation.search.Search, "shuffled", lambda self: chance)
    trace = Trace(monkeypatch)
    clean = model(*batch)
    found = regularize(SmartPerturbation(**SIZES), model, batch, clean, measure_gain=True)

    def divergence(delta: Tensor) -> Tensor:
        log_p, log_q = with_noise(model, batch, "pre_ln", delta).log_softmax(-1), clean.log_softmax(-1)
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()

    assert found.ascent_rise is not None and found.chance_rise is not None
    torch.testing.assert_close(found.ascent_rise, divergence(trace.deltas[-1]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.chance_rise, divergence(chance), rtol=1e-9, atol=1e-12)
