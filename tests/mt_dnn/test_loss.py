"""Criteria against golden numbers, their formulas, and their behaviour at the edges of a softmax."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mt_dnn.loss import LOSS_REGISTRY, CeCriterion, LossCriterion, MseCriterion

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "golden_losses.json").read_text())
WITH_GRADIENTS = sorted(set(GOLDEN["losses"]) - {"CeCriterion", "HLCriterion"})
DIVERGENCES = ("KlCriterion", "SymKlCriterion", "JSCriterion", "HLCriterion", "NsKlCriterion", "NsSymKlCriterion")
NON_NEGATIVE = ("KlCriterion", "SymKlCriterion", "JSCriterion", "HLCriterion", "MseCriterion")


def criterion(name: str, **options: Any) -> Any:
    return LOSS_REGISTRY[LossCriterion[name]](**options)


def golden_logits(name: str) -> Tensor:
    return torch.tensor(GOLDEN["loss_inputs"][name], requires_grad=True)


def random_logits(rows: int = 6, columns: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = 2 * torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    return draw[0].requires_grad_(), draw[1].requires_grad_()


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_golden_value_and_gradients(name: str) -> None:
    golden = GOLDEN["losses"][name]
    given, target = golden_logits("input"), golden_logits("target")
    value = criterion(name)(given, target)
    assert value.item() == pytest.approx(golden["value"], abs=1e-6)
    gradients = torch.autograd.grad(value, (given, target), allow_unused=True)
    for gradient, key in zip(gradients, ("grad_input", "grad_target"), strict=True):
        if golden[key] is None:
            assert gradient is None or not gradient.any()
        else:
            assert gradient is not None
            torch.testing.assert_close(gradient, torch.tensor(golden[key]), rtol=0.0, atol=1e-6)


def test_golden_cross_entropy() -> None:
    labels = torch.tensor(GOLDEN["loss_inputs"]["labels"])
    value = criterion("CeCriterion")(golden_logits("input"), labels)
    assert value.item() == pytest.approx(GOLDEN["losses"]["CeCriterion"], abs=1e-6)


def test_hellinger_has_the_golden_value_and_the_gradient_that_the_release_lacks() -> None:
    given, target = golden_logits("input"), golden_logits("target")
    value = criterion("HLCriterion")(given, target)
    assert value.item() == pytest.approx(GOLDEN["losses"]["HLCriterion"]["value"], abs=1e-6)
    gradients = torch.autograd.grad(value, (given, target))
    for gradient in gradients:
        assert gradient.abs().max() > 1e-3


def test_hellinger_gradient_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda p, q: criterion("HLCriterion")(p, q), random_logits())


def test_hellinger_gradient_is_finite_and_not_zero_where_a_softmax_underflows() -> None:
    given = torch.tensor([[0.0, -150.0]], requires_grad=True)
    target = torch.tensor([[-150.0, 0.0]], requires_grad=True)
    assert given.softmax(-1)[0, 1] == 0
    value = criterion("HLCriterion")(given, target)
    assert value.item() == pytest.approx(1.0, abs=1e-6)
    for gradient in torch.autograd.grad(value, (given, target)):
        assert gradient.isfinite().all()
        # d/dz (√P₁ − √Q₁)² at √P₁ = e^{-75}: of the order of e^{-75}
        assert gradient.abs().max() > 1e-34


def test_spans_are_half_the_sum_of_start_and_end_and_log_odds_are_added() -> None:
    (start, end), labels = random_logits(3, 4), torch.tensor([[0, 2, 1], [1, 1, 0], [3, 3, 1]])
    odds = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    of_start = -start.log_softmax(-1)[range(3), labels[:, 0]]
    of_end = -end.log_softmax(-1)[range(3), labels[:, 1]]
    of_answer = -torch.stack([odds[0].sigmoid(), 1 - odds[1].sigmoid(), odds[2].sigmoid()]).log()
    two = criterion("SpanCeCriterion")((start, end), labels[:, :2])
    torch.testing.assert_close(two, (of_start + of_end).mean() / 2)
    three = criterion("SpanCeCriterion", alpha=2.0)((start, end, odds), labels)
    torch.testing.assert_close(three, 2 * (two + of_answer.mean()), rtol=1e-6, atol=0.0)

    weight = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    weighted = criterion("SpanCeCriterion")((start, end, odds), labels, weight)
    expected = (((of_start + of_end) / 2 + of_answer) * weight).mean()
    torch.testing.assert_close(weighted, expected, rtol=1e-6, atol=0.0)
    labels[1, :2] = -1  # lies outside
    ignoring = criterion("SpanCeCriterion")((start, end), labels[:, :2])
    torch.testing.assert_close(ignoring, ((of_start + of_end) / 2)[[0, 2]].mean())


def kl(first: Tensor, second: Tensor) -> Tensor:
    return (first * (first.log() - second.log())).sum() / first.size(0)


def odds(p: Tensor) -> Tensor:
    return -(1 / (p + 1e-6) - 1 + 1e-6).log()


def test_values_follow_their_formulas() -> None:
    given, target = random_logits()
    p, q = given.detach().softmax(-1), target.detach().softmax(-1)
    m = (p + q) / 2
    rows = p.size(0)
    formulas = {
        "MseCriterion": (given - target).detach().square().mean(),
        "KlCriterion": kl(q, p),
        "SymKlCriterion": kl(q, p) + kl(p, q),
        "NsKlCriterion": (2 * p * (odds(p) - odds(q))).sum() / rows,
        "NsSymKlCriterion": (2 * (p - q) * (odds(p) - odds(q))).sum() / rows,
        "JSCriterion": kl(m, p) + kl(m, q),
        "HLCriterion": (p.sqrt() - q.sqrt()).square().mean(),
    }
    for name, expected in formulas.items():
        torch.testing.assert_close(criterion(name)(given, target).detach(), expected, msg=name)


@pytest.mark.parametrize("name", NON_NEGATIVE)
def test_a_divergence_is_zero_where_both_agree_and_positive_elsewhere(name: str) -> None:
    given, target = random_logits()
    same = criterion(name)(given, given.detach())
    assert same.item() == pytest.approx(0.0, abs=1e-12)
    (gradient,) = torch.autograd.grad(same, given)
    assert gradient.abs().max() < 1e-12
    assert criterion(name)(given, target).item() > 0.01


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_shift_of_the_logits_changes_no_divergence(name: str) -> None:
    given, target = random_logits()
    torch.testing.assert_close(criterion(name)(given + 3.0, target - 5.0), criterion(name)(given, target))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_large_logits_give_finite_values_and_gradients(name: str) -> None:
    given = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    target = torch.tensor([[-300.0, 0.0, 300.0]], requires_grad=True)
    value = criterion(name)(given, target)
    assert value.isfinite()
    value.backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()


@pytest.mark.parametrize("name", [*DIVERGENCES, "MseCriterion"])
def test_alpha_and_weights(name: str) -> None:
    given, target = random_logits()
    whole = criterion(name)(given, target)
    torch.testing.assert_close(criterion(name, alpha=3.0)(given, target), 3 * whole)
    by_row = torch.stack([criterion(name)(given[i : i + 1], target[i : i + 1]) for i in range(given.size(0))])
    torch.testing.assert_close(by_row.mean(), whole)
    weight = torch.rand(given.size(0), dtype=torch.float64)
    torch.testing.assert_close(criterion(name)(given, target, weight), (weight * by_row).mean())


def test_squared_error_of_a_column_against_labels() -> None:
    outputs = torch.tensor([[1.0], [2.0], [4.0]], requires_grad=True)
    labels = torch.tensor([1.0, 4.0, 1.0])
    value = MseCriterion()(outputs, labels)
    assert value.item() == pytest.approx((0 + 4 + 9) / 3)
    (gradient,) = torch.autograd.grad(value, outputs)
    torch.testing.assert_close(gradient, torch.tensor([[0.0], [-4 / 3], [2.0]]))


def test_cross_entropy_passes_over_ignored_rows() -> None:
    given, _ = random_logits(4, 3)
    labels = torch.tensor([0, -1, 2, -1])
    expected = -given.log_softmax(-1)[[0, 2], [0, 2]].mean()
    torch.testing.assert_close(CeCriterion()(given, labels).double(), expected, rtol=1e-6, atol=1e-6)
    nothing = CeCriterion()(given, torch.full((4,), -1))
    assert nothing.item() == 0.0


def test_cross_entropy_of_no_information() -> None:
    assert CeCriterion()(torch.zeros(5, 8), torch.arange(5)).item() == pytest.approx(math.log(8), abs=1e-6)


def test_numbers_of_the_criteria_are_those_of_mtdnn() -> None:
    assert [(c.name, c.value) for c in LossCriterion if c < 1000] == [
        ("CeCriterion", 0),
        ("MseCriterion", 1),
        ("RankCeCriterion", 2),
        ("SpanCeCriterion", 3),
        ("SeqCeCriterion", 4),
        ("MlmCriterion", 5),
        ("KlCriterion", 6),
        ("SymKlCriterion", 7),
        ("NsKlCriterion", 8),
        ("NsSymKlCriterion", 9),
        ("JSCriterion", 10),
        ("HLCriterion", 11),
    ]
