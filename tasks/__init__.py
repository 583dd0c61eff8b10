"""One class a task type, a file each; every file of this folder is imported, so that a new type is one file more."""

import importlib
import pkgutil

from tasks.base import Task, class_index
from tasks.registry import (
    TASK_REGISTRY,
    check_metrics,
    get_task,
    needs_decoder,
    not_distilled,
    register_task,
    task_class,
)
from tasks.values import Answer, Entries, Evaluation, ModelInputs, Values

__all__ = [
    "TASK_REGISTRY", "Answer", "Entries", "Evaluation", "ModelInputs", "Task", "Values", "check_metrics", "class_index",
    "get_task", "needs_decoder", "not_distilled", "register_task", "task_class",
]  # fmt: skip

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
