"""A training run: epochs, evaluation, checkpoints and reports."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median

from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

from data_utils.errors import Stopped, WriteError
from data_utils.log_wrapper import create_logger
from data_utils.progress import progress
from data_utils.readers import write_glue_submission, write_score_file
from data_utils.storage.files import atomic_write, folder_lock, remove_temporary, writable_folder
from data_utils.storage.text_files import with_null
from mt_dnn.batcher import Batch, Collater
from mt_dnn.checkpoints.checkpoint import trained_definitions, write_tensors
from mt_dnn.checkpoints.resumption import RunCheckpoints, RunState, checkpoint_to_resume, saved_checkpoints
from mt_dnn.configuration.config import RUN_CONFIG_FILE, Config
from mt_dnn.data.class_weights import class_weights
from mt_dnn.data.run_batches import RunBatches
from mt_dnn.data.run_data import RunData
from mt_dnn.inference import encode_dataset, eval_model
from mt_dnn.model import MTDNNModel
from mt_dnn.reporting.report_points import Heartbeat, ReportPoints, duration
from mt_dnn.reporting.run_log import found, opening, use, written
from mt_dnn.reporting.run_result import RunClock, RunResult, metrics_text
from mt_dnn.reporting.running_losses import RunningLosses
from mt_dnn.reporting.telemetry import METRICS_FILE, Telemetry, set_aside
from mt_dnn.training.delta_cache import delta_cache_of_run
from mt_dnn.training.failures import SkippedUpdates, one_line_errors
from mt_dnn.training.processes import build_accelerator
from mt_dnn.training.run_export import RunExport
from mt_dnn.training.selection import Selection
from mt_dnn.training.stop_signals import StopSignals

RESULT_FILE = "results.json"
BAR_UPDATES = 10  # updates between two readings of the losses for the bar


def train(config: Config) -> RunResult:
    """Train as the configuration says; the whole of `train.py` but for the flags.

    Raises:
        UserError: a mistake in flags, files or definitions; losses that are not finite; a file that cannot be written;
            too little memory; an output folder that another run writes to.
        Stopped: a signal stopped the run, after it was saved.
    """
    with ExitStack() as until_end, one_line_errors():
        trainer = Trainer(config, until_end)
        try:
            return trainer.run()
        except WriteError as error:
            raise WriteError(f"{error}; {saved_checkpoints(trainer.output_dir)}") from error


class Trainer:
    """One run; see `train`.

    Args:
        config: of the run.
        until_end: keeps the lock of the output folder until the run ends; by default the folder is not locked.
        exported_by: output folder of the run whose model in `--save_hf` may be replaced; by default this run's.
    """

    def __init__(self, config: Config, until_end: ExitStack | None = None, exported_by: Path | None = None):
        training = config.training
        self.config = config
        self.output_dir = writable_folder(training.output_dir)
        self.accelerator = build_accelerator(config)
        self.main = self.accelerator.is_main_process
        if until_end is not None and self.main:
            until_end.enter_context(folder_lock(self.output_dir, "output_dir"))
            remove_temporary(self.output_dir, "model_")
        self.log = create_logger(config.data.log_file, quiet=not self.main)
        for notice in config.notices:
            self.log.info(notice)
        self.data = RunData(config)
        checkpoint = checkpoint_to_resume(config, self.output_dir)
        if checkpoint is not None:
            self.data.keep_activations(trained_definitions(checkpoint[1]))
        self.selection = Selection.of_run(training, self.data)
        self.batches = RunBatches(config, self.accelerator.num_processes, self.accelerator.process_index)
        self.sampler = self.batches.sampler(self.data.train)
        self.model = self._build_model(self.batches.updates_in(self.sampler))
        self.export: RunExport | None = None
        if training.save_hf is not None:
            before = exported_by or self.output_dir
            self.export = RunExport(config, self.data, self.model.network, self.accelerator, before)
        set_seed(training.seed, device_specific=True)
        pad_token_id = getattr(self.model.network.bert.config, "pad_token_id", None) or 0
        self.collater = Collater(pad_token_id, do_padding=config.data.do_padding, max_seq_len=config.model.max_seq_len)
        self.unlabeled = self.batches.unlabeled(self.data.unlabeled, self.collater)
        delta_cache = delta_cache_of_run(config, self.model.network, self.data.train, self.accelerator, self.output_dir)
        if delta_cache is not None:
            self.model.use_delta_cache(delta_cache)
        self.result, self.clock, self.losses = RunResult(str(self.output_dir)), RunClock(), RunningLosses()
        state = RunState(self.result, self.clock, self.losses, self.unlabeled, delta_cache)
        self.checkpoints = RunCheckpoints(config, self.model, self.data.train, state, self.output_dir, checkpoint)
        self.points = ReportPoints(training.log_per_updates, self.model.total_updates)
        self.seconds: list[float] = []
        self.skipped = SkippedUpdates(training.max_skipped, self.data.tasks, self.output_dir)
        self.stop = StopSignals(self.accelerator)
        self.model.stop_requested = self.stop.got_signal

    def _build_model(self, total_updates: int) -> MTDNNModel:
        """The model, whose encoder can embed all of the data.

        Raises:
            UserError: it cannot, or flags or files describe no model.
        """
        disable_progress_bar()
        set_seed(self.config.training.seed)
        weights = class_weights(self.config, self.data)
        model = MTDNNModel(self.config, self.data.task_defs, total_updates, self.accelerator, class_weights=weights)
        self.data.check_fits_encoder(model.network.bert)
        return model

    def run(self) -> RunResult:
        """Train to the last epoch, or until the development sets stop improving."""
        training = self.config.training
        first_epoch, batches_done = self.checkpoints.resume() if training.resume else (0, 0)
        if training.encode_mode:
            self._encode()
            return self.result
        if self.main:
            with atomic_write(self.output_dir / RUN_CONFIG_FILE) as file:
                file.write(self.config.to_yaml())
        self.describe(self.config)
        total, done = self.model.total_updates, self.model.updates
        if self.main and self.checkpoints.from_elsewhere:
            set_aside(self.output_dir / METRICS_FILE, self.log.info)
        telemetry = Telemetry(self.config, self.main, self.accelerator, done, first_epoch, self.losses)
        with (
            self.stop,
            telemetry as self.telemetry,
            progress(total=total, initial=done, unit="update", main=self.main, leave=True) as self.bar,
        ):
            self.heartbeat = Heartbeat(self.log, enabled=self.main and self.bar.disable)
            for epoch in range(first_epoch, training.epochs):
                if self._stopped_improving(epoch):
                    break
                self._train_epoch(epoch, batches_done)
                batches_done = 0
                with self.checkpoints.saved_on_error(epoch, len(self.sampler)):
                    self._evaluate(epoch)
                self.checkpoints.save(f"model_{epoch}.pt", epoch + 1, 0)
                if epoch + 1 < training.epochs and self.stop.requested():
                    self._end(f"model_{epoch}.pt")
            self.telemetry.result(self.result, self.model.updates)
        self.result.seconds_per_update = median(self.seconds) if self.seconds else None
        self._write_result()
        best = self.checkpoints.best()
        if self.export is not None and self.main:
            self.export.write(self.result, best)
        self.accelerator.wait_for_everyone()
        for line in self._summary():
            self.log.info(line)
        self.model.end()
        if self.export is not None:
            self.export.push()  # at the very end, so that no other process waits for it
        return self.result

    def _stopped_improving(self, epoch: int) -> bool:
        """Whether `--early_stop` ends the run before this epoch, in a resumed run as in an unbroken one."""
        patience = self.config.training.early_stop
        if not patience or epoch - 1 - self.result.best_epoch < patience:
            return False
        self.log.info("no improvement of %s in %d epochs: stopped", self.selection, patience)
        return True

    def _train_epoch(self, epoch: int, batches_done: int) -> None:
        """Train on what is left of an epoch, counted from 0, after that many of its batches."""
        training, every = self.config.training, self.config.adversarial.adv_every
        self.sampler.set_epoch(epoch)
        self.sampler.set_position(batches_done)
        start = time.perf_counter()
        for batches in _groups(iter(self.loader()), training.grad_accumulation_step):
            unlabeled = [self.unlabeled.next(batch.task_id) if self.model.regularized else None for batch in batches]
            measures_gain = self.points.measures_gain(self.model.updates + 1, every)
            report = self.model.update(*batches, unlabeled=unlabeled, measure_gain=measures_gain)
            batches_done += len(batches)
            if self.model.last_finite:
                self.skipped.reset()
                self.telemetry.add(report)
            else:
                self.skipped.add(epoch, self.model.updates, batches)
            self._report(epoch, batches[0])
            self.seconds.append(time.perf_counter() - start)
            inside = f"model_{epoch}_{self.model.updates}.pt"
            due = training.save_per_updates_on and self.model.updates % training.save_per_updates == 0
            stop_requested = self.stop.agreed(self.model.last_stop_requested)
            if due or stop_requested:
                self.checkpoints.save(inside, epoch, batches_done)
            if stop_requested:
                self._end(inside)
            start = time.perf_counter()

    def loader(self) -> DataLoader[Batch]:
        """Reads the batches from the sampler's position to the end of its epoch."""
        return self.batches.loader(self.data.train, self.sampler, self.collater, self.accelerator.device)

    def _end(self, saved: str) -> None:
        """Stop after a signal; the checkpoint of that name was just written.

        Raises:
            Stopped: always.
        """
        number = self.stop.received
        assert number is not None
        self.model.end()
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after update {self.model.updates}; {self.output_dir / saved} "
            "holds the run: --resume goes on with it",
            number,
            reported=not self.main,
        )

    def _report(self, epoch: int, batch: Batch) -> None:
        """Report the update just made: to the bar, and where it is a point to the log and the curves."""
        updates = self.model.updates
        self.bar.update()
        if not self.bar.disable and updates % BAR_UPDATES == 1:
            self.bar.set_postfix_str(self.telemetry.recent())
        if self.points.includes(updates):
            task = self.data.tasks[batch.task_id]
            learning_rate = float(self.model.schedule.get_last_lr()[0])
            line = self.telemetry.flush(epoch, updates, task, self.losses.searched, learning_rate)
            self.log.info("%s, task %s: %s", self._position(epoch), task, line)
            self.heartbeat.reset()
        self.heartbeat.beat(lambda: f"{self._position(epoch)}{self._pace()}")

    def _position(self, epoch: int) -> str:
        """As "epoch 1 of 3, update 20 of 90"."""
        updates, total = self.model.updates, self.model.total_updates
        return f"epoch {epoch + 1} of {self.config.training.epochs}, update {updates} of {total}"

    def _pace(self) -> str:
        """Seconds an update, and the time left, where an update of this start was timed."""
        if not self.seconds:
            return ""
        each = sum(self.seconds) / len(self.seconds)
        left = duration(each * (self.model.total_updates - self.model.updates))
        return f": {each:.3g} s an update, about {left} left"

    def _evaluate(self, epoch: int) -> None:
        """Score the evaluation sets after an epoch, write score files, and see whether it is the best."""
        metrics: dict[str, dict[str, float]] = {}
        which = f"epoch {epoch + 1} of {self.config.training.epochs}"
        for dataset in self.data.evaluation.values():
            if self.stop.requested():
                self._end(self.checkpoints.save_unevaluated(epoch, len(self.sampler)))

            def beat(done: int, total: int, name: str = dataset.name) -> None:
                self.heartbeat.beat(lambda: f"{which}, {name}: {done} of {total} batches scored")

            evaluation = eval_model(
                self.model, dataset, dataset.task_def.metric_meta, self.collater,
                self.config.training.batch_size_eval, on_batch=beat,
            )  # fmt: skip
            if self.main:
                path = self.output_dir / f"{dataset.name}_scores_epoch_{epoch}.json"
                write_score_file(path, evaluation.metrics, evaluation.predictions, evaluation.uids, evaluation.scores)
                if self.config.data.glue_format_on:
                    task = self.model.network.tasks[dataset.task_id]
                    answers = task.answers(evaluation.scores, evaluation.predictions)
                    write_glue_submission(path.with_suffix(".tsv"), evaluation.uids, answers)
            if evaluation.metrics:
                metrics[dataset.name] = evaluation.metrics
                self.log.info("%s, %s: %s", which, dataset.name, metrics_text(evaluation.metrics))
        self.telemetry.evaluation(epoch, self.model.updates, metrics)
        self.result.history.append({"epoch": epoch, "metrics": metrics})
        value = self.selection.value(metrics)
        if value is None or self.result.best_value is None or value > self.result.best_value:
            self.result.best_epoch, self.result.best_value = epoch, value
        self._write_result()

    def _encode(self) -> None:
        """Write the encoder's output for each test dataset: of its test split, or its dev split without one."""
        for name in self.config.data.test_datasets:
            dataset = self.data.evaluation.get((name, "test")) or self.data.evaluation[name, "dev"]
            encoding = encode_dataset(self.model, dataset, self.collater, self.config.training.batch_size_eval)
            if self.main:
                path = self.output_dir / f"{name}_encoding.pt"
                with atomic_write(path, "wb") as file:
                    write_tensors(file, encoding)
                self.log.info("%s: %s, as %s", path, dataset.name, " x ".join(map(str, encoding.shape)))
        self.model.end()

    def _write_result(self) -> None:
        self.result.seconds = self.clock.seconds()
        if self.main:
            with atomic_write(self.output_dir / RESULT_FILE) as file:
                json.dump(with_null(asdict(self.result)), file, indent=1)

    def _summary(self) -> list[str]:
        """The lines at the end of the run."""
        best = self.checkpoints.best()
        tasks = dict(zip(self.data.tasks, self.data.task_defs, strict=True))
        exported = None if self.export is None else self.export.folder
        return [
            *found(self.result, self.selection),
            *written(self.result, best, self.output_dir, (RUN_CONFIG_FILE, RESULT_FILE, METRICS_FILE)),
            *use(tasks, best, exported),
        ]

    def describe(self, config: Config) -> None:
        """Log what a run with these flags does."""
        for line in opening(config, self.data, self.model.total_updates, self.accelerator):
            self.log.info(line)


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches of each update, in groups of `size`; the last may be smaller."""
    while group := list(islice(batches, size)):
        yield group
