"""The checkpoints of a run, and what it takes over from one to go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from data_utils.checksum import remove_checked
from data_utils.errors import DataError, DivergedError, Stopped, UserError, WriteError
from mt_dnn.checkpoints.checkpoint import checkpoints_in, deltas_of, forget_older, load_with_deltas, newest_checkpoint
from mt_dnn.checkpoints.random_state import random_state, set_random_state
from mt_dnn.configuration.config import RESUME_FLAGS, Config
from mt_dnn.data.dataset import SingleTaskDataset
from mt_dnn.data.unlabeled_batches import UnlabeledBatches
from mt_dnn.model import MTDNNModel
from mt_dnn.training.delta_cache import DeltaCache
from mt_dnn.training.failures import WHAT_HELPS
from mt_dnn.training.run_result import RunResult

logger = logging.getLogger(__name__)

WITH_DELTAS = 2  # newest checkpoints that keep theirs, so that a damaged one has an older to go back to

# Flags that decide which examples meet which update; a resumed run that changes one is another run.
ORDER_FLAGS = (
    "train_datasets", "batch_size", "max_tokens_per_batch", "grad_accumulation_step", "no_group_by_length",
    "max_seq_len", "seed", "epochs", "ratio", "mix_opt",
)  # fmt: skip
# What a checkpoint of this project tells of its run.
PROGRESS = ("epoch", "batches_done", "random_states", "flags", "history", "best_epoch", "best_value")


class RunCheckpoints:
    """Writes the checkpoints of a run, and takes one over.

    Args:
        config: of the run.
        model, unlabeled, kept, result: what a checkpoint holds, and what a resume sets.
        train: the datasets that are trained on.
        folder: of the checkpoints.
        found: of `checkpoint_to_resume`.

    Attributes:
        first_here: the epoch from which on the checkpoints are in this folder.
    """

    def __init__(
        self,
        config: Config,
        model: MTDNNModel,
        train: Sequence[SingleTaskDataset],
        unlabeled: UnlabeledBatches,
        kept: DeltaCache | None,
        result: RunResult,
        folder: Path,
        found: tuple[Path, dict[str, Any]] | None = None,
    ):
        self.found = found
        self.config, self.model, self.train, self.unlabeled = config, model, train, unlabeled
        self.kept, self.result, self.folder = kept, result, folder
        self.accelerator = model.accelerator
        self.first_here = 0

    def save(self, name: str, epoch: int, batches_done: int) -> None:
        """A checkpoint from which training goes on at that epoch, after that many of its batches."""
        self._check_finite()
        state = random_state()
        states = gather_object([state]) if self.accelerator.num_processes > 1 else [state]
        if self.accelerator.is_main_process:
            progress = {
                "epoch": epoch,
                "batches_done": batches_done,
                "random_states": states,
                "unlabeled": self.unlabeled.position(),
                "flags": self.config.to_flat(),
                "sizes": sizes_of(self.train),
                "history": self.result.history,
                "best_epoch": self.result.best_epoch,
                "best_value": self.result.best_value,
                "first_here": self.first_here,
            }
            path = self.folder / name
            if self.kept is None:
                self.model.save(str(path), progress)
            else:
                # Before the checkpoint, which is thus never without its own; the older ones only after it.
                self.kept.save(deltas_of(path))
                self.model.save(str(path), progress)
                newest = {deltas_of(checkpoint) for checkpoint in checkpoints_in(self.folder)[:WITH_DELTAS]}
                for older in set(self.folder.glob("model_*.deltas")) - newest:
                    remove_checked(older)
            forget_older(self.folder, self.config.training.keep_last, f"model_{self.result.best_epoch}.pt")
        self.accelerator.wait_for_everyone()

    def save_unevaluated(self, epoch: int, batches: int) -> str:
        """A checkpoint after all `batches` of an epoch, from which a resume goes on with its evaluation; its name."""
        name = f"model_{epoch}_{self.model.updates}.pt"
        self.save(name, epoch, batches)
        return name

    @contextmanager
    def kept_on_error(self, epoch: int, batches: int) -> Iterator[None]:
        """An evaluation that fails in the block leaves such a checkpoint.

        Of one process: others might not have failed, and would not answer.
        """
        try:
            yield
        except Stopped:
            raise
        except Exception:
            if self.accelerator.num_processes == 1:
                with suppress(WriteError):  # the disk may be why
                    name = self.save_unevaluated(epoch, batches)
                    logger.info("the evaluation failed; %s holds the training: --resume evaluates it again", name)
            raise

    def best(self) -> Path | None:
        """The best epoch's checkpoint; None where the folder has none of this run.

        Where a resume left it in another folder, this one may hold another run's under its name.
        """
        path = self.folder / f"model_{self.result.best_epoch}.pt"
        return path if self.result.best_epoch >= self.first_here and path.is_file() else None

    def resume(self) -> tuple[int, int]:
        """Take over a checkpoint; the epoch to go on with, and how many of its batches are done."""
        assert self.found is not None
        path, content = self.found
        self.found = None  # its parameters need memory
        with taken_over(path):
            return self._take_over(path, content)

    def _take_over(self, path: Path, content: Mapping[str, Any]) -> tuple[int, int]:
        """What `resume` gives."""
        progress, optimizer_taken = self.model.restore(content, path)
        logger.info("resumed from %s", path)
        if not optimizer_taken:
            logger.info("--optimizer differs from the checkpoint's: its state is not taken over and starts anew")
        if "random_states" not in progress:
            logger.info("the checkpoint tells no progress: parameters are taken over, training starts at epoch 0")
            return 0, 0
        changed = check_resumable(self.config, self.train, path, progress)
        if changed:
            logger.info("goes on with other flags than the checkpoint's: %s", "; ".join(changed))
        states = progress["random_states"]
        if len(states) == self.accelerator.num_processes:
            set_random_state(states[self.accelerator.process_index])
        else:
            logger.info("saved by %d processes: the data order goes on, dropout's does not", len(states))
        self.unlabeled.go_to(progress.get("unlabeled", {}))
        if self.kept is not None and deltas_of(path).is_file():
            if self.accelerator.is_main_process:
                self.kept.load(deltas_of(path))
            self.accelerator.wait_for_everyone()
        elif self.kept is not None:
            logger.info("--adv_free: %s is missing: the noise of all examples starts anew", deltas_of(path))
        self.result.history = progress["history"]
        self.result.best_epoch, self.result.best_value = progress["best_epoch"], progress["best_value"]
        epoch = int(progress["epoch"])
        same_folder = path.resolve().parent == self.folder.resolve()
        self.first_here = int(progress.get("first_here", 0)) if same_folder else epoch
        return epoch, int(progress["batches_done"])

    def _check_finite(self) -> None:
        """Stop before parameters that are not numbers are saved beside good ones."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.network.parameters()):
            raise DivergedError(
                f"parameters are not finite after update {self.model.updates}; the last checkpoint in "
                f"{self.folder} is kept. {WHAT_HELPS}"
            )


def checkpoint_to_resume(config: Config, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that a run goes on from and its content, as `load_with_deltas` gives it; None: it starts anew.

    Raises:
        DataError: the one that was named is missing or damaged, or the folder has none that is whole.
    """
    named = config.training.model_ckpt
    if not config.training.resume:
        return None
    return (Path(named), load_with_deltas(named)) if named else newest_checkpoint(folder, logger.info)


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


def saved_checkpoints(folder: Path) -> str:
    """Of a run that cannot write any more."""
    newest = checkpoints_in(folder)[:1]
    if not newest:
        return "no checkpoint was written before"
    return f"the last checkpoint, {newest[0]}, is kept: --resume goes on with it"
