"""Tiny models with random weights, in float64: encoders of five families, a classifier, a linear model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.models.deberta import modeling_deberta

FAMILIES = ("bert", "roberta", "electra", "deberta", "deberta_v2", "deberta_v3")
SDPA_FAMILIES = ("bert", "roberta", "electra")
LEVELS = ("pre_ln", "post_ln", "deberta")

_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
_DISENTANGLED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pad_token_id": 0}


def tiny_encoder(
    family: str, *, dropout: float = 0.0, attention: str = "eager", dtype: torch.dtype = torch.float64, seed: int = 0
) -> Any:
    """A two-layer encoder in training mode; every parameter is random, LayerNorm's and the padding rows' too.

    In float64 it computes in float64 throughout: DeBERTa's own LayerNorm would go through single precision.
    """
    config = _config(family, dropout, attention)
    encoder = transformers.AutoModel.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            value = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(value + 1.0 if is_norm_weight else value)
    if dtype == torch.float64:
        for module in encoder.modules():
            if type(module) is modeling_deberta.DebertaLayerNorm:
                module.__class__ = DebertaLayerNorm
    return encoder.to(dtype).train()


class DebertaLayerNorm(modeling_deberta.DebertaLayerNorm):
    """DeBERTa's LayerNorm without its cast to single precision."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        centred = hidden_states - hidden_states.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        result: Tensor = self.weight * centred / torch.sqrt(variance + self.variance_epsilon) + self.bias
        return result


def _config(family: str, dropout: float, attention: str) -> Any:
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    sizes = {**_SIZES, **drop, "attn_implementation": attention}
    if family == "bert":
        return transformers.BertConfig(**sizes)
    if family == "roberta":
        return transformers.RobertaConfig(**sizes, type_vocab_size=1, pad_token_id=1)
    if family == "electra":
        return transformers.ElectraConfig(**sizes, embedding_size=12)
    if family == "deberta":
        return transformers.DebertaConfig(**sizes, **_DISENTANGLED, type_vocab_size=0, position_biased_input=True)
    if family == "deberta_v2":
        return transformers.DebertaV2Config(**sizes, **_DISENTANGLED, type_vocab_size=2, position_biased_input=True)
    if family == "deberta_v3":
        relative: dict[str, Any] = {"share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
        return transformers.DebertaV2Config(
            **sizes, **_DISENTANGLED, **relative, type_vocab_size=0, position_biased_input=False
        )
    raise ValueError(f"no tiny encoder of family {family!r}")


def encoder_without_embedding_norm(family: str) -> Any:
    """T5's encoder or GPT-2: layers and embeddings lie in one module, and no LayerNorm stands behind the latter."""
    torch.manual_seed(0)
    if family == "t5":
        config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
        config.dropout_rate = 0.0
        return transformers.T5EncoderModel(config).double().train()
    gpt2 = transformers.GPT2Config(
        vocab_size=40, n_positions=24, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2Model(gpt2).double().train()


class TokenBatch(NamedTuple):
    """Tensors of shape (batch, tokens)."""

    input_ids: Tensor
    token_type_ids: Tensor | None
    attention_mask: Tensor


def token_batch(
    encoder: Any, lengths: tuple[int, ...] = (7, 5, 3), width: int = 7, filler: int | None = None
) -> TokenBatch:
    """Examples of these lengths, padded on the right with `filler` (the padding token); contents ignore the width."""
    config = encoder.config
    pad = config.pad_token_id if filler is None else filler
    input_ids = torch.full((len(lengths), width), 0 if pad is None else pad)
    types = torch.zeros_like(input_ids)
    mask = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(100 + row)
        input_ids[row, :length] = torch.randint(5, 40, (length,), generator=generator)
        types[row, length // 2 : length] = 1
        mask[row, :length] = 1
    has_types = getattr(config, "type_vocab_size", 0) > 1
    return TokenBatch(input_ids, types if has_types else None, mask)


def example_of(batch: TokenBatch, row: int) -> TokenBatch:
    """One example alone, without its padding."""
    length = int(batch.attention_mask[row].sum())
    types = batch.token_type_ids
    return TokenBatch(
        batch.input_ids[row : row + 1, :length],
        None if types is None else types[row : row + 1, :length],
        batch.attention_mask[row : row + 1, :length],
    )


class Classifier(nn.Module):
    """A linear head on the mean of the encoder's states over real tokens, called as MT-DNN's models are."""

    def __init__(self, encoder: Any, classes: int = 3) -> None:
        super().__init__()
        self.bert = encoder
        weight = torch.randn(classes, encoder.config.hidden_size, generator=torch.Generator().manual_seed(1))
        self.head = nn.Linear(encoder.config.hidden_size, classes).to(next(encoder.parameters()))
        with torch.no_grad():
            self.head.weight.copy_(0.5 * weight)
            self.head.bias.zero_()

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        attention_mask: Tensor,
        premise_mask: Tensor | None = None,
        hyp_mask: Tensor | None = None,
        task_id: int = 0,
    ) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(states.dtype)
        logits: Tensor = self.head((states * real).sum(1) / real.sum(1))
        return logits


def tiny_classifier(family: str = "bert", classes: int = 3, **options: Any) -> Classifier:
    return Classifier(tiny_encoder(family, **options), classes)


class LinearModel(nn.Module):
    """f = ⟨w, h⟩ over the real entries of the word vectors h; keeps what it saw of h, noise included, in `seen`.

    Args:
        table: (vocabulary, hidden), the word vectors.
        weight: w, broadcastable to (batch, tokens, hidden).
    """

    def __init__(self, table: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.word = nn.Embedding.from_pretrained(table.clone(), freeze=False)
        self.weight = nn.Parameter(weight.clone())
        self.seen: list[Tensor] = []

    def get_input_embeddings(self) -> nn.Module:
        return self.word

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        attention_mask: Tensor,
        premise_mask: Tensor | None = None,
        hyp_mask: Tensor | None = None,
        task_id: int = 0,
    ) -> Tensor:
        h = self.word(input_ids)
        self.seen.append(h.detach().clone())
        return (h * self.weight * attention_mask.unsqueeze(-1)).sum((1, 2)).unsqueeze(-1)

    def delta(self, input_ids: Tensor) -> Tensor:
        """δ of the last forward, (batch, tokens, hidden)."""
        return self.seen[-1] - self.word.weight.detach()[input_ids]


def injection_site(encoder: Any, level: str) -> nn.Module:
    """The module that receives what comes out of the injection point."""
    site: nn.Module = encoder.embeddings.dropout if level == "post_ln" else encoder.embeddings.LayerNorm
    return site


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What `module` receives within the block, forward by forward, behind all hooks on it."""
    inputs: list[Tensor] = []
    original: Callable[..., Tensor] = module.forward

    def recording(x: Tensor, *args: Any, **options: Any) -> Tensor:
        inputs.append(x.detach().clone())
        return original(x, *args, **options)

    module.forward = recording  # type: ignore[method-assign]
    try:
        yield inputs
    finally:
        del module.forward


def hook_count(model: nn.Module) -> int:
    """All hooks on the forward of `model` and its submodules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def scale_tables(encoder: Any, factor: float) -> None:
    """Multiply the word, position and type tables of the embedding block."""
    with torch.no_grad():
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            table = getattr(encoder.embeddings, name, None)
            if table is not None:
                table.weight.mul_(factor)


def remove_norm_eps(encoder: nn.Module, eps: float = 1e-30) -> None:
    """Take every LayerNorm's eps to (almost) zero: a row of zeros then still has a finite output."""
    for module in encoder.modules():
        for name in ("eps", "variance_epsilon"):
            if hasattr(module, name):
                setattr(module, name, eps)
