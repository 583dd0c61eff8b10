"""Tokenizers of strangers: tokenizer.json, which the tokenizers library reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data_utils.prepro import Tokenization, TokenizerSpec
from tests.fuzz.check import reading
from tests.fuzz.inputs import DRAWN, Choices

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
WORDS = {word: number for number, word in enumerate([*SPECIAL, "good", "fine", "##s", "g", "o", "d", "go", "od"])}
TEXTS: list[Any] = ["good fines", "", "\u05e9 [SEP] \U0001f600 x" * 9, ("good", "a fine one")]


def tokenizers_of_each_kind() -> list[Any]:
    """Their files' content: of each model, with parts of each kind around it."""
    found = []
    pairs = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    scores = [(word, -float(number)) for word, number in WORDS.items()]
    bert = [normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()]
    spaces = [normalizers.Replace(" ", "_"), pre_tokenizers.Metaspace(), decoders.Metaspace()]
    lower = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents()])
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits()])
    for model, (normalizer, pre_tokenizer, decoder) in (
        (models.WordPiece(WORDS, unk_token="[UNK]"), bert),
        (models.Unigram(scores, unk_id=1), spaces),
        (models.BPE(WORDS, [("g", "o"), ("o", "d")], unk_token="[UNK]"), [lower, split, decoders.BPEDecoder()]),
    ):
        tokenizer = Tokenizer(model)
        tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoder
        tokenizer.post_processor = pairs
        tokenizer.add_special_tokens(SPECIAL)
        tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
        tokenizer.enable_truncation(16)
        found.append(json.loads(tokenizer.to_str()))
    return found


KINDS = tokenizers_of_each_kind()


def encoded(folder: Path) -> tuple[Tokenization, list[dict[str, list[int]]]]:
    text = Tokenization(TokenizerSpec(str(folder), max_seq_len=16))
    return text, list(text.encode(TEXTS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **NAMES}))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["model"]["type"])
def test_what_is_changed_is_a_tokenizer(kind: Any, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(kind))
    text, found = encoded(folder)
    assert isinstance(text.tokenizer, transformers.PreTrainedTokenizerFast)
    assert WORDS["good"] in found[0]["token_id"] or WORDS["go"] in found[0]["token_id"]


@given(DRAWN)
def test_tokenizers(folder: Path, drawn: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(Choices(drawn).json(KINDS))
    found = reading("tokenizers", lambda: encoded(folder), folder)
    if found is not None:
        assert encoded(folder)[1] == found[1]
        for example in found[1]:
            assert len({len(values) for values in example.values()}) == 1 and len(example["token_id"]) <= 16
