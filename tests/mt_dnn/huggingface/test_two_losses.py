"""AdversarialTrainer with a loss for the ascent and one for R: its update against one computed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mt_dnn.perturbation import PERTURBATIONS, AdversarialTraining
from mt_dnn.perturbation.noise import example_seeds
from tests.encoders import throughout
from tests.hf import (
    ALPHA,
    OrderedTrainer,
    arguments,
    assert_equal_gradients,
    collate,
    examples,
    gradient_of_update,
    search,
    tiny_model,
)
from tests.loops.by_hand import gradients
from tests.mt_dnn.perturbation.several_places import by_hand

HEADS = ("classification", "generation")


def toward_zero(output: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Minus the loss of a target: class 0, or token 7 wherever there is a label."""
    if output.logits.dim() == 2:
        return -F.cross_entropy(output.logits, torch.zeros_like(batch["labels"]))
    labeled = batch["labels"][:, 1:] != -100
    logits: Tensor = output.logits[:, :-1][labeled]
    return -F.cross_entropy(logits, torch.full((len(logits),), 7))


def squares(output: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """A loss of a caller: the mean square of the logits at labels."""
    logits: Tensor = output.logits
    return (logits if logits.dim() == 2 else logits[:, :-1][batch["labels"][:, 1:] != -100]).square().mean()


def trainer_of(model: Any, head: str, folder: Path, perturbation: Any = None, **own: Any) -> OrderedTrainer:
    perturbation = perturbation or search(AdversarialTraining, level=("pre_ln", "hidden:0"), k=2)
    return OrderedTrainer(
        model=model, args=arguments(folder), data_collator=collate, train_dataset=examples(head), alpha=ALPHA,
        perturbation=perturbation, **own,
    )  # fmt: skip


@pytest.mark.parametrize("descent", [None, squares])
@pytest.mark.parametrize("head", HEADS)
def test_an_update_is_that_by_hand(head: str, descent: Any, tmp_path: Path) -> None:
    model, batch = tiny_model(head), collate(examples(head))
    prompt = batch["attention_mask"].clone()
    prompt[:, 3:] = 0
    losses: dict[str, Any] = {"task_loss": descent, "ascent_loss": toward_zero}
    with throughout(torch.float64):
        trainer = trainer_of(model, head, tmp_path, noise_mask=lambda inputs: prompt, **losses)
        value = by_hand(
            "at",
            model,
            batch,
            ("pre_ln", "hidden:0"),
            k=2,
            seeds=example_seeds(trainer.args.seed, 0, ["0", "1", "2"]),
            ascent=lambda output: toward_zero(output, batch),
            descent=None if descent is None else lambda output: descent(output, batch),
            noise_mask=prompt,
        )
        expected = gradients(model, model(**batch).loss + ALPHA * value)
        found = gradient_of_update(trainer)
    assert_equal_gradients(found, expected.gradients, 1e-8)
    assert trainer.state.log_history[0]["adv_loss"] == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in PERTURBATIONS if name != "at"])
def test_methods_that_do_not_use_the_losses_refuse_them(name: str, tmp_path: Path) -> None:
    model, method = tiny_model("classification"), PERTURBATIONS[name].with_defaults()
    with pytest.raises(ValueError, match=f"^ascent_loss: {name} has no ascent on a loss other than its own; accepted"):
        trainer_of(model, "classification", tmp_path, method, ascent_loss=toward_zero)
    with pytest.raises(ValueError, match=f"^task_loss: the R of {name} is not a loss of a caller; accepted: Adversar"):
        trainer_of(model, "classification", tmp_path, method, task_loss=squares)
