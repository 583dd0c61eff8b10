"""SMART, SiFT and the release's variant: how they differ, which divergence they use, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_utils.task_def import TaskType
from mt_dnn.loss import SymKlCriterion
from mt_dnn.perturbation import MtdnnReleasePerturbation, SiftPerturbation, SmartPerturbation
from mt_dnn.perturbation.outputs import Comparison
from tests.encoders import tiny_classifier, token_batch
from tests.search import regularize, seeds_of, smart


def comparison(clean: Tensor, divergence: Any) -> Comparison:
    return Comparison(clean, torch.ones(len(clean), 1), divergence)


# the methods


def test_sift_is_smart_at_a_normalized_point() -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    assert SmartPerturbation().level == "pre_ln"
    assert SiftPerturbation().level == "post_ln"
    options: dict[str, Any] = {"noise_var": 0.05, "step_size": 0.05, "radius": 0.1, "k": 2}
    sift = regularize(SiftPerturbation(**options), model, batch)
    same = regularize(SmartPerturbation(**options, level="post_ln"), model, batch)
    other = regularize(SmartPerturbation(**options), model, batch)
    assert torch.equal(sift.loss, same.loss)
    assert not torch.equal(sift.loss, other.loss)
    own = {name for name in vars(SiftPerturbation) if not name.startswith("__")}
    assert own == {"default_level"}


def test_the_release_climbs_another_criterion_and_exchanges_the_final_arguments() -> None:
    """Ascent: summed NsKl, target detached, whatever the task's divergence; squared error for one column."""
    release = MtdnnReleasePerturbation()
    generator = torch.Generator().manual_seed(0)
    perturbed, clean = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    p, q = perturbed.softmax(-1), clean.softmax(-1)

    def odds(x: Tensor) -> Tensor:
        return -(1 / (x + 1e-6) - 1 + 1e-6).log()

    def never(*_: object, **__: object) -> Tensor:
        raise AssertionError("the task's divergence has no part in the ascent")

    ascent = release.ascent_loss(perturbed, comparison(clean, never))
    torch.testing.assert_close(ascent, (2 * p * (odds(p) - odds(q))).sum())
    one, other = perturbed[:, :1], clean[:, :1]
    ascent = release.ascent_loss(one, comparison(other, never))
    torch.testing.assert_close(ascent, (one - other).square().sum())

    def named(input: Tensor, target: Tensor, *_: object) -> Tensor:
        return (2 * input - target).mean()

    batch = comparison(clean, named)
    torch.testing.assert_close(release.final_loss(perturbed, batch), (2 * clean - perturbed).mean())
    torch.testing.assert_close(smart().final_loss(perturbed, batch), (2 * perturbed - clean).mean())


def test_the_ascent_is_summed_and_the_regularizer_a_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    perturbed, clean = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    log_p, log_q = perturbed.log_softmax(-1), clean.log_softmax(-1)
    rows = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    batch = comparison(clean, SymKlCriterion())
    torch.testing.assert_close(smart().ascent_loss(perturbed, batch), rows.sum())
    torch.testing.assert_close(smart().final_loss(perturbed, batch), rows.mean())


@pytest.mark.parametrize("task_id", [0, 1, 2])
def test_the_divergence_is_the_tasks(task_id: int) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    used: list[int] = []

    def divergence(number: int) -> Any:
        def compute(input: Tensor, target: Tensor, *_: object) -> Tensor:
            used.append(number)
            assert not target.requires_grad or len(used) == 2
            return (input - target).square().mean()

        return compute

    regularize(smart(loss_map=[divergence(0), divergence(1), divergence(2)]), model, batch, task_id=task_id)
    assert used == [task_id, task_id]


def test_regression_without_a_criterion_takes_the_squared_error() -> None:
    model = tiny_classifier(classes=1)
    batch = token_batch(model.bert)
    clean = model(*batch)
    outputs: list[Tensor] = []
    method = smart()
    result = method.regularize(
        lambda: outputs.append(model(*batch)) or outputs[-1],  # type: ignore[func-returns-value]
        model.bert,
        clean,
        batch.attention_mask,
        task_type=TaskType.Regression,
        noise_seeds=seeds_of(3),
    )
    torch.testing.assert_close(result.loss, (outputs[-1] - clean).square().mean())
    assert result.loss.item() > 0


def test_ranking_compares_the_distributions_over_a_group() -> None:
    """Logits (batch · pairwise, 1) are viewed as (-1, pairwise)."""
    model = tiny_classifier(classes=1)
    batch = token_batch(model.bert, lengths=(7, 5, 3, 4))
    clean = model(*batch)
    outputs: list[Tensor] = []
    result = smart().regularize(
        lambda: outputs.append(model(*batch)) or outputs[-1],  # type: ignore[func-returns-value]
        model.bert,
        clean,
        batch.attention_mask,
        task_type=TaskType.Ranking,
        pairwise=2,
        noise_seeds=seeds_of(4),
    )
    log_p, log_q = outputs[-1].view(2, 2).log_softmax(-1), clean.view(2, 2).log_softmax(-1)
    expected = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()
    torch.testing.assert_close(result.loss, expected)
    assert result.loss.item() > 0


# refusals


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"norm_p": "l3"}, ["l3", "inf", "l2", "l1"]),
        ({"norm_level": 2}, ["2"]),
        ({"projection": "clip"}, ["clip", "project", "normalize", "none"]),
        ({"scale": "percent"}, ["percent", "absolute", "relative"]),
        ({"level": "mid_ln"}, ["mid_ln", "pre_ln", "post_ln", "deberta"]),
        ({"scale": "relative", "projection": "normalize"}, ["relative", "normalize"]),
        ({"scale": "relative"}, ["relative", "normalize"]),
        ({"norm_p": "l1", "projection": "normalize"}, ["l1", "normalize"]),
        ({"norm_p": "l1"}, ["l1", "normalize"]),
        ({"projection": "project"}, ["radius"]),
        ({"radius": 0.0}, ["radius"]),
        ({"radius": 0.1, "projection": "none"}, ["0.1", "none"]),
        ({"radius": 0.1, "projection": "normalize"}, ["0.1", "normalize"]),
        ({"radius": -0.1}, ["radius"]),
        ({"k": -1}, ["-1"]),
    ],
)
def test_what_has_no_meaning_is_refused_in_a_line(options: dict[str, Any], named: list[str]) -> None:
    for method in (SmartPerturbation, SiftPerturbation):
        with pytest.raises(ValueError) as error:
            method(**options)
        message = str(error.value)
        assert "\n" not in message
        for word in named:
            assert word in message, message


def test_an_encoder_without_the_level_is_refused_before_any_forward() -> None:
    model = nn.Sequential()
    model.get_input_embeddings = lambda: nn.Embedding(3, 4)  # type: ignore[assignment]

    def evaluate() -> Tensor:
        raise AssertionError("no forward should run")

    with pytest.raises(ValueError, match="Sequential"):
        SiftPerturbation(radius=0.1).regularize(evaluate, model, torch.zeros(1, 2), torch.ones(1, 2))
