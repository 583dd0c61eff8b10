"""LoRA models in AdversarialTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from mt_dnn.perturbation import ModelRegularizer
from mt_dnn.perturbation.injection import NoiseInjection, find_encoder
from tests.encoders import hook_count
from tests.hf import assert_equal_gradients, collate, examples, gradient_of_update, search, tiny_model, trainer_of

TARGETS = (["query", "value"], ["query", "word_embeddings"])


def lora(head: str, targets: list[str], **options: Any) -> Any:
    """A LoRA model with both factors random, so that both get gradients."""
    kinds = {"classification": "SEQ_CLS", "tokens": "TOKEN_CLS", "generation": "CAUSAL_LM"}
    config = peft.LoraConfig(task_type=kinds[head], r=2, lora_dropout=0.0, target_modules=targets, **options)
    model = peft.get_peft_model(tiny_model(head), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.double().train()


def trainable(model: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("targets", TARGETS, ids=["attention", "word embeddings too"])
@pytest.mark.parametrize("level", ["pre_ln", "post_ln", "deberta"])
def test_adapters_and_head_alone_learn_from_the_regularizer(level: str, targets: list[str], tmp_path: Path) -> None:
    model = lora("classification", targets)
    names = set(trainable(model))
    assert any("modules_to_save" in name for name in names)  # the head
    with_r, without_r = (
        gradient_of_update(
            trainer_of(lora("classification", targets), "classification", tmp_path, search(level=level), alpha=alpha)
        )
        for alpha in (1.0, 0.0)
    )
    changed = {name for name in with_r if not torch.equal(with_r[name], without_r[name])}
    bias = {name for name in names if name.endswith("bias")}  # its gradients through f(h + δ) and f(h) cancel
    assert changed | bias == names


@pytest.mark.parametrize("targets", TARGETS, ids=["attention", "word embeddings too"])
@pytest.mark.parametrize("level", ["pre_ln", "post_ln"])
@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_an_adapted_model_has_the_gradient_of_the_merged_one(
    scale: str, level: str, targets: list[str], tmp_path: Path
) -> None:
    """R and the gradient of the head, with LoRA and with its product added to the weights."""
    adapted = lora("classification", targets)
    merged = lora("classification", targets).merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    found = trainer_of(adapted, "classification", tmp_path, search(level=level, scale=scale))
    expected = trainer_of(merged, "classification", tmp_path, search(level=level, scale=scale))
    adapted_gradient, merged_gradient = gradient_of_update(found), gradient_of_update(expected)
    log, merged_log = found.state.log_history[0], expected.state.log_history[0]
    assert log["adv_loss"] == pytest.approx(merged_log["adv_loss"], rel=1e-9)
    assert log["adv_loss"] > 1e-4
    for part in ("weight", "bias"):
        name = f"base_model.model.classifier.modules_to_save.default.{part}"
        torch.testing.assert_close(adapted_gradient[name], merged_gradient[f"classifier.{part}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("level", ["pre_ln", "post_ln"])
def test_the_injection_point_lies_in_the_embedding_block_of_the_base_model(level: str) -> None:
    model = lora("classification", ["query", "word_embeddings"])
    block = model.base_model.model.bert.embeddings
    counts: list[tuple[int, int]] = []

    def noise(h: Tensor) -> Tensor:
        counts.append((hook_count(block), hook_count(model)))
        return h

    with NoiseInjection(find_encoder(model), level).add(noise):
        model(**collate(examples("classification")))
    assert counts == [(1, 1)]


def test_a_generator_with_adapters_counts_its_targets(tmp_path: Path) -> None:
    """The gradients of unequal batches, accumulated, are those of one batch."""
    gradients = []
    for size in (5, 3):
        model = lora("generation", ["q_proj", "v_proj"])
        trainer = trainer_of(
            model,
            "generation",
            tmp_path,
            train_dataset=examples("generation", (7, 3, 6, 5, 4)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=-(-5 // size),
        )
        gradients.append(gradient_of_update(trainer))
    assert_equal_gradients(gradients[1], gradients[0], 2e-6)
    assert max(float(x.abs().max()) for x in gradients[0].values()) > 1e-3


def test_the_task_type_is_that_of_the_model_inside_the_adapter() -> None:
    model = lora("generation", ["q_proj"])
    batch = collate(examples("generation"))
    regularizer = ModelRegularizer(search(), model)
    value = regularizer(model, batch, model(**batch))
    merged = lora("generation", ["q_proj"]).merge_and_unload()
    assert value.item() == pytest.approx(
        ModelRegularizer(search(), merged)(merged, batch, merged(**batch)).item(), rel=1e-5
    )
    assert value.item() > 1e-4


def test_several_labels_are_seen_through_the_adapter() -> None:
    model = lora("classification", ["query"])
    model.base_model.model.config.problem_type = "multi_label_classification"
    batch = collate(examples("classification")) | {"labels": torch.eye(3, dtype=torch.float64)}
    regularizer = ModelRegularizer(search(), model)
    assert regularizer(model, batch, model(**batch)) > 1e-4
    assert regularizer.read["task_type"] == "labels"


def prompts(kind: type[Any]) -> Any:
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=2)
    return peft.get_peft_model(tiny_model("generation", dtype=torch.float32), config).train()


@pytest.mark.parametrize(
    ("kind", "name"), [(peft.PromptTuningConfig, "prompt tuning"), (peft.PromptEncoderConfig, "p tuning")]
)
def test_learned_prompts_are_refused_by_their_name(kind: type[Any], name: str) -> None:
    model = prompts(kind)
    with pytest.raises(ValueError, match=f"^{name} puts learned vectors before the words.*such as LoRA or prefix"):
        ModelRegularizer(search(), model)


def test_a_learned_prefix_leaves_the_tokens_as_they_are() -> None:
    model = prompts(peft.PrefixTuningConfig)
    batch = collate(examples("generation"))
    output = model(**batch)
    assert output.logits.shape[:2] == batch["input_ids"].shape
    value = ModelRegularizer(search(), model)(model, batch, output)
    still = ModelRegularizer(search(radius=None, projection="none", noise_var=0.0, k=0), model)
    assert value > 1e-4
    assert still(model, batch, model(**batch)).item() == pytest.approx(0, abs=1e-9)
