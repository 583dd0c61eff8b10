"""The task definition of your own tables: a YAML that grows with every table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data_utils.errors import TaskDefError
from data_utils.storage.files import atomic_write
from experiments.preparation.own_tables import OwnTask


def _as_yaml(entries: dict[str, Any]) -> str:
    """Characters as they are, or escaped where a label has one that YAML takes for a line's end."""
    shown = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, default_flow_style=None)
    if yaml.safe_load(shown) == entries:
        return shown
    return yaml.safe_dump(entries, sort_keys=False, default_flow_style=None)


def write_definition(path: Path, tasks: Sequence[OwnTask], actf: str | None = None) -> None:
    """Put tasks into a task definition, whose other tasks and comments stay; print what is added.

    Args:
        path: the YAML, new or not.
        actf: activation of new tasks' heads.

    Raises:
        UserError: it defines one of them otherwise, or cannot be read or written.
    """
    from tasks.definition import TaskDefs

    text = path.read_text(encoding="utf-8") if path.is_file() and TaskDefs(path).names else ""
    defined = yaml.safe_load(text) or {}
    new = {}
    for task in tasks:
        entry = task.definition(actf)
        if task.name not in defined:
            new[task.name] = entry
        elif defined[task.name] | {"actf": actf} != entry | {"actf": actf}:
            raise TaskDefError(f"{path}: defines task {task.name!r} otherwise; take it out there, or give --task_name")
    if new:
        added = _as_yaml(new)
        with atomic_write(path) as file:
            file.write(text + ("\n" if text and not text.endswith("\n") else "") + added)
        print(f"{path}:\n{added}", end="")
