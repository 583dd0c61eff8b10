"""δ of every training example, cached between epochs, for an ascent without an extra pass (`--adv_free`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from data_utils.errors import DataError, FlagError, WriteError
from data_utils.storage.checksum import checked_write
from mt_dnn.configuration.config import Config
from mt_dnn.data.dataset import SingleTaskDataset
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.perturbation.delta import CachedDelta
from mt_dnn.perturbation.injection import NoiseInjection

DELTA_CACHE_FILE = "kept_deltas.bin"  # in the output folder, while the run goes on


class DeltaCache:
    """A memory-mapped file of half-precision numbers, (tokens of all examples, hidden).

    The processes of a machine share it. Each example is in one process's batch per epoch.

    Args:
        path: the file.
        lengths: tokens of each example, (examples,).
        hidden: size of the tensor at the injection point.
        new: create the file, without any δ in it; otherwise it exists already.

    Raises:
        WriteError: the file cannot be created, or has another size.
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
                    # Reserve all of it now: a mapped page without room on the disk would kill the process later.
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
        """Size of the file: two bytes per number, and one byte per example."""
        return len(lengths) + len(lengths) % 2 + 2 * hidden * int(lengths.sum())

    def of(self, positions: Sequence[int], mask: Tensor) -> CachedDelta:
        """The cached δ of a batch, with the function that stores its new δ.

        Args:
            positions: the examples' indices among all examples.
            mask: (batch, tokens), 1 at real tokens, which come first.
        """
        delta = torch.zeros(*mask.shape, self._values.shape[1])
        for row, position in enumerate(positions):
            values = self._rows(position)
            delta[row, : len(values)] = torch.from_numpy(values.astype(np.float32))
        known = torch.from_numpy(self._seen[list(positions)] != 0)
        return CachedDelta(delta.to(mask.device), known.to(mask.device), lambda new: self._store(positions, new))

    def save(self, path: Path) -> None:
        """Copy the file, with a checksum next to it; the copy appears when it is complete."""
        self._content.flush()
        with self.path.open("rb") as source, checked_write(path) as target:
            shutil.copyfileobj(source, target)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; the checksum was compared before.

        Raises:
            DataError: it cannot be read, or belongs to other data or another encoder.
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

    def _store(self, positions: Sequence[int], delta: Tensor) -> None:
        values = delta.to(torch.float16).cpu().numpy()
        for row, position in enumerate(positions):
            target = self._rows(position)
            target[:] = values[row, : len(target)]
        self._seen[list(positions)] = 1


def delta_cache_of_run(
    config: Config,
    network: SANBertNetwork,
    datasets: Sequence[SingleTaskDataset],
    accelerator: Accelerator,
    folder: Path,
) -> DeltaCache | None:
    """The file of `--adv_free`, made by the main process and mapped by all; None without the flag.

    Args:
        datasets: the training datasets.
        folder: where the file lies.

    Raises:
        FlagError: the flag is not accepted with these tasks or processes, or the file would be too large.
        WriteError: the file cannot be made.
    """
    adversarial = config.adversarial
    if not (adversarial.adv_train and adversarial.adv_free):
        return None
    if any(task.own_labels for task in network.tasks):
        raise FlagError("--adv_free: the tokens of a MaskLM task are others in every update; accepted: other tasks")
    lengths = np.concatenate([dataset.row_lengths for dataset in datasets])
    hidden = NoiseInjection(network.encoder, adversarial.adv_norm_level).size
    gigabytes = DeltaCache.bytes_of(lengths, hidden) / 1e9
    if gigabytes > adversarial.adv_free_budget:
        raise FlagError(
            f"--adv_free: the noise of {lengths.sum()} tokens takes {gigabytes:.3g} GB; accepted: at most "
            f"--adv_free_budget, {adversarial.adv_free_budget:g} GB"
        )
    if accelerator.num_processes > int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        raise FlagError("--adv_free: the processes share a file; accepted: processes on one machine")
    path = folder / DELTA_CACHE_FILE
    if accelerator.is_main_process:
        DeltaCache(path, lengths, hidden)
    accelerator.wait_for_everyone()
    return DeltaCache(path, lengths, hidden, new=False)
