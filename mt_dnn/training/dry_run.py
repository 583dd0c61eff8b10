"""`--dry_run`: everything that a run needs is tried, and its course foretold, without training."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import FrameType
from typing import NoReturn

import torch
from accelerate.utils import broadcast_object_list

from data_utils.errors import UserError
from mt_dnn.batcher import MultiTaskDataset, SingleTaskDataset, evaluation_batches
from mt_dnn.checkpoints.checkpoint import newest_checkpoint
from mt_dnn.checkpoints.resumption import WITH_DELTAS
from mt_dnn.configuration.config import Config
from mt_dnn.configuration.flag_groups import TrainingConfig
from mt_dnn.training.failures import WHAT_HELPS, one_line_errors
from mt_dnn.training.report_points import duration
from mt_dnn.training.trainer import Trainer

STEPS = 3  # timed updates of each kind
KINDS = {True: "with the regularizer", False: "without the regularizer"}
UNITS = ("KB", "MB", "GB", "TB")
Group = list[tuple[int, list[int]]]  # the batches of an update: a dataset's index, and its examples'


def dry_run(config: Config) -> None:
    """Do what `train` does up to the first updates, in a folder within the output folder that goes again.

    The first update is the one with the largest batches, whose memory is the run's; then three of small, middling and
    large batches are timed, with and without the regularizer where the run has both.

    Raises:
        UserError: what `train` would raise before its first update, in one, in an evaluation or in a checkpoint.
        SystemExit: with 143, after SIGTERM.
    """
    real = Path(config.training.output_dir)
    with _removed_again(config.training) as folder, ExitStack() as held, one_line_errors():
        training = replace(config.training, output_dir=str(folder), dry_run=False)
        if training.resume and training.model_ckpt is None:
            training = replace(training, model_ckpt=str(newest_checkpoint(real)[0]))
        data = replace(config.data, log_file=str(folder / "log"), tensorboard=False)
        trainer = Trainer(replace(config, training=training, data=data), held)
        try:
            _rehearse(trainer, config)
        finally:
            trainer.model.end()


@contextmanager
def _removed_again(training: TrainingConfig) -> Iterator[Path]:
    """A folder in the output folder, of that name for all processes; it goes, and so do the folders above it and above
    that of `--save_hf` which were not there before."""
    folder = Path(training.output_dir) / ".dry_run"
    places = [folder, Path(training.save_hf or folder)]
    made = {parent for place in places for parent in place.parents if not os.path.exists(parent)}
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _stopped) if in_main_thread else None
    try:
        yield folder
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)
        for parent in sorted(made, reverse=True):  # the inner ones first
            with suppress(OSError):  # another process was first, or it holds something by now
                parent.rmdir()


def _stopped(number: int, frame: FrameType | None) -> NoReturn:
    """A scheduler's wish to stop, which would end the process with its folder left; no `except Exception` takes it."""
    sys.exit(128 + number)


def _rehearse(trainer: Trainer, config: Config) -> None:
    """The plan, line by line."""
    model, log, training = trainer.model, trainer.log.info, trainer.config.training
    first_epoch, _ = trainer.checkpoints.resume() if training.resume else (0, 0)
    trainer.describe(config)
    left = _updates_left(trainer)
    if not left:
        log("dry run: nothing is left to train, %s is of the last epoch", training.model_ckpt)
        return
    trainer.sampler.set_epoch(0)
    batches, size = list(trainer.sampler), training.grad_accumulation_step
    groups = [batches[start : start + size] for start in range(0, len(batches), size)]
    order = sorted(range(len(groups)), key=lambda index: _padded_tokens(trainer, groups[index]))
    by_size = [groups[index] for index in broadcast_object_list(order)]  # of all processes as of the first
    largest = _size(trainer, by_size[-1])
    _step(trainer, by_size[-1], left.get(True) or left[False])
    log("memory: %s, after an update of the largest batches (%s)", _memory(trainer), largest)
    typical = [by_size[len(by_size) * (2 * part + 1) // (2 * STEPS)] for part in range(STEPS)]
    seconds = 0.0
    for regularized, updates in left.items():
        each = mean(_step(trainer, group, updates) for group in typical)
        log("%d updates %s: %.3g s each, the mean of %d", len(updates), KINDS[regularized], each, STEPS)
        seconds += each * len(updates)
    epochs = training.epochs - first_epoch
    evaluation = epochs * sum(_evaluation(trainer, dataset) for dataset in trainer.data.evaluation.values())
    parts = f"training {duration(seconds)}, evaluation {duration(evaluation)}"
    log("time: about %s (%s; writing checkpoints aside)", duration(seconds + evaluation), parts)
    model.updates = 0
    trainer.checkpoints.save("model_0.pt", 0, 0)
    log("disk: %s", _disk(trainer, epochs, left))
    log(
        "dry run: all that it needs is there; nothing was trained, and no file of it is left in %s",
        config.training.output_dir,
    )
    trainer.accelerator.wait_for_everyone()  # the first to leave removes the folder that the others measure


def _updates_left(trainer: Trainer) -> dict[bool, list[int]]:
    """The numbers of the updates to come, with and without the regularizer; a kind without any is left out."""
    model = trainer.model
    done, left = model.updates, defaultdict(list)
    for update in range(done, model.total_updates):
        model.updates = update
        left[model.regularized].append(update)
    model.updates = done
    return dict(left)


def _step(trainer: Trainer, group: Group, updates: list[int]) -> float:
    """Seconds of an update of these batches, in the place of the first of such updates."""
    model, data = trainer.model, MultiTaskDataset(trainer.data.train)
    model.updates = updates[0]
    start = _now(trainer)
    batches = [trainer.collater(data[batch]) for batch in group]
    beside = [trainer.unlabeled.next(batch.task_id) if model.regularized else None for batch in batches]
    model.update(*batches, unlabeled=beside)
    if not model.last_finite:
        raise UserError(f"the loss or its gradient is not finite in an update of {_size(trainer, group)}. {WHAT_HELPS}")
    return _now(trainer) - start


def _evaluation(trainer: Trainer, dataset: SingleTaskDataset) -> float:
    """Seconds of an evaluation, from one of its batches of middling size."""
    batches = evaluation_batches(dataset, trainer.config.training.batch_size_eval)
    middle = trainer.collater([dataset[example] for example in batches[len(batches) // 2]])
    start = _now(trainer)
    trainer.model.predict(middle)
    return (_now(trainer) - start) * len(batches) / trainer.accelerator.num_processes


def _padded_tokens(trainer: Trainer, group: Group) -> int:
    """Of an update's largest batch, which decides about its memory."""
    tokens = [trainer.data.train[dataset].tokens[examples] for dataset, examples in group]
    return max((len(own) * int(own.max()) for own in tokens if len(own)), default=0)


def _size(trainer: Trainer, group: Group) -> str:
    lengths = [trainer.data.train[dataset].lengths[examples] for dataset, examples in group]
    return f"{sum(map(len, lengths))} examples of up to {max(int(own.max(initial=0)) for own in lengths)} tokens"


def _now(trainer: Trainer) -> float:
    """Seconds, when all that was asked of the device is done."""
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory(trainer: Trainer) -> str:
    """The most that this process took so far, of what there is."""
    if trainer.accelerator.device.type == "cuda":
        return f"{_bytes(torch.cuda.max_memory_reserved())} of the GPU's {_bytes(torch.cuda.mem_get_info()[1])}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{_bytes(peak)} of the machine's {_bytes(there)}"


def _disk(trainer: Trainer, epochs: int, left: Mapping[bool, list[int]]) -> str:
    """What the checkpoints of these epochs and updates take, by one that was written, of what is free."""
    training, folder = trainer.config.training, trainer.output_dir
    each, noise = (sum(path.stat().st_size for path in folder.glob(f"model_0.{kind}*")) for kind in ("pt", "deltas"))
    count = epochs
    if training.save_per_updates_on:
        done = (update + 1 for updates in left.values() for update in updates)
        count += sum(update % training.save_per_updates == 0 for update in done)
    if training.keep_last:
        count = min(count, training.keep_last + 1)  # the best epoch's stays too
    with_noise = min(count, WITH_DELTAS + 1)  # the oldest goes when the newest is written
    free = shutil.disk_usage(folder).free
    enough = "" if count * each + with_noise * noise < free else ": too little; --keep_last N removes older ones"
    kept = f" and {with_noise} of {_bytes(noise)} for their noise" if noise else ""
    return f"checkpoints: {count} of {_bytes(each)}{kept}, {_bytes(free)} free{enough}"


def _bytes(number: float) -> str:
    for unit in UNITS:
        number /= 1000
        if number < 1000 or unit == UNITS[-1]:
            break
    return f"{number:.3g} {unit}"
