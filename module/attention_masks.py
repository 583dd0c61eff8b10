"""An encoder's attention masks, made once for all passes over a batch.

A training step with a regularizer runs the encoder several times on one batch. In each forward transformers would make
the same mask (batch, 1, tokens, tokens) from the batch's, with about 25 operators, and let the host wait for the device
to see whether there is any padding.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

# Functions of transformers' masking_utils, as the modules of its models import them.
MAKERS = ("create_bidirectional_mask", "create_bidirectional_sliding_window_mask")
SHARED = {"config", "inputs_embeds", "attention_mask"}  # arguments of a call whose mask is shared


class PaddedMask(NamedTuple):
    """A batch's mask (batch, tokens), 1 at real tokens, and whether it has a 0; None if the host does not know."""

    mask: Tensor
    padded: bool | None


class AttentionMasks:
    """Makes the masks of encoders. Those that make theirs in another way are left alone.

    Args:
        encoders: of transformers.
    """

    def __init__(self, *encoders: nn.Module):
        parts = [part for encoder in encoders for part in encoder.modules()]
        self._modules = {type(part).__module__ for part in parts}
        # An encoder may make a configuration for one call, whose id may be that of the next one's: these are kept.
        self._configs = list({id(part.config): part.config for part in parts if hasattr(part, "config")}.values())

    @contextmanager
    def made_once(self, *batches: PaddedMask) -> Iterator[None]:
        """In this block each mask is made once for all forwards that get the very tensor of one of these batches.

        The mask is the one that transformers makes. If the host knows whether there is padding, it does not wait.
        """
        modules = [sys.modules[name] for name in self._modules if name in sys.modules]
        makers = [
            (module, name, getattr(module, name)) for module in modules for name in MAKERS if hasattr(module, name)
        ]
        made: dict[tuple[Any, ...], Any] = {}
        try:
            for module, name, maker in makers:
                setattr(module, name, self._remembering(maker, batches, made))
            yield
        finally:
            for module, name, maker in makers:
                setattr(module, name, maker)

    def _remembering(
        self, maker: Callable[..., Any], batches: tuple[PaddedMask, ...], made: dict[tuple[Any, ...], Any]
    ) -> Callable[..., Any]:
        """A function of transformers that makes masks, which remembers in `made` those that it made of `batches`."""
        can_skip = "allow_is_bidirectional_skip" in inspect.signature(maker).parameters

        def make(*arguments: Any, **options: Any) -> Any:
            batch = next((batch for batch in batches if options.get("attention_mask") is batch.mask), None)
            if batch is None or arguments or not self._can_share(options):
                return maker(*arguments, **options)
            config, embedded = options["config"], options["inputs_embeds"]
            key = (maker, id(config), config._attn_implementation, id(batch.mask), embedded.dtype, embedded.shape[:2])
            if key not in made:
                if batch.padded is False:
                    options["attention_mask"] = None
                elif batch.padded and can_skip:
                    options["allow_is_bidirectional_skip"] = False
                made[key] = maker(**options)
            return made[key]

        return make

    def _can_share(self, options: Mapping[str, Any]) -> bool:
        """Whether a call has the arguments of a shared mask alone, with a configuration of these encoders."""
        given = {name for name, value in options.items() if value is not None}
        return given == SHARED and any(options["config"] is own for own in self._configs)
