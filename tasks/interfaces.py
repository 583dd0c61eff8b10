"""What a task type receives: batches, and the parts of network, data and definition that it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from data_utils.metrics import Metric
from data_utils.task_def import DataFormat, LossCriterion, TaskType
from data_utils.vocab import Vocabulary

Criterion = Callable[..., Tensor]


class Definition(Protocol):
    """A task's definition, `tasks.definition.TaskDef`."""

    label_vocab: Vocabulary | None
    n_class: int
    data_type: DataFormat
    task_type: TaskType
    metric_meta: tuple[Metric, ...]
    split_names: list[str]
    enable_san: bool
    dropout_p: float | None
    loss: LossCriterion
    kd_loss: LossCriterion
    adv_loss: LossCriterion
    actf: str | None

    def class_names(self, unnamed: str = "") -> list[str]: ...

    def replaced(self, **changes: Any) -> Any: ...


class Network(Protocol):
    """The shared encoder and its heads, `mt_dnn.matcher.SANBertNetwork`."""

    bert: Any

    def encode(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor: ...

    def run(self, batch: Batch) -> Any: ...


class Examples(Protocol):
    """A dataset with labels and ids, `mt_dnn.batcher.SingleTaskDataset`."""

    name: str
    path: Path

    @property
    def uids(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Any: ...

    @property
    def has_labels(self) -> bool: ...

    def samples(self) -> Iterator[dict[str, Any]]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples of one task in R sequences, mostly one each, padded on the right to T tokens.

    Attributes:
        input_ids: token ids, (R, T) int64.
        attention_mask: 1 at real tokens and 0 at padding, (R, T) int64.
        token_type_ids: 0 at the first sentence and 1 at the second, (R, T) int64.
        labels: as the task collates them: (B,) int64 for classification, float32 for regression; None if the file
            has no labels.
        task_id: the number of the task's head.
        uids: the examples' ids, B of them.
        groups: number of sequences of each example, B of them; empty if each has one.
        soft_labels: a teacher's logits as the task collates them, float32: (R, n_class) for classification; None if
            the file has none.
        positions: the sequences' places in the run's training data, R of them; empty if the batch is not from there,
            or is a placeholder.
        stands_in: the batch is a placeholder that keeps a process in step with the others, and counts as nothing.
        padded: whether a sequence has padding, of a batch that `to` moved; None if the host has not looked. Whoever
            changes the mask sets it to None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    labels: Tensor | None
    task_id: int
    uids: tuple[str, ...]
    groups: tuple[int, ...] = ()
    soft_labels: Tensor | None = None
    positions: tuple[int, ...] = ()
    stands_in: bool = False
    padded: bool | None = None

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def row_uids(self) -> Sequence[str]:
        """An id for each sequence."""
        if not self.groups:
            return self.uids
        return [f"{uid}/{row}" for uid, count in zip(self.uids, self.groups, strict=True) for row in range(count)]

    @property
    def counted(self) -> int:
        """The number of examples that count in a mean over all processes."""
        return 0 if self.stands_in else len(self)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, padded=self._has_padding())

    def _has_padding(self) -> bool | None:
        """Whether a sequence has padding; of a batch on a device what is known, for the host would wait for it."""
        return self.padded if self.attention_mask.device.type != "cpu" else not bool(self.attention_mask.all())

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory: what `DataLoader(pin_memory=True)` calls."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, function: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)
