from __future__ import annotations

from pathlib import Path

import pytest

from data_utils.errors import DataError
from data_utils.prepro import Split, Tokenization, TokenizerSpec, parse_list
from tasks import Task
from tests.encoder_folder import write_encoder

SPLIT = Split(Path("toy_dev.tsv"), Task(None), is_train=False)  # type: ignore[arg-type]


def test_lists_are_read_as_json_or_python_writes_them():
    for text in ('["caf\\u00e9", "\\ud83d\\ude00"]', r"['caf\xe9', '\U0001f600']", '["café", "😀"]', "['café', '😀']"):
        assert parse_list(SPLIT, 1, "premise", text) == ["café", "😀"]
    assert parse_list(SPLIT, 1, "starts", "[3, 14]", int) == [3, 14]


def test_a_list_that_is_code_is_not_run(tmp_path: Path):
    """Where it was, the file would be there, and the list be one of texts."""
    target = tmp_path / "run"
    with pytest.raises(DataError, match="accepted: a list of texts"):
        parse_list(SPLIT, 1, "premise", f"[open({str(target)!r}, 'w').name]")
    assert not target.exists()


@pytest.mark.parametrize(
    "text",
    ["__import__('os').getcwd()", "['a', 1]", "('a',)", "a b", "[" * 10_000, "[[]]", '["\\ud800"]', "['\\ud800']"],
)
def test_what_is_no_list_of_texts_is_reported(text: str):
    with pytest.raises(DataError, match=r"toy_dev.tsv, line 7: premise: found .*; accepted: a list of texts"):
        parse_list(SPLIT, 7, "premise", text)


def test_a_long_list_has_to_be_json():
    long = "a" * (1 << 18)
    assert parse_list(SPLIT, 7, "premise", f'["{long}"]') == [long]
    with pytest.raises(DataError, match="accepted: a list of texts"):
        parse_list(SPLIT, 7, "premise", f"['{long}']")


def test_padding_comes_last_whatever_the_tokenizer_says(tmp_path: Path):
    """XLNet's pads on the left."""
    text = Tokenization(TokenizerSpec(str(write_encoder(tmp_path)), max_seq_len=6, do_padding=True))
    text.tokenizer.padding_side = "left"
    (found,) = text.encode(["good fine"])
    assert found == {"token_id": [2, 4, 5, 3, 0, 0], "type_id": [0] * 6, "attention_mask": [1, 1, 1, 1, 0, 0]}
