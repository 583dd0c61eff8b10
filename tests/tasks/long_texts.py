"""A long text of words that tokenizers treat differently, and a tokenizer of bytes."""

from __future__ import annotations

import random
from pathlib import Path

import tokenizers
import transformers

WORDS_OF_MANY_KINDS = [
    "Jürgen", "sells", "naïve", "cafe\u0301", "paintings,", "“quoted”", "日本語", "12,345", "😀", "straße", "Ελλάδα",
    "नमस्ते", "don't", "e.g.", "unaffordableness", "(1895-1943).", "U.S.A.", "Москва", "ﬁnal", "x²",
]  # fmt: skip


def long_text() -> tuple[str, list[str], list[int]]:
    """A text of 60 words, the words, and the character at which each starts."""
    draw = random.Random(0)
    words = [draw.choice(WORDS_OF_MANY_KINDS) for _ in range(60)]
    context, starts = "", []
    for word in words:
        context += draw.choice([" ", "  "])
        starts.append(len(context))
        context += word
    return context, words, starts


def byte_tokenizer(folder: Path) -> str:
    """A tokenizer of single bytes that puts its special tokens around and trims offsets as RoBERTa's does."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return str(folder)
