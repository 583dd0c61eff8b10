"""Divergences in chunks of rows are those of all rows at once: value, gradient, and the ascent's gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mt_dnn.loss import HLCriterion, JSCriterion, KlCriterion, MseCriterion, NsSymKlCriterion, SymKlCriterion
from mt_dnn.perturbation import PERTURBATIONS, ModelRegularizer, MtdnnReleasePerturbation, chunks
from mt_dnn.perturbation.chunks import Rows, mean_in_chunks, selected_rows
from mt_dnn.perturbation.outputs import Comparison
from tests.hf import collate, examples, tiny_model

CRITERIA = (HLCriterion, JSCriterion, KlCriterion, MseCriterion, NsSymKlCriterion, SymKlCriterion)


def logits(rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    first, second = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return first.requires_grad_(), second.requires_grad_()


@pytest.mark.parametrize("numbers", [1, 11, 35, 76, 77])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_chunks_have_the_value_and_the_gradient_of_all_rows(
    criterion: type, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = logits(7, 11)
    expected = criterion()(first, second)
    wanted = torch.autograd.grad(expected, (first, second))
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", numbers)
    calls: list[int] = []

    def counted(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        calls.append(len(p))
        found: torch.Tensor = criterion()(p, q)
        return found

    value = mean_in_chunks(counted, first, second)
    assert sum(calls) == 7 and max(calls) == max(1, numbers // 11)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    for gradient, other in zip(torch.autograd.grad(value, (first, second)), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_selected_rows_have_the_value_and_the_gradient_of_copied_ones(
    criterion: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = logits(7, 11)
    index = torch.tensor([0, 2, 3, 6])
    expected = criterion()(first[index], second[index])
    wanted = torch.autograd.grad(expected, (first, second))
    assert isinstance(selected_rows(first, index), torch.Tensor)
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 33)
    rows = [selected_rows(x, index) for x in (first, second)]
    for one, tensor in zip(rows, (first, second), strict=True):
        assert isinstance(one, Rows) and one.logits is tensor
        assert (len(one), one.size(0), one.size(-1)) == (4, 4, 11)
        assert torch.equal(one.tensor(), tensor[index]) and not one.detach().logits.requires_grad
    for pair in (rows, (rows[0], second[index]), (first[index], rows[1])):
        value = mean_in_chunks(criterion(), *pair)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
        for gradient, other in zip(torch.autograd.grad(value, (first, second)), wanted, strict=True):
            torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)
    alone, other = (mean_in_chunks(criterion(), rows[0], x) for x in (rows[1].detach(), second[index].detach()))
    torch.testing.assert_close(*(torch.autograd.grad(value, first)[0] for value in (alone, other)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*PERTURBATIONS, "mtdnn_release"])
@pytest.mark.parametrize("k", [1, 2])
def test_every_method_has_the_same_r_and_gradient_with_selected_rows(
    name: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_model("generation"), collate(examples("generation"))
    assert (batch["labels"] == -100).any()
    kind = PERTURBATIONS.get(name, MtdnnReleasePerturbation)
    options: dict[str, Any] = {"norm_p": "l2", "k": k} | (
        {"projection": "normalize"} if name == "mtdnn_release" else {"radius": 0.5}
    )

    def found() -> tuple[torch.Tensor, list[torch.Tensor]]:
        bound = ModelRegularizer(kind(**options), model)
        output = model(**batch)
        value = bound(model, batch, output, noise_seeds=[1, 2, 3])
        parameters = [p for p in model.parameters() if p.requires_grad]
        return value, list(torch.autograd.grad(value, parameters, materialize_grads=True))

    plain, gradients = found()
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 2 * 40)
    value, others = found()
    torch.testing.assert_close(value, plain, rtol=0, atol=1e-12)
    for one, other in zip(others, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_batch_of_tokens_is_compared_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    perturbed, clean = torch.randn(2, 2, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

    def value() -> torch.Tensor:
        batch = Comparison(clean, mask, SymKlCriterion(), task_type="tokens")
        ((first, second),) = batch.pairs(perturbed)
        return batch.distance(first, second)

    whole = value()
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 12)
    torch.testing.assert_close(value(), whole, rtol=0, atol=1e-12)


def test_all_tokens_are_taken_without_a_copy() -> None:
    perturbed = torch.randn(2, 3, 5)
    (rows,) = Comparison(None, torch.ones(2, 3), SymKlCriterion(), task_type="tokens").rows(perturbed)
    assert rows.data_ptr() == perturbed.data_ptr()


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_token_that_is_not_finite_makes_its_example_so(number: float) -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    perturbed = torch.zeros(2, 3, 4)
    perturbed[1, 2, 0] = number  # at padding
    batch = Comparison(None, mask, SymKlCriterion(), task_type="tokens")
    assert batch.finite(perturbed).tolist() == [True, True]
    perturbed[1, 1, 3] = number
    assert batch.finite(perturbed).tolist() == [True, False]
    assert batch.finite(perturbed[mask == 1]).tolist() == [True, False]
    assert batch.finite(torch.full((2, 3, 4), 6e4, dtype=torch.float16)).tolist() == [True, True]


def test_a_divergence_that_detaches_the_only_one_with_a_gradient_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = logits(7, 11)
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 22)
    value = mean_in_chunks(lambda p, q: (p - q.detach()).square().mean(), first.detach(), second)
    (gradient,) = torch.autograd.grad(value, second)
    assert not gradient.any()


@pytest.mark.parametrize("index", [None, [0, 2, 3, 6]])
def test_a_custom_divergence_gets_all_rows_at_once(index: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be a mean over rows, and may have parameters, whose gradient chunks would lose."""
    factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    perturbed, clean = (part.detach().view(1, 7, 11) for part in logits(7, 11))
    mask = torch.zeros(1, 7)
    mask[0, list(range(7)) if index is None else index] = 1

    def value() -> tuple[float, float]:
        batch = Comparison(clean, mask, lambda p, q: factor * (p - q).square().sum(), task_type="tokens")
        ((first, second),) = batch.pairs(perturbed)
        found = batch.distance(first, second)
        return found.item(), torch.autograd.grad(found, factor)[0].item()

    whole = value()
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 22)
    assert value() == pytest.approx(whole, abs=1e-12)
    assert whole[1] > 1
