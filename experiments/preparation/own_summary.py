"""What `prepro_std.py --from` says at its end, and the configuration that it writes for `train.py`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_utils.prepro import (
    CUT,
    CUT_ENTITIES,
    CUT_TOKENS,
    CUT_WORDS,
    EMPTY_WORDS,
    TOKENS,
    WORDS,
    Losses,
)
from data_utils.storage.files import atomic_write
from experiments.canonical import NO_LABEL, Example
from experiments.preparation.own_tables import OwnTask
from experiments.preparation.suggested_settings import suggested_settings
from mt_dnn.configuration.config_file import config_text

SHOWN_LABELS = 20


def task_summary(task: OwnTask) -> list[str]:
    """The rows and labels of each split, then what was found in the tables, a line each."""
    lines = [f"task {task.name} ({task.task_type}):"]
    for split, examples in task.splits.items():
        origin = ", held out of the training table" if split == "dev" and task.held_out else ""
        lines.append(f"  {split}: {len(examples)} rows{origin}; {_labels(task, examples)}")
    return lines + [f"  {line}" for line in task.findings.lines()]


def _labels(task: OwnTask, examples: Sequence[Example]) -> str:
    labels = [label for _, label, *_ in examples if label != NO_LABEL]
    if not labels:
        return "no labels"
    if task.task_type == "Regression":
        numbers = [float(label) for label in labels]
        return f"labels from {min(numbers):g} to {max(numbers):g}, mean {sum(numbers) / len(numbers):g}"
    if task.task_type == "SeqenceLabeling":
        found = Counter(name for label in labels for name in json.loads(label))
        counts = [(name, found[name]) for name in task.labels]
    elif task.task_type == "MultiLabel":
        truths = [json.loads(label) for label in labels]
        counts = [(name, sum(own[at] for own in truths)) for at, name in enumerate(task.labels)]
    else:
        found = Counter(labels)
        counts = [(name, found[name]) for name in task.labels or sorted(found)]
    shown = ", ".join(f"{name} {count}" for name, count in counts[:SHOWN_LABELS])
    return f"labels: {shown}" + (f", … ({len(counts)} labels)" if len(counts) > SHOWN_LABELS else "")


def loss_lines(path: Path, losses: Losses, max_seq_len: int) -> list[str]:
    """What the examples of a canonical TSV lack of their texts, a line each; none where nothing is lost."""
    counts, lines = losses.counts, []
    if counts[CUT]:
        lines.append(
            f"{path}: {counts[CUT]} examples are cut to {max_seq_len} tokens; {counts[CUT_TOKENS]} of "
            f"{counts[TOKENS] + counts[CUT_TOKENS]} tokens are lost{_first(losses, CUT)}"
        )
    if counts[CUT_WORDS]:
        lines.append(
            f"{path}: {counts[CUT_WORDS]} of {counts[WORDS]} words and {counts[CUT_ENTITIES]} entities are beyond "
            f"{max_seq_len} tokens{_first(losses, CUT_WORDS)}; training does not see them, metrics count them as missed"
        )
    if counts[EMPTY_WORDS]:
        lines.append(
            f"{path}: {counts[EMPTY_WORDS]} words have no token, such as blanks of no width"
            f"{_first(losses, EMPTY_WORDS)}; the unknown token stands for each"
        )
    return lines


def _first(losses: Losses, what: str) -> str:
    return f" (first: line {losses.first[what]})" if what in losses.first else ""


def write_config(
    folder: Path,
    tasks: Sequence[OwnTask],
    task_def: Path,
    encoder: str,
    options: Mapping[str, object],
    can_be_saved: bool,
) -> Path:
    """Write `FOLDER/TASK.yml` with all flags that a training of these tasks needs. Returns the file.

    Args:
        folder: of the token files.
        tasks: those with a training set.
        options: flags that go with how the texts were tokenized.
        can_be_saved: transformers has a classifier of the encoder's family.
    """
    names = [task.name for task in tasks]
    own = "-".join(names)
    data = {
        "task_def": str(task_def),
        "data_dir": str(folder),
        "train_datasets": ",".join(names),
        "test_datasets": ",".join(names),
    }
    examples = sum(len(task.splits["train"]) for task in tasks)
    training = suggested_settings(encoder, examples, str(options["transformer_cache"]))
    output = {"output_dir": f"runs/{own}"}
    if can_be_saved:
        output["save_hf"] = f"runs/{own}-model"
    groups: dict[str, Mapping[str, object]] = {
        f"python train.py --config {folder / f'{own}.yml'}: flags on the command line win over those here. Data": data,
        "Encoder": {"init_checkpoint": encoder, **options},
        "Training, as suggested by experiments/preparation/suggested_settings.py": training,
        "What is written": output,
    }
    path = folder / f"{own}.yml"
    with atomic_write(path) as file:
        file.write(config_text(groups))
    return path
