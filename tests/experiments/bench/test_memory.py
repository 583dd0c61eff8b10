"""The memory of a large decoder by calculation: its counts are those of transformers, PEFT and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.bench import memory
from experiments.bench.memory import Decoder, activations, parts_table, states, total, totals_table

PAGE = Path(__file__).parents[3] / "docs" / "scaling.md"
SMALL = Decoder(vocabulary=50, layers=2, hidden=64, intermediate=172)
TOKENS = 4 * 1024


def llama(decoder: Decoder) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=decoder.vocabulary,
            hidden_size=decoder.hidden,
            intermediate_size=decoder.intermediate,
            num_hidden_layers=decoder.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )


@pytest.mark.parametrize("decoder", [Decoder(), Decoder(vocabulary=150_000), SMALL])
def test_parameters_are_those_of_transformers(decoder: Decoder) -> None:
    with torch.device("meta"):
        model = llama(decoder)
    assert decoder.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_adapters_are_those_of_peft() -> None:
    config = peft.LoraConfig(r=memory.RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(llama(SMALL), config)
    assert SMALL.adapters == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_a_layer_stores_what_autograd_saves() -> None:
    model, tokens = llama(SMALL).bfloat16().train(), 128
    hidden = torch.randn(1, tokens, SMALL.hidden, dtype=torch.bfloat16, requires_grad=True)
    positions = model.model.rotary_emb(hidden, torch.arange(tokens)[None])
    given = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *positions)}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.layers[0](hidden, position_embeddings=positions, attention_mask=None)
    assert sum(saved.values()) == pytest.approx(tokens * SMALL.stored, rel=0.02)


def test_totals_are_the_sum_of_their_parts() -> None:
    decoder = Decoder()
    assert states(decoder, lora=False) == 16 * decoder.parameters == 8 * states(decoder, lora=False, gpus=8)
    plain, smart = (
        total(name, decoder, TOKENS, lora=True, gpus=1, checkpointing=False) for name in ("plain", "SMART, K = 1")
    )
    logits, noise = (8.4 - 4.3) * 4 * TOKENS * 32_000, 5 * 4 * TOKENS * 4096
    assert smart - plain == pytest.approx(activations(decoder, TOKENS, False) + logits + noise)


def test_the_page_has_these_tables() -> None:
    page, decoder = PAGE.read_text(encoding="utf-8"), Decoder()
    for table in (
        parts_table(decoder, TOKENS),
        totals_table(decoder, TOKENS, 8, True),
        totals_table(Decoder(vocabulary=150_000), TOKENS, 8, True),
        totals_table(decoder, TOKENS, 8, False),
    ):
        assert table.strip() in page


def test_the_command_prints_all_tables(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--batch_size", "2", "--gpus", "4"])
    printed = capsys.readouterr().out
    assert "2,048 tokens on each GPU" in printed and printed.count("full, 4 GPUs") == 3
