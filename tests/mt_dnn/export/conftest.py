"""A small tokenizer for exported models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mt_dnn.export.tasks import WORDS


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A folder with a small cased tokenizer."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    return str(folder)
