"""Evaluation of a model over a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from data_utils.metrics import Metric
from data_utils.progress import progress
from mt_dnn.batcher import Collater, SingleTaskDataset, evaluation_batches
from mt_dnn.model import MTDNNModel
from tasks import Evaluation, Values


def eval_model(
    model: MTDNNModel,
    dataset: SingleTaskDataset,
    metric_meta: Sequence[Metric],
    collater: Collater,
    batch_size: int | None = None,
    with_label: bool = True,
) -> Evaluation:
    """What a model's scores of a dataset come to, in each process.

    Args:
        metric_meta: metrics to compute where the dataset has labels and `with_label` is set.
        batch_size: as in `score_examples`.
    """
    scores, predictions = score_examples(model, dataset, collater, batch_size)
    return model.network.tasks[dataset.task_id].evaluate(dataset, metric_meta, scores, predictions, with_label)


def score_examples(
    model: MTDNNModel, dataset: SingleTaskDataset, collater: Collater, batch_size: int | None = None
) -> tuple[Values, Values]:
    """Scores and predictions of each example, in the dataset's order.

    The batches are dealt out among the processes, each process gets all results.

    Args:
        batch_size: examples a batch; by default as many as make up a number of tokens (`evaluation_batches`).
    """
    accelerator = model.accelerator
    batches = evaluation_batches(dataset, batch_size)
    mine = dealt_out(batches, dataset.tokens, accelerator.num_processes)[accelerator.process_index]
    bar = progress(mine, name=dataset.name, unit="batch", main=accelerator.is_main_process)
    results = [(indices, *model.predict(collater([dataset[index] for index in indices]))) for indices in bar]
    if accelerator.num_processes > 1:
        results = gather_object(results)
    order = np.concatenate([indices for indices, _, _ in results]).argsort()
    scores = in_order([scores for _, scores, _ in results], order)
    return scores, in_order([predictions for _, _, predictions in results], order)


def encode_dataset(
    model: MTDNNModel, dataset: SingleTaskDataset, collater: Collater, batch_size: int | None = None
) -> Tensor:
    """The encoder's output for each sequence of a dataset, in the dataset's order.

    Returns:
        (sequences, tokens of the longest, hidden) in single precision, on the CPU; zeros at padding.
    """
    batches = evaluation_batches(dataset, batch_size)
    mine = dealt_out(batches, dataset.tokens, model.accelerator.num_processes)[model.accelerator.process_index]
    parts = []
    for indices in progress(mine, name=dataset.name, unit="batch", main=model.accelerator.is_main_process):
        batch = collater([dataset[index] for index in indices])
        states = model.encode(batch).float().cpu() * batch.attention_mask.unsqueeze(-1)
        parts.append(([row for index in indices for row in dataset.rows_of(index)], states))
    if model.accelerator.num_processes > 1:
        parts = gather_object(parts)
    encoding = torch.zeros(len(dataset.row_lengths), int(dataset.lengths.max()), parts[0][1].size(-1))
    for rows, states in parts:
        width = min(states.size(1), encoding.size(1))
        encoding[rows, :width] = states[:, :width]
    return encoding


def in_order(parts: Sequence[Values], order: np.ndarray) -> Values:
    """What batches gave for their examples, in the order of the examples."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)[order]
    together = [item for part in parts for item in part]
    return [together[index] for index in order]


def dealt_out(batches: Sequence[list[int]], lengths: np.ndarray, processes: int) -> list[list[list[int]]]:
    """The batches of each process: each goes to the one with the fewest tokens so far, padding included."""
    shares: list[list[list[int]]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for batch in batches:
        process = tokens.index(min(tokens))
        shares[process].append(batch)
        tokens[process] += len(batch) * int(lengths[batch].max())
    return shares
