"""The injection points of a level, in the order in which a forward reaches them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise

from torch import Tensor, nn

from .injection import NoiseInjection
from .levels import UnsupportedLevelError, levels_of

AT_EMBEDDINGS = ("pre_ln", "deberta", "post_ln")  # in a forward's order


def find_places(encoder: nn.Module, level: str) -> tuple[NoiseInjection, ...]:
    """The injection points of a level, sorted by depth; of most levels there is one.

    Args:
        level: see `NoiseInjection`, or several of these split by commas, in any order.

    Raises:
        UnsupportedLevelError: the encoder lacks one of them, or two names are of one place of it, as `hidden:-1` and
            the number of the last layer are.
        ValueError: there is no such level.
    """
    places = sorted((NoiseInjection(encoder, name) for name in levels_of(level)), key=_depth)
    for one, other in pairwise(places):
        if _depth(one) == _depth(other):
            raise UnsupportedLevelError(
                f"{one.level} and {other.level} are one place of {type(encoder).__name__}; accepted: different places"
            )
    return tuple(places)


def _depth(place: NoiseInjection) -> int:
    return AT_EMBEDDINGS.index(place.level) if place.layer is None else len(AT_EMBEDDINGS) + place.layer.number


@contextmanager
def clean_pass(places: Sequence[NoiseInjection]) -> Iterator[list[list[Tensor]]]:
    """The encoder in this block computes the clean pass of these places, see `NoiseInjection.clean`.

    Yields:
        for each place, h of every forward in the block.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(place.clean()) for place in places]


def bases_of_one_pass(recorded: Sequence[Sequence[Tensor]]) -> list[Tensor] | None:
    """h at each place, from `clean_pass`; None if the block had no forward, or several."""
    return [bases[0] for bases in recorded] if all(len(bases) == 1 for bases in recorded) else None
