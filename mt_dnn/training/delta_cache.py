"""δ of every training example between epochs, for the ascent that costs no pass of its own (`--adv_free`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_utils.checksum import checked_write
from data_utils.errors import DataError, WriteError
from mt_dnn.perturbation.search import CachedDelta


class DeltaCache:
    """A memory-mapped file of half-precision numbers, (tokens of all examples, hidden), that the processes of a machine
    share; each example is in one process's batch an epoch.

    Args:
        path: the file.
        lengths: tokens of each example, (examples,).
        hidden: size of the tensor at the injection point.
        new: make the file, with no example's δ in it; else it is there already.

    Raises:
        WriteError: the file cannot be made, or has another size.
    """

    def __init__(self, path: Path, lengths: np.ndarray, hidden: int, new: bool = True):
        self.path = path
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        count = len(lengths)
        start = count + count % 2
        size = self.bytes_of(lengths, hidden)
        try:
            if new:
                with path.open("wb") as file:
                    # All of it at once: a mapped page that finds no room on the disk later would kill the process.
                    os.posix_fallocate(file.fileno(), 0, size)
            content = np.memmap(path, dtype=np.uint8, mode="r+", shape=(size,))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WriteError(f"cannot be made with {size} bytes: {reason}", path) from error
        self._seen = content[:count]
        self._values = content[start:].view(np.float16).reshape(-1, hidden)
        self._content = content

    @staticmethod
    def bytes_of(lengths: np.ndarray, hidden: int) -> int:
        """Size of the file: two bytes a number, one an example."""
        return len(lengths) + len(lengths) % 2 + 2 * hidden * int(lengths.sum())

    def of(self, positions: Sequence[int], mask: Tensor) -> CachedDelta:
        """What is kept of a batch, and how its new δ is.

        Args:
            positions: the examples' places among all.
            mask: (batch, tokens), 1 at real tokens, which come first.
        """
        delta = torch.zeros(*mask.shape, self._values.shape[1])
        for row, position in enumerate(positions):
            values = self._rows(position)
            delta[row, : len(values)] = torch.from_numpy(values.astype(np.float32))
        known = torch.from_numpy(self._seen[list(positions)] != 0)
        return CachedDelta(delta.to(mask.device), known.to(mask.device), lambda found: self._keep(positions, found))

    def save(self, path: Path) -> None:
        """Copy the file; the copy appears when it is whole, its checksum beside it."""
        self._content.flush()
        with self.path.open("rb") as source, checked_write(path) as target:
            shutil.copyfileobj(source, target)

    def load(self, path: Path) -> None:
        """Take over what `save` wrote and whose checksum was compared.

        Raises:
            DataError: it cannot be read, or is of other data or another encoder.
        """
        try:
            size = path.stat().st_size
            if size != len(self._content):
                raise DataError(f"holds {size} bytes, expected {len(self._content)} for this data", path)
            self._content[:] = np.memmap(path, dtype=np.uint8, mode="r")
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", path) from error

    def _rows(self, position: int) -> np.ndarray:
        return self._values[self._offsets[position] : self._offsets[position + 1]]

    def _keep(self, positions: Sequence[int], delta: Tensor) -> None:
        values = delta.to(torch.float16).cpu().numpy()
        for row, position in enumerate(positions):
            target = self._rows(position)
            target[:] = values[row, : len(target)]
        self._seen[list(positions)] = 1
