"""Task types by name. A class registers itself and is found by a task's definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from data_utils.errors import TaskDefError, UserError
from data_utils.metrics import Metric
from data_utils.task_def import TaskType, new_task_type
from tasks.base import Task
from tasks.interfaces import Definition

TASK_REGISTRY: dict[str, type[Task]] = {}

TaskClass = TypeVar("TaskClass", bound=type[Task])


def register_task(name: str) -> Callable[[TaskClass], TaskClass]:
    """Class decorator: register the class of a task type. A name that MT-DNN does not have makes a new type.

    Raises:
        ValueError: the name is taken, or is not a valid name.
    """

    def register(task_class: TaskClass) -> TaskClass:
        if name in TASK_REGISTRY:
            raise ValueError(f"task type {name!r} is registered already")
        if name not in TaskType.__members__:
            new_task_type(name)
        TASK_REGISTRY[name] = task_class
        return task_class

    return register


def task_class(task_type: TaskType) -> type[Task]:
    """The class of a task type.

    Raises:
        TaskDefError: the task type has no class.
    """
    if task_type.name not in TASK_REGISTRY:
        found = f"task_type {task_type.name} is a name without a model, in MT-DNN too"
        raise TaskDefError(f"{found}; accepted: {', '.join(TASK_REGISTRY)}")
    return TASK_REGISTRY[task_type.name]


def get_task(task_def: Definition, opt: Mapping[str, Any] | None = None) -> Task:
    """The task object of a definition; arguments of `Task`.

    Raises:
        TaskDefError: the task type has no class.
    """
    return task_class(task_def.task_type)(task_def, opt)


def check_metrics(task_def: Definition, metrics: Sequence[Metric], where: str) -> None:
    """Check that a task has these metrics, before hours of work.

    Args:
        where: the flag or key that names them, for the message.

    Raises:
        UserError: the task does not have one of them.
    """
    n_class, kind = task_def.n_class, task_def.task_type
    accepted = task_class(kind).metrics_of(n_class, task_def.label_vocab is not None)
    refused = [metric.name for metric in metrics if metric not in accepted]
    if refused:
        names = ", ".join(metric.name for metric in accepted)
        raise UserError(f"{where}: found {refused[0]}, accepted: {names} for {kind.name} with n_class {n_class}")


def not_distilled(task: Task) -> str:
    """Why a task cannot be distilled, in words."""
    accepted = ", ".join(name for name, kind in TASK_REGISTRY.items() if kind.distils)
    return f"{task.task_def.task_type.name} has no scores to learn from a teacher; accepted: {accepted}"


def needs_decoder(task_defs: Sequence[Definition]) -> bool:
    """Whether one of the tasks generates text."""
    return any(task_class(task_def.task_type).generates for task_def in task_defs)
