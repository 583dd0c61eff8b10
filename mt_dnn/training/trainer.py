"""A training run: epochs, log, evaluation, checkpoints, resume."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset
from transformers.utils.logging import disable_progress_bar

from data_utils.errors import FlagError, Stopped, WriteError
from data_utils.files import atomic_write, folder_lock, remove_temporary, writable_folder
from data_utils.log_wrapper import create_logger
from data_utils.progress import progress
from data_utils.readers import write_glue_submission, write_score_file
from mt_dnn.batcher import Batch, Collater, MultiTaskBatchSampler, MultiTaskDataset
from mt_dnn.checkpoints.checkpoint import load_checkpoint, load_state, trained_definitions, write_tensors
from mt_dnn.checkpoints.resumption import RunCheckpoints, checkpoint_to_resume, saved_checkpoints
from mt_dnn.configuration.config import Config
from mt_dnn.data.class_weights import class_weights
from mt_dnn.data.run_data import RunData, check_fits_encoder
from mt_dnn.data.unlabeled_batches import UnlabeledBatches
from mt_dnn.export.export import HfExport
from mt_dnn.export.hub import HubRepo
from mt_dnn.export.model_card import card_of_run
from mt_dnn.inference import encode_dataset, eval_model
from mt_dnn.model import MTDNNModel, UpdateReport
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.training.delta_cache import DeltaCache
from mt_dnn.training.failures import SkippedUpdates, one_line_errors
from mt_dnn.training.processes import build_accelerator
from mt_dnn.training.run_log import opening
from mt_dnn.training.run_result import RESULT_FILE, RunResult, metrics_text
from mt_dnn.training.selection import Selection
from mt_dnn.training.stop_signals import StopSignals
from mt_dnn.training.telemetry import METRICS_FILE, Telemetry

CONFIG_FILE = "config.yml"  # all flags of the run, for --config
KEPT_DELTAS = "kept_deltas.bin"  # δ of the run as it goes
BAR_UPDATES = 10  # updates between two readings of the losses for the bar


def train(config: Config) -> RunResult:
    """Train as the configuration says; the whole of `train.py` but for the flags.

    Raises:
        UserError: a mistake in flags, files or definitions; losses that are not finite; a file that cannot be written;
            too little memory; an output folder that another run writes to.
        Stopped: by a signal, after it was saved.
    """
    with ExitStack() as held, one_line_errors():
        trainer = Trainer(config, held)
        try:
            return trainer.run()
        except WriteError as error:
            raise WriteError(f"{error}; {saved_checkpoints(trainer.output_dir)}") from error


class Trainer:
    """One run; see `train`.

    Args:
        held: what is held while the run lasts, the lock of the output folder among it; by default nothing is.
    """

    def __init__(self, config: Config, held: ExitStack | None = None):
        self.config = config
        self.output_dir = writable_folder(config.training.output_dir)
        self.accelerator = build_accelerator(config)
        self.main = self.accelerator.is_main_process
        if held is not None and self.main:
            held.enter_context(folder_lock(self.output_dir, "output_dir"))
            remove_temporary(self.output_dir, "model_")
        self.log = create_logger(config.data.log_file, quiet=not self.main)
        for notice in config.notices:
            self.log.info(notice)
        self.data = RunData(config)
        found = checkpoint_to_resume(config, self.output_dir)
        if found is not None:
            self.data.keep_activations(trained_definitions(found[1]))
        self.selection = Selection.from_flag(config.training.best_metric, self.data)
        training = config.training
        if training.early_stop and not self.selection.parts:
            raise FlagError("--early_stop: no development set with labels ranks the epochs; accepted: 0, or such a set")
        self.sampler = MultiTaskBatchSampler(
            self.data.train,
            training.batch_size,
            max_tokens=training.max_tokens_per_batch,
            mix_opt=config.model.mix_opt,
            ratio=config.model.ratio,
            seed=training.seed,
            group_by_length=not training.no_group_by_length,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
        )
        batches = [self.sampler.batches_in(epoch) for epoch in range(training.epochs)]
        total_updates = sum(math.ceil(count / training.grad_accumulation_step) for count in batches)
        disable_progress_bar()
        set_seed(training.seed)
        weights = class_weights(config, self.data)
        self.model = MTDNNModel(config, self.data.task_defs, total_updates, self.accelerator, class_weights=weights)
        width = config.model.max_seq_len if config.data.do_padding else 0
        for dataset in [*self.data.train, *self.data.unlabeled, *self.data.evaluation.values()]:
            check_fits_encoder(dataset, self.model.network.bert, width)
        self.export: HfExport | None = None
        self.hub: HubRepo | None = None
        if training.save_hf is not None:
            heads = {task: task_id for task_id, task in enumerate(self.data.tasks)}
            self.export = HfExport(config, self.model.network, heads)
            if training.push_to_hub is not None and self.main and not training.encode_mode:
                self.hub = HubRepo(training.push_to_hub, training.hub_private, training.save_hf)
        set_seed(training.seed, device_specific=True)
        pad_token_id = getattr(self.model.network.bert.config, "pad_token_id", None) or 0
        self.collater = Collater(pad_token_id, do_padding=config.data.do_padding, max_seq_len=config.model.max_seq_len)
        self.unlabeled = UnlabeledBatches(
            self.data.unlabeled,
            self.collater,
            training.batch_size,
            max_tokens=training.max_tokens_per_batch,
            seed=training.seed,
            group_by_length=not training.no_group_by_length,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
        )
        kept = self._keep_deltas() if config.adversarial.adv_train and config.adversarial.adv_free else None
        self.result = RunResult(str(self.output_dir))
        self.checkpoints = RunCheckpoints(
            config, self.model, self.data.train, self.unlabeled, kept, self.result, self.output_dir, found
        )
        self.seconds: list[float] = []
        self.started = time.perf_counter()
        self.searched: UpdateReport | None = None  # the last update that had the regularizer
        self.skipped = SkippedUpdates(training.max_skipped, self.data.tasks, self.output_dir)
        self.stop = StopSignals(self.accelerator)
        self.model.stop_requested = self.stop.own

    def _keep_deltas(self) -> DeltaCache:
        """The file of `--adv_free`, made by the main process and mapped by all."""
        adversarial, path = self.config.adversarial, self.output_dir / KEPT_DELTAS
        if any(task.own_labels for task in self.model.network.tasks):
            raise FlagError("--adv_free: the tokens of a MaskLM task are others in every update; accepted: other tasks")
        lengths = np.concatenate([dataset.row_lengths for dataset in self.data.train])
        hidden = NoiseInjection(self.model.network.encoder, adversarial.adv_norm_level).size
        gigabytes = DeltaCache.bytes_of(lengths, hidden) / 1e9
        if gigabytes > adversarial.adv_free_budget:
            raise FlagError(
                f"--adv_free: the noise of {lengths.sum()} tokens takes {gigabytes:.3g} GB; accepted: at most "
                f"--adv_free_budget, {adversarial.adv_free_budget:g} GB"
            )
        if self.accelerator.num_processes > int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
            raise FlagError("--adv_free: the processes share a file; accepted: processes on one machine")
        if self.main:
            DeltaCache(path, lengths, hidden)
        self.accelerator.wait_for_everyone()
        kept = DeltaCache(path, lengths, hidden, new=False)
        self.model.use_delta_cache(kept)
        return kept

    def run(self) -> RunResult:
        """Train to the last epoch, or until the development sets stop improving."""
        training = self.config.training
        first_epoch, batches_done = self.checkpoints.resume() if training.resume else (0, 0)
        if training.encode_mode:
            self._encode()
            return self.result
        if self.main:
            with atomic_write(self.output_dir / CONFIG_FILE) as file:
                file.write(self.config.to_yaml())
        self.describe(self.config)
        total = self.model.total_updates
        with (
            self.stop,
            Telemetry(
                self.config, self.main, self.accelerator, updates=self.model.updates, epoch=first_epoch
            ) as self.telemetry,
            progress(total=total, initial=self.model.updates, unit="update", main=self.main, leave=True) as self.bar,
        ):
            for epoch in range(first_epoch, training.epochs):
                if self._stopped_improving(epoch):
                    break
                self._train_epoch(epoch, batches_done)
                batches_done = 0
                with self.checkpoints.kept_on_error(epoch, len(self.sampler)):
                    self._evaluate(epoch)
                self.checkpoints.save(f"model_{epoch}.pt", epoch + 1, 0)
                if epoch + 1 < training.epochs and self.stop.requested():
                    self._end(f"model_{epoch}.pt")
            self.telemetry.result(self.result, self.model.updates)
        self.result.seconds_per_update = median(self.seconds) if self.seconds else None
        self._write_result()
        self._save_hf()
        self._sum_up()
        self.model.end()
        if self.hub is not None:
            # At the very end, so that no other process waits for it.
            self.log.info("--push_to_hub: %s", self.hub.push())
        return self.result

    def _stopped_improving(self, epoch: int) -> bool:
        """Whether `--early_stop` ends the run before this epoch, in a resumed run as in an unbroken one."""
        patience = self.config.training.early_stop
        if not patience or epoch - 1 - self.result.best_epoch < patience:
            return False
        self.log.info("no improvement of %s in %d epochs: stopped", self.selection, patience)
        return True

    def _train_epoch(self, epoch: int, batches_done: int) -> None:
        training = self.config.training
        self.sampler.set_epoch(epoch)
        self.sampler.set_position(batches_done)
        start = time.perf_counter()
        for batches in _groups(iter(self._loader()), training.grad_accumulation_step):
            beside = [self.unlabeled.next(batch.task_id) if self.model.regularized else None for batch in batches]
            update = self.model.updates + 1
            # Of the updates before the next regularized one, the first that is logged shows this one's figures.
            measured = any(map(self._is_logged, range(update, update + self.config.adversarial.adv_every)))
            report = self.model.update(*batches, unlabeled=beside, measure_gain=measured)
            batches_done += len(batches)
            if self.model.last_finite:
                self.skipped.none()
                self.searched = self.searched if report.emb_val is None else report
                self.telemetry.add(report)
            else:
                self.skipped.add(epoch, self.model.updates, batches)
            self.bar.update()
            if not self.bar.disable and self.model.updates % BAR_UPDATES == 1:
                self.bar.set_postfix_str(self.telemetry.recent())
            if self._is_logged(update):
                self._log_update(epoch, batches[0])
            self.seconds.append(time.perf_counter() - start)
            inside = f"model_{epoch}_{self.model.updates}.pt"
            wanted = training.save_per_updates_on and self.model.updates % training.save_per_updates == 0
            asked = self.stop.agreed(self.model.last_stop_requested)
            if wanted or asked:
                self.checkpoints.save(inside, epoch, batches_done)
            if asked:
                self._end(inside)
            start = time.perf_counter()

    def _end(self, saved: str) -> None:
        """Stop because a signal asked for it, with the checkpoint of that name just written."""
        number = self.stop.received
        assert number is not None
        self.model.end()
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after update {self.model.updates}; {self.output_dir / saved} "
            "holds the run: --resume goes on with it",
            number,
            told=not self.main,
        )

    def _is_logged(self, update: int) -> bool:
        return update == 1 or update % self.config.training.log_per_updates == 0

    def _loader(self) -> DataLoader[Batch]:
        dataset: Dataset[Any] = MultiTaskDataset(self.data.train)
        return DataLoader(
            dataset,
            sampler=self.sampler,
            batch_size=None,
            collate_fn=self.collater,
            num_workers=self.config.data.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            # Its own generator, for the loader draws a seed for its workers from the default one.
            generator=torch.Generator(),
        )

    def _log_update(self, epoch: int, batch: Batch) -> None:
        task = self.data.tasks[batch.task_id]
        learning_rate = float(self.model.schedule.get_last_lr()[0])
        line = self.telemetry.flush(epoch, self.model.updates, task, self.searched, learning_rate)
        self.log.info("epoch %d, update %d of %d, task %s: %s", epoch, self.model.updates, self.bar.total, task, line)

    def _evaluate(self, epoch: int) -> None:
        metrics: dict[str, dict[str, float]] = {}
        for dataset in self.data.evaluation.values():
            if self.stop.requested():
                self._end(self.checkpoints.save_unevaluated(epoch, len(self.sampler)))
            found = eval_model(
                self.model, dataset, dataset.task_def.metric_meta, self.collater, self.config.training.batch_size_eval
            )
            if self.main:
                path = self.output_dir / f"{dataset.name}_scores_epoch_{epoch}.json"
                write_score_file(path, found.metrics, found.predictions, found.uids, found.scores)
                if self.config.data.glue_format_on:
                    answers = self.model.network.tasks[dataset.task_id].answers(found.scores, found.predictions)
                    write_glue_submission(path.with_suffix(".tsv"), found.uids, answers)
            if found.metrics:
                metrics[dataset.name] = found.metrics
                self.log.info("epoch %d, %s: %s", epoch, dataset.name, metrics_text(found.metrics))
        self.telemetry.evaluation(epoch, self.model.updates, metrics)
        self.result.history.append({"epoch": epoch, "metrics": metrics})
        value = self.selection.value(metrics)
        if value is None or self.result.best_value is None or value > self.result.best_value:
            self.result.best_epoch, self.result.best_value = epoch, value
        self._write_result()

    def _encode(self) -> None:
        """The encoder's output for each test dataset: of its test split, or its dev split where it has no other."""
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
        if self.main:
            with atomic_write(self.output_dir / RESULT_FILE) as file:
                json.dump(asdict(self.result), file, indent=1)

    def _save_hf(self) -> None:
        """Write the best epoch's model for transformers, which the network then holds.

        Where a resume left the best epoch's checkpoint in another folder, it is the last epoch's.
        """
        if self.export is not None and self.main:
            epoch, path = self.result.best_epoch, self.checkpoints.best()
            if path is not None:
                load_state(self.model.network, load_checkpoint(path)["state"], path)
            written = self.result.history[-1]["epoch"] if path is None else epoch
            place = str(self.config.training.save_hf) if self.hub is None else self.hub.name
            card = card_of_run(self.config, self.data, self.result, written, self.accelerator.num_processes, place)
            self.export.write(card)
            which = f"epoch {epoch}"
            if path is None:
                which = f"the last epoch, for {self.output_dir} has no checkpoint of epoch {epoch} of this run"
            self.log.info("--save_hf: %s holds the model of %s", self.export.folder, which)
        self.accelerator.wait_for_everyone()

    def _sum_up(self) -> None:
        """What was found, and where it lies."""
        result, folder = self.result, self.output_dir
        epochs, minutes = len(result.history), (time.perf_counter() - self.started) / 60
        ranked = "no development set ranks the epochs"
        if result.best_value is not None:
            ranked = f"{self.selection}: {result.best_value:.2f}"
        self.log.info("best epoch: %d of 0 to %d (%s); %.1f minutes", result.best_epoch, epochs - 1, ranked, minutes)
        for dataset, metrics in result.metrics.items():
            self.log.info("  %s: %s", dataset, metrics_text(metrics))
        best = self.checkpoints.best()
        names = [] if best is None else [f"{best.name} (the best epoch's checkpoint)"]
        names += [name for name in (CONFIG_FILE, RESULT_FILE, METRICS_FILE) if (folder / name).is_file()]
        if result.metrics:
            names.append(f"*_scores_epoch_{result.best_epoch}.json (its predictions)")
        self.log.info("in %s: %s", folder, ", ".join(names))

    def describe(self, config: Config) -> None:
        """Log what a run with these flags does."""
        for line in opening(config, self.data, self.model.total_updates, self.accelerator):
            self.log.info(line)


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches of each update, in groups of `size`; the last may be smaller."""
    while group := list(islice(batches, size)):
        yield group
