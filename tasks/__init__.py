"""Task types: a class in a file for each.

What belongs here: all that differs between task types, from a line of text to a metric and a readable answer, and the
YAML that defines tasks. What does not: encoders and heads (`module/`), training and checkpoints (`mt_dnn/`).

Every file of this folder is imported, so a new task type is one more file.
"""

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
