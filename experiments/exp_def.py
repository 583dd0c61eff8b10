"""MT-DNN's name for task definitions, which live in `tasks/definition.py`; its checkpoints refer to this place."""

from tasks.definition import TaskDef, TaskDefs

__all__ = ["TaskDef", "TaskDefs"]
