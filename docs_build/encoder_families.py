"""The encoder families that are tested, one row each.

`python -m docs_build.encoder_families` prints the tables of docs/encoders.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import transformers
from torch import nn

from data_utils.errors import run_command_line
from mt_dnn.perturbation.injection import LEVELS, find_modules

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DISENTANGLED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
DEBERTA_V3: dict[str, Any] = {"share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}


class EncoderFamily(NamedTuple):
    """An architecture of transformers, with the modules of its embedding block by name.

    Attributes:
        title: its name in the documentation.
        example: a model of the family on the Hub.
        model: the class of the encoder.
        words: dotted name of the word embeddings within the encoder.
        norm: dotted name of the embedding block's LayerNorm; None if it has none.
        options: of a tiny configuration, in addition to `SIZES`; None removes one.
    """

    title: str
    example: str
    model: Any
    words: str = "embeddings.word_embeddings"
    norm: str | None = "embeddings.LayerNorm"
    options: dict[str, Any] = {}  # noqa: RUF012


FAMILIES: dict[str, EncoderFamily] = {
    "bert": EncoderFamily("BERT", "bert-base-uncased", transformers.BertModel),
    "roberta": EncoderFamily(
        "RoBERTa", "roberta-base", transformers.RobertaModel, options={"pad_token_id": 1, "type_vocab_size": 1}
    ),
    "xlm_roberta": EncoderFamily(
        "XLM-RoBERTa",
        "xlm-roberta-base",
        transformers.XLMRobertaModel,
        options={"pad_token_id": 1, "type_vocab_size": 1},
    ),
    "electra": EncoderFamily(
        "ELECTRA", "google/electra-base-discriminator", transformers.ElectraModel, options={"embedding_size": 12}
    ),
    "albert": EncoderFamily("ALBERT", "albert-base-v2", transformers.AlbertModel, options={"embedding_size": 12}),
    "distilbert": EncoderFamily(
        "DistilBERT", "distilbert-base-uncased", transformers.DistilBertModel, options={"hidden_dim": 24}
    ),
    "mpnet": EncoderFamily("MPNet", "microsoft/mpnet-base", transformers.MPNetModel, options={"pad_token_id": 1}),
    "deberta": EncoderFamily(
        "DeBERTa", "microsoft/deberta-base", transformers.DebertaModel, options={**DISENTANGLED, "type_vocab_size": 0}
    ),
    "deberta_v2": EncoderFamily(
        "DeBERTa-v2",
        "microsoft/deberta-v2-xlarge",
        transformers.DebertaV2Model,
        options={**DISENTANGLED, "type_vocab_size": 2},
    ),
    "deberta_v3": EncoderFamily(
        "DeBERTa-v3",
        "microsoft/deberta-v3-base",
        transformers.DebertaV2Model,
        options={**DISENTANGLED, **DEBERTA_V3, "type_vocab_size": 0, "position_biased_input": False},
    ),
    "modernbert": EncoderFamily(
        "ModernBERT",
        "answerdotai/ModernBERT-base",
        transformers.ModernBertModel,
        words="embeddings.tok_embeddings",
        norm="embeddings.norm",
        options={"cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 2, "local_attention": 4},
    ),
    "xlnet": EncoderFamily(
        "XLNet",
        "xlnet-base-cased",
        transformers.XLNetModel,
        words="word_embedding",
        norm=None,
        options={"d_inner": 24, "d_head": 8, "max_position_embeddings": None, "pad_token_id": 5},
    ),
    "t5": EncoderFamily(
        "T5 (encoder)",
        "t5-base",
        transformers.T5EncoderModel,
        words="encoder.embed_tokens",
        norm=None,
        options={"d_kv": 8, "d_ff": 24},
    ),
    "gpt2": EncoderFamily("GPT-2", "gpt2", transformers.GPT2Model, words="wte", norm=None),
    "llama": EncoderFamily(
        "Llama", "meta-llama/Llama-3.2-1B", transformers.LlamaModel, words="embed_tokens", norm=None
    ),
    "qwen3": EncoderFamily(
        "Qwen3",
        "Qwen/Qwen3-0.6B",
        transformers.Qwen3Model,
        words="embed_tokens",
        norm=None,
        options={"num_key_value_heads": 1, "head_dim": 8},
    ),
}


def tiny_model(
    family: str, *, dropout: float = 0.0, attention: str = "eager", model: Any = None, **options: Any
) -> Any:
    """A two-layer model of a family with the library's own initialization.

    Args:
        family: a key of `FAMILIES`.
        dropout: for every dropout probability of the configuration.
        attention: transformers' name of the implementation, `eager` or `sdpa`.
        model: another class of that family, such as BertForMaskedLM; None: the encoder.
        options: of the configuration; they override the family's.
    """
    row = FAMILIES[family]
    sizes = {name: value for name, value in (SIZES | row.options | options).items() if value is not None}
    config = row.model.config_class(**sizes, attn_implementation=attention)
    for name in config.to_dict():
        if "drop" in name:
            setattr(config, name, dropout)
    return (row.model if model is None else model)(config)


def levels_table() -> str:
    """The families in Markdown: an example, the levels, and δ's last dimension, found by structure."""
    levels = [f"`{level}`" for level in LEVELS]
    lines = [f"| family | for example | {' | '.join(levels)} | size of δ |", f"|{' --- |' * (len(levels) + 3)}"]
    for name, row in FAMILIES.items():
        encoder = tiny_model(name)
        modules = find_modules(encoder)
        has = ["yes" if level in modules else "–" for level in LEVELS]
        lines.append(f"| {' | '.join((row.title, f'`{row.example}`', *has, _size(encoder, modules['pre_ln'])))} |")
    return "\n".join(lines)


def places_table() -> str:
    """The families in Markdown: the modules that noise is added to, found by structure."""
    lines = ["| family | `pre_ln` | `post_ln` and `deberta` |", "| --- | --- | --- |"]
    for name, row in FAMILIES.items():
        encoder = tiny_model(name)
        modules = find_modules(encoder)
        names = {module: f"`{path}`" for path, module in encoder.named_modules()}
        norm = names[modules["post_ln"]] if "post_ln" in modules else "–"
        lines.append(f"| {row.title} | {names[modules['pre_ln']]} | {norm} |")
    return "\n".join(lines)


def _size(encoder: Any, words: nn.Module) -> str:
    return "hidden size" if words.embedding_dim == encoder.config.hidden_size else "embedding size"


if __name__ == "__main__":
    run_command_line(lambda: print(f"{levels_table()}\n\n{places_table()}"))
