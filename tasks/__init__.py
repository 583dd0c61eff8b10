"""One class a task type, found by its name in the task definition."""

from tasks.base import TASK_REGISTRY, Task, get_task, register_task
from tasks.classification import ClassificationTask
from tasks.regression import RegressionTask

__all__ = ["TASK_REGISTRY", "ClassificationTask", "RegressionTask", "Task", "get_task", "register_task"]
