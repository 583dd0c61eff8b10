"""Adversarial training that climbs one loss and descends another, with noise at some tokens and δ shared by rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mt_dnn.perturbation import PERTURBATIONS, AdversarialTraining, SmartPerturbation
from mt_dnn.perturbation.delta import CachedDelta
from tests.hf import collate, examples, search, tiny_model
from tests.loops.by_hand import SEEDS, assert_same, gradients, regularizer
from tests.mt_dnn.perturbation.several_places import RELATIVE, by_hand

TARGETS = torch.tensor([2, 0, 1])
METHODS = [name for name in PERTURBATIONS if name != "at"]


def preferences() -> tuple[dict[str, Tensor], Tensor]:
    """Two prompts of 2 and 3 tokens, each with a safe answer, then each with a harmful one; and the prompts' tokens."""
    prompts, safe, harmful = ([5, 6], [7, 8, 9]), ([10, 11, 12], [13, 14]), ([15, 16], [17, 18, 19])
    texts = [[*prompt, *answer] for answers in (safe, harmful) for prompt, answer in zip(prompts, answers, strict=True)]
    prompt = torch.tensor([[position < len(prompt) for position in range(6)] for prompt in prompts]).long()
    ids = torch.tensor([text + [0] * (6 - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (6 - len(text)) for text in texts])
    labels = ids.masked_fill((mask == 0) | (prompt.repeat(2, 1) == 1), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, prompt


def answers_loss(output: Any, labels: Tensor) -> Tensor:
    """Cross-entropy of the answers."""
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def target_loss(output: Any) -> Tensor:
    return -F.cross_entropy(output.logits, TARGETS)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("levels", [("pre_ln",), ("hidden:0", "hidden:1")])
def test_the_ascent_climbs_its_loss_and_r_is_the_other(levels: tuple[str, ...], k: int) -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    losses: dict[str, Any] = {"task_loss": lambda x: 3 * x.loss, "ascent_loss": target_loss}
    bound = AdversarialTraining.for_model(
        model, **losses, level=levels, k=k, norm_p="inf", scale="absolute", radius=0.1, step_size=0.05, noise_var=0.06
    )
    found = bound(model, batch, None, noise_seeds=SEEDS[:3])
    value = by_hand("at", model, batch, levels, k=k, ascent=target_loss, descent=losses["task_loss"])
    assert_same(gradients(model, found), gradients(model, value), 1e-9)
    untargeted = by_hand("at", model, batch, levels, k=k, descent=losses["task_loss"])
    assert untargeted.item() != pytest.approx(value.item(), rel=1e-3)


@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("levels", [("pre_ln",), ("hidden:0", "hidden:1"), ("pre_ln", "hidden:-1")])
def test_noise_at_the_prompts_is_shared_by_their_answers(levels: tuple[str, ...], scale: str) -> None:
    model = tiny_model("generation")
    batch, prompt = preferences()

    def part(output: Any, half: int) -> Any:
        logits, labels = output.logits.chunk(2)[half], batch["labels"].chunk(2)[half]
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def toward_harmful(output: Any) -> Tensor:
        return part(output, 0) - part(output, 1)

    def toward_safe(output: Any) -> Tensor:
        return part(output, 0) - 0.3 * part(output, 1)

    options = RELATIVE if scale == "relative" else {}
    bound = regularizer("at", model, levels, 2, **options)  # type: ignore[arg-type]
    found = bound(
        model, batch, None, noise_seeds=SEEDS[:2], noise_mask=prompt, task_loss=toward_safe, ascent_loss=toward_harmful
    )
    value = by_hand(
        "at", model, batch, levels, k=2, relative=scale == "relative", noise_mask=prompt, ascent=toward_harmful,
        descent=toward_safe,
    )  # fmt: skip
    assert_same(gradients(model, found), gradients(model, value), 1e-6)
    assert bound.last is not None and bound.last.skipped == 0


def test_without_further_rows_the_noise_mask_only_says_where_the_noise_is() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    first = torch.zeros_like(batch["attention_mask"])
    first[:, :2] = 1
    for name in ("smart", "at"):
        bound = regularizer(name, model, "pre_ln", 2)
        with bound.clean(model):
            output = model(**batch)
        found = bound(model, batch, output, noise_seeds=SEEDS[:3], noise_mask=first)
        value = by_hand(name, model, batch, ("pre_ln",), k=2, noise_mask=first)
        assert_same(gradients(model, found), gradients(model, value), 1e-9)
        everywhere = bound(model, batch, output, noise_seeds=SEEDS[:3], noise_mask=torch.ones_like(first))
        assert torch.equal(everywhere, bound(model, batch, output, noise_seeds=SEEDS[:3]))


def test_in_a_batch_without_noise_r_is_that_of_the_clean_pass_and_the_figures_are_0() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    for name, levels in (("smart", "pre_ln"), ("at", "pre_ln,hidden:0")):
        bound = regularizer(name, model, levels, 2)
        with bound.clean(model):
            output = model(**batch)
        found = bound(model, batch, output, noise_mask=torch.zeros_like(batch["attention_mask"]))
        assert found.item() == pytest.approx(0 if name == "smart" else output.loss.item(), abs=1e-12)
        assert bound.last is not None and bound.last[1:5] == (0, 0, 0, 0)


def test_losses_of_a_call_replace_those_of_the_regularizer() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    losses: dict[str, Any] = {"task_loss": lambda x: 3 * x.loss, "ascent_loss": target_loss}
    method = search(AdversarialTraining, k=2)
    always = type(regularizer("at", model))(method, model, **losses)
    plain = regularizer("at", model, k=2)
    expected = always(model, batch, None, noise_seeds=SEEDS[:3])
    assert torch.equal(plain(model, batch, None, noise_seeds=SEEDS[:3], **losses), expected)
    replaced = always(model, batch, None, noise_seeds=SEEDS[:3], task_loss=lambda x: x.loss)
    torch.testing.assert_close(3 * replaced, expected)


def test_the_same_loss_in_both_is_the_usual_method() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    plain = regularizer("at", model, k=2)(model, batch, None, noise_seeds=SEEDS[:3])
    given = regularizer("at", model, k=2)
    assert given(model, batch, None, noise_seeds=SEEDS[:3], ascent_loss=lambda x: x.loss).item() == pytest.approx(
        plain.item(), rel=1e-12
    )


def test_the_ascent_gain_is_that_of_the_ascents_loss() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    bound = regularizer("at", model, k=3)
    # R falls where the ascent climbs.
    bound(model, batch, None, noise_seeds=SEEDS[:3], ascent_loss=lambda x: -x.loss, measure_gain=True)
    assert bound.last is not None and bound.last.ascent_rise is not None and bound.last.chance_rise is not None
    assert bound.last.ascent_rise > 3 * bound.last.chance_rise.abs()


# what is refused


@pytest.mark.parametrize("name", METHODS)
def test_methods_without_an_ascent_on_another_loss_refuse_it(name: str) -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    message = f"^ascent_loss: {name} has no ascent on a loss other than its own; accepted: AdversarialTraining"
    with pytest.raises(ValueError, match=message):
        PERTURBATIONS[name].for_model(model, ascent_loss=target_loss)
    bound = PERTURBATIONS[name].for_model(model)
    with pytest.raises(ValueError, match=message):
        bound(model, batch, model(**batch), ascent_loss=target_loss)


@pytest.mark.parametrize("shape", [(2, 7), (3, 6), (6, 7), (0, 7), (7,)])
def test_a_noise_mask_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    bound = AdversarialTraining.for_model(model)
    found = " x ".join(map(str, shape))
    with pytest.raises(ValueError, match=f"^noise_mask of {found}, and the batch is 3 x 7; accepted: the batch's tok"):
        bound(model, batch, None, noise_mask=torch.ones(shape, dtype=torch.long))


def test_a_noise_mask_of_other_numbers_is_refused() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    bound = AdversarialTraining.for_model(model)
    for mask, found in ((batch["input_ids"].where(batch["input_ids"] > 5, -100), "-100 to "), (0.5, "0.5 to 0.5")):
        noise_mask = mask if isinstance(mask, Tensor) else torch.full(batch["input_ids"].shape, mask)
        with pytest.raises(ValueError, match=f"^noise_mask of numbers from {found}.*; accepted: 1 at the tokens that"):
            bound(model, batch, None, noise_mask=noise_mask)


def test_rows_that_are_not_the_batchs_are_refused() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    twice = {name: torch.cat([x, x]) for name, x in batch.items()}
    bound = AdversarialTraining.for_model(model, forward=lambda model, _: model(**twice))
    with pytest.raises(ValueError, match="^BertForSequenceClassification embeds 6 rows, and the batch has 3; accepted"):
        bound(model, batch, None)


def test_a_cached_delta_is_at_all_real_tokens() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    mask = batch["attention_mask"]
    cached = CachedDelta(torch.zeros(3, 7, 16), torch.zeros(3, dtype=torch.bool), lambda delta: None)
    with pytest.raises(ValueError, match="^δ is cached for all real tokens at one place, found a noise_mask$"):
        search(SmartPerturbation).regularize(
            lambda: model(**batch), model, model(**batch), mask, cached=cached, noise_mask=mask
        )


def test_rows_that_share_their_noise_have_the_same_tokens_there() -> None:
    batch, prompt = preferences()
    model = tiny_model("generation")
    bound = AdversarialTraining.for_model(model)
    bound(model, batch, None, noise_mask=prompt)
    shifted = {name: torch.cat([values[:2], values[2:].roll(1, 1)]) for name, values in batch.items()}
    with pytest.raises(ValueError, match="^noise_mask: rows that share a δ have different tokens there"):
        bound(model, shifted, None, noise_mask=prompt)
