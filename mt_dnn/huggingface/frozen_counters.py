"""Extra passes that leave a trainer's counters, such as tokens and accuracy, as they are."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def frozen_counters(trainer: Any) -> Iterator[None]:
    """Within the block the trainer counts on copies of its counters, which are dropped when the block ends.

    A counter is an attribute that holds numbers, texts or tensors, or containers of them; datasets are none.
    """
    before = dict(vars(trainer))
    copies = {name: _copied(value) for name, value in before.items() if _is_counter(value) and "dataset" not in name}
    vars(trainer).update(copies)
    try:
        yield
    finally:
        vars(trainer).update({name: before[name] for name in copies})


def _is_counter(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_counter, value.values()))
    if isinstance(value, (list, tuple, set, deque)):
        return all(map(_is_counter, value))
    return value is None or isinstance(value, (int, float, str, Tensor))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    new = copy.copy(value)
    if isinstance(value, dict):
        new.update({name: _copied(part) for name, part in value.items()})
    elif isinstance(value, (list, deque)):
        for index, part in enumerate(value):
            new[index] = _copied(part)
    return new
