"""An example does not depend on its batch or on padding; statistics; values that are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from data_utils.task_def import TaskType
from mt_dnn.loss import RankCeCriterion
from mt_dnn.perturbation import AdversarialTraining, FreeLbPerturbation, SmartPerturbation
from mt_dnn.perturbation.divergences import grouped
from mt_dnn.perturbation.injection import NoiseInjection
from tests.encoders import (
    FAMILIES,
    LEVELS,
    LinearModel,
    TokenBatch,
    example_of,
    injection_site,
    inputs_of,
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


def real_rows(batch: TokenBatch) -> Tensor:
    return batch.attention_mask.bool()


# independence of batch mates and padding


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", [{"norm_p": "inf"}, {"norm_p": "l2", "norm_level": 1, "scale": "relative"}])
def test_an_example_does_not_depend_on_its_batch(
    monkeypatch: pytest.MonkeyPatch, family: str, level: str, options: dict[str, Any]
) -> None:
    """δ, g and R of each example alone, unpadded, are those that it has in the batch; R is the mean over examples."""
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    trace = Trace(monkeypatch)
    method = SmartPerturbation(noise_var=0.01, step_size=0.05, k=2, radius=0.05, level=level, **options)
    together = regularize(method, model, batch)
    together_delta, together_steps = trace.deltas.pop(), list(trace.steps)
    losses = []
    for row in range(batch.input_ids.size(0)):
        trace.steps.clear()
        alone = example_of(batch, row)
        losses.append(regularize(method, model, alone, noise_seeds=[seeds_of(3)[row]]).loss)
        length = alone.input_ids.size(1)
        torch.testing.assert_close(trace.deltas.pop()[0], together_delta[row, :length], rtol=0.0, atol=1e-11)
        assert not together_delta[row, length:].any()
        for step, whole in zip(trace.steps, together_steps, strict=True):
            torch.testing.assert_close(step.gradient[0], whole.gradient[row, :length], rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(torch.stack(losses).mean(), together.loss, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("kind", [AdversarialTraining, FreeLbPerturbation])
def test_a_groups_ascent_on_gold_labels_does_not_depend_on_its_batch(
    monkeypatch: pytest.MonkeyPatch, kind: type[AdversarialTraining]
) -> None:
    model = tiny_classifier(classes=1)
    batch, sizes, golds = token_batch(model.bert, lengths=(7, 5, 3, 4, 6)), (3, 2), torch.tensor([1, 0])
    trace = Trace(monkeypatch)
    method = kind(noise_var=0.05, step_size=0.5, k=3, projection="normalize")

    def steps(rows: slice, groups: slice) -> list[Tensor]:
        trace.steps.clear()
        own = TokenBatch(*(None if part is None else part[rows] for part in batch))
        regularize(
            method,
            model,
            own,
            noise_seeds=seeds_of(5)[rows],
            task_type=TaskType.Ranking,
            pairwise=sizes[groups],
            task_loss=lambda scores: RankCeCriterion()(grouped(scores, sizes[groups]), golds[groups]),
        )
        return [step.gradient for step in trace.steps]

    together = steps(slice(5), slice(2))
    for rows, group in ((slice(3), slice(1)), (slice(3, 5), slice(1, 2))):
        for among, alone in zip(together, steps(rows, group), strict=True):
            assert alone.abs().max() > 1e-4
            torch.testing.assert_close(among[rows], alone, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "options",
    [
        {"norm_p": "inf", "radius": 0.05},
        {"norm_p": "l2", "norm_level": 1, "radius": 0.05, "scale": "relative"},
        {"norm_p": "inf", "projection": "normalize", "norm_level": 1},
        {"norm_p": "inf", "projection": "none", "scale": "relative", "noise_clamp": True},
    ],
)
def test_neither_width_nor_content_of_padding_enters(family: str, level: str, options: dict[str, Any]) -> None:
    model = tiny_classifier(family)
    method = SmartPerturbation(noise_var=0.01, step_size=0.05, k=2, level=level, **options)
    reference = regularize(method, model, token_batch(model.bert))
    wide = regularize(method, model, token_batch(model.bert, width=11))
    other = regularize(method, model, token_batch(model.bert, width=9, filler=23))
    for name in ("loss", "emb_val", "eff_perturb", "delta_size", "skipped"):
        expected = getattr(reference, name).double()
        torch.testing.assert_close(getattr(wide, name).double(), expected, rtol=1e-9, atol=0.0)
        torch.testing.assert_close(getattr(other, name).double(), expected, rtol=1e-9, atol=0.0)
    assert reference.loss.item() > 0
    assert reference.eff_perturb.item() > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_reported_is_measured_over_real_tokens(
    monkeypatch: pytest.MonkeyPatch, family: str, level: str
) -> None:
    """mean |h| at the injection point and mean |δ|, against the values read off behind it."""
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    trace = Trace(monkeypatch)
    given: list[Tensor] = []

    def keep(h: Tensor) -> Tensor:
        given.append(h.detach())
        return h

    with NoiseInjection(model.bert, level).add(keep):
        model(*batch)
    result = regularize(SmartPerturbation(noise_var=0.1, radius=0.1, step_size=0.1, level=level), model, batch)
    real = real_rows(batch)
    assert result.emb_val.item() == pytest.approx(given[0][real].abs().mean().item(), rel=1e-9)
    assert result.delta_size.item() == pytest.approx(trace.deltas[-1][real].abs().mean().item(), rel=1e-9)
    for value in result[1:5]:
        assert not value.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_final_pass_adds_the_perturbation_found(monkeypatch: pytest.MonkeyPatch, family: str, level: str) -> None:
    """Read behind the injection point: the last forward is the clean one plus δ, and δ lies in the ball."""
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    trace = Trace(monkeypatch)
    with inputs_of(injection_site(model.bert, level)) as received:
        clean = clean_logits(model, batch, level)
        method = SmartPerturbation(noise_var=0.01, step_size=0.1, k=1, radius=0.03, level=level)
        regularize(method, model, batch, clean)
    real = real_rows(batch)
    seen = (received[-1] - received[0])[real]
    torch.testing.assert_close(seen, trace.deltas[-1][real], rtol=0.0, atol=1e-12)
    assert seen.abs().amax(-1).max().item() == pytest.approx(0.03)


# not finite


class Blinking(LinearModel):
    """A linear model that in given passes gives an example a logit, or a gradient, that is not finite."""

    def __init__(self, kind: str, passes: tuple[int, ...], row: int = 1) -> None:
        model = linear_model(zero_table=True)
        super().__init__(model.word.weight.detach(), model.weight.detach())
        self.kind, self.passes, self.row = kind, passes, row

    def forward(self, input_ids: Tensor, *args: Any) -> Tensor:
        logits = super().forward(input_ids, *args)
        if len(self.seen) - 2 not in self.passes:  # the first forward is the clean one
            return logits
        factor = torch.ones_like(logits)
        if self.kind == "gradient":
            # a root at zero: the value 0, the gradient infinite
            h = self.h * 0
            offset = torch.zeros_like(logits)
            offset[self.row] = ((logits[self.row] - logits[self.row].detach()) + h[self.row].sum() * 0).sqrt()
            return logits + offset
        factor[self.row] = math.nan if self.kind == "nan" else math.inf
        # "value": the logit is not finite, its gradient is
        return logits + (factor - 1) if self.kind == "value" else logits * factor


@pytest.mark.parametrize("kind", ["nan", "inf", "value", "gradient"])
@pytest.mark.parametrize(
    "options", [{"radius": 0.3}, {"projection": "normalize"}, {"projection": "none"}, {"radius": 0.3, "norm_level": 1}]
)
def test_an_example_that_is_not_finite_keeps_its_perturbation(kind: str, options: dict[str, Any]) -> None:
    batch = linear_batch()
    settings: dict[str, Any] = {"noise_var": 0.1, "step_size": 0.1, "k": 1, "loss_map": [mean_output], **options}
    sound, blinking = Blinking(kind, ()), Blinking(kind, (0,))
    expected = search_linear(SmartPerturbation(**settings), sound, batch)
    still = Blinking(kind, ())
    search_linear(SmartPerturbation(**{**settings, "k": 0}), still, batch)
    result = search_linear(SmartPerturbation(**settings), blinking, batch)
    ids = batch.input_ids
    assert torch.equal(blinking.delta(ids)[1], still.delta(ids)[1])
    assert not torch.equal(blinking.delta(ids)[1], sound.delta(ids)[1])
    for row in (0, 2):
        assert torch.equal(blinking.delta(ids)[row], sound.delta(ids)[row])
    assert (result.skipped.item(), expected.skipped.item()) == (1, 0)
    assert all(value.isfinite() for value in result[:5])
    result.loss.backward()
    assert blinking.weight.grad is not None
    assert blinking.weight.grad.isfinite().all()


def test_an_example_that_blinks_goes_on_where_it_stood_and_counts_once() -> None:
    batch = linear_batch()
    settings: dict[str, Any] = {"noise_var": 0.0, "step_size": 0.1, "radius": 1.0, "loss_map": [mean_output]}
    blinking, two_steps = Blinking("nan", (1,)), Blinking("nan", ())
    result = search_linear(SmartPerturbation(**settings, k=3), blinking, batch)
    search_linear(SmartPerturbation(**settings, k=2), two_steps, batch)
    torch.testing.assert_close(blinking.delta(batch.input_ids)[1], two_steps.delta(batch.input_ids)[1])
    assert result.skipped.item() == 1
    always = search_linear(SmartPerturbation(**settings, k=3), Blinking("nan", (0, 1, 2)), batch)
    assert always.skipped.item() == 1


def test_a_gradient_that_is_not_finite_at_padding_is_nobodys() -> None:
    batch = linear_batch()

    class NanAtPadding(LinearModel):
        def forward(self, input_ids: Tensor, types: Tensor | None, mask: Tensor, *args: Any) -> Tensor:
            logits = super().forward(input_ids, types, mask, *args)
            return logits + NanGradient.apply(self.h[mask == 0].sum())

    sound = linear_model()
    model = NanAtPadding(sound.word.weight.detach(), sound.weight.detach())
    method = SmartPerturbation(noise_var=0.1, step_size=0.1, radius=0.3, loss_map=[mean_output])
    expected = search_linear(method, sound, batch)
    result = search_linear(method, model, batch)
    assert result.skipped.item() == 0
    torch.testing.assert_close(model.delta(batch.input_ids), sound.delta(batch.input_ids))
    torch.testing.assert_close(result.delta_size, expected.delta_size)


class NanGradient(torch.autograd.Function):
    """Zero, with the gradient NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.nan
