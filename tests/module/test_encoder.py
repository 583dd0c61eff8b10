"""Encoders from configurations."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from data_utils.errors import DataError
from module.encoder import encoder_from_config, load_encoder
from module.encoder_families import FAMILIES, tiny_model
from tests.encoder_folder import write_encoder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dropout_asked_for_is_that_of_every_part_of_every_encoder(family: str) -> None:
    config = tiny_model(family, dropout=0.3).config
    whole = {name: value for name, value in config.to_dict().items() if "drop" in name}
    encoder = encoder_from_config(config.to_dict(), dropout_p=0.0)
    assert {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)} <= {0.0}
    kept = {name: value for name, value in encoder.config.to_dict().items() if "drop" in name and value}
    assert 0.3 in whole.values()
    assert all(name.startswith(("classifier", "cls", "pooler", "qa", "seq_classif", "summary")) for name in kept), kept


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**9}, r"names 1000000000 layers \(num_hidden_layers\); accepted: at most 1000"),
        ({"hidden_size": "x"}, "cannot be loaded"),
        ({"hidden_size": 12}, "cannot be loaded"),
        ({"model_type": []}, "cannot be loaded"),
    ],
)
def test_a_folder_whose_configuration_cannot_be_used_is_told(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write_encoder(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DataError, match=words) as caught:
        load_encoder(str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_cut_weights_are_told(kept: int, tmp_path: Path) -> None:
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
