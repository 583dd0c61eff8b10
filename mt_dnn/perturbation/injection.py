"""Where noise enters an encoder: a forward hook at the word embeddings or around the embedding block's LayerNorm.

The encoder's code is neither edited nor copied, and nothing is embedded twice. Needs torch alone.

    word embeddings ─┬─► + positions, types ─┬─► LayerNorm ─┬─► dropout ─► layers
                  pre_ln                  deberta         post_ln
                                      (LN0 first, then δ)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = ("pre_ln", "post_ln", "deberta")
LN0_EPS = 1e-7
TIME_FIRST = ("xlnet",)  # families that embed (tokens, batch)
LENGTHENING = ("big_bird", "longformer")  # families that pad a batch at its end, to whole windows or blocks

NO_NORM = "; no LayerNorm follows its words; SmartPerturbation.with_defaults() does not depend on their scale"

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

    Examples:
        >>> injection = NoiseInjection(model.bert, "post_ln")
        >>> with injection.add(delta):          # delta: (batch, tokens, hidden)
        ...     logits = model(input_ids)
    """

    def __init__(self, encoder: nn.Module, level: str = "pre_ln"):
        modules = find_modules(encoder)
        if level not in modules:
            name = type(encoder).__name__
            hint = "" if len(modules) > 1 else NO_NORM
            raise UnsupportedLevelError(f"{name} has no injection point {level!r}; it has: {', '.join(modules)}{hint}")
        self.encoder = encoder
        self.level = level
        self.module = modules[level]
        family = getattr(getattr(_innermost_stack(encoder), "config", None), "model_type", None)
        self._time_first = family in TIME_FIRST
        self._lengthens = family in LENGTHENING

    @property
    def size(self) -> int:
        """Size of the last dimension of h: the hidden size, or the embedding size where that is another."""
        return next(self.module.parameters()).size(-1)

    @contextmanager
    def add(self, noise: Noise) -> Iterator[None]:
        """Within the block, every forward of the encoder adds `noise` at the injection point.

        Args:
            noise: δ of shape (batch, tokens, hidden), zero at padding; or a function that is given h, the clean tensor
                at the injection point, and returns h with noise (the search needs h's shape and size for its δ).

        Raises:
            RuntimeError: the block ended and no forward had come by the injection point, as that of a model that
                torch.compile has compiled without a hook there.
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
                f"the forward did not pass the injection point {self.level!r} of {type(self.encoder).__name__}; "
                "accepted: batches with input_ids, and code of torch.compile that was made with a hook there"
            )

    def fitted(self, x: Tensor, h: Tensor) -> Tensor:
        """x of a batch's tokens, (batch, tokens, …), as long as h: zero at what the encoder has put behind them.

        Raises:
            ValueError: h is of another length, and it is not known that the encoder pads at the end.
        """
        padding = h.size(1) - x.size(1)
        if padding == 0:
            return x
        if padding < 0 or not self._lengthens:
            raise ValueError(
                f"{type(self.encoder).__name__} has {h.size(1)} tokens at its injection point {self.level!r}, the "
                f"batch {x.size(1)}; accepted: as many, or padding behind them in {', '.join(LENGTHENING)}"
            )
        return F.pad(x, (*(0, 0) * (x.dim() - 2), 0, padding))

    @contextmanager
    def clean(self) -> Iterator[list[Tensor]]:
        """Within the block the encoder computes the clean pass that belongs to this level.

        At `deberta` LN0 stands in it, as in the perturbed passes; at the other levels it is the plain encoder.

        Yields:
            h of every forward in the block, (batch, tokens, hidden), with its graph; where it is entered with gradients
            those under `no_grad` are left out.
        """
        seen: list[Tensor] = []
        enabled = torch.is_grad_enabled()

        def keep(h: Tensor) -> Tensor:
            if torch.is_grad_enabled() == enabled:
                seen.append(h)
            return h

        with self._hook(keep):
            yield seen

    @contextmanager
    def not_recomputed(self) -> Iterator[None]:
        """Within the block no forward may come by: one that a backward computes anew would lack the noise.

        Raises:
            ValueError: one did.
        """

        def refuse(h: Tensor) -> NoReturn:
            raise ValueError(
                f"the backward computes the embeddings of {type(self.encoder).__name__} anew, without the noise; "
                "accepted: activation checkpointing of the encoder's layers, not of all of it"
            )

        with self._hook(refuse):
            yield

    @contextmanager
    def _hook(self, perturb: Callable[[Tensor], Tensor]) -> Iterator[None]:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (perturb(_ln0(inputs[0])), *inputs[1:])

        def after(_: nn.Module, __: object, output: Tensor) -> Tensor:
            return perturb(output.transpose(0, 1)).transpose(0, 1) if self._time_first else perturb(output)

        if self.level == "deberta":
            handle = self.module.register_forward_pre_hook(before)
        else:
            handle = self.module.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()


def available_levels(encoder: nn.Module) -> tuple[str, ...]:
    """The levels at which noise can enter this encoder.

    Raises:
        UnsupportedLevelError: it embeds words in more than one stack of layers, as encoder-decoders do, or in none.
    """
    return tuple(find_modules(encoder))


def find_encoder(model: nn.Module) -> nn.Module:
    """The module that reads the input: of an encoder-decoder its encoder, else the `outermost_encoder`.

    Raises:
        UnsupportedLevelError: there is none, or several are trained.
    """
    encoder: Any = outermost_encoder(model)
    if len(_innermost_stacks(encoder)) > 1 and getattr(getattr(encoder, "config", None), "is_encoder_decoder", False):
        inner: nn.Module = encoder.get_encoder()
        return inner
    return encoder


def outermost_encoder(model: nn.Module) -> nn.Module:
    """The outermost module with word embeddings: `model` itself, or the encoder inside a network or a wrapper.

    Of several side by side it is the one that is trained, as where a frozen teacher stands beside.

    Raises:
        UnsupportedLevelError: there is none, or several are trained.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}." if outer else "") for outer in found)
        if not inside and callable(getattr(module, "get_input_embeddings", None)):
            found[name] = module
    trained = [name for name, module in found.items() if any(p.requires_grad for p in module.parameters())]
    names = trained or list(found)
    if not names:
        raise UnsupportedLevelError(f"{type(model).__name__} holds no encoder with word embeddings; it has no levels")
    if len(names) > 1:
        raise UnsupportedLevelError(
            f"{type(model).__name__} holds {len(names)} encoders side by side: {', '.join(names)}; accepted: one that "
            "is trained"
        )
    return found[names[0]]


def find_modules(encoder: nn.Module) -> dict[str, nn.Module]:
    """For each level that the encoder has, the module that noise enters at: before it at `deberta`, else behind it.

    The word vectors are the output of what `get_input_embeddings()` names: a table, or the adapter around it (LoRA).

    Raises:
        UnsupportedLevelError: as `available_levels`.
    """
    words: nn.Module = cast(Any, _innermost_stack(encoder)).get_input_embeddings()
    layer_norm = _embedding_layer_norm(encoder, words)
    return {"pre_ln": words} if layer_norm is None else {"pre_ln": words, "post_ln": layer_norm, "deberta": layer_norm}


def _embedding_layer_norm(encoder: nn.Module, words: nn.Module) -> nn.Module | None:
    """The LayerNorm of the block that holds the word embeddings; None where the encoder has no such block.

    The block is the innermost module whose direct child `words` is, for PEFT's wrapper of a learned prefix holds the
    table as well. Where that module holds the layers too (T5, GPT-2, Llama), the norm found in it is the final one,
    not the embeddings'.
    """
    *_, block = (None, *(m for m in encoder.modules() if any(child is words for child in m.children())))
    if block is None or any(isinstance(child, nn.ModuleList) for child in block.children()):
        return None
    norms = [child for child in block.children() if _is_layer_norm(child)]
    return norms[0] if len(norms) == 1 else None


def _innermost_stack(encoder: nn.Module) -> nn.Module:
    """The module within `encoder` that names word embeddings and holds no other that does.

    Its forward is the one that looks words up: T5EncoderModel names a table that only shares its weight with the table
    in use, which the T5Stack inside names.
    """
    innermost = _innermost_stacks(encoder)
    if len(innermost) != 1:
        raise UnsupportedLevelError(
            f"{type(encoder).__name__} embeds words in {len(innermost)} stacks of layers; accepted: a model with one, "
            "such as the encoder of an encoder-decoder (find_encoder)"
        )
    return innermost[0]


def _innermost_stacks(encoder: nn.Module) -> list[nn.Module]:
    # Asked by class: a module's own failing getattr is slow, and a wrapper that only passes it on is never innermost.
    stacks = [m for m in encoder.modules() if hasattr(type(m), "get_input_embeddings")]
    return [stack for stack in stacks if sum(m in stacks for m in stack.modules()) == 1]


def _is_layer_norm(module: nn.Module) -> bool:
    """Whether it is a LayerNorm, or a wrapper that holds nothing else (an adapter that trains a copy of it)."""
    leaves = [m for m in module.modules() if next(m.children(), None) is None]
    return all(type(leaf).__name__.endswith("LayerNorm") for leaf in leaves)


def _ln0(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=LN0_EPS)
