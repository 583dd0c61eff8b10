"""The names of the injection points: three at the embeddings, and `hidden:N`, the output of layer N."""

from __future__ import annotations

import re
from collections.abc import Iterable

LEVELS = ("pre_ln", "post_ln", "deberta")  # at the embeddings
NORMALIZED = ("post_ln", "deberta")  # where "SMART's search" is SiFT
HIDDEN = re.compile(r"hidden:(-?[0-9]+)")
HIDDEN_FORM = "hidden:N"
ACCEPTED = f"{', '.join(LEVELS)}, or {HIDDEN_FORM}, the output of layer N (0 the first, -1 the last)"
_PLACE = rf"(?:{'|'.join(LEVELS)}|{HIDDEN.pattern})"
PLACES = re.compile(rf"{_PLACE}(?:,{_PLACE})*")  # one place, or several split by commas


class UnsupportedLevelError(ValueError):
    """The encoder has no injection point at this level."""


def level_name(level: str | Iterable[str]) -> str:
    """One name for a level: those of several places are split by commas, as `hidden:0,hidden:4`."""
    names = level.split(",") if isinstance(level, str) else map(str, level)
    return ",".join(name.strip() for name in names)


def levels_of(level: str) -> tuple[str, ...]:
    """The places of a level, as they are named in it; of most levels there is one."""
    return tuple(level.split(","))


def hidden_layer(level: str) -> int | None:
    """N of `hidden:N`; None for a level at the embeddings."""
    found = HIDDEN.fullmatch(level)
    return None if found is None else int(found[1])


def has_layers(level: str) -> bool:
    """Whether noise enters at the output of a layer, at one of the places at least."""
    return any(hidden_layer(place) is not None for place in levels_of(level))


def is_level(name: object) -> bool:
    """Whether it is the name of one place; whether an encoder has that depends on the encoder."""
    return isinstance(name, str) and (name in LEVELS or hidden_layer(name) is not None)


def check_level(level: str) -> None:
    """Check that it is the name of one place.

    Raises:
        ValueError: it is not.
    """
    if not is_level(level):
        raise ValueError(f"level is {level!r}; accepted: one of {ACCEPTED}")


def check_levels(level: str) -> None:
    """Check that it is the name of one place, or of several different ones.

    Raises:
        ValueError: it is not.
    """
    places = levels_of(level)
    if not all(map(is_level, places)):
        raise ValueError(f"level is {level!r}; accepted: one of {ACCEPTED}; or several of them split by commas")
    if len(set(places)) < len(places):
        raise ValueError(f"level is {level!r}, which names a place twice; accepted: different places")
