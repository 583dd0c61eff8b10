"""What a run has to keep to go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_utils.errors import DataError
from mt_dnn.config import Config

# Flags that decide which examples meet which update; a resumed run that changes one is another run.
ORDER_FLAGS = (
    "train_datasets", "batch_size", "max_tokens_per_batch", "grad_accumulation_step", "no_group_by_length",
    "max_seq_len", "seed", "epochs", "ratio", "mix_opt",
)  # fmt: skip


def order_flags(config: Config) -> dict[str, Any]:
    """Those flags with their values, as a checkpoint holds them."""
    flat = config.to_flat()
    return {name: flat[name] for name in ORDER_FLAGS}


def check_resumable(config: Config, path: Path | str, saved: Mapping[str, Any]) -> None:
    """See that a resumed run meets the examples that the broken one would have met.

    Args:
        saved: what `order_flags` gave when the checkpoint `path` was written.

    Raises:
        DataError: it would not; names the flags.
    """
    own = order_flags(config)
    saved = order_flags(Config()) | dict(saved)  # a flag that the checkpoint does not know was at its default
    changed = [f"--{name} {saved[name]} there, {value} here" for name, value in own.items() if saved[name] != value]
    if changed:
        raise DataError(f"was written with other flags, which a resume has to keep: {'; '.join(changed)}", path)


def deltas_of(checkpoint: Path) -> Path:
    """The δ that belong to a checkpoint; they are kept for the newest alone."""
    return checkpoint.with_suffix(".deltas")
