"""Where noise enters an encoder: a forward hook at the word embeddings or around the embedding block's LayerNorm.

The encoder's code is neither edited nor copied, and nothing is embedded twice. Needs torch alone.

    word embeddings ─┬─► + positions, types ─┬─► LayerNorm ─┬─► dropout ─► layers
                  pre_ln                  deberta         post_ln
                                      (LN0 first, then δ)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = ("pre_ln", "post_ln", "deberta")
LN0_EPS = 1e-7

Noise = Tensor | Callable[[Tensor], Tensor]


class UnsupportedLevelError(ValueError):
    """The encoder has no injection point of that level."""


class NoiseInjection:
    """Adds noise at one injection point of a transformers encoder (METHODS: levels `pre_ln`, `post_ln`, `deberta`).

    Args:
        encoder: any module with `get_input_embeddings()`.
        level: `pre_ln`, the output of the word-embedding lookup [SMART, Jiang et al. 2020]; `post_ln`, the output of
            the embedding block's LayerNorm, before dropout [SiFT, He et al. 2021]; `deberta`, between a LayerNorm
            without affine parameters (LN0, eps 1e-7) and the embedding block's LayerNorm, as in DeBERTa's release.

    Raises:
        UnsupportedLevelError: names the encoder and the levels that it has.

    Example:
        >>> injection = NoiseInjection(model.bert, "post_ln")
        >>> with injection.add(delta):          # delta: (batch, tokens, hidden)
        ...     logits = model(input_ids)
    """

    def __init__(self, encoder: nn.Module, level: str = "pre_ln"):
        name, available = type(encoder).__name__, available_levels(encoder)
        if getattr(getattr(encoder, "config", None), "is_encoder_decoder", False):
            raise UnsupportedLevelError(f"{name} embeds words in encoder and decoder; accepted: its get_encoder()")
        if level not in available:
            raise UnsupportedLevelError(f"{name} has no injection point {level!r}; it has: {', '.join(available)}")
        self.encoder = encoder
        self.level = level
        layer_norm = find_embedding_layer_norm(encoder)
        self.modules = _word_embeddings(encoder) if level == "pre_ln" or layer_norm is None else [layer_norm]

    @contextmanager
    def add(self, noise: Noise) -> Iterator[None]:
        """Within the block, every forward of the encoder adds `noise` at the injection point.

        Args:
            noise: δ of shape (batch, tokens, hidden), zero at padding; or a function that is given h, the clean tensor
                at the injection point, and returns h with noise (the search needs h's shape and size for its δ).

        Raises:
            RuntimeError: the block ended and no forward had come by the injection point.
        """
        passes = 0

        def perturb(h: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return h + noise.to(h.dtype) if isinstance(noise, Tensor) else noise(h)

        with self._hook(perturb):
            yield
        if passes == 0:
            raise RuntimeError(f"the encoder's forward did not pass its injection point {self.level!r}")

    @contextmanager
    def clean(self) -> Iterator[None]:
        """Within the block the encoder computes the clean pass that belongs to this level.

        At `deberta` LN0 stands in it, as in the perturbed passes; at the other levels it is the plain encoder.
        """
        if self.level == "deberta":
            with self._hook(lambda h: h):
                yield
        else:
            yield

    @contextmanager
    def _hook(self, perturb: Callable[[Tensor], Tensor]) -> Iterator[None]:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (perturb(_ln0(inputs[0])), *inputs[1:])

        def after(_: nn.Module, __: object, output: Tensor) -> Tensor:
            return perturb(output)

        if self.level == "deberta":
            handles = [module.register_forward_pre_hook(before) for module in self.modules]
        else:
            handles = [module.register_forward_hook(after) for module in self.modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def available_levels(encoder: nn.Module) -> tuple[str, ...]:
    """The levels at which noise can enter this encoder."""
    return LEVELS if find_embedding_layer_norm(encoder) is not None else ("pre_ln",)


def find_encoder(model: nn.Module) -> nn.Module:
    """The outermost module with word embeddings: `model` itself, or the encoder inside a network or a wrapper.

    Raises:
        UnsupportedLevelError: there is none.
    """
    for module in model.modules():
        if callable(getattr(module, "get_input_embeddings", None)):
            return module
    raise UnsupportedLevelError(f"{type(model).__name__} holds no encoder with word embeddings; it has no levels")


def find_embedding_layer_norm(encoder: nn.Module) -> nn.Module | None:
    """The LayerNorm of the block that holds the word embeddings; None where the encoder has no such block.

    The block is the module whose direct child is the word-embedding table. Where that module holds the layers too
    (T5, GPT-2, Llama), the norm found in it is the final one, not the embeddings'.
    """
    table = _table(encoder)
    block = next((m for m in encoder.modules() if any(child is table for child in m.children())), None)
    if block is None or any(isinstance(child, nn.ModuleList) for child in block.children()):
        return None
    norms = [child for child in block.children() if type(child).__name__.endswith("LayerNorm")]
    return norms[0] if len(norms) == 1 else None


def _table(encoder: nn.Module) -> nn.Module:
    return cast(Any, encoder).get_input_embeddings()


def _word_embeddings(encoder: nn.Module) -> list[nn.Module]:
    """The modules that look words up in the table: T5 declares it twice, and its forward uses the other one."""
    table = _table(encoder)
    return [m for m in encoder.modules() if isinstance(m, nn.Embedding) and m.weight is table.weight] or [table]


def _ln0(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=LN0_EPS)
