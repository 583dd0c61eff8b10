"""The batches of a run: how its flags cut the datasets into batches, in each of its processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mt_dnn.batcher import Batch, Collater, MultiTaskBatchSampler, MultiTaskDataset, SingleTaskDataset
from mt_dnn.configuration.config import Config
from mt_dnn.data.unlabeled_batches import UnlabeledBatches


class RunBatches:
    """Cuts a run's datasets into this process's share of each batch.

    Args:
        config: of the run.
        num_processes, process_index: as in `MultiTaskBatchSampler`.
    """

    def __init__(self, config: Config, num_processes: int = 1, process_index: int = 0):
        self.config = config
        self._shared: dict[str, Any] = {
            "max_tokens": config.training.max_tokens_per_batch,
            "seed": config.training.seed,
            "group_by_length": not config.training.no_group_by_length,
            "num_processes": num_processes,
            "process_index": process_index,
        }

    def sampler(self, datasets: Sequence[SingleTaskDataset]) -> MultiTaskBatchSampler:
        """The sampler of the labeled batches.

        Raises:
            FlagError: as in `MultiTaskBatchSampler`.
        """
        model, size = self.config.model, self.config.training.batch_size
        return MultiTaskBatchSampler(datasets, size, mix_opt=model.mix_opt, ratio=model.ratio, **self._shared)

    def updates_in(self, sampler: MultiTaskBatchSampler) -> int:
        """The updates of the whole run."""
        training = self.config.training
        batches = (sampler.batches_in(epoch) for epoch in range(training.epochs))
        return sum(math.ceil(count / training.grad_accumulation_step) for count in batches)

    def unlabeled(self, datasets: Sequence[SingleTaskDataset], collater: Collater) -> UnlabeledBatches:
        """The unlabeled batches of each task."""
        return UnlabeledBatches(datasets, collater, self.config.training.batch_size, **self._shared)

    def loader(
        self,
        datasets: Sequence[SingleTaskDataset],
        sampler: MultiTaskBatchSampler,
        collater: Collater,
        device: torch.device,
    ) -> DataLoader[Batch]:
        """Reads the batches that the sampler names, from where it stands to the end of its epoch."""
        dataset: Dataset[Any] = MultiTaskDataset(datasets)
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            collate_fn=collater,
            num_workers=self.config.data.dataloader_num_workers,
            pin_memory=device.type == "cuda",
            # A generator of its own: the loader draws a seed for its workers, by default from torch's global generator.
            generator=torch.Generator(),
        )
