"""Several labels a text: losses and divergences of independent Bernoullis, against plain Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mt_dnn.checkpoints.build import DIVERGENCES
from mt_dnn.loss import LOSS_REGISTRY, BceCriterion, Criterion, LossCriterion, MseCriterion, SymKlCriterion
from mt_dnn.perturbation import PERTURBATIONS, AdversarialTraining, MtdnnReleasePerturbation, VatPerturbation
from mt_dnn.perturbation.divergences import BernoulliKlCriterion, BernoulliSymKlCriterion
from mt_dnn.perturbation.outputs import Comparison
from mt_dnn.training.bregman import proximal_divergence

ROWS, LABELS = 3, 4
MASK = torch.ones(ROWS, 2)


def two() -> tuple[Tensor, Tensor]:
    """Perturbed and clean logits, with gradient."""
    generator = torch.Generator().manual_seed(0)
    first, second = 2 * torch.randn(2, ROWS, LABELS, generator=generator, dtype=torch.float64)
    return first.requires_grad_(), second.requires_grad_()


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def kl(z: float, w: float) -> float:
    """KL(σ(z) ‖ σ(w)) of two Bernoullis."""
    p, q = sigma(z), sigma(w)
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def summed(of_one: Callable[[float, float], float], first: Tensor, second: Tensor) -> float:
    """Over the labels, a mean over the rows."""
    rows = zip(first.tolist(), second.tolist(), strict=True)
    return sum(sum(map(of_one, *pair)) for pair in rows) / len(first)


def symmetric(z: float, w: float) -> float:
    return (sigma(z) - sigma(w)) * (z - w)


def compared(clean: Tensor, criterion: Criterion | None = None) -> Comparison:
    return Comparison(clean, MASK, criterion or SymKlCriterion(), task_type="MultiLabel")


def test_the_task_types_name_is_a_view() -> None:
    assert compared(two()[1]).view == "labels"


@pytest.mark.parametrize("name", ["smart", "alum", "random", "r3f"])
def test_the_symmetrized_divergence_has_its_closed_form(name: str) -> None:
    """Σ (p − q)(z − w) over the labels, a mean over the rows; it is KL(P‖Q) + KL(Q‖P)."""
    perturbed, clean = two()
    expected = summed(symmetric, perturbed, clean)
    assert expected == pytest.approx(summed(kl, perturbed, clean) + summed(kl, clean, perturbed))
    method, batch = PERTURBATIONS[name](radius=0.1), compared(clean)
    assert method.final_loss(perturbed, batch).item() == pytest.approx(expected)
    assert method.ascent_loss(perturbed, batch).item() == pytest.approx(expected * ROWS)


def test_vat_is_kl_from_the_clean_to_the_perturbed_whatever_the_tasks_divergence_is() -> None:
    perturbed, clean = two()
    value = VatPerturbation(radius=0.1).final_loss(perturbed, compared(clean, MseCriterion()))
    assert value.item() == pytest.approx(summed(kl, clean, perturbed))
    first, second = torch.autograd.grad(value, (perturbed, clean), allow_unused=True)
    torch.testing.assert_close(first, (perturbed.sigmoid() - clean.sigmoid()) / ROWS)
    assert second is None or not second.any()


def test_the_sum_over_labels_is_the_divergence_of_the_joint_distribution() -> None:
    """Over all 2^L sets of labels that a text may have."""
    perturbed, clean = (own.detach()[:1] for own in two())

    def joint(logits: Tensor, labels: Sequence[int]) -> float:
        own = zip(logits[0].tolist(), labels, strict=True)
        return math.prod(sigma(z) if label else sigma(-z) for z, label in own)

    sets = list(itertools.product((0, 1), repeat=LABELS))
    assert sum(joint(clean, own) for own in sets) == pytest.approx(1)
    expected = sum(joint(clean, own) * math.log(joint(clean, own) / joint(perturbed, own)) for own in sets)
    batch = Comparison(clean, MASK[:1], SymKlCriterion(), task_type="MultiLabel")
    assert VatPerturbation(radius=0.1).final_loss(perturbed, batch).item() == pytest.approx(expected)


def js(z: float, w: float) -> float:
    middle = (sigma(z) + sigma(w)) / 2
    m = math.log(middle / (1 - middle))
    return kl(m, z) + kl(m, w)


def hellinger(z: float, w: float) -> float:
    ends = ((sigma(z), sigma(w)), (sigma(-z), sigma(-w)))
    return sum((math.sqrt(p) - math.sqrt(q)) ** 2 for p, q in ends) / 2


@pytest.mark.parametrize(
    ("name", "of_one"),
    [
        ("KlCriterion", lambda z, w: kl(w, z)),
        ("SymKlCriterion", symmetric),
        ("JSCriterion", js),
        ("HLCriterion", hellinger),
        ("MseCriterion", lambda z, w: (z - w) ** 2 / LABELS),
    ],
)
def test_every_divergence_of_a_definition_is_one_of_the_labels(
    name: str, of_one: Callable[[float, float], float]
) -> None:
    perturbed, clean = two()
    batch = compared(clean, LOSS_REGISTRY[LossCriterion[name]]())
    value = PERTURBATIONS["smart"](radius=0.1).final_loss(perturbed, batch)
    assert value.item() == pytest.approx(summed(of_one, perturbed, clean))


def test_the_criteria_for_other_loops_have_the_same_values_and_detach_the_same_sides() -> None:
    given, target = two()
    p, q = given.sigmoid(), target.sigmoid()
    value = BernoulliKlCriterion()(given, target)
    assert value.item() == pytest.approx(summed(kl, target, given))
    gradients = torch.autograd.grad(value, (given, target))
    torch.testing.assert_close(gradients, ((p - q) / ROWS, q * (1 - q) * (target - given) / ROWS))
    value = BernoulliSymKlCriterion()(given, target)
    assert value.item() == pytest.approx(summed(symmetric, given, target))
    gradients = torch.autograd.grad(value, (given, target))
    # of each half one side is detached: the other half of p − q's own slope is missing
    torch.testing.assert_close(gradients, ((p - q) / ROWS, (q - p) / ROWS))
    by_view = PERTURBATIONS["smart"](radius=0.1).final_loss(given, compared(target))
    torch.testing.assert_close(torch.autograd.grad(by_view, (given, target)), gradients)
    weight = torch.tensor([0.0, 3.0, 0.0], dtype=torch.float64)
    row = BernoulliSymKlCriterion()(given[1:2], target[1:2])
    torch.testing.assert_close(BernoulliSymKlCriterion(alpha=2.0)(given, target, weight), 2 * row)


def slope(function: Callable[[Tensor], float], at: Tensor, step: float = 1e-6) -> Tensor:
    """The gradient by central differences."""
    found = torch.zeros_like(at)
    for place in range(at.numel()):
        moved = torch.zeros_like(at).flatten()
        moved[place] = step
        moved = moved.view_as(at)
        found.view(-1)[place] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found


@pytest.mark.parametrize("name", ["smart", "vat", "at"])
def test_the_ascent_climbs_the_gradient_of_finite_differences(name: str) -> None:
    """∂L/∂δ through a network; of the half that SymKlCriterion detaches δ has no part."""
    generator = torch.Generator().manual_seed(1)
    h, weight = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((ROWS, 5), (5, LABELS)))
    targets = (torch.rand(ROWS, LABELS, generator=generator) < 0.5).double()

    def network(delta: Tensor) -> Tensor:
        return (h + delta).tanh() @ weight

    delta = (0.3 * torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    clean = network(torch.zeros_like(delta))
    batch = Comparison(
        clean, MASK, SymKlCriterion(), lambda output: BceCriterion()(output, targets), task_type="MultiLabel"
    )
    (found,) = torch.autograd.grad(PERTURBATIONS[name](radius=0.1).ascent_loss(network(delta), batch), delta)

    def climbed(moved: Tensor) -> float:
        logits = network(moved)
        if name == "at":
            cells = zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
            return -sum(math.log(sigma(z if t else -z)) for z, t in cells) / LABELS
        return ROWS * summed(kl, clean, logits)

    torch.testing.assert_close(found, slope(climbed, delta.detach()), rtol=1e-5, atol=1e-7)


def test_the_regularizers_gradient_is_that_of_finite_differences_of_each_half() -> None:
    perturbed, clean = two()
    value = PERTURBATIONS["smart"](radius=0.1).final_loss(perturbed, compared(clean))
    found = torch.autograd.grad(value, (perturbed, clean))
    fixed = (perturbed.detach(), clean.detach())
    expected = (
        slope(lambda moved: summed(kl, fixed[1], moved), fixed[0]),
        slope(lambda moved: summed(kl, fixed[0], moved), fixed[1]),
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_the_proximal_term_has_the_gradient_of_both_halves() -> None:
    student, teacher = two()
    value = compared(teacher, proximal_divergence).distance(student, teacher)  # type: ignore[arg-type]
    assert value.item() == pytest.approx(summed(symmetric, student, teacher))
    (found,) = torch.autograd.grad(value, student)
    expected = slope(lambda moved: summed(symmetric, moved, teacher), student.detach())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_the_release_climbs_its_criterion_label_by_label() -> None:
    """Of one label too, which it would take for a number."""
    perturbed, clean = two()
    release = MtdnnReleasePerturbation(radius=0.1)
    whole = release.ascent_loss(perturbed, compared(clean))
    parts = [release.ascent_loss(perturbed[:, [own]], compared(clean[:, [own]])) for own in range(LABELS)]
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_a_gold_loss_is_climbed_as_a_sum_over_examples() -> None:
    batch = Comparison(None, MASK, SymKlCriterion(), lambda _: torch.tensor(0.3), task_type="MultiLabel")
    assert AdversarialTraining(radius=0.1).ascent_loss(torch.zeros(ROWS, LABELS), batch).item() == pytest.approx(0.9)


def test_an_example_counts_as_not_finite_where_one_of_its_labels_is_not() -> None:
    logits = torch.zeros(ROWS, LABELS)
    logits[1, 2] = torch.inf
    assert compared(torch.zeros(ROWS, LABELS)).finite(logits).tolist() == [True, False, True]


LARGE = 1e4
SIGNS = [(LARGE, LARGE), (LARGE, -LARGE), (-LARGE, LARGE), (-LARGE, -LARGE), (LARGE, 0.0), (0.0, -LARGE)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [own.name for own in DIVERGENCES] + ["Bernoulli", "proximal"])
def test_nothing_overflows_at_extreme_logits(name: str, dtype: torch.dtype) -> None:
    given, target = torch.tensor(SIGNS).T[..., None].repeat(1, 1, 2).to(dtype)
    given.requires_grad_()
    target.requires_grad_()
    if name == "Bernoulli":
        value = BernoulliKlCriterion()(given, target) + BernoulliSymKlCriterion()(given, target)
    else:
        criterion = proximal_divergence if name == "proximal" else LOSS_REGISTRY[LossCriterion[name]]()
        batch = Comparison(target, torch.ones(len(SIGNS), 1), criterion, task_type="MultiLabel")
        value = batch.distance(given, target)
    assert value.isfinite()
    if name == "SymKlCriterion":  # two labels; at ±1e4 each half is 1e4, at 0 the sum is 5e3
        size = given.max().item()
        assert value.item() == pytest.approx(2 * (2 * 2 * size + 2 * size / 2) / len(SIGNS), rel=1e-3)
    value.backward()
    for own in (given, target):
        assert own.grad is None or own.grad.isfinite().all()
    assert given.grad is not None


def by_hand(logits: Tensor, targets: Tensor, weights: Sequence[float]) -> float:
    cells = [
        -w * t * math.log(sigma(z)) - (1 - t) * math.log(sigma(-z))
        for row, own in zip(logits.tolist(), targets.tolist(), strict=True)
        for z, t, w in zip(row, own, weights, strict=True)
    ]
    return sum(cells) / len(cells)


def test_the_loss_is_the_mean_over_rows_and_labels() -> None:
    logits, _ = two()
    targets = torch.tensor([[0, 1, 1, 0.25], [0, 0, 0, 1], [1, 0.5, 0, 0]])
    assert BceCriterion()(logits, targets).item() == pytest.approx(by_hand(logits, targets, [1] * LABELS))
    weights = [0.0, 1.0, 2.5, 7.0]
    weighted = BceCriterion(class_weights=torch.tensor(weights))(logits, targets)
    assert weighted.item() == pytest.approx(by_hand(logits, targets, weights))
    torch.testing.assert_close(
        weighted,
        F.binary_cross_entropy_with_logits(logits, targets.double(), pos_weight=torch.tensor(weights).double()),
    )
    (gradient,) = torch.autograd.grad(BceCriterion()(logits, targets), logits)
    torch.testing.assert_close(gradient, (logits.sigmoid() - targets) / targets.numel())
    only = torch.tensor([0.0, 3.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(BceCriterion()(logits, targets, only), BceCriterion()(logits[1:2], targets[1:2]))
    assert BceCriterion()(torch.zeros(5, 2), torch.ones(5, 2)).item() == pytest.approx(math.log(2))


def test_the_loss_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([[LARGE, -LARGE, LARGE, -LARGE]], requires_grad=True)
    value = BceCriterion(class_weights=torch.full((4,), 2.0))(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    assert value.item() == pytest.approx((1 + 2) * LARGE / 4)
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, torch.tensor([[0, 0, 0.25, -0.5]]))


def test_its_number_is_none_of_mtdnns() -> None:
    assert LossCriterion.BceCriterion == 1000 and LossCriterion.BceCriterion not in DIVERGENCES
