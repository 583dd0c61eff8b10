"""Every family with a head, with adapters, as a decoder with a cache; encoder-decoders; the documented table."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from docs_build.encoder_families import FAMILIES, levels_table, places_table
from mt_dnn.perturbation.injection import (
    NoiseInjection,
    UnsupportedLevelError,
    available_levels,
    find_encoder,
)
from tests.encoders import (
    ALL_FAMILIES,
    NORMALIZED_FAMILIES,
    Classifier,
    levels_of,
    throughout,
    tiny_classifier,
    tiny_encoder,
    token_batch,
)

DECODERS = ("gpt2", "llama", "qwen3")
HEADS = {
    "sequence": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "token": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "masked": transformers.MODEL_FOR_MASKED_LM_MAPPING,
    "causal": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
}
FAMILY_AND_HEAD = [
    *((family, "sequence") for family in ALL_FAMILIES if family != "t5"),
    *((family, "token") for family in ALL_FAMILIES),
    *((family, "masked") for family in NORMALIZED_FAMILIES),
    *((family, "causal") for family in DECODERS),
]


def noise_like(h: Tensor) -> Tensor:
    return 0.1 * torch.randn(h.shape, generator=torch.Generator().manual_seed(3), dtype=h.dtype)


# models with a head


@pytest.mark.parametrize(("family", "head"), FAMILY_AND_HEAD)
def test_a_model_with_a_head_has_the_levels_and_modules_of_its_encoder(family: str, head: str) -> None:
    row = FAMILIES[family]
    tied = head in ("masked", "causal")
    model = tiny_encoder(family, model=HEADS[head][row.model.config_class], num_labels=3, tie_word_embeddings=tied)
    encoder = model.base_model
    words = encoder.get_submodule(row.words)
    if tied:
        assert model.get_output_embeddings().weight is words.weight
    assert find_encoder(nn.Sequential(model)) is model
    assert available_levels(model) == levels_of(family)
    assert NoiseInjection(model, "pre_ln").module is words
    if row.norm is not None:
        assert NoiseInjection(model, "post_ln").module is encoder.get_submodule(row.norm)


@pytest.mark.parametrize(("family", "head"), FAMILY_AND_HEAD)
def test_noise_enters_a_model_with_a_head_once_a_forward(family: str, head: str) -> None:
    model = tiny_encoder(family, model=HEADS[head][FAMILIES[family].model.config_class], num_labels=3).eval()
    batch = token_batch(model)
    for level in levels_of(family):
        injection = NoiseInjection(model, level)
        passes: list[Tensor] = []

        def with_noise(h: Tensor, passes: list[Tensor] = passes) -> Tensor:
            passes.append(h)
            return h + noise_like(h)

        def logits() -> Tensor:
            with throughout(torch.float64):
                result: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            return result

        with injection.clean():
            clean = logits()
        with injection.add(lambda h: h):
            assert torch.equal(logits(), clean)
        with injection.add(with_noise):
            assert (logits() - clean).abs().max() > 1e-3
        assert len(passes) == 1


# sizes


@pytest.mark.parametrize(
    ("family", "level", "size"),
    [
        *((family, level, 12) for family in ("albert", "electra") for level in levels_of(family)),
        ("deberta_v2", "pre_ln", 12),
        ("deberta_v2", "post_ln", 16),
        ("deberta_v2", "deberta", 16),
    ],
)
def test_noise_has_the_size_of_h_at_the_injection_point(family: str, level: str, size: int) -> None:
    """ALBERT and ELECTRA project after the LayerNorm, a DeBERTa-v2 of another embedding size before it."""
    model = Classifier(tiny_encoder(family, embedding_size=12))
    assert model.bert.config.hidden_size == 16
    batch = token_batch(model.bert)
    delta = noise_like(torch.empty(*batch.input_ids.shape, size, dtype=torch.float64))
    injection = NoiseInjection(model.bert, level)
    with injection.clean():
        clean = model(*batch)
    with injection.add(delta):
        assert (model(*batch) - clean).abs().max() > 1e-3


# encoder-decoders, decoders


@pytest.mark.parametrize(
    "model",
    [transformers.T5Model, transformers.T5ForSequenceClassification, transformers.T5ForQuestionAnswering],
)
def test_an_encoder_decoder_is_refused_in_a_line_and_its_encoder_is_not(model: Any) -> None:
    whole = tiny_encoder("t5", model=model)
    with pytest.raises(
        UnsupportedLevelError, match=rf"^{model.__name__} embeds words in 2 stacks.*find_encoder[^\n]*$"
    ):
        NoiseInjection(whole, "pre_ln")
    assert available_levels(whole.get_encoder()) == ("pre_ln",)


def test_a_decoder_with_a_separate_embedding_is_a_second_stack() -> None:
    config = transformers.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=24,
    )  # fmt: skip
    with pytest.raises(UnsupportedLevelError, match="BartModel embeds words in 2 stacks"):
        NoiseInjection(transformers.BartModel(config), "pre_ln")


def test_a_model_without_word_embeddings_is_refused() -> None:
    with pytest.raises(UnsupportedLevelError, match="Linear embeds words in 0 stacks"):
        available_levels(nn.Linear(2, 2))


@pytest.mark.parametrize("family", DECODERS)
def test_noise_token_by_token_with_a_cache_is_noise_of_the_full_sequence(family: str) -> None:
    decoder = tiny_encoder(family)
    ids = token_batch(decoder, lengths=(6, 6), width=6).input_ids
    delta = noise_like(torch.empty(2, 6, 16, dtype=torch.float64))
    injection = NoiseInjection(decoder, "pre_ln")
    with throughout(torch.float64), injection.add(delta):
        whole = decoder(ids, use_cache=True).last_hidden_state
    states, cache = [], None
    with throughout(torch.float64):
        for token in range(6):
            with injection.add(delta[:, token : token + 1]):
                output = decoder(ids[:, token : token + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            states.append(output.last_hidden_state)
    torch.testing.assert_close(torch.cat(states, dim=1), whole, rtol=1e-10, atol=1e-10)


# adapters


class LowRankTable(nn.Module):
    """A word table with an update of low rank, laid out as peft's LoRA has it."""

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        rows, size = base_layer.weight.shape
        generator = torch.Generator().manual_seed(0)
        self.base_layer = base_layer
        self.lora_embedding_A = nn.Parameter(torch.randn(rows, 2, generator=generator, dtype=torch.float64))
        self.lora_embedding_B = nn.Parameter(torch.randn(2, size, generator=generator, dtype=torch.float64))

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.base_layer.weight
        return weight

    def forward(self, input_ids: Tensor) -> Tensor:
        words: Tensor = self.base_layer(input_ids)
        return words + F.embedding(input_ids, self.lora_embedding_A) @ self.lora_embedding_B


class TrainedCopy(nn.Module):
    """A module kept as it was beside the copy that is trained and used, as peft's `modules_to_save` has it."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.original_module = module
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(module)})
        with torch.no_grad():
            for parameter in self.modules_to_save.parameters():
                parameter.mul_(1.5)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.modules_to_save["default"](x)
        return output


def wrap(encoder: nn.Module, name: str, wrapper: type[nn.Module]) -> nn.Module:
    """Put `wrapper` around the submodule of that name."""
    parent, _, child = name.rpartition(".")
    wrapped = wrapper(encoder.get_submodule(name))
    setattr(encoder.get_submodule(parent), child, wrapped)
    return wrapped


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("adapter", [LowRankTable, TrainedCopy])
def test_an_adapted_word_table_is_found_with_its_adapter(family: str, adapter: type[nn.Module]) -> None:
    model = tiny_classifier(family)
    words = wrap(model.bert, FAMILIES[family].words, adapter)
    batch = token_batch(model.bert)
    assert NoiseInjection(model.bert, "pre_ln").module is words
    assert available_levels(model.bert) == levels_of(family)
    given: list[Tensor] = []

    def keep(h: Tensor) -> Tensor:
        given.append(h)
        return h

    with NoiseInjection(model.bert, "pre_ln").add(keep):
        model(*batch)
    assert torch.equal(given[0], words(batch.input_ids))


@pytest.mark.parametrize("family", NORMALIZED_FAMILIES)
@pytest.mark.parametrize("level", ["post_ln", "deberta"])
def test_an_adapted_layer_norm_is_found_with_its_adapter(family: str, level: str) -> None:
    norm = FAMILIES[family].norm
    assert norm is not None
    model = tiny_classifier(family)
    wrapped = wrap(model.bert, norm, TrainedCopy)
    injection = NoiseInjection(model.bert, level)
    assert injection.module is wrapped
    batch = token_batch(model.bert)
    with injection.clean():
        clean = model(*batch)
    with injection.add(lambda h: h + noise_like(h)):
        assert (model(*batch) - clean).abs().max() > 1e-3


def test_a_layer_next_to_the_table_that_contains_layer_norms_is_not_one() -> None:
    class OneLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4)
            self.layer = nn.TransformerEncoderLayer(4, 2, 8)

        def get_input_embeddings(self) -> nn.Module:
            return self.words

    assert available_levels(OneLayer()) == ("pre_ln",)


def test_a_wrapper_that_names_the_words_as_well_has_the_levels_of_the_block_inside() -> None:
    """As PEFT's of a learned prefix; learned prompts, which are rows of their own, are refused by their name."""

    class Prompted(nn.Module):
        def __init__(self, encoder: Any) -> None:
            super().__init__()
            self.encoder = encoder
            self.words = encoder.get_input_embeddings()

    prompted = Prompted(tiny_encoder("bert"))
    assert available_levels(prompted) == available_levels(prompted.encoder) == levels_of("bert")


# the documentation


def test_the_documented_tables_are_those_that_the_code_prints() -> None:
    """If this fails: put the output of `python -m docs_build.encoder_families` into docs/encoders.md."""
    page = (Path(__file__).parents[3] / "docs" / "encoders.md").read_text(encoding="utf-8")
    assert f"\n{levels_table()}\n\n" in page
    assert f"\n{places_table()}\n\n" in page
