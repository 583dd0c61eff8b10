"""TRL's trainers with a loss for the ascent and one for R, with LoRA too: against computations by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("trl")

import trl
from datasets import Dataset

from mt_dnn.perturbation import AdversarialTraining
from mt_dnn.perturbation.noise import example_seeds
from tests.hf import ALPHA, assert_equal_gradients, search, tiny_model
from tests.loops.by_hand import gradients
from tests.loops.trl_trainers import COMPLETIONS, PROMPTS, added_gradient, largest, logged, texts, trainer_of, words
from tests.loops.trl_trainers import frozen_memory as frozen_memory
from tests.mt_dnn.huggingface.test_peft import lora
from tests.mt_dnn.perturbation.several_places import by_hand

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("frozen_memory")]
LEVELS = ("pre_ln", "hidden:0")
REJECTED = ([17, 1], [18, 19, 20, 1], [21, 1])
TOLERANCE = 1e-6  # Llama's norms are computed in single precision


def toward_seven(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Minus the loss of a target: token 7 at every label."""
    logits: Tensor = output.logits[:, :-1][inputs["labels"][:, 1:] != -100]
    return -F.cross_entropy(logits, torch.full((len(logits),), 7))


def squares(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = output.logits[:, :-1][inputs["labels"][:, 1:] != -100]
    return logits.square().mean()


def answer_loss(output: Any, inputs: Mapping[str, Tensor], half: int) -> Tensor:
    """Cross-entropy of the chosen answers (half 0) or of the rejected ones (half 1)."""
    logits, ids, mask = (x.chunk(2)[half] for x in (output.logits, inputs["input_ids"], inputs["completion_mask"]))
    labeled = mask[:, 1:] == 1
    return F.cross_entropy(logits[:, :-1][labeled], ids[:, 1:][labeled])


def toward_rejected(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return answer_loss(output, inputs, 0) - answer_loss(output, inputs, 1)


def toward_chosen(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return answer_loss(output, inputs, 0)


def prompts(inputs: Mapping[str, Tensor]) -> Tensor:
    """The prompts' tokens in TRL's preference data: chosen answers, then rejected ones."""
    prompt: Tensor = (inputs["attention_mask"] * (1 - inputs["completion_mask"])).chunk(2)[0]
    return prompt


def method() -> Any:
    return search(AdversarialTraining, level=LEVELS, k=2)


def seeds_of(trainer: Any) -> list[int]:
    return example_seeds(trainer.args.seed, 0, ["0", "1", "2"])


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("descent", [None, squares])
def test_sft_climbs_one_loss_and_descends_the_other(descent: Any, adapter: bool, tmp_path: Path) -> None:
    def model() -> Any:
        return lora("generation", ["q_proj", "v_proj"]) if adapter else tiny_model("generation")

    options: dict[str, Any] = {"train_dataset": texts(), "max_length": None}
    trainer = trainer_of(
        trl.SFTTrainer,
        trl.SFTConfig,
        model(),
        tmp_path,
        method(),
        task_loss=descent,
        ascent_loss=toward_seven,
        **options,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    found = added_gradient(trainer, trainer_of(trl.SFTTrainer, trl.SFTConfig, model(), tmp_path, **options))
    plain = model()
    value = by_hand(
        "at",
        plain.get_base_model() if adapter else plain,
        batch,
        LEVELS,
        k=2,
        forward=lambda: plain(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}),
        seeds=seeds_of(trainer),
        ascent=lambda output: toward_seven(output, batch),
        descent=None if descent is None else lambda output: descent(output, batch),
    )
    expected = gradients(plain, ALPHA * value).gradients
    trained = {name: gradient for name, gradient in found.items() if name in expected}
    assert_equal_gradients(trained, expected, TOLERANCE)
    assert largest(expected) > 1e-2
    assert all(float(found[name].abs().max()) <= TOLERANCE for name in found.keys() - expected.keys())
    assert logged(trainer, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)


def test_dpos_answers_share_the_noise_at_their_prompts(tmp_path: Path) -> None:
    rows = zip(PROMPTS, COMPLETIONS, REJECTED, strict=True)
    data = Dataset.from_list(
        [{"prompt": words(p), "chosen": f" {words(c)}", "rejected": f" {words(r)}"} for p, c, r in rows]
    )
    losses: dict[str, Any] = {"task_loss": toward_chosen, "ascent_loss": toward_rejected, "noise_mask": prompts}
    options: dict[str, Any] = {"train_dataset": data, "ref_model": tiny_model("generation")}
    trainer = trainer_of(
        trl.DPOTrainer, trl.DPOConfig, tiny_model("generation"), tmp_path, method(), **losses, **options
    )
    batch = next(iter(trainer.get_train_dataloader()))
    plain = trainer_of(trl.DPOTrainer, trl.DPOConfig, tiny_model("generation"), tmp_path, **options)
    found = added_gradient(trainer, plain)
    model = tiny_model("generation")
    value = by_hand(
        "at",
        model,
        batch,
        LEVELS,
        k=2,
        forward=lambda: model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]),
        seeds=seeds_of(trainer),
        ascent=lambda output: toward_rejected(output, batch),
        descent=lambda output: toward_chosen(output, batch),
        noise_mask=prompts(batch),
    )
    expected = gradients(model, ALPHA * value).gradients
    assert_equal_gradients(found, expected, TOLERANCE)
    assert largest(expected) > 1e-2
    assert logged(trainer, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)
