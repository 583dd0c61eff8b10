"""What a task type has to say: its head, its task loss's default, its labels and its predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from torch import Tensor, nn

from data_utils.errors import TaskDefError
from data_utils.task_def import TaskType
from experiments.exp_def import TaskDef
from module.pooler import Pooler
from mt_dnn.loss import LossCriterion

TASK_REGISTRY: dict[str, type[Task]] = {}


class Task:
    """A task type over a pooled sequence; subclasses override what differs.

    Args:
        task_def: the task's definition.
    """

    default_loss = LossCriterion.CeCriterion

    def __init__(self, task_def: TaskDef):
        self.task_def = task_def

    def build_head(self, hidden_size: int, dropout_p: float) -> nn.Module:
        """The head of this task; its keys in a checkpoint are `0.dense.*` (pooler) and `1.*` (projection)."""
        task_def = self.task_def
        if task_def.enable_san:
            raise TaskDefError("enable_san: true (the stochastic answer network) is not built yet; accepted: false")
        dropout_p = dropout_p if task_def.dropout_p is None else task_def.dropout_p
        return nn.Sequential(Pooler(hidden_size, dropout_p, task_def.actf), nn.Linear(hidden_size, task_def.n_class))

    def logits(self, head: nn.Module, hidden_states: Tensor) -> Tensor:
        """Encoder output (batch, tokens, hidden) → logits (batch, n_class)."""
        return head(hidden_states)

    def predict(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Logits (batch, n_class) → scores (batch, n_class) and predictions (batch,), as a score file holds them."""
        raise TypeError(f"{type(self).__name__} gives no predictions")

    def answers(self, scores: np.ndarray, predictions: np.ndarray) -> list[str | int | float]:
        """What GLUE's submission table holds for each example: the predicted class, as text where it has a name."""
        labels = self.task_def.label_vocab
        return [int(index) if labels is None else labels.ind2tok[int(index)] for index in predictions]


TaskClass = TypeVar("TaskClass", bound=type[Task])


def register_task(name: str) -> Callable[[TaskClass], TaskClass]:
    """Class decorator: this class serves the task type of that name.

    Raises:
        ValueError: the name is taken, or no task type has it.
    """

    def register(task_class: TaskClass) -> TaskClass:
        if name in TASK_REGISTRY:
            raise ValueError(f"task type {name!r} is registered already")
        if name not in TaskType.__members__:
            raise ValueError(f"{name!r} is no task type; accepted: {', '.join(TaskType.__members__)}")
        TASK_REGISTRY[name] = task_class
        return task_class

    return register


def get_task(task_def: TaskDef) -> Task:
    """The task object of a definition.

    Raises:
        TaskDefError: the task type has no class yet.
    """
    name = task_def.task_type.name
    if name not in TASK_REGISTRY:
        raise TaskDefError(f"task_type {name} is not built yet; accepted: {', '.join(TASK_REGISTRY)}")
    return TASK_REGISTRY[name](task_def)
