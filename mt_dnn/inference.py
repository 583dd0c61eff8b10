"""Evaluation of a model over a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from accelerate.utils import gather_object
from tqdm import tqdm

from data_utils.metrics import Metric, calc_metrics
from mt_dnn.batcher import Collater, SingleTaskDataset, evaluation_batches
from mt_dnn.model import MTDNNModel


class Evaluation(NamedTuple):
    """A dataset's results in the dataset's order.

    metrics: by name, in percent (empty without labels); predictions: (examples,); scores: (examples, n_class);
    golds: labels (examples,) or None; uids.
    """

    metrics: dict[str, float]
    predictions: np.ndarray
    scores: np.ndarray
    golds: np.ndarray | None
    uids: Sequence[str]


def eval_model(
    model: MTDNNModel,
    dataset: SingleTaskDataset,
    metric_meta: Sequence[Metric],
    collater: Collater,
    batch_size: int | None = None,
    with_label: bool = True,
) -> Evaluation:
    """Score every example once: the batches are dealt out among the processes, each process gets all results.

    Args:
        metric_meta: metrics to compute where the dataset has labels and `with_label` is set.
        batch_size: examples a batch; by default as many as make up a number of tokens (`evaluation_batches`).
    """
    accelerator = model.accelerator
    batches = evaluation_batches(dataset, batch_size)
    mine = dealt_out(batches, dataset.lengths, accelerator.num_processes)[accelerator.process_index]
    bar = tqdm(mine, desc=dataset.name, leave=False, disable=None if accelerator.is_main_process else True)
    results = [(indices, *model.predict(collater([dataset[index] for index in indices]))) for indices in bar]
    if accelerator.num_processes > 1:
        results = gather_object(results)
    order = np.concatenate([indices for indices, _, _ in results]).argsort()
    scores = np.concatenate([scores for _, scores, _ in results])[order]
    predictions = np.concatenate([predictions for _, _, predictions in results])[order]
    golds = dataset.labels if with_label else None
    metrics = {} if golds is None else calc_metrics(metric_meta, golds, predictions, scores)
    return Evaluation(metrics, predictions, scores, golds, dataset.uids)


def dealt_out(batches: Sequence[list[int]], lengths: np.ndarray, processes: int) -> list[list[list[int]]]:
    """The batches of each process: each goes to the one with the fewest tokens so far, padding included."""
    shares: list[list[list[int]]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for batch in batches:
        process = tokens.index(min(tokens))
        shares[process].append(batch)
        tokens[process] += len(batch) * int(lengths[batch].max())
    return shares
