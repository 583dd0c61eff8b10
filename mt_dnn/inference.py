"""Evaluation of a model on a dataset: scores, predictions, metrics, encodings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """The metrics, scores and predictions of a model on a dataset; every process gets all of them.

    Args:
        metric_meta: the metrics to compute, if the dataset has labels and `with_label` is set.
        batch_size, on_batch: see `score_examples`.
    """
    scores, predictions = score_examples(model, dataset, collater, batch_size, on_batch)
    return model.network.tasks[dataset.task_id].evaluate(dataset, metric_meta, scores, predictions, with_label)


def score_examples(
    model: MTDNNModel,
    dataset: SingleTaskDataset,
    collater: Collater,
    batch_size: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> tuple[Values, Values]:
    """Scores and predictions of each example, in the dataset's order.

    The processes share the batches; every process gets all results.

    Args:
        batch_size: examples per batch; by default a batch has a number of tokens (`evaluation_batches`).
        on_batch: called after each batch with the number of batches that this process has scored, and the number of all
            its batches.
    """
    accelerator = model.accelerator
    batches = evaluation_batches(dataset, batch_size)
    shares = split_among_processes(batches, dataset.tokens, accelerator.num_processes)
    local_batches = shares[accelerator.process_index]
    bar = progress(local_batches, name=dataset.name, unit="batch", main=accelerator.is_main_process)
    results = []
    for indices in bar:
        results.append((indices, *model.predict(collater([dataset[index] for index in indices]))))
        if on_batch is not None:
            on_batch(len(results), len(local_batches))
    if model.sharded:  # every forward gathers parameters from all processes, so each process runs as many
        for _ in range(max(map(len, shares)) - len(local_batches)):
            model.predict(collater([dataset[batches[0][0]]]))
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
    accelerator = model.accelerator
    batches = evaluation_batches(dataset, batch_size)
    local_batches = split_among_processes(batches, dataset.tokens, accelerator.num_processes)[accelerator.process_index]
    parts = []
    for indices in progress(local_batches, name=dataset.name, unit="batch", main=accelerator.is_main_process):
        batch = collater([dataset[index] for index in indices])
        states = model.encode(batch).float().cpu() * batch.attention_mask.unsqueeze(-1)
        parts.append(([row for index in indices for row in dataset.rows_of(index)], states))
    if accelerator.num_processes > 1:
        parts = gather_object(parts)
    encoding = torch.zeros(len(dataset.row_lengths), int(dataset.lengths.max()), parts[0][1].size(-1))
    for rows, states in parts:
        width = min(states.size(1), encoding.size(1))
        encoding[rows, :width] = states[:, :width]
    return encoding


def in_order(parts: Sequence[Values], order: np.ndarray) -> Values:
    """The values of all batches, joined and put into the order of the examples."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)[order]
    joined = [item for part in parts for item in part]
    return [joined[index] for index in order]


def split_among_processes(batches: Sequence[list[int]], lengths: np.ndarray, processes: int) -> list[list[list[int]]]:
    """The batches of each process. Each batch goes to the process with the fewest tokens so far, padding included."""
    shares: list[list[list[int]]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for batch in batches:
        process = tokens.index(min(tokens))
        shares[process].append(batch)
        tokens[process] += len(batch) * int(lengths[batch].max())
    return shares
