"""The model in training: one update, predictions, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from data_utils.errors import FlagError
from module.encoder import compile_layers
from module.linear import choose_linears
from mt_dnn.batcher import Batch
from mt_dnn.checkpoints.build import build_network, build_objective
from mt_dnn.checkpoints.checkpoint import load_checkpoint, load_state, named_as_in, save_checkpoint
from mt_dnn.checkpoints.mtdnn_config import to_mtdnn
from mt_dnn.configuration.config import Config
from mt_dnn.data.word_dropout import WordDropout
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.perturbation.noise import example_seeds
from mt_dnn.training.delta_cache import DeltaCache
from mt_dnn.training.objective import ObjectiveValue
from mt_dnn.training.optim import build_optimizer, build_schedule, clip_gradients, load_optimizer_state
from mt_dnn.training.processes import build_accelerator
from mt_dnn.training.sharding import local_part, release_group, shard_parameters, sharded_like, whole
from mt_dnn.training.update import BatchWeights, UpdateReport, in_examples, report_of, sum_of_values
from mt_dnn.training.word_gradient import WordGradient
from tasks import Values
from tasks.definition import TaskDef

UNLABELED = "unlabeled/"  # prefix of the ids of unlabeled examples, so that their noise seeds differ


class SeededBatch(NamedTuple):
    """A batch with this update's masking and dropout of words, and one noise seed per row."""

    batch: Batch
    seeds: list[int]


class MTDNNModel:
    """A network with its training objective, optimizer and schedule.

    Args:
        config: the run's configuration.
        task_defs: the tasks in the order of their ids.
        total_updates: length of the learning-rate schedule.
        accelerator: devices, processes and mixed precision; by default from the configuration.
        network: an existing network; by default built from the configuration's encoder.
        class_weights: by task id, the class weights of its loss.

    Raises:
        FlagError: the configuration leaves nothing to train, or this encoder cannot be compiled.
    """

    def __init__(
        self,
        config: Config,
        task_defs: Sequence[TaskDef],
        total_updates: int = 1,
        accelerator: Accelerator | None = None,
        network: SANBertNetwork | None = None,
        class_weights: Mapping[int, Sequence[float]] | None = None,
    ):
        self.config = config
        self.task_defs = list(task_defs)
        self.total_updates = total_updates
        self.accelerator = accelerator or build_accelerator(config)
        self.network = network or build_network(config, task_defs)
        for parameter in self.network.bert.parameters():
            parameter.requires_grad_(config.model.update_bert_opt == 0)
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise FlagError("--update_bert_opt: found 1, but generation trains no head; accepted: 0")
        self.sharded = config.training.fsdp
        if not self.sharded:  # sharding moves each process's share alone
            self.network.to(self.accelerator.device)
        # Compiled, oneDNN's convolutions would be recompiled for every batch width.
        choose_linears(self.network, "mkl" if config.training.compile else config.training.cpu_linear)
        if config.training.compile:
            try:
                compile_layers(self.network.bert)
            except ValueError as error:
                raise FlagError(f"--compile: {error}") from error
        objective = build_objective(config, self.network, total_updates, class_weights)
        self.perturbation, self.bregman = objective.perturbation, objective.bregman
        if self.sharded:
            teachers = [] if self.bregman is None else [cast(SANBertNetwork, self.bregman.teacher)]
            self._mesh = shard_parameters([self.network, *teachers], self.accelerator)
        self.optimizer = build_optimizer(self.network, config.training)
        self.schedule = build_schedule(self.optimizer, config.training, total_updates)
        self.word_gradient = None
        if not self.sharded and not any(task.uses_word_table for task in self.network.tasks):
            self.word_gradient = WordGradient.of(objective, self.network.bert.get_input_embeddings(), self.accelerator)
        # Sharded parameters average their gradients themselves, without DistributedDataParallel.
        self.objective = self.accelerator.prepare_model(objective, evaluation_mode=self.sharded)
        self.wrapped_optimizer = self.accelerator.prepare(self.optimizer)
        self.word_dropout = WordDropout.of(config)
        self.updates = 0
        self.skipped_steps = 0
        self.last_finite = True  # whether the last update had a finite loss and gradient, and so a step
        self.stop_requested: Callable[[], bool] = lambda: False  # whether a stop of this process was requested
        self.last_stop_requested = False  # whether a stop of any process was requested at the last update

    def use_delta_cache(self, delta_cache: DeltaCache) -> None:
        """Start each search from δ of the epoch before (`--adv_free`)."""
        self.accelerator.unwrap_model(self.objective).delta_cache = delta_cache

    @property
    def regularized(self) -> bool:
        """Whether the next update has the regularizer, as `--adv_start_ratio` and `--adv_every` say."""
        if self.perturbation is None or (self.updates + 1) % self.config.adversarial.adv_every:
            return False
        return self.perturbation.is_active(self.updates, self.total_updates)

    def update(
        self, *batches: Batch, unlabeled: Sequence[Batch | None] = (), measure_gain: bool = False
    ) -> UpdateReport:
        """One update from the gradients of these batches (more than one: gradient accumulation).

        Each batch is this process's part of a batch of all processes. The gradient is that of the mean over examples
        (over tokens, if the task's loss is a mean over tokens), however the examples are distributed over
        batches and processes. With several tasks in an update, each task's mean is weighted by its number of examples.

        Args:
            unlabeled: for each batch, unlabeled examples of its task, or None. Their mean R is multiplied by the share
                of the update's examples whose batch comes with an unlabeled one.
            measure_gain: measure the ascent gain, at the cost of three forwards per batch.
        """
        self.objective.train()
        labeled = [self._prepare(batch) for batch in batches]
        extras = [
            None if extra is None else self._prepare(extra, UNLABELED) for extra in unlabeled or [None] * len(batches)
        ]
        weights = self._weights([seeded.batch for seeded in labeled], [extra and extra.batch for extra in extras])
        reports, relative_sizes = [], []
        for position, (seeded, extra) in enumerate(zip(labeled, extras, strict=True)):
            last = position == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                value = self._objective(seeded, extra, measure_gain)
                loss = value.loss * weights.losses[position]
                if value.unlabeled_loss is not None:
                    loss = loss + value.unlabeled_loss * (weights.unlabeled[position] * weights.unlabeled_share)
                self.accelerator.backward(loss)
            result = value.regularization
            if result is not None and result.relative_sizes is not None:
                relative_sizes.append(result.relative_sizes if seeded.batch.counted else result.relative_sizes[:0])
            parts = zip(report_of(value, seeded.batch), weights.for_report(position), strict=True)
            reports.append([part if part is None else part.float() * weight for part, weight in parts])
        columns = [[value for value in column if value is not None] for column in zip(*reports, strict=True)]
        report = UpdateReport(*map(sum_of_values, columns))  # type: ignore[arg-type]
        self._step(report)
        return report._replace(relative_sizes=torch.cat(relative_sizes)) if relative_sizes else report

    def _step(self, report: UpdateReport) -> None:
        """Update the parameters, then the learning-rate schedule and the teacher; a skipped step updates none of them.

        All processes skip the step if the loss or the gradient of one is not finite. With `--fp16` the gradient scaler
        checks the gradient itself, and lowers its scale.
        """
        scaler = self.accelerator.scaler
        if self.word_gradient is not None:
            self.word_gradient.finish()
        self.accelerator.unscale_gradients(self.wrapped_optimizer)
        norm = clip_gradients(self.network, self.config.training)
        scale = None if scaler is None else scaler.get_scale()
        self.last_finite, self.last_stop_requested = self._agree(report, None if scaler is not None else norm)
        if self.last_finite or scaler is not None:
            self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        if self.word_gradient is not None:
            self.word_gradient.clear()
        self.updates += 1
        # accelerate's step_was_skipped does not detect the skip of a fused optimizer, which skips by itself.
        if not self.last_finite or (scaler is not None and scaler.get_scale() < scale):
            self.skipped_steps += 1
            return
        self.schedule.step()
        if self.bregman is not None:
            self.bregman.update(self.network)

    def _agree(self, report: UpdateReport, norm: Tensor | None) -> tuple[bool, bool]:
        """Whether losses and gradient are finite in every process, and whether a stop of any process was requested.

        Both take one reduction and one transfer from the device.
        """
        losses = [report.task_loss, report.adv_loss, report.unlabeled, report.bregman, norm]
        finite = torch.stack([part for part in losses if part is not None]).isfinite().all()
        if self.accelerator.num_processes == 1:
            return bool(finite), self.stop_requested()
        flags = torch.stack([~finite, torch.full_like(finite, self.stop_requested())])
        not_finite, stop_requested = (self.accelerator.reduce(flags.float(), "sum") > 0).tolist()
        return not not_finite, stop_requested

    def _prepare(self, batch: Batch, prefix: str = "") -> SeededBatch:
        """The batch with what its task (masked words) and `--dropout_w` draw for this update.

        Args:
            prefix: put before the examples' ids, from which the seeds are derived.
        """
        uids = [prefix + uid for uid in batch.row_uids]
        seeds = example_seeds(self.config.training.seed, self.updates, uids)
        batch = self.network.tasks[batch.task_id].prepare(batch, seeds)
        return SeededBatch(batch if self.word_dropout is None else self.word_dropout(batch, seeds), seeds)

    def _objective(self, labeled: SeededBatch, unlabeled: SeededBatch | None, measure_gain: bool) -> ObjectiveValue:
        device = self.accelerator.device
        return self.objective(
            labeled.batch.to(device, non_blocking=True),
            labeled.seeds,
            None if unlabeled is None else unlabeled.batch.to(device, non_blocking=True),
            [] if unlabeled is None else unlabeled.seeds,
            regularized=self.regularized,
            measure_gain=measure_gain,
        )

    def _weights(self, batches: Sequence[Batch], extras: Sequence[Batch | None]) -> BatchWeights:
        columns = [
            [
                *self._counts(batch),
                batch.counted and int(batch.attention_mask.sum()),
                *self._counts(extra),
                batch.task_id,
                extra is not None,
            ]
            for batch, extra in zip(batches, extras, strict=True)
        ]
        local = torch.tensor(columns, dtype=torch.float32).T
        total = local
        if self.accelerator.num_processes > 1:
            local = local.to(self.accelerator.device)
            total = self.accelerator.reduce(local, "sum")
        examples, units, tokens, _, unlabeled, task, has_unlabeled = local
        all_examples, all_units, all_tokens, all_extra, all_unlabeled, *_ = total
        same_task = task == task.unsqueeze(1)

        def share(counts: Tensor, all_counts: Tensor) -> Tensor:
            return counts * self.accelerator.num_processes / all_counts.sum().clamp(min=1)

        return BatchWeights(
            share(in_examples(units, all_units, all_examples, same_task), all_examples),
            share(examples, all_examples),
            share(tokens, all_tokens),
            share(in_examples(unlabeled, all_unlabeled, all_extra, same_task), all_extra),
            (all_examples * has_unlabeled).sum() / all_examples.sum(),
        )

    def _counts(self, batch: Batch | None) -> tuple[int, int]:
        """The number of a batch's examples that a mean over all processes includes, and of the units of their loss."""
        if batch is None or not batch.counted:
            return 0, 0
        return batch.counted, self.network.tasks[batch.task_id].units(batch)

    def predict(self, batch: Batch) -> tuple[Values, Values]:
        """Scores and predictions of a batch's examples, in the form of its task, in evaluation mode."""
        self.network.eval()
        batch = batch.to(self.accelerator.device)
        # The buffers that sharded parameters are gathered into have to serve for training, too.
        without_graph = torch.no_grad() if self.sharded else torch.inference_mode()
        with without_graph, self.accelerator.autocast():
            return self.network.tasks[batch.task_id].infer(self.network, batch)

    def encode(self, batch: Batch) -> Tensor:
        """The encoder's last hidden states, (examples, tokens, hidden), in evaluation mode."""
        self.network.eval()
        batch = batch.to(self.accelerator.device)
        with torch.inference_mode(), self.accelerator.autocast():
            return self.network.encode(batch.input_ids, batch.token_type_ids, batch.attention_mask)

    def end(self) -> None:
        """Leave the process group: no more updates.

        DistributedDataParallel is released before the group. If it held the last reference to the group, it would wait
        for gloo's threads while it holds the GIL, which these threads need to release their last tensors.
        """
        self.objective = self.accelerator.unwrap_model(self.objective)
        if self.accelerator.num_processes > 1:
            self.accelerator.free_memory()
        if self.sharded:  # shards hold the group, too
            del self.network, self.objective, self.optimizer, self.wrapped_optimizer, self.schedule, self.bregman
            release_group(self._mesh)
        self.accelerator.end_training()

    def is_finite(self) -> bool:
        """Whether all parameters are finite, those of all processes if they are sharded."""
        finite = all(bool(local_part(parameter).isfinite().all()) for parameter in self.network.parameters())
        if not self.sharded:
            return finite
        wrong = torch.tensor(float(not finite), device=self.accelerator.device)
        return float(self.accelerator.reduce(wrong, "sum")) == 0

    def save(self, path: str, progress: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint. All processes call it, and the main one writes.

        Args:
            progress: what a resume needs in addition to parameters and optimizer.
        """
        main = self.accelerator.is_main_process
        if not main and not self.sharded:
            return
        content = {
            "state": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "config": to_mtdnn(self.config, self.network, self.accelerator.device.type == "cuda"),
            "settings": {**self.config.to_flat(), **self.network.bert.config.to_dict()},
            "progress": {**(progress or {}), "updates": self.updates, "skipped_steps": self.skipped_steps},
        }
        if self.accelerator.scaler is not None:
            content["scaler"] = self.accelerator.scaler.state_dict()
        if self.bregman is not None:
            content["bregman"] = self.bregman.state_dict()
        if self.sharded:
            content = whole(content, main)
        if main:
            save_checkpoint(path, content)

    def load(self, path: str) -> tuple[dict[str, Any], bool]:
        """Read a checkpoint file and `restore` it."""
        return self.restore(load_checkpoint(path), path)

    def restore(self, content: Mapping[str, Any], path: Path | str) -> tuple[dict[str, Any], bool]:
        """Load parameters from a checkpoint, and the optimizer's state if the optimizer is of the same kind.

        Args:
            content: the result of `load_checkpoint`.
            path: the file, for error messages.

        Returns:
            The checkpoint's progress (empty in MT-DNN's checkpoints) and whether the optimizer's state was loaded.
        """
        load_state(self.network, content["state"], path)
        optimizer_loaded = load_optimizer_state(self.optimizer, content.get("optimizer", {}))
        progress = content.get("progress", {})
        self.updates = int(progress.get("updates", 0))
        self.skipped_steps = int(progress.get("skipped_steps", 0))
        steps = self.updates - self.skipped_steps
        self.schedule = build_schedule(self.optimizer, self.config.training, self.total_updates, steps)
        if self.accelerator.scaler is not None and content.get("scaler"):
            self.accelerator.scaler.load_state_dict(content["scaler"])
        if self.bregman is not None:
            self.bregman.start(self.network)
            if "bregman" in content:
                own = self.bregman.state_dict()
                saved = named_as_in(own, content["bregman"])
                self.bregman.load_state_dict(
                    {name: sharded_like(tensor, own.get(name, tensor)) for name, tensor in saved.items()}
                )
        return progress, optimizer_loaded
