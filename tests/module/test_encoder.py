"""Encoders from configurations."""

from __future__ import annotations

import pytest
from torch import nn

from module.encoder import encoder_from_config
from module.encoder_families import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dropout_asked_for_is_that_of_every_part_of_every_encoder(family: str) -> None:
    config = tiny_model(family, dropout=0.3).config
    whole = {name: value for name, value in config.to_dict().items() if "drop" in name}
    encoder = encoder_from_config(config.to_dict(), dropout_p=0.0)
    assert {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)} <= {0.0}
    kept = {name: value for name, value in encoder.config.to_dict().items() if "drop" in name and value}
    assert 0.3 in whole.values()
    assert all(name.startswith(("classifier", "cls", "pooler", "qa", "seq_classif", "summary")) for name in kept), kept
