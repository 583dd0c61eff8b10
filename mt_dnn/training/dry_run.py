"""`--dry_run`: tries everything that a run needs and estimates time, memory and disk, without training."""

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
from mt_dnn.reporting.report_points import duration
from mt_dnn.training.failures import WHAT_HELPS, one_line_errors
from mt_dnn.training.trainer import Trainer

STEPS = 3  # timed updates of each kind
KINDS = {True: "with the regularizer", False: "without the regularizer"}
UNITS = ("KB", "MB", "GB", "TB")
Group = list[tuple[int, list[int]]]  # the batches of an update: a dataset's index, and its examples'


def dry_run(config: Config) -> None:
    """Do what `train` does up to the first updates, in a temporary folder within the output folder.

    The first update has the largest batches and so needs the memory of the run. Then three updates of small, medium and
    large batches are timed, with and without the regularizer if the run has both.

    Raises:
        UserError: as from `train` before its first update, in an update, in an evaluation or in a checkpoint.
        SystemExit: with 143, after SIGTERM.
    """
    real = Path(config.training.output_dir)
    with _temporary_folder(config.training) as folder, ExitStack() as until_end, one_line_errors():
        training = replace(config.training, output_dir=str(folder), dry_run=False)
        if training.resume and training.model_ckpt is None:
            training = replace(training, model_ckpt=str(newest_checkpoint(real)[0]))
        data = replace(config.data, log_file=str(folder / "log"), tensorboard=False)
        trainer = Trainer(replace(config, training=training, data=data), until_end, exported_by=real)
        try:
            _rehearse(trainer, config)
        finally:
            trainer.model.end()


@contextmanager
def _temporary_folder(training: TrainingConfig) -> Iterator[Path]:
    """A folder in the output folder, the same for all processes.

    At the end it is removed, with the folders above it and above that of `--save_hf` that did not exist before.
    """
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
            with suppress(OSError):  # another process was first, or it is not empty any more
                parent.rmdir()


def _stopped(number: int, frame: FrameType | None) -> NoReturn:
    """End at SIGTERM by an exception that no `except Exception` catches, so that the folder is removed."""
    sys.exit(128 + number)


def _rehearse(trainer: Trainer, config: Config) -> None:
    """Try and time the run, and log the estimate line by line."""
    model, log, training = trainer.model, trainer.log.info, trainer.config.training
    first_epoch, _ = trainer.checkpoints.resume() if training.resume else (0, 0)
    trainer.describe(config)
    left = _updates_left(trainer)
    if not left:
        log("dry run: nothing is left to train, %s is from the last epoch", training.model_ckpt)
        return
    trainer.sampler.set_epoch(0)
    batches, size = list(trainer.sampler), training.grad_accumulation_step
    groups = [batches[start : start + size] for start in range(0, len(batches), size)]
    order = sorted(range(len(groups)), key=lambda index: _padded_tokens(trainer, groups[index]))
    by_size = [groups[index] for index in broadcast_object_list(order)]  # all processes take the first one's order
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
        "dry run: all that the run needs is there; nothing was trained, and it left no file in %s",
        config.training.output_dir,
    )
    trainer.accelerator.wait_for_everyone()  # the first to leave removes the folder, which the others still measure


def _updates_left(trainer: Trainer) -> dict[bool, list[int]]:
    """The numbers of the updates that are left, with and without the regularizer; an empty kind is left out."""
    model = trainer.model
    done, left = model.updates, defaultdict(list)
    for update in range(done, model.total_updates):
        model.updates = update
        left[model.regularized].append(update)
    model.updates = done
    return dict(left)


def _step(trainer: Trainer, group: Group, updates: list[int]) -> float:
    """Seconds of an update of these batches, made as the first of these updates."""
    model, data = trainer.model, MultiTaskDataset(trainer.data.train)
    model.updates = updates[0]
    start = _now(trainer)
    batches = [trainer.collater(data[batch]) for batch in group]
    unlabeled = [trainer.unlabeled.next(batch.task_id) if model.regularized else None for batch in batches]
    model.update(*batches, unlabeled=unlabeled)
    if not model.last_finite:
        raise UserError(f"the loss or its gradient is not finite in an update of {_size(trainer, group)}. {WHAT_HELPS}")
    return _now(trainer) - start


def _evaluation(trainer: Trainer, dataset: SingleTaskDataset) -> float:
    """Seconds of an evaluation, estimated from one of its batches of medium size."""
    batches = evaluation_batches(dataset, trainer.config.training.batch_size_eval)
    middle = trainer.collater([dataset[example] for example in batches[len(batches) // 2]])
    start = _now(trainer)
    trainer.model.predict(middle)
    return (_now(trainer) - start) * len(batches) / trainer.accelerator.num_processes


def _padded_tokens(trainer: Trainer, group: Group) -> int:
    """Tokens, with padding, of an update's largest batch, which decides how much memory it needs."""
    tokens = [trainer.data.train[dataset].tokens[examples] for dataset, examples in group]
    return max((len(own) * int(own.max()) for own in tokens if len(own)), default=0)


def _size(trainer: Trainer, group: Group) -> str:
    lengths = [trainer.data.train[dataset].lengths[examples] for dataset, examples in group]
    return f"{sum(map(len, lengths))} examples of up to {max(int(own.max(initial=0)) for own in lengths)} tokens"


def _now(trainer: Trainer) -> float:
    """The time in seconds, after the device has finished its work."""
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory(trainer: Trainer) -> str:
    """The peak memory of this process so far, and the memory that there is."""
    if trainer.accelerator.device.type == "cuda":
        return f"{_bytes(torch.cuda.max_memory_reserved())} of the GPU's {_bytes(torch.cuda.mem_get_info()[1])}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{_bytes(peak)} of the machine's {_bytes(there)}"


def _disk(trainer: Trainer, epochs: int, left: Mapping[bool, list[int]]) -> str:
    """The disk space that the checkpoints take, by the size of one that was written, and the space that is free."""
    training, folder = trainer.config.training, trainer.output_dir
    each, noise = (sum(path.stat().st_size for path in folder.glob(f"model_0.{kind}*")) for kind in ("pt", "deltas"))
    count = epochs
    if training.save_per_updates_on:
        done = (update + 1 for updates in left.values() for update in updates)
        count += sum(update % training.save_per_updates == 0 for update in done)
    if training.keep_last:
        count = min(count, training.keep_last + 1)  # the best epoch's also stays
    with_noise = min(count, WITH_DELTAS + 1)  # the oldest goes when the newest is written
    free = shutil.disk_usage(folder).free
    enough = "" if count * each + with_noise * noise < free else ": too little; --keep_last N removes older ones"
    deltas = f" and {with_noise} of {_bytes(noise)} for their noise" if noise else ""
    return f"checkpoints: {count} of {_bytes(each)}{deltas}, {_bytes(free)} free{enough}"


def _bytes(number: float) -> str:
    for unit in UNITS:
        number /= 1000
        if number < 1000 or unit == UNITS[-1]:
            break
    return f"{number:.3g} {unit}"
