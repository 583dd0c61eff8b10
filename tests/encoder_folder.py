"""A tiny encoder as a folder that the command lines take, with its tokenizer."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers

from docs_build.encoder_families import tiny_model


def write_encoder(folder: Path, family: str | None = None) -> Path:
    """An encoder with random weights, a BERT of one layer or a tiny one of another family, and a tokenizer that knows
    four words."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "fine", "bad", "poor"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(words, range(8), strict=True)), "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    if family is not None:
        tiny_model(family, dropout=0.1).save_pretrained(folder)
        return folder
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=8, max_position_embeddings=16, initializer_range=1.0, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return folder
