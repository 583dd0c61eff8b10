"""Failures of a run, each reported in one line: updates that are not finite, too little memory, dead processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import distributed

from data_utils.errors import DivergedError, UserError
from mt_dnn.batcher import Batch

logger = logging.getLogger(__name__)

SHOWN_UIDS = 8  # of a skipped update
WHAT_HELPS = "Try a smaller --learning_rate, --adv_radius or --adv_alpha"


class SkippedUpdates:
    """Counts updates whose step was skipped because the loss or the gradient was not finite.

    Args:
        most: stop after this many in a row.
        tasks: task names by task id.
        output_dir: of the run, for the message.
    """

    def __init__(self, most: int, tasks: Sequence[str], output_dir: object):
        self.most, self.tasks, self.output_dir = most, tasks, output_dir
        self.in_a_row = 0

    def reset(self) -> None:
        """Start counting again, after an update with a step."""
        self.in_a_row = 0

    def add(self, epoch: int, update: int, batches: Sequence[Batch]) -> None:
        """Log a skipped update with its task and examples.

        Raises:
            DivergedError: it is the last of too many in a row.
        """
        self.in_a_row += 1
        uids = [uid for batch in batches for uid in batch.uids]
        shown = ", ".join(uids[:SHOWN_UIDS]) + (", …" if len(uids) > SHOWN_UIDS else "")
        tasks = ", ".join(dict.fromkeys(self.tasks[batch.task_id] for batch in batches))
        which = f"update {update}, task {tasks}, examples {shown}"
        logger.info("epoch %d, %s: the loss or its gradient is not finite; skipped", epoch + 1, which)
        if self.in_a_row >= self.most:
            raise DivergedError(
                f"{self.in_a_row} updates in a row had a loss or a gradient that is not finite (the last: {which}); "
                f"the last checkpoint in {self.output_dir} is kept. {WHAT_HELPS}"
            )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors of torch into `UserError`s that say what helps; of several processes only one reports."""
    try:
        with _as_user_errors():
            yield
    except UserError as error:
        error.reported = not _is_first_to_report()
        raise


def _is_first_to_report() -> bool:
    """Whether no other process of the run has reported an error."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    try:
        return distributed.distributed_c10d._get_default_store().add("reported", 1) == 1
    except RuntimeError:  # the store ended with the process that ran it
        return True


@contextmanager
def _as_user_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in reason:
            raise UserError(
                "out of memory; what helps: a smaller --batch_size with --grad_accumulation_step, "
                f"--max_tokens_per_batch, --grad_checkpointing, --bf16 ({reason})"
            ) from error
        if isinstance(error, distributed.DistError) or "gloo" in reason:
            # gloo writes its source file before the cause, and guesses after it
            cause = reason.rpartition("] ")[2].split(". ")[0]
            raise UserError(
                f"another process of the run ended or cannot be reached, and so this one ends ({cause}); the last "
                "checkpoint is kept: --resume goes on with it"
            ) from error
        if "DataLoader worker" in reason:
            raise UserError(
                f"a process that collates batches died ({reason}); what helps: more memory, or "
                "--dataloader_num_workers 0"
            ) from error
        raise
