"""How the outputs of each task type are compared (docs/methods.md)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from data_utils.task_def import TaskType
from mt_dnn.loss import Criterion, HLCriterion, MseCriterion, SymKlCriterion
from mt_dnn.perturbation import AdversarialTraining, MtdnnReleasePerturbation, SmartPerturbation
from mt_dnn.perturbation.outputs import Comparison, LabeledOutput, logits_of

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def two(*shape: int) -> tuple[Tensor, Tensor]:
    """Perturbed and clean logits."""
    generator = torch.Generator().manual_seed(0)
    perturbed, clean = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return perturbed, clean


def symmetric(first: Tensor, second: Tensor) -> Tensor:
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def compare(perturbed: Any, clean: Any, task_type: TaskType, **options: Any) -> tuple[Tensor, Tensor]:
    """R and the ascent's loss of SMART."""
    divergence = MseCriterion() if task_type == TaskType.Regression else SymKlCriterion()
    batch = Comparison(clean, MASK, divergence, task_type=task_type, **options)
    method = SmartPerturbation(radius=0.1)
    return method.final_loss(perturbed, batch), method.ascent_loss(perturbed, batch)


def test_classification_has_one_distribution_an_example() -> None:
    perturbed, clean = two(2, 5)
    mean, summed = compare(perturbed, clean, TaskType.Classification)
    torch.testing.assert_close(mean, symmetric(perturbed, clean).mean())
    torch.testing.assert_close(summed, symmetric(perturbed, clean).sum())


def test_regression_is_the_squared_error() -> None:
    perturbed, clean = two(2, 1)
    mean, summed = compare(perturbed, clean, TaskType.Regression)
    torch.testing.assert_close(mean, (perturbed - clean).square().mean())
    torch.testing.assert_close(summed, (perturbed - clean).square().sum())


@pytest.mark.parametrize("task_type", [TaskType.SpanClassification, TaskType.SpanClassificationYN])
def test_spans_add_start_and_end_over_real_tokens(task_type: TaskType) -> None:
    starts, ends = two(2, 4), tuple(reversed(two(2, 4)))
    expected = torch.zeros((), dtype=torch.float64)
    for perturbed, clean in (starts, ends):
        rows = [symmetric(perturbed[row, MASK[row] == 1], clean[row, MASK[row] == 1]) for row in range(2)]
        expected = expected + torch.stack(rows).mean()
    mean, summed = compare((starts[0], ends[0]), (starts[1], ends[1]), task_type)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(summed, 2 * expected)


def test_spans_do_not_feel_logits_at_padding_even_where_they_are_not_finite() -> None:
    perturbed, clean = two(2, 4)
    spoiled = perturbed.clone()
    spoiled[1, 2:] = torch.tensor([float("nan"), float("inf")])
    plain, _ = compare((perturbed, perturbed), (clean, clean), TaskType.SpanClassification)
    found, _ = compare((spoiled, spoiled), (clean, clean), TaskType.SpanClassification)
    assert torch.equal(found, plain)
    batch = Comparison((clean, clean), MASK, SymKlCriterion(), task_type=TaskType.SpanClassification)
    assert batch.finite((spoiled, perturbed)).tolist() == [True, True]
    spoiled[1, 0] = float("nan")
    assert batch.finite((perturbed, spoiled)).tolist() == [True, False]


def test_of_spans_start_and_end_count_and_not_whether_there_is_an_answer() -> None:
    (perturbed, clean), odds = two(2, 4), torch.tensor([float("nan"), 1.0])
    plain, _ = compare((perturbed, clean), (clean, perturbed), TaskType.SpanClassificationYN)
    found, _ = compare((perturbed, clean, odds), (clean, perturbed, -odds), TaskType.SpanClassificationYN)
    assert torch.equal(found, plain)
    batch = Comparison((clean, clean), MASK, SymKlCriterion(), task_type=TaskType.SpanClassificationYN)
    assert batch.finite((perturbed, clean, odds)).tolist() == [True, True]


def test_sequence_labeling_is_the_mean_over_real_tokens() -> None:
    perturbed, clean = two(2, 4, 3)
    real = MASK.bool()
    mean, summed = compare(perturbed, clean, TaskType.SeqenceLabeling)
    torch.testing.assert_close(mean, symmetric(perturbed[real], clean[real]).mean())
    torch.testing.assert_close(summed, symmetric(perturbed[real], clean[real]).sum())


@pytest.mark.parametrize("task_type", [TaskType.MaskLM, TaskType.SeqenceGeneration])
def test_masked_lm_and_generation_are_the_mean_over_the_loss_mask(task_type: TaskType) -> None:
    perturbed, clean = two(2, 4, 3)
    counted = torch.tensor([[False, True, False, True], [True, False, False, False]])
    mean, _ = compare(perturbed, clean, task_type, loss_mask=counted)
    torch.testing.assert_close(mean, symmetric(perturbed[counted], clean[counted]).mean())
    batch = Comparison(clean, MASK, SymKlCriterion(), task_type=task_type, loss_mask=counted)
    spoiled = perturbed.clone()
    spoiled[~counted] = float("nan")
    assert batch.finite(spoiled).all()
    spoiled[0, 1, 0] = float("inf")
    assert batch.finite(spoiled).tolist() == [False, True]


def test_a_batch_in_which_no_token_counts_has_a_regularizer_of_zero() -> None:
    perturbed, clean = two(2, 4, 3)
    perturbed.requires_grad_()
    mean, summed = compare(perturbed, clean, TaskType.MaskLM, loss_mask=torch.zeros(2, 4))
    assert mean == 0
    (gradient,) = torch.autograd.grad(summed, perturbed)
    assert not gradient.any()


def test_a_task_type_without_a_view_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match=r"ClozeChoice; accepted: classes, labels, numbers, groups, spans, tokens"):
        compare(*two(2, 3), TaskType.ClozeChoice)


def test_logits_are_found_in_every_kind_of_output() -> None:
    first, second = two(2, 3)
    assert logits_of(first) == (first,)
    assert logits_of((first, second)) == (first, second)
    assert logits_of(SimpleNamespace(logits=first)) == (first,)
    spans = SimpleNamespace(start_logits=first, end_logits=second)
    assert logits_of(spans) == (first, second)
    assert logits_of(LabeledOutput(spans, torch.zeros(()))) == (first, second)


COUNTED = torch.tensor([[False, True, False, True], [True, False, False, False]])


@pytest.mark.parametrize(
    ("task_type", "shape", "options", "count"),
    [
        (TaskType.Classification, (2, 5), {}, 2),
        (TaskType.SpanClassification, (2, 2, 4), {}, 2),
        (TaskType.Ranking, (2, 1), {"pairwise": 2}, 1),
        (TaskType.Ranking, (2, 1), {"pairwise": (2,)}, 1),
        (TaskType.SeqenceLabeling, (2, 4, 3), {}, 6),
        (TaskType.MaskLM, (3, 9), {"loss_mask": COUNTED}, 3),
        (TaskType.SeqenceGeneration, (2, 4, 9), {"loss_mask": COUNTED}, 3),
    ],
)
def test_a_loss_of_gold_labels_is_climbed_as_a_sum_over_what_its_mean_is_over(
    task_type: TaskType, shape: tuple[int, ...], options: dict[str, Any], count: int
) -> None:
    output = torch.zeros(shape)
    loss = torch.tensor(0.3, dtype=torch.float64)
    batch = Comparison(None, MASK, SymKlCriterion(), lambda _: loss, task_type=task_type, **options)
    method = AdversarialTraining(radius=0.1)
    given = tuple(output.unbind(1)) if task_type == TaskType.SpanClassification else output
    torch.testing.assert_close(method.ascent_loss(given, batch), count * loss)
    torch.testing.assert_close(method.final_loss(given, batch), loss)


def test_groups_of_unequal_size_are_separate_distributions() -> None:
    """The absent candidates of a smaller group have no probability and no part in R."""
    perturbed, clean = two(5, 1)
    loss, ascent = compare(perturbed, clean, TaskType.Ranking, pairwise=(3, 2))
    values = [symmetric(perturbed[:3, 0], clean[:3, 0]), symmetric(perturbed[3:, 0], clean[3:, 0])]
    torch.testing.assert_close(loss, torch.stack(values).mean())
    torch.testing.assert_close(ascent, torch.stack(values).sum())


def by_column(criterion: type[Criterion], first: Tensor, second: Tensor) -> Tensor:
    """The mean of a row over its columns, none of which is padding, by the formulas of docs/methods.md."""
    if criterion is HLCriterion:
        first, second = first.softmax(-1).sqrt(), second.softmax(-1).sqrt()
    return (first - second).square().mean()


@pytest.mark.parametrize("method", [SmartPerturbation, MtdnnReleasePerturbation])
@pytest.mark.parametrize("criterion", [MseCriterion, HLCriterion])
@pytest.mark.parametrize("width", [3, 20])
def test_of_spans_padding_is_in_no_mean_over_tokens(
    criterion: type[Criterion], method: type[SmartPerturbation], width: int
) -> None:
    mask = (torch.arange(width) < torch.tensor([[3], [2]])).long()
    perturbed, clean = two(2, 3)
    wide = [torch.nn.functional.pad(part, (0, width - 3), value=7.0) for part in (perturbed, clean)]
    batch = Comparison((wide[1], wide[1]), mask, criterion(), task_type=TaskType.SpanClassification)
    rows = [by_column(criterion, perturbed[row, :own], clean[row, :own]) for row, own in enumerate((3, 2))]
    found = method(radius=0.1).final_loss((wide[0], wide[0]), batch)
    torch.testing.assert_close(found, 2 * torch.stack(rows).mean())


@pytest.mark.parametrize("criterion", [MseCriterion, HLCriterion])
def test_absent_candidates_are_in_no_mean_over_a_group(criterion: type[Criterion]) -> None:
    perturbed, clean = two(5, 1)
    batch = Comparison(clean, torch.ones(5, 4), criterion(), task_type=TaskType.Ranking, pairwise=(3, 2))
    groups = [by_column(criterion, perturbed[own, 0], clean[own, 0]) for own in (slice(3), slice(3, 5))]
    method = SmartPerturbation(radius=0.1)
    torch.testing.assert_close(method.final_loss(perturbed, batch), torch.stack(groups).mean())
    torch.testing.assert_close(method.ascent_loss(perturbed, batch), torch.stack(groups).sum())


@pytest.mark.parametrize("task_type", [TaskType.SeqenceLabeling, TaskType.MaskLM, TaskType.SeqenceGeneration])
def test_logits_of_tokens_may_stand_in_a_row(task_type: TaskType) -> None:
    """As MT-DNN's network gives those of sequence labels, padding among them."""
    perturbed, clean = two(2, 4, 5)
    found = compare(perturbed.flatten(0, 1), clean.flatten(0, 1), task_type)
    torch.testing.assert_close(found, compare(perturbed, clean, task_type), rtol=0, atol=0)
    batch = Comparison(clean.flatten(0, 1), MASK, SymKlCriterion(), task_type=task_type)
    assert batch.loss_denominator(perturbed.flatten(0, 1)) == 6 == len(batch.rows(perturbed.flatten(0, 1))[0])
    spoiled = perturbed.clone()
    spoiled[1, 1] = float("nan")
    assert batch.finite(spoiled.flatten(0, 1)).tolist() == [True, False]
    with pytest.raises(
        ValueError, match="found logits of 7 tokens; accepted: of the batch's 2 x 4, of these in one dim"
    ):
        batch.rows(perturbed.flatten(0, 1)[:7])
