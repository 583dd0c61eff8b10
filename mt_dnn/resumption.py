"""What a run has to keep to go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from data_utils.errors import DataError, UserError
from mt_dnn.config import Config
from mt_dnn.dataset import SingleTaskDataset

# Flags that decide which examples meet which update; a resumed run that changes one is another run.
ORDER_FLAGS = (
    "train_datasets", "batch_size", "max_tokens_per_batch", "grad_accumulation_step", "no_group_by_length",
    "max_seq_len", "seed", "epochs", "ratio", "mix_opt",
)  # fmt: skip
# Flags of the resume itself.
RESUME_FLAGS = ("resume", "model_ckpt")
# What a checkpoint of this project tells of its run.
PROGRESS = ("epoch", "batches_done", "random_states", "flags", "history", "best_epoch", "best_value")


def sizes_of(datasets: Sequence[SingleTaskDataset]) -> dict[str, list[int]]:
    """Examples and tokens of each dataset, by its name."""
    return {dataset.name: [len(dataset), int(dataset.tokens.sum())] for dataset in datasets}


def check_resumable(
    config: Config, datasets: Sequence[SingleTaskDataset], path: Path | str, progress: Mapping[str, Any]
) -> list[str]:
    """See that a resumed run meets the examples that the broken one would have met.

    Args:
        datasets: those that are trained on.
        path: the checkpoint.
        progress: what it tells of its run.

    Returns:
        The other flags that differ, as "--NAME THERE there, HERE here".

    Raises:
        DataError: it would not; names the flags or the dataset.
    """
    lacking = [name for name in PROGRESS if name not in progress]
    if lacking:
        raise DataError(f"tells too little of its run to go on with ({', '.join(lacking)} missing)", path)
    own = config.to_flat()
    saved = {name: Config().to_flat()[name] for name in ORDER_FLAGS} | dict(progress["flags"])
    changed = {
        name: f"--{name} {saved[name]} there, {value} here"
        for name, value in own.items()
        if name in saved and name not in RESUME_FLAGS and saved[name] != value
    }
    refused = [changed.pop(name) for name in ORDER_FLAGS if name in changed]
    if refused:
        raise DataError(f"was written with other flags, which a resume has to keep: {'; '.join(refused)}", path)
    for name, sizes in sizes_of(datasets).items():
        there = progress.get("sizes", {}).get(name, sizes)
        if there != sizes:
            found = f"{there[0]} examples of {there[1]} tokens there, {sizes[0]} of {sizes[1]} here"
            raise DataError(f"was written by a run on other data: {name} has {found}", path)
    return list(changed.values())


@contextmanager
def taken_over(path: Path | str) -> Iterator[None]:
    """Errors of the block are those of what the checkpoint `path` holds beside its parameters, which it takes over.

    Raises:
        DataError: a part is missing, or is none.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        found = f"{type(error).__name__}: {reason}"
        raise DataError(f"holds a state that a run cannot go on with ({found})", path) from error
