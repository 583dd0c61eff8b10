from __future__ import annotations

from pathlib import Path

import pytest

from tests.encoder_folder import write_encoder


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "tiny")
