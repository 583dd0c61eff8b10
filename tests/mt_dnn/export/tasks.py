"""What the tests of the export share: the words of their tokenizer, and tasks that BERT's class can express."""

from __future__ import annotations

from pathlib import Path

from tests.mt_dnn.runs import RUN

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "the", "FILM", "film", "was", "fine"]


def tanh_tasks(folder: Path) -> str:
    """The tiny run's tasks with the activation of BERT's class."""
    path = folder / "tasks.yml"
    path.write_text((RUN / "task_def.yml").read_text().replace("}", ", actf: tanh}"))
    return str(path)
