"""The names of the injection points: three at the embeddings, and `hidden:N`, the output of layer N."""

from __future__ import annotations

import re

LEVELS = ("pre_ln", "post_ln", "deberta")  # at the embeddings
NORMALIZED = ("post_ln", "deberta")  # where "SMART's search" is SiFT
HIDDEN = re.compile(r"hidden:(-?[0-9]+)")
HIDDEN_FORM = "hidden:N"
ACCEPTED = f"{', '.join(LEVELS)}, or {HIDDEN_FORM}, the output of layer N (0 the first, -1 the last)"


class UnsupportedLevelError(ValueError):
    """The encoder has no injection point at this level."""


def hidden_layer(level: str) -> int | None:
    """N of `hidden:N`; None for a level at the embeddings."""
    found = HIDDEN.fullmatch(level)
    return None if found is None else int(found[1])


def is_level(name: object) -> bool:
    """Whether it is the name of a level; whether an encoder has the level depends on the encoder."""
    return isinstance(name, str) and (name in LEVELS or hidden_layer(name) is not None)


def check_level(level: str) -> None:
    """Check that it is the name of one level.

    Raises:
        ValueError: it is not.
    """
    if not is_level(level):
        raise ValueError(f"level is {level!r}; accepted: one of {ACCEPTED}")
