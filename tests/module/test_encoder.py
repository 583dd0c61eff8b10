"""Encoders from configurations."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from data_utils.errors import DataError
from docs_build.encoder_families import FAMILIES, tiny_model
from module.encoder import encoder_from_config, load_encoder, positions_of
from tests.encoder_folder import write_encoder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_requested_dropout_is_that_of_every_part_of_every_encoder(family: str) -> None:
    config = tiny_model(family, dropout=0.3).config
    whole = {name: value for name, value in config.to_dict().items() if "drop" in name}
    encoder = encoder_from_config(config.to_dict(), dropout_p=0.0)
    assert {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)} <= {0.0}
    kept = {name: value for name, value in encoder.config.to_dict().items() if "drop" in name and value}
    assert 0.3 in whole.values()
    assert all(name.startswith(("classifier", "cls", "pooler", "qa", "seq_classif", "summary")) for name in kept), kept


@pytest.mark.parametrize("family", ["bart", "mbart", "pegasus", "marian", "m2m_100"])
def test_the_requested_dropout_skips_no_layer(family: str) -> None:
    """`encoder_layerdrop`, 0 in every published configuration of these, drops layers whole."""
    sides = ("encoder", "decoder")
    config: dict[str, Any] = {"model_type": family, "vocab_size": 40, "d_model": 16, "max_position_embeddings": 24}
    config["pad_token_id"] = 1
    for side in sides:
        config |= {f"{side}_layers": 3, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 8, f"{side}_layerdrop": 0.0}
    model = encoder_from_config(config | {"decoder_layerdrop": 0.25}, with_decoder=True, dropout_p=0.9)
    assert (model.config.encoder_layerdrop, model.config.decoder_layerdrop) == (0.0, 0.25)
    assert (model.config.dropout, model.config.attention_dropout) == (0.9, 0.9)
    model = encoder_from_config(config, with_decoder=True, dropout_p=0.9).train()
    ran: list[nn.Module] = []
    layers = [layer for side in sides for layer in getattr(model.model, side).layers]
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: ran.append(layer))
    model(input_ids=torch.tensor([[5, 6, 2]]), decoder_input_ids=torch.tensor([[2, 7]]))
    assert ran == layers and len(layers) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**9}, r"names 1000000000 layers \(num_hidden_layers\); accepted: at most 1000"),
        ({"hidden_size": "x"}, "cannot be loaded"),
        ({"hidden_size": 12}, "cannot be loaded"),
        ({"model_type": []}, "cannot be loaded"),
    ],
)
def test_a_folder_with_an_unusable_configuration_is_an_error(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write_encoder(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DataError, match=words) as caught:
        load_encoder(str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights_are_an_error(kept: int, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "own")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:kept])
    with pytest.raises(DataError, match="own' cannot be loaded"):
        load_encoder(str(folder))


def test_layers_that_are_left_out_are_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_encoder(tmp_path / "bert", "bert")
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        encoder = load_encoder(str(folder), num_hidden_layers=1)
    finally:
        library.removeHandler(caplog.handler)
    assert len(encoder.encoder.layer) == 1 and not caplog.records


@pytest.mark.parametrize(("family", "expected"), [("bert", 20), ("roberta", 18), ("t5", None)])
def test_tokens_have_the_positions_after_that_of_padding(family: str, expected: int | None) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 1}
    config = AutoConfig.for_model(family, **sizes, intermediate_size=8, max_position_embeddings=20)
    if family == "t5":
        config = AutoConfig.for_model("t5", vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    encoder = AutoModel.from_config(config)
    assert positions_of(encoder) == expected
    if family == "roberta":
        ids, mask = torch.full((1, 18), 5), torch.ones(1, 18, dtype=torch.long)
        assert encoder(input_ids=ids, attention_mask=mask).last_hidden_state.shape == (1, 18, 8)
        with pytest.raises((IndexError, RuntimeError)):
            encoder(input_ids=torch.full((1, 19), 5), attention_mask=torch.ones(1, 19, dtype=torch.long))
