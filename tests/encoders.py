"""Tiny models with random weights, in float64: encoders of every family, a classifier, a linear model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from docs_build.encoder_families import FAMILIES as ROWS
from docs_build.encoder_families import EncoderFamily, tiny_model

LEVELS = ("pre_ln", "post_ln", "deberta")
ALL_FAMILIES = tuple(ROWS)
NORMALIZED_FAMILIES = tuple(name for name, row in ROWS.items() if row.norm is not None)
SDPA_FAMILIES = tuple(name for name, row in ROWS.items() if row.model._supports_sdpa)
# What the search meets: other embedding blocks give it no other kind of h.
FAMILIES = ("bert", "roberta", "electra", "deberta", "deberta_v2", "deberta_v3")


def levels_of(family: str) -> tuple[str, ...]:
    """The levels that a family has by its row."""
    return LEVELS if family in NORMALIZED_FAMILIES else ("pre_ln",)


def tiny_encoder(
    family: str,
    *,
    dropout: float = 0.0,
    attention: str = "eager",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> Any:
    """A two-layer encoder in training mode; every parameter is random, LayerNorm's and the padding rows' too.

    `options` go to the configuration; `model` among them is a class with a head.
    """
    encoder = tiny_model(family, dropout=dropout, attention=attention, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            value = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(value + 1.0 if is_norm_weight else value)
    return encoder.to(dtype).train()


class SinglePrecisionIsDouble(TorchFunctionMode):
    """Within it float32 means float64: norms, softmax and rotations of some encoders cast to single precision."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        options = {key: _in_double(value) for key, value in (kwargs or {}).items()}
        return func(*map(_in_double, args), **options)


def _in_double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def throughout(dtype: torch.dtype) -> AbstractContextManager[object]:
    """Within the block an encoder of this dtype computes in it throughout, if it is float64."""
    return SinglePrecisionIsDouble() if dtype == torch.float64 else nullcontext()


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
        with throughout(self.head.weight.dtype):
            states = self.bert(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(states.dtype)
        logits: Tensor = self.head((states * real).sum(1) / real.sum(1))
        return logits


def tiny_classifier(family: str = "bert", classes: int = 3, **options: Any) -> Classifier:
    return Classifier(tiny_encoder(family, **options), classes)


class LinearModel(nn.Module):
    """f = ⟨w, h⟩ over the real entries of the word vectors h; keeps what it saw of h, noise included, in `seen`, and
    the last one with its graph in `h`.

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
        self.h = h = self.word(input_ids)
        self.seen.append(h.detach().clone())
        return (h * self.weight * attention_mask.unsqueeze(-1)).sum((1, 2)).unsqueeze(-1)

    def delta(self, input_ids: Tensor) -> Tensor:
        """δ of the last forward, (batch, tokens, hidden)."""
        return self.seen[-1] - self.word.weight.detach()[input_ids]


class EmbeddingBlock(NamedTuple):
    """The module with the word embeddings and a LayerNorm, and what is in it."""

    module: nn.Module
    norm: nn.Module
    dropout_name: str


def embedding_block(encoder: Any) -> EmbeddingBlock:
    """The block by the family's row, not by search."""
    name = row_of(encoder).norm
    assert name is not None
    block = encoder.get_submodule(name.rpartition(".")[0])
    (dropout,) = (child for child, module in block.named_children() if isinstance(module, nn.Dropout))
    return EmbeddingBlock(block, encoder.get_submodule(name), dropout)


def row_of(encoder: Any) -> EncoderFamily:
    return next(row for row in ROWS.values() if row.model is type(encoder))


def injection_site(encoder: Any, level: str) -> nn.Module:
    """The module that receives what comes out of the injection point."""
    if row_of(encoder).norm is None:
        layers = next(module for module in encoder.modules() if isinstance(module, nn.ModuleList))
        return layers[0]
    block = embedding_block(encoder)
    return block.module.get_submodule(block.dropout_name) if level == "post_ln" else block.norm


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
        for table in embedding_block(encoder).module.children():
            if isinstance(table, nn.Embedding):
                table.weight.mul_(factor)


def remove_norm_eps(encoder: nn.Module, eps: float = 1e-30) -> None:
    """Take every LayerNorm's eps to (almost) zero: a row of zeros then still has a finite output."""
    for module in encoder.modules():
        for name in ("eps", "variance_epsilon"):
            if hasattr(module, name):
                setattr(module, name, eps)
