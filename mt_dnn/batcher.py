"""Batches: padding, and everything that a data loader needs, in one module.

Training and evaluation read batches like this:

    datasets = [SingleTaskDataset("mnli_train.json", is_train=True, task_id=0, task_def=task_def)]
    sampler = MultiTaskBatchSampler(datasets, batch_size=8, seed=2018)
    collater = Collater(tokenizer.pad_token_id)
    loader = DataLoader(MultiTaskDataset(datasets), sampler=sampler, batch_size=None, collate_fn=collater)

    dev = SingleTaskDataset("mnli_matched_dev.json", is_train=False, task_id=0, task_def=task_def)
    loader = DataLoader(dev, batch_sampler=evaluation_batches(dev, 8), collate_fn=collater)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mt_dnn.data.dataset import Example, MultiTaskDataset, SingleTaskDataset
from mt_dnn.data.sampler import MultiTaskBatchSampler, evaluation_batches
from tasks.interfaces import Batch

__all__ = [
    "Batch", "Collater", "Example", "MultiTaskBatchSampler", "MultiTaskDataset", "SingleTaskDataset",
    "evaluation_batches",
]  # fmt: skip


class Collater:
    """Pads a batch's examples on the right and stacks them into a `Batch`.

    Args:
        pad_token_id: the tokenizer's id of the padding token.
        type_pad: the token type id of padding.
        do_padding: pad to `max_seq_len` instead of the longest example; longer examples are not cut.
        max_seq_len: in tokens; used with `do_padding`.
    """

    def __init__(self, pad_token_id: int, type_pad: int = 0, do_padding: bool = False, max_seq_len: int = 512):
        self.pad_token_id = pad_token_id
        self.type_pad = type_pad
        self.min_width = max_seq_len if do_padding else 0

    def __call__(self, examples: Sequence[Example]) -> Batch:
        lengths = [length for example in examples for length in example["lengths"]]
        width = max(self.min_width, *lengths)
        shape = (len(lengths), width)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        token_type_ids = np.full(shape, self.type_pad, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        row = 0
        for example in examples:
            start = 0
            for length in example["lengths"]:
                input_ids[row, :length] = example["token_id"][start : start + length]
                token_type_ids[row, :length] = example["type_id"][start : start + length]
                attention_mask[row, :length] = 1
                row, start = row + 1, start + length
        task = examples[0]["task"]
        labels = [example["label"] for example in examples]
        soft = [label for example in examples if (label := example["softlabel"]) is not None]
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask),
            token_type_ids=torch.from_numpy(token_type_ids),
            labels=None if labels[0] is None else task.collate_labels(labels, width),
            task_id=examples[0]["task_id"],
            uids=tuple(example["uid"] for example in examples),
            groups=tuple(len(example["lengths"]) for example in examples) if task.many_rows else (),
            soft_labels=task.collate_soft_labels(soft, width) if soft else None,
            positions=tuple(position for example in examples for position in example.get("positions", ())),
            stands_in=examples[0].get("stands_in", False),
        )
