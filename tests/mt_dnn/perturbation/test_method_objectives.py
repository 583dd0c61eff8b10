"""The methods' objectives: what each climbs and what it adds to the loss (docs/methods.md, "The methods")."""

from __future__ import annotations

from typing import Any

import pytest
import torch
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
from mt_dnn.perturbation.noise import standard_noise
from tests.encoders import LEVELS, tiny_classifier, token_batch
from tests.mt_dnn.perturbation.objectives import SIZES, gold_loss, with_noise
from tests.search import Trace, clean_logits, regularize, seeds_of

NO_BALL: dict[str, Any] = {"noise_var": 0.05, "projection": "none"}


def test_the_registry_holds_each_method_under_its_name() -> None:
    assert list(PERTURBATIONS) == ["random", "at", "vat", "smart", "alum", "freelb", "r3f", "neftune"]
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
    active = [alum.is_active(update, updates) for update in range(updates)]
    assert active == [alum.begun(update, updates) for update in range(updates)]  # the old name
    assert active == [100 * update >= percent * updates for update in range(updates)]
