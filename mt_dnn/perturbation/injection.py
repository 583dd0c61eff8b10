"""Where noise enters an encoder: a forward hook at its embeddings or at the output of one of its layers.

The encoder's code is neither edited nor copied, and nothing is embedded twice. Needs torch only.

    word embeddings ─┬─► + positions, types ─┬─► LayerNorm ─┬─► dropout ─► layer 0 ─┬─► layer 1 ─┬─► …
                  pre_ln                  deberta         post_ln               hidden:0     hidden:1
                                      (LN0 first, then δ)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Layer, changed_output, count_layers, find_layer, names_of
from .levels import LEVELS, UnsupportedLevelError, check_level, hidden_layer

__all__ = [
    "LEVELS",
    "NoiseInjection",
    "UnsupportedLevelError",
    "available_levels",
    "find_encoder",
    "find_modules",
    "hidden_levels",
    "outermost_encoder",
]

LN0_EPS = 1e-7
TIME_FIRST = ("xlnet",)  # families whose embeddings are (tokens, batch, hidden)
PADDING_FAMILIES = ("big_bird", "longformer")  # families that pad a batch at its end, to full windows or blocks

NO_LAYER_NORM = (
    "; no LayerNorm follows its word vectors; noise that does not depend on their scale, as SiFT's, is there "
    "SmartPerturbation.for_model(model), relative to each vector, or --adv_norm_level pre_ln"
)

Noise = Tensor | Callable[[Tensor], Tensor]


class NoiseInjection:
    """Adds noise at one injection point of a transformers encoder.

    Args:
        encoder: any module with `get_input_embeddings()`.
        level: `pre_ln`, the output of the word-embedding lookup [SMART, Jiang et al. 2020]; `post_ln`, the output of
            the embedding block's LayerNorm, before dropout [SiFT, He et al. 2021]; `deberta`, between a LayerNorm
            without affine parameters (LN0, eps 1e-7) and the embedding block's LayerNorm, as in DeBERTa's release;
            `hidden:N`, the output of layer N, counted from 0, or from the end if N is negative (-1 the last).

    Attributes:
        module: the module that the noise enters at.
        layer: the layer of `hidden:N`; None at the other levels.

    Raises:
        UnsupportedLevelError: the encoder lacks this level; the message names the levels that it has.
        ValueError: there is no such level.

    Examples:
        >>> injection = NoiseInjection(model.bert, "post_ln")
        >>> with injection.add(delta):          # delta: (batch, tokens, hidden)
        ...     logits = model(input_ids)
    """

    def __init__(self, encoder: nn.Module, level: str = "pre_ln"):
        check_level(level)
        stack: Any = _innermost_stack(encoder)
        number = hidden_layer(level)
        self.encoder = encoder
        self.level = level
        self.layer: Layer | None = None if number is None else find_layer(stack, number)
        self.module = _embedding_module(encoder, level) if self.layer is None else self.layer.modules[0]
        self._words: nn.Module = stack.get_input_embeddings()
        self._config = getattr(stack, "config", None)
        family = getattr(self._config, "model_type", None)
        self._time_first = family in TIME_FIRST
        self._pads_batches = family in PADDING_FAMILIES

    @property
    def size(self) -> int:
        """Size of the last dimension of h: the hidden size, or the embedding size if that differs."""
        hidden: int | None = None if self.layer is None else getattr(self._config, "hidden_size", None)
        return hidden or next(self.module.parameters()).size(-1)

    @contextmanager
    def add(self, noise: Noise) -> Iterator[None]:
        """Every forward of the encoder in this block adds `noise` at the injection point.

        Args:
            noise: δ of shape (batch, tokens, hidden), zero at padding; or a function that takes h, the clean tensor at
                the injection point, and returns h with noise (the search needs the shape and size of h for its δ).

        Raises:
            RuntimeError: no forward in the block reached the injection point, for example because torch.compile
                compiled the model before the hook was there.
        """
        passes = 0

        def perturb(h: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return h + noise.to(h.dtype) if isinstance(noise, Tensor) else noise(h)

        with self._hook(perturb):
            yield
        if passes == 0:
            raise RuntimeError(
                f"the forward did not reach the injection point {self.level!r} of {type(self.encoder).__name__}; "
                "accepted: batches with input_ids, and models that torch.compile compiles with the hook in place"
            )

    def padded_like(self, x: Tensor, h: Tensor) -> Tensor:
        """x, (batch, tokens, …), padded with zeros to the length of h, for encoders that pad their batches.

        Raises:
            ValueError: h has another length, and the encoder is not known to pad at the end.
        """
        padding = h.size(1) - x.size(1)
        if padding == 0:
            return x
        if padding < 0 or not self._pads_batches:
            raise ValueError(
                f"{type(self.encoder).__name__} has {h.size(1)} tokens at its injection point {self.level!r}, the "
                f"batch {x.size(1)}; accepted: equal numbers, or padding at the end by {', '.join(PADDING_FAMILIES)}"
            )
        return F.pad(x, (*(0, 0) * (x.dim() - 2), 0, padding))

    @contextmanager
    def clean(self) -> Iterator[list[Tensor]]:
        """The encoder in this block computes the clean pass of this level.

        At `deberta` it includes LN0, as the perturbed passes do; at the other levels it is the plain encoder.

        Yields:
            h of every forward in the block, (batch, tokens, hidden), with its graph. If gradients are enabled at entry,
            forwards under `no_grad` are left out.
        """
        bases: list[Tensor] = []
        enabled = torch.is_grad_enabled()

        def record(h: Tensor) -> Tensor:
            if torch.is_grad_enabled() == enabled:
                bases.append(h)
            return h

        with self._hook(record):
            yield bases

    @contextmanager
    def not_recomputed(self) -> Iterator[None]:
        """No forward may reach the injection point in this block: one that a backward repeats would lack the noise.

        Raises:
            ValueError: one did.
        """

        def refuse(h: Tensor) -> NoReturn:
            place = "the embeddings" if self.layer is None else f"layer {self.layer.number}"
            raise ValueError(
                f"the backward pass recomputes {place} of {type(self.encoder).__name__}, without the noise; "
                "accepted: activation checkpointing of the encoder's layers, not of the entire encoder"
            )

        if self.layer is not None and self.layer.is_shared:
            # The backward may recompute its module as a later layer; whoever recomputes the encoder embeds words again.
            hook: AbstractContextManager[Any] = self._words.register_forward_hook(lambda _, __, h: refuse(h))
        else:
            hook = self._hook(refuse)
        with hook:
            yield

    @contextmanager
    def _hook(self, perturb: Callable[[Tensor], Tensor]) -> Iterator[None]:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (perturb(_ln0(inputs[0])), *inputs[1:])

        def change(h: Tensor) -> Tensor:
            return perturb(h.transpose(0, 1)).transpose(0, 1) if self._time_first else perturb(h)

        if self.layer is not None:
            hook: AbstractContextManager[Any] = changed_output(self.layer, change)
        elif self.level == "deberta":
            hook = self.module.register_forward_pre_hook(before)
        else:
            hook = self.module.register_forward_hook(lambda _, __, output: change(output))
        with hook:
            yield


def available_levels(encoder: nn.Module) -> tuple[str, ...]:
    """The levels at which noise can enter this encoder's embeddings; `hidden_levels` are those at its layers.

    Raises:
        UnsupportedLevelError: it has no stack of layers that embeds words, or more than one, as encoder-decoders have.
    """
    return tuple(find_modules(encoder))


def hidden_levels(encoder: nn.Module) -> tuple[str, ...]:
    """The levels at an encoder's layers, `hidden:0` to `hidden:L-1`; none if its layers cannot be found.

    Raises:
        UnsupportedLevelError: see `available_levels`.
    """
    return tuple(f"hidden:{number}" for number in range(count_layers(_innermost_stack(encoder))))


def find_encoder(model: nn.Module) -> nn.Module:
    """The module that reads the input: the encoder of an encoder-decoder, otherwise the `outermost_encoder`.

    Raises:
        UnsupportedLevelError: the model has no encoder, or several that are trained.
    """
    encoder: Any = outermost_encoder(model)
    if len(_innermost_stacks(encoder)) > 1 and getattr(getattr(encoder, "config", None), "is_encoder_decoder", False):
        inner: nn.Module = encoder.get_encoder()
        return inner
    return encoder


def outermost_encoder(model: nn.Module) -> nn.Module:
    """The outermost module with word embeddings: `model` itself, or the encoder inside a network or a wrapper.

    If a network has several, such as a student and a frozen teacher, it is the one that is trained.

    Raises:
        UnsupportedLevelError: the model has no encoder, or several that are trained.
    """
    encoders: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}." if outer else "") for outer in encoders)
        if not inside and callable(getattr(module, "get_input_embeddings", None)):
            encoders[name] = module
    trained = [name for name, module in encoders.items() if any(p.requires_grad for p in module.parameters())]
    names = trained or list(encoders)
    if not names:
        raise UnsupportedLevelError(f"{type(model).__name__} holds no encoder with word embeddings; it has no levels")
    if len(names) > 1:
        raise UnsupportedLevelError(
            f"{type(model).__name__} holds {len(names)} encoders side by side: {', '.join(names)}; accepted: one that "
            "is trained"
        )
    return encoders[names[0]]


def find_modules(encoder: nn.Module) -> dict[str, nn.Module]:
    """For each level of the encoder, the module where noise enters: before it at `deberta`, after it otherwise.

    The word vectors are the output of `get_input_embeddings()`: a table, or an adapter around it (LoRA).

    Raises:
        UnsupportedLevelError: see `available_levels`.
    """
    words: nn.Module = cast(Any, _innermost_stack(encoder)).get_input_embeddings()
    layer_norm = _embedding_layer_norm(encoder, words)
    return {"pre_ln": words} if layer_norm is None else {"pre_ln": words, "post_ln": layer_norm, "deberta": layer_norm}


def _embedding_module(encoder: nn.Module, level: str) -> nn.Module:
    """The module of a level at the embeddings."""
    modules = find_modules(encoder)
    if level not in modules:
        hint = "" if len(modules) > 1 else NO_LAYER_NORM
        layers = count_layers(_innermost_stack(encoder))
        names = ", ".join([*modules, *([names_of(layers)] if layers else [])])
        raise UnsupportedLevelError(f"{type(encoder).__name__} has no injection point {level!r}; it has: {names}{hint}")
    return modules[level]


def _embedding_layer_norm(encoder: nn.Module, words: nn.Module) -> nn.Module | None:
    """The LayerNorm of the block that contains the word embeddings; None if the encoder has no such block.

    The block is the innermost module with `words` as a direct child; PEFT's wrapper for a learned prefix has the table
    as a child too. If the block also contains the layers (T5, GPT-2, Llama), its norm is the final one of the encoder,
    not the embeddings'.
    """
    *_, block = (None, *(m for m in encoder.modules() if any(child is words for child in m.children())))
    if block is None or any(isinstance(child, nn.ModuleList) for child in block.children()):
        return None
    norms = [child for child in block.children() if _is_layer_norm(child)]
    return norms[0] if len(norms) == 1 else None


def _innermost_stack(encoder: nn.Module) -> nn.Module:
    """The module in `encoder` that has `get_input_embeddings` and contains no other module that has it.

    Its forward does the lookup. An outer module may name another table: T5EncoderModel's only shares its weight with
    the table in use, which belongs to the T5Stack inside.
    """
    innermost = _innermost_stacks(encoder)
    if len(innermost) != 1:
        raise UnsupportedLevelError(
            f"{type(encoder).__name__} embeds words in {len(innermost)} stacks of layers; accepted: a model with one, "
            "such as the encoder of an encoder-decoder (find_encoder)"
        )
    return innermost[0]


def _innermost_stacks(encoder: nn.Module) -> list[nn.Module]:
    # Look at classes: a failing getattr on a module is slow, and a wrapper that forwards attributes is never innermost.
    stacks = [m for m in encoder.modules() if hasattr(type(m), "get_input_embeddings")]
    return [stack for stack in stacks if sum(m in stacks for m in stack.modules()) == 1]


def _is_layer_norm(module: nn.Module) -> bool:
    """Whether it is a LayerNorm, or a wrapper that contains nothing else (an adapter that trains a copy of it)."""
    leaves = [m for m in module.modules() if next(m.children(), None) is None]
    return all(type(leaf).__name__.endswith("LayerNorm") for leaf in leaves)


def _ln0(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=LN0_EPS)
