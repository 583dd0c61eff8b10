"""The settings that `prepro_std.py --from` suggests for training on a table, as a file for `train.py --config`.

They are the usual ones for fine-tuning such encoders [Devlin et al. 2019; Mosbach et al. 2021]: AdamW, batches of 32,
and a learning rate that rises during the first tenth of the updates. Small encoders take a larger rate. Small tables
take more epochs, because a few dozen updates hardly change a model.

Checked by plain fine-tuning with seed 2018, on the tenth of three tables that `--from` holds out. Accuracy in percent,
for STS-B the Pearson correlation, with MiniLM at the suggested rate of 1e-4 after each of 8 epochs:

- UCI sentiment, 2,684 rows, 3 epochs suggested: 90.6, 93.6, 93.6, 95.0, 94.3, 94.6, 95.0, 94.6 (standard error 1.3). A
  run of the 3 suggested epochs, whose rate falls to zero by then: 93.6, 94.0, 94.6. At 5e-5 the best epoch has 94.6, at
  2e-4 93.0.
- tweets with and without hate, 1,869 rows, 5 epochs suggested: 90.9, 93.8, 92.3, 92.8, 92.8, 92.8, 91.8, 92.3 (1.7).
- STS-B, pairs, 5,178 rows, 3 epochs suggested: 75.1, 83.7, 85.1, 86.5, 86.5, 86.8, 86.7, 86.9 (1.0). A run of the 3
  suggested epochs ends at 86.5; at 2e-4 at 85.2.

The suggested settings are within a standard error of the best. A larger encoder (MPNet-base, half of CoLA's training
set, 2 epochs, a tenth held out): Matthews correlation 44.8 at 2e-5, 48.6 at the suggested 3e-5, 49.0 at 5e-5.

The model that a run exports is that of the epoch with the best development score, so more epochs cost time, not
accuracy.
"""

from __future__ import annotations

import math
from typing import Any

from data_utils.pretrained import resolve_pretrained

BATCH_SIZE = 32
WARMUP = 0.1  # of the updates
SMALL_HIDDEN_SIZE = 512  # below it an encoder is small, as MiniLM with 384
SMALL_LEARNING_RATE, LEARNING_RATE = 1e-4, 3e-5
ENOUGH_UPDATES = 250
FEWEST_EPOCHS, MOST_EPOCHS = 3, 20


def suggested_settings(encoder: str, examples: int, cache_dir: str | None = None) -> dict[str, Any]:
    """Flags of `train.py`.

    Args:
        encoder: hub name, folder or embedded encoder.
        examples: that an epoch trains on, of all tasks together.
        cache_dir: where downloads are kept.
    """
    size = _hidden_size(encoder, cache_dir)
    is_small = size is not None and size < SMALL_HIDDEN_SIZE
    return {
        "optimizer": "adamw",
        "learning_rate": SMALL_LEARNING_RATE if is_small else LEARNING_RATE,
        "batch_size": BATCH_SIZE,
        "epochs": epochs_for(examples),
        "warmup": WARMUP,
    }


def epochs_for(examples: int) -> int:
    """As many epochs as make `ENOUGH_UPDATES`, from `FEWEST_EPOCHS` to `MOST_EPOCHS`."""
    updates = max(1, math.ceil(examples / BATCH_SIZE))
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(ENOUGH_UPDATES / updates)))


def _hidden_size(encoder: str, cache_dir: str | None) -> int | None:
    from transformers import AutoConfig  # which takes seconds to import, and --help does not wait for it

    try:
        config = AutoConfig.from_pretrained(resolve_pretrained(encoder), cache_dir=cache_dir, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return getattr(config, "hidden_size", None)
