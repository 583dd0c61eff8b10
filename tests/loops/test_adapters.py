"""PEFT's adapters in a loop of one's own: R and its gradient by hand, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.hf import collate, examples, tiny_model
from tests.loops.by_hand import LEVELS, SEEDS, assert_same, by_hand, gradients, regularizer

peft = pytest.importorskip("peft")

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 2, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]}),
    "lora of words": ("LoraConfig", {"r": 2, "target_modules": ["query", "word_embeddings"]}),
    "saved words": ("LoraConfig", {"r": 2, "target_modules": ["query"], "modules_to_save": ["word_embeddings"]}),
    "dora": ("LoraConfig", {"r": 2, "target_modules": ["query", "value"], "use_dora": True}),
    "adalora": ("AdaLoraConfig", {"init_r": 2, "target_r": 1, "target_modules": ["query", "value"], "total_step": 10}),
    "ia3": ("IA3Config", {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}),
    "ln tuning": ("LNTuningConfig", {"target_modules": ["LayerNorm"]}),
    "trainable tokens": (
        "TrainableTokensConfig",
        {"target_modules": ["word_embeddings"], "token_indices": [5, 6, 7, 8]},
    ),
    "lora and tokens": (
        "LoraConfig",
        {"r": 2, "target_modules": ["query"], "trainable_token_indices": {"word_embeddings": [5, 6, 7, 8]}},
    ),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 2}),
    "loha": ("LoHaConfig", {"r": 2, "target_modules": ["query"]}),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4, "target_modules": ["query"]}),
    "vera": ("VeraConfig", {"r": 2, "target_modules": ["query"]}),
}


def adapted(name: str) -> Any:
    """A classifier with this adapter, all of whose trained numbers are random, so that all get gradients."""
    kind, options = ADAPTERS[name]
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model("classification"), getattr(peft, kind)(task_type="SEQ_CLS", **options))
    generator = torch.Generator().manual_seed(2)
    model = model.double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def point_of(model: Any, level: str) -> nn.Module:
    """The outermost module in the place of the words, or of the LayerNorm, of BERT's embedding block."""
    bert = model.get_base_model().bert
    if level.startswith("hidden:"):
        layer: nn.Module = bert.encoder.layer[int(level.partition(":")[2])]
        return layer
    block = bert.embeddings
    found: nn.Module = block.word_embeddings if level == "pre_ln" else block.LayerNorm
    return found


@pytest.mark.parametrize("level", [*LEVELS, "hidden:0"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapted_model_has_the_r_by_hand(adapter: str, level: str) -> None:
    model, batch = adapted(adapter), collate(examples("classification"))
    for name in ("smart", "at"):
        bound = regularizer(name, model, level, 2)
        with bound.clean(model):
            output = model(**batch)
        found = gradients(model, bound(model, batch, output, noise_seeds=SEEDS[:3]))
        value = by_hand(name, lambda: model(**batch), point_of(model, level), batch, level=level, k=2)
        assert_same(found, gradients(model, value), 1e-9)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
@pytest.mark.parametrize("level", LEVELS)
def test_learned_prompts_are_refused(level: str, kind: str) -> None:
    config = getattr(peft, kind)(task_type="SEQ_CLS", num_virtual_tokens=2)
    model = peft.get_peft_model(tiny_model("classification", dtype=torch.float32), config)
    with pytest.raises(ValueError, match=r"(prompt|p) tuning puts learned vectors before the words"):
        regularizer("smart", model, level)
