"""The model in training: one optimisation step, predictions, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

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
from mt_dnn.training.word_gradient import WordGradient
from tasks import Values
from tasks.definition import TaskDef

UNLABELED = "unlabeled/"  # before the ids of unlabeled examples, whose noise is their own


class UpdateReport(NamedTuple):
    """What one update did: scalar tensors; None for what the update did not have.

    Losses and rises are means over the tasks' `units`, examples for most, sizes over tokens, of all batches of the
    update; with several processes each has its share, and the mean over processes is that mean.

    task_loss: ℓ; adv_loss: R; emb_val, eff_perturb, delta_size, ascent_rise, chance_rise: as in `Regularization`;
    skipped: share of examples whose search met a number that is not finite; unlabeled: R of the unlabeled examples;
    bregman: μ times the proximal term. token_shares is no mean and no scalar: ‖δ‖₂/‖h‖₂ of each real token of this
    process's examples, (tokens,).
    """

    task_loss: Tensor
    adv_loss: Tensor | None = None
    unlabeled: Tensor | None = None
    bregman: Tensor | None = None
    emb_val: Tensor | None = None
    eff_perturb: Tensor | None = None
    delta_size: Tensor | None = None
    skipped: Tensor | None = None
    ascent_rise: Tensor | None = None
    chance_rise: Tensor | None = None
    token_shares: Tensor | None = None


class Seeded(NamedTuple):
    """A batch as an update meets it, and a seed of this update for each of its rows."""

    batch: Batch
    seeds: list[int]


class Shares(NamedTuple):
    """Weights of an update's batches in one process, with which the mean over processes of the sum over batches is the
    mean over all that is counted. Of one process they are on the host; of several they stay on the device, for to read
    them would make the host wait.

    losses, examples, tokens, unlabeled: (batches,), by what losses of labeled examples are means over, by labeled
    examples, by their tokens, by what losses of unlabeled examples are means over; accompanied: the share of the
    labeled examples that have unlabeled ones beside them, a scalar.
    """

    losses: Tensor
    examples: Tensor
    tokens: Tensor
    unlabeled: Tensor
    accompanied: Tensor

    def of_report(self, position: int) -> list[Tensor]:
        """For each part of an `UpdateReport`, what its value of one batch is multiplied by."""
        weights = dict.fromkeys(UpdateReport._fields, self.losses[position])
        weights |= dict.fromkeys(("emb_val", "eff_perturb", "delta_size"), self.tokens[position])
        weights |= {"unlabeled": self.unlabeled[position], "skipped": self.examples[position]}
        return list(weights.values())


class MTDNNModel:
    """A network with its training objective, optimizer and schedule.

    Args:
        config: the run's configuration.
        task_defs: the tasks in the order of their ids.
        total_updates: length of the learning-rate schedule.
        accelerator: devices, processes and mixed precision; by default as the configuration says.
        network: an existing network; by default built from the configuration's encoder.
        class_weights: by task id, those of its loss.
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
            raise FlagError("--update_bert_opt: generation has no head beside the frozen encoder; accepted: 0")
        self.network.to(self.accelerator.device)
        # Compiled, oneDNN's convolutions would be made anew for every width of batches.
        choose_linears(self.network, "mkl" if config.training.compile else config.training.cpu_linear)
        if config.training.compile:
            try:
                compile_layers(self.network.bert)
            except ValueError as error:
                raise FlagError(f"--compile: {error}") from error
        self.optimizer = build_optimizer(self.network, config.training)
        self.schedule = build_schedule(self.optimizer, config.training, total_updates)
        objective = build_objective(config, self.network, total_updates, class_weights)
        self.perturbation, self.bregman = objective.perturbation, objective.bregman
        self.word_gradient = None
        if not any(task.uses_word_table for task in self.network.tasks):
            self.word_gradient = WordGradient.of(objective, self.network.bert.get_input_embeddings(), self.accelerator)
        self.objective, self.wrapped_optimizer = self.accelerator.prepare(objective, self.optimizer)
        self.word_dropout = WordDropout.of(config)
        self.updates = 0
        self.skipped_steps = 0
        self.last_finite = True  # whether the last update had a finite loss and gradient, and so a step
        self.stop_requested: Callable[[], bool] = lambda: False  # whether this process was asked to stop
        self.last_stop_requested = False  # whether a process was, in the last update

    def cache_deltas(self, cache: DeltaCache) -> None:
        """Cache δ of the training examples between epochs (`--adv_free`)."""
        self.accelerator.unwrap_model(self.objective).delta_cache = cache

    @property
    def regularized(self) -> bool:
        """Whether the next update has the regularizer: not in the plain part of a curriculum, nor between every Nth."""
        if self.perturbation is None or (self.updates + 1) % self.config.adversarial.adv_every:
            return False
        return self.perturbation.begun(self.updates, self.total_updates)

    def update(
        self, *batches: Batch, unlabeled: Sequence[Batch | None] = (), measure_gain: bool = False
    ) -> UpdateReport:
        """One update from the gradients of these batches (more than one: gradient accumulation).

        Each batch is this process's share of a batch of all processes. The gradient is that of the mean over all
        examples of the update (over tokens, where the task's loss is), however they are dealt out among batches and
        processes. Of several tasks in an update each has a mean of its own, with the weight of its examples.

        Args:
            unlabeled: for each batch, examples of its task that are regularized too, or None. They count as a mean of
                their own, times the share of the update's examples that have such beside them.
            measure_gain: measure the ascent gain, at the cost of three forwards a batch.
        """
        self.objective.train()
        own = [self._prepare(batch) for batch in batches]
        beside = [
            None if extra is None else self._prepare(extra, UNLABELED) for extra in unlabeled or [None] * len(batches)
        ]
        shares = self._shares([seeded.batch for seeded in own], [extra and extra.batch for extra in beside])
        reports, token_shares = [], []
        for position, (seeded, extra) in enumerate(zip(own, beside, strict=True)):
            last = position == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                value = self._objective(seeded, extra, measure_gain)
                loss = value.loss * shares.losses[position]
                if value.unlabeled_loss is not None:
                    loss = loss + value.unlabeled_loss * (shares.unlabeled[position] * shares.accompanied)
                self.accelerator.backward(loss)
            found = value.regularization
            if found is not None and found.token_shares is not None:
                token_shares.append(found.token_shares if seeded.batch.counted else found.token_shares[:0])
            parts = zip(_report(value, seeded.batch), shares.of_report(position), strict=True)
            reports.append([part if part is None else part.float() * weight for part, weight in parts])
        columns = [[value for value in column if value is not None] for column in zip(*reports, strict=True)]
        report = UpdateReport(*map(_sum_of, columns))  # type: ignore[arg-type]
        self._step(report)
        return report._replace(token_shares=torch.cat(token_shares)) if token_shares else report

    def _step(self, report: UpdateReport) -> None:
        """Move the parameters, and what follows them: schedule and teacher stay where a step is skipped.

        A step is skipped where the loss or the gradient is not finite, in all processes alike. With the scaler of
        `--fp16` the gradient is the scaler's matter, which then lowers its scale.
        """
        scaler = self.accelerator.scaler
        if self.word_gradient is not None:
            self.word_gradient.finish()
        self.accelerator.unscale_gradients(self.wrapped_optimizer)
        norm = clip_gradients(self.network, self.config.training)
        scale = None if scaler is None else scaler.get_scale()
        self.last_finite, self.last_stop_requested = self._together(report, None if scaler is not None else norm)
        if self.last_finite or scaler is not None:
            self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        if self.word_gradient is not None:
            self.word_gradient.clear()
        self.updates += 1
        # Accelerate's step_was_skipped sees no skip of a fused optimizer, which is called and skips by itself.
        if not self.last_finite or (scaler is not None and scaler.get_scale() < scale):
            self.skipped_steps += 1
            return
        self.schedule.step()
        if self.bregman is not None:
            self.bregman.update(self.network)

    def _together(self, report: UpdateReport, norm: Tensor | None) -> tuple[bool, bool]:
        """Whether losses and gradient are finite numbers in every process, and whether any was asked to stop.

        One reduction and one reading of the device for both.
        """
        losses = [report.task_loss, report.adv_loss, report.unlabeled, report.bregman, norm]
        finite = torch.stack([part for part in losses if part is not None]).isfinite().all()
        if self.accelerator.num_processes == 1:
            return bool(finite), self.stop_requested()
        found = torch.stack([~finite, torch.full_like(finite, self.stop_requested())])
        not_finite, asked = (self.accelerator.reduce(found.float(), "sum") > 0).tolist()
        return not not_finite, asked

    def _prepare(self, batch: Batch, prefix: str = "") -> Seeded:
        """The batch as this update meets it: what its task and `--dropout_w` draw anew is drawn."""
        uids = [prefix + uid for uid in batch.row_uids]
        seeds = example_seeds(self.config.training.seed, self.updates, uids)
        batch = self.network.tasks[batch.task_id].prepare(batch, seeds)
        return Seeded(batch if self.word_dropout is None else self.word_dropout(batch, seeds), seeds)

    def _objective(self, own: Seeded, unlabeled: Seeded | None, measure_gain: bool) -> ObjectiveValue:
        device = self.accelerator.device
        return self.objective(
            own.batch.to(device, non_blocking=True),
            own.seeds,
            None if unlabeled is None else unlabeled.batch.to(device, non_blocking=True),
            [] if unlabeled is None else unlabeled.seeds,
            regularized=self.regularized,
            measure_gain=measure_gain,
        )

    def _shares(self, batches: Sequence[Batch], beside: Sequence[Batch | None]) -> Shares:
        counts = [
            [*self._counts(batch), batch.counted and int(batch.attention_mask.sum()), *self._counts(extra)]
            for batch, extra in zip(batches, beside, strict=True)
        ]
        places = [[batch.task_id, extra is not None] for batch, extra in zip(batches, beside, strict=True)]
        own = torch.tensor([[*row, *place] for row, place in zip(counts, places, strict=True)], dtype=torch.float32).T
        total = own
        if self.accelerator.num_processes > 1:
            own = own.to(self.accelerator.device)
            total = self.accelerator.reduce(own, "sum")
        examples, units, tokens, _, unlabeled, task, has_unlabeled = own
        all_examples, all_units, all_tokens, all_extra, all_unlabeled, *_ = total
        same_task = task == task.unsqueeze(1)

        def share(part: Tensor, whole: Tensor) -> Tensor:
            return part * self.accelerator.num_processes / whole.sum().clamp(min=1)

        return Shares(
            share(_in_examples(units, all_units, all_examples, same_task), all_examples),
            share(examples, all_examples),
            share(tokens, all_tokens),
            share(_in_examples(unlabeled, all_unlabeled, all_extra, same_task), all_extra),
            (all_examples * has_unlabeled).sum() / all_examples.sum(),
        )

    def _counts(self, batch: Batch | None) -> tuple[int, int]:
        """A batch's examples that count in a mean over all processes, and the units of their loss."""
        if batch is None or not batch.counted:
            return 0, 0
        return batch.counted, self.network.tasks[batch.task_id].units(batch)

    def predict(self, batch: Batch) -> tuple[Values, Values]:
        """Scores and predictions of a batch's examples, as its task has them, in evaluation mode."""
        self.network.eval()
        batch = batch.to(self.accelerator.device)
        with torch.inference_mode(), self.accelerator.autocast():
            return self.network.tasks[batch.task_id].infer(self.network, batch)

    def encode(self, batch: Batch) -> Tensor:
        """The encoder's last hidden states, (examples, tokens, hidden), in evaluation mode."""
        self.network.eval()
        batch = batch.to(self.accelerator.device)
        with torch.inference_mode(), self.accelerator.autocast():
            return self.network.encode(batch.input_ids, batch.token_type_ids, batch.attention_mask)

    def end(self) -> None:
        """Leave the other processes: no more updates.

        DistributedDataParallel goes before their group does. Were it the last to hold the group, it would wait for
        gloo's threads with the interpreter's lock held, which they need to let go of the last tensors.
        """
        self.objective = self.accelerator.unwrap_model(self.objective)
        if self.accelerator.num_processes > 1:
            self.accelerator.free_memory()
        self.accelerator.end_training()

    def save(self, path: str, progress: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint; call it in the main process.

        Args:
            progress: what a resume needs beside parameters and optimizer.
        """
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
        save_checkpoint(path, content)

    def load(self, path: str) -> tuple[dict[str, Any], bool]:
        """`take_over` a checkpoint by its name."""
        return self.take_over(load_checkpoint(path), path)

    def take_over(self, content: Mapping[str, Any], path: Path | str) -> tuple[dict[str, Any], bool]:
        """Take over parameters and, where the optimizer is of the same kind, its state.

        Args:
            content: of `load_checkpoint`.
            path: named in errors.

        Returns:
            The checkpoint's progress (empty for MT-DNN's) and whether the optimizer's state was taken over.
        """
        load_state(self.network, content["state"], path)
        taken = load_optimizer_state(self.optimizer, content.get("optimizer", {}))
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
                self.bregman.load_state_dict(named_as_in(self.bregman.state_dict(), content["bregman"]))
        return progress, taken


def _in_examples(units: Tensor, all_units: Tensor, all_examples: Tensor, same_task: Tensor) -> Tensor:
    """Units of batches in examples: those of a task weigh alike, and all of them together as much as its examples.

    Args:
        units, all_units, all_examples: (batches,), of a process and of all.
        same_task: (batches, batches), which batches are of one task.
    """
    examples_of_task, units_of_task = (same_task.mul(counts).sum(1) for counts in (all_examples, all_units))
    return units * (examples_of_task / units_of_task.clamp(min=1))


def _sum_of(column: Sequence[Tensor]) -> Tensor | None:
    """The sum over batches of what some of them have; None where none has it."""
    return torch.stack(list(column)).sum() if len(column) > 1 else next(iter(column), None)


def _report(value: ObjectiveValue, batch: Batch) -> UpdateReport:
    report = UpdateReport(value.task_loss, unlabeled=value.unlabeled, bregman=value.bregman)
    found = value.regularization
    if found is None:
        return report
    return report._replace(
        adv_loss=found.loss.detach(),
        emb_val=found.emb_val,
        eff_perturb=found.eff_perturb,
        delta_size=found.delta_size,
        skipped=found.skipped / len(batch.attention_mask),
        ascent_rise=found.ascent_rise,
        chance_rise=found.chance_rise,
    )
