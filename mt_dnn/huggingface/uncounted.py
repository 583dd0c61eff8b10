"""What a trainer counts, such as tokens and accuracy, left as it is by passes of the regularizer."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def uncounted(trainer: Any) -> Iterator[None]:
    """Within the block the trainer counts on copies: its measures are those of the clean pass alone."""
    before = dict(vars(trainer))
    copies = {name: _copied(value) for name, value in before.items() if _is_count(value) and "dataset" not in name}
    vars(trainer).update(copies)
    try:
        yield
    finally:
        vars(trainer).update({name: before[name] for name in copies})


def _is_count(value: Any) -> bool:
    """Whether it is numbers, texts and tensors, or containers of such."""
    if isinstance(value, dict):
        return all(map(_is_count, value.values()))
    if isinstance(value, (list, tuple, set, deque)):
        return all(map(_is_count, value))
    return value is None or isinstance(value, (int, float, str, Tensor))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    new = copy.copy(value)
    if isinstance(value, dict):
        new.update({name: _copied(part) for name, part in value.items()})
    elif isinstance(value, (list, deque)):
        for place, part in enumerate(value):
            new[place] = _copied(part)
    return new
