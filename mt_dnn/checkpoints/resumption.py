"""The checkpoints that a run writes, and what it restores from one to go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from data_utils.errors import DataError, DivergedError, Stopped, UserError, WriteError
from data_utils.storage.checksum import remove_checked
from mt_dnn.checkpoints.checkpoint import checkpoints_in, deltas_of, load_with_deltas, newest_checkpoint, remove_older
from mt_dnn.checkpoints.random_state import random_state, set_random_state
from mt_dnn.configuration.config import RESUME_FLAGS, Config
from mt_dnn.data.dataset import SingleTaskDataset
from mt_dnn.data.unlabeled_batches import UnlabeledBatches
from mt_dnn.model import MTDNNModel
from mt_dnn.reporting.run_result import RunClock, RunResult
from mt_dnn.reporting.running_losses import RunningLosses
from mt_dnn.training.delta_cache import DeltaCache
from mt_dnn.training.failures import WHAT_HELPS

logger = logging.getLogger(__name__)

WITH_DELTAS = 2  # newest checkpoints that keep their deltas, so that a damaged one has an older to go back to

# Flags that decide which examples meet which update; a resume cannot change them.
ORDER_FLAGS = (
    "train_datasets", "batch_size", "max_tokens_per_batch", "grad_accumulation_step", "no_group_by_length",
    "max_seq_len", "seed", "ratio", "mix_opt",
)  # fmt: skip
# What a checkpoint of this project says about its run.
PROGRESS = ("epoch", "batches_done", "random_states", "flags", "history", "best_epoch", "best_value")


@dataclass
class RunState:
    """What a checkpoint holds of a run in addition to its model, and what a resume restores.

    Attributes:
        result: history and best epoch.
        clock: the seconds that the run took.
        losses: those since the last report.
        unlabeled: the position in the unlabeled data.
        delta_cache: δ of `--adv_free`; None without the flag.
    """

    result: RunResult
    clock: RunClock
    losses: RunningLosses
    unlabeled: UnlabeledBatches
    delta_cache: DeltaCache | None = None


class RunCheckpoints:
    """Writes the checkpoints of a run, and restores one.

    Args:
        config: of the run.
        model: is saved and restored.
        train: the training datasets.
        state: what else is saved and restored.
        folder: of the checkpoints.
        found: the checkpoint to restore, from `checkpoint_to_resume`.

    Attributes:
        first_here: the first epoch whose checkpoint is in this folder.
        from_elsewhere: the run was resumed from a checkpoint in another folder, so that reports in this one are not
            the run's.
    """

    def __init__(
        self,
        config: Config,
        model: MTDNNModel,
        train: Sequence[SingleTaskDataset],
        state: RunState,
        folder: Path,
        found: tuple[Path, dict[str, Any]] | None = None,
    ):
        self.config, self.model, self.train, self.state = config, model, train, state
        self.folder, self.found = folder, found
        self.accelerator = model.accelerator
        self.first_here = 0
        self.from_elsewhere = False

    def save(self, name: str, epoch: int, batches_done: int) -> None:
        """Write a checkpoint from which training goes on at that epoch, after that many of its batches.

        Raises:
            DivergedError: a parameter is not finite.
            WriteError: the file cannot be written.
        """
        self._check_finite()
        own = random_state()
        states = gather_object([own]) if self.accelerator.num_processes > 1 else [own]
        losses = self.state.losses.state(self.accelerator)
        main, deltas = self.accelerator.is_main_process, self.state.delta_cache
        result, path = self.state.result, self.folder / name
        progress = {
            "epoch": epoch,
            "batches_done": batches_done,
            "random_states": states,
            "unlabeled": self.state.unlabeled.position(),
            "losses": losses,
            "seconds": self.state.clock.seconds(),
            "flags": self.config.to_flat(),
            "sizes": sizes_of(self.train),
            "history": result.history,
            "best_epoch": result.best_epoch,
            "best_value": result.best_value,
            "first_here": self.first_here,
        }
        # Deltas before their checkpoint, which is thus never without them; older deltas go only after it.
        if main and deltas is not None:
            deltas.save(deltas_of(path))
        self.model.save(str(path), progress)
        if main:
            if deltas is not None:
                newest = {deltas_of(checkpoint) for checkpoint in checkpoints_in(self.folder)[:WITH_DELTAS]}
                for older in set(self.folder.glob("model_*.deltas")) - newest:
                    remove_checked(older)
            remove_older(self.folder, self.config.training.keep_last, f"model_{result.best_epoch}.pt")
        self.accelerator.wait_for_everyone()

    def save_unevaluated(self, epoch: int, batches: int) -> str:
        """Write a checkpoint after all `batches` of an epoch, so that a resume begins with its evaluation.

        Returns:
            The file's name.
        """
        name = f"model_{epoch}_{self.model.updates}.pt"
        self.save(name, epoch, batches)
        return name

    @contextmanager
    def saved_on_error(self, epoch: int, batches: int) -> Iterator[None]:
        """Save before the evaluation if the evaluation in the block fails.

        With one process only: the others might not have failed, and would not answer.
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

        A resume may have left it in another folder; a file of its name in this one is then another run's.
        """
        path = self.folder / f"model_{self.state.result.best_epoch}.pt"
        return path if self.state.result.best_epoch >= self.first_here and path.is_file() else None

    def resume(self) -> tuple[int, int]:
        """Restore the checkpoint that was found.

        Returns:
            The epoch to go on with, and how many of its batches are done.

        Raises:
            DataError: the checkpoint was written with other data or flags that matter, or is incomplete.
        """
        assert self.found is not None
        path, content = self.found
        self.found = None  # its parameters need memory
        with named_in_errors(path):
            return self._restore(path, content)

    def _restore(self, path: Path, content: Mapping[str, Any]) -> tuple[int, int]:
        progress, optimizer_restored = self.model.restore(content, path)
        logger.info("resumed from %s", path)
        if not optimizer_restored:
            logger.info("--optimizer differs from the checkpoint's: the optimizer's state starts anew")
        if "random_states" not in progress:
            logger.info("the checkpoint does not say how far its run was: its parameters start at epoch 1")
            return 0, 0
        changed = check_resumable(self.config, self.train, path, progress)
        if changed:
            logger.info("goes on with other flags than the checkpoint's: %s", "; ".join(changed))
        states, state = progress["random_states"], self.state
        if len(states) == self.accelerator.num_processes:
            set_random_state(states[self.accelerator.process_index])
        else:
            logger.info("saved by %d processes: the data order goes on, dropout's does not", len(states))
        state.unlabeled.go_to(progress.get("unlabeled", {}))
        state.losses.load(progress.get("losses", {}), self.accelerator.device)
        state.clock.before = float(progress.get("seconds", 0.0))
        if state.delta_cache is not None and deltas_of(path).is_file():
            if self.accelerator.is_main_process:
                state.delta_cache.load(deltas_of(path))
            self.accelerator.wait_for_everyone()
        elif state.delta_cache is not None:
            logger.info("--adv_free: %s is missing: the noise of all examples starts anew", deltas_of(path))
        state.result.history = progress["history"]
        state.result.best_epoch, state.result.best_value = progress["best_epoch"], progress["best_value"]
        epoch, batches_done = int(progress["epoch"]), int(progress["batches_done"])
        self._report_length(progress["flags"], epoch)
        same_folder = path.resolve().parent == self.folder.resolve()
        self.first_here = int(progress.get("first_here", 0)) if same_folder else epoch
        self.from_elsewhere = not same_folder
        return epoch, batches_done

    def _report_length(self, saved: Mapping[str, Any], epoch: int) -> None:
        """Log what another number of epochs changes, or that no epoch is left."""
        epochs, before, model = self.config.training.epochs, int(saved["epochs"]), self.model
        if epochs == epoch:
            logger.info("all %d epochs are trained; --resume --epochs N with a larger N trains on", epochs)
        elif epochs != before:
            # The schedule is a function of the updates done and their total.
            logger.info(
                "--epochs %d instead of %d: the learning-rate schedule now spans all %d updates, of which %d are done, "
                "and goes on at %.3g; shares of the run, such as --warmup, count by the new length too",
                epochs, before, model.total_updates, model.updates, model.schedule.get_last_lr()[0],
            )  # fmt: skip

    def _check_finite(self) -> None:
        """Stop before parameters that are not finite are saved.

        Raises:
            DivergedError: one is not.
        """
        if not self.model.is_finite():
            raise DivergedError(
                f"parameters are not finite after update {self.model.updates}; the last checkpoint in "
                f"{self.folder} is kept. {WHAT_HELPS}"
            )


def checkpoint_to_resume(config: Config, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that a run resumes from, and its content as `load_with_deltas` gives it; None without `--resume`.

    Raises:
        DataError: the named checkpoint is missing or damaged, or no checkpoint in the folder is intact.
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
    """Check that a resumed run meets the examples that the interrupted run would have met.

    Args:
        datasets: the training datasets.
        path: the checkpoint.
        progress: what the checkpoint says about its run.

    Returns:
        The other flags that differ, but for `--epochs`, as "--NAME THERE there, HERE here".

    Raises:
        DataError: it does not, or it has fewer epochs than are trained; names the flags or the dataset.
    """
    lacking = [name for name in PROGRESS if name not in progress]
    if lacking:
        raise DataError(f"says too little about its run to go on with ({', '.join(lacking)} missing)", path)
    own = config.to_flat()
    saved = {name: Config().to_flat()[name] for name in (*ORDER_FLAGS, "epochs")} | dict(progress["flags"])
    changed = {
        name: f"--{name} {saved[name]} there, {value} here"
        for name, value in own.items()
        if name in saved and name not in RESUME_FLAGS and saved[name] != value
    }
    refused = [changed.pop(name) for name in ORDER_FLAGS if name in changed]
    if refused:
        raise DataError(f"was written with other flags, which a resume has to keep: {'; '.join(refused)}", path)
    if changed.pop("epochs", None):
        _check_epochs(config, path, progress)
    for name, sizes in sizes_of(datasets).items():
        there = progress.get("sizes", {}).get(name, sizes)
        if there != sizes:
            found = f"{there[0]} examples of {there[1]} tokens there, {sizes[0]} of {sizes[1]} here"
            raise DataError(f"was written by a run on other data: {name} has {found}", path)
    return list(changed.values())


def _check_epochs(config: Config, path: Path | str, progress: Mapping[str, Any]) -> None:
    """Check that another number of epochs was meant, and leaves those that are trained.

    Raises:
        DataError: it was left out, or is too small.
    """
    epochs, saved = config.training.epochs, progress["flags"]["epochs"]
    if "epochs" not in config.stated:
        raise DataError(
            f"was written with --epochs {saved}, and here it is left out, which means {epochs}; accepted: --epochs "
            f"{saved} to finish that run, or a larger number to train on",
            path,
        )
    begun = int(progress["epoch"]) + (int(progress["batches_done"]) > 0)
    if epochs < begun:
        raise DataError(f"has trained in {begun} epochs, found --epochs {epochs}, accepted: at least {begun}", path)


@contextmanager
def named_in_errors(path: Path | str) -> Iterator[None]:
    """Report what is wrong with the state in the checkpoint `path`, which the block restores, as an error of that file.

    Raises:
        DataError: a part of the state is missing, or is of another kind.
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
    """What is left of a run that cannot write any more, and how to go on, for an error message."""
    newest = checkpoints_in(folder)[:1]
    if not newest:
        return "no checkpoint was written before"
    return f"the last checkpoint, {newest[0]}, is kept: --resume goes on with it"
