"""AdversarialTrainer with noise at the output of layers, of decoders: its update against one computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mt_dnn.perturbation import PERTURBATIONS
from mt_dnn.perturbation.noise import example_seeds
from tests.encoders import throughout
from tests.hf import (
    ALPHA,
    assert_equal_gradients,
    collate,
    examples,
    gradient_of_update,
    search,
    tiny_model,
    trainer_of,
)
from tests.loops.by_hand import gradients
from tests.mt_dnn.perturbation.several_places import by_hand


def qwen2() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 24}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **heads))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn(parameter.shape))
    return model.double().train()


@pytest.mark.parametrize("levels", [("hidden:0",), ("hidden:-1",), ("hidden:0", "hidden:1"), ("pre_ln", "hidden:1")])
@pytest.mark.parametrize("name", ["smart", "at"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_update_is_that_by_hand(family: str, name: str, levels: tuple[str, ...], tmp_path: Path) -> None:
    model = tiny_model("generation") if family == "llama" else qwen2()
    with throughout(torch.float64):
        batch = collate(examples("generation"))
        trainer = trainer_of(model, "generation", tmp_path, search(PERTURBATIONS[name], level=levels, k=2))
        seeds = example_seeds(trainer.args.seed, 0, ["0", "1", "2"])
        value = by_hand(name, model, batch, levels, k=2, seeds=seeds)
        expected = gradients(model, model(**batch).loss + ALPHA * value)
        found = gradient_of_update(trainer)
    assert_equal_gradients(found, expected.gradients, 1e-8)
    assert trainer.state.log_history[0]["adv_loss"] == pytest.approx(value.item(), rel=1e-5)
