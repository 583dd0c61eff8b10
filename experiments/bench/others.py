"""The steps that ours are compared with: transformers' Trainer, smart-pytorch, and a stand-in for MT-DNN."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Mapping
from tempfile import gettempdir
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from data_utils.errors import UserError
from mt_dnn.batcher import Batch
from mt_dnn.configuration.config import Config
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.training.optim import build_optimizer, build_schedule, clip_gradients, decay_groups
from tasks.definition import TaskDef

Step = Callable[[Batch], object]

SMART_PYTORCH = "smart-pytorch==0.0.4"
SMART_PYTORCH_WEIGHT = 0.02  # as in its README

# The noise of MT-DNN's release: its command-line defaults.
NOISE_VAR = 1e-5
STEP_SIZE = 1e-5
EPSILON = 1e-6
ALPHA = 1.0


class Contest(NamedTuple):
    """What all rows share.

    network: one network of one task, with its head; encoder: its encoder's name; task_def: its task's definition;
    lengths: tokens of each example of the data, (examples,); flags: of `train.py`, for all rows that have such.
    """

    network: SANBertNetwork
    encoder: str
    task_def: TaskDef
    lengths: np.ndarray
    flags: Mapping[str, object] = MappingProxyType({})


def trainer_step(contest: Contest, config: Config) -> Step:
    """A step of transformers' Trainer: its `training_step`, then what its loop does with the gradients.

    The loop's callbacks and its logging are left out.
    """
    trainer = build_trainer(contest, config)
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1
    encoder = contest.network.bert
    total = torch.zeros((), device=encoder.device)

    def step(batch: Batch) -> None:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
        loss = trainer.training_step(model, inputs | _types(encoder, batch))
        if torch.isnan(loss) or torch.isinf(loss):
            raise UserError("the Trainer's loss is not finite")
        total.add_(loss)
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()

    return step


def build_trainer(contest: Contest, config: Config) -> Any:
    """A Trainer of transformers' own classifier over the network's encoder, set as our run is.

    Raises:
        UserError: transformers has no classifier for this encoder.
    """
    encoder, training = contest.network.bert, config.training
    encoder_config = copy.deepcopy(encoder.config)
    encoder_config.num_labels = contest.task_def.n_class
    try:
        model = AutoModelForSequenceClassification.from_config(encoder_config)
    except ValueError as error:
        raise UserError(f"transformers has no classifier for {encoder_config.model_type}") from error
    setattr(model, model.base_model_prefix, encoder)
    arguments = TrainingArguments(
        output_dir=gettempdir(),  # nothing is written there
        report_to="none",
        save_strategy="no",
        num_train_epochs=1,
        optim="adamw_torch_fused",
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adam_epsilon=training.adam_eps,
        max_grad_norm=training.global_grad_clipping,
        lr_scheduler_type="constant",
        bf16=training.bf16,
        fp16=training.fp16,
        use_cpu=encoder.device.type == "cpu",
    )
    return Trainer(model=model, args=arguments)


def smart_pytorch_step(contest: Contest, config: Config) -> Step:
    """smart-pytorch's SMARTLoss, used as in its README, with the optimizer and the clipping of our own steps.

    Its evaluation takes the word embeddings (`inputs_embeds`) to the logits; losses and hyperparameters are its own.

    Raises:
        UserError: it is not installed.
    """
    try:
        library: Any = importlib.import_module("smart_pytorch")
    except ImportError:
        raise UserError(f"not installed; make bench installs it, or: pip install --no-deps {SMART_PYTORCH}") from None
    network, training = contest.network, config.training
    optimizer = build_optimizer(network, training)
    schedule = build_schedule(optimizer, training, total_updates=1)
    device = network.bert.device.type
    scaler = torch.amp.GradScaler(device, enabled=training.fp16)
    half = torch.float16 if training.fp16 else torch.bfloat16

    def step(batch: Batch) -> None:
        network.train()
        with torch.autocast(device, half, enabled=training.bf16 or training.fp16):
            evaluate = embedded_forward(network, batch)
            regularizer = library.SMARTLoss(evaluate, library.kl_loss, loss_last_fn=library.sym_kl_loss)
            embeddings = network.bert.get_input_embeddings()(batch.input_ids)
            logits = evaluate(embeddings)
            loss = _task_loss(logits, batch) + SMART_PYTORCH_WEIGHT * regularizer(embeddings, logits)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_gradients(network, training)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()

    return step


def standin_step(contest: Contest, config: Config) -> Step:
    """A plain step as MT-DNN does it: Adamax parameter by parameter, and the loss read back."""
    return _standin(contest, config, standin_loss)


def standin_smart_step(contest: Contest, config: Config) -> Step:
    """A SMART step as MT-DNN does it, eight forwards' worth of arithmetic; the rest as in `standin_step`."""
    return _standin(contest, config, standin_smart_loss)


def _standin(contest: Contest, config: Config, loss_of: Callable[[SANBertNetwork, Batch], Tensor]) -> Step:
    network, training = contest.network, config.training
    optimizer = PlainAdamax(decay_groups(network, training.weight_decay), training.learning_rate, training.adam_eps)

    def step(batch: Batch) -> float:
        network.train()
        loss = loss_of(network, batch)
        network.zero_grad()
        loss.backward()
        clip_grad_norm_(network.parameters(), training.global_grad_clipping)
        optimizer.step()
        return loss.item()

    return step


def standin_loss(network: SANBertNetwork, batch: Batch) -> Tensor:
    """The task loss of a clean pass."""
    logits = network(batch.input_ids, batch.token_type_ids, batch.attention_mask)
    return _task_loss(logits, batch)


def standin_smart_loss(network: SANBertNetwork, batch: Batch) -> Tensor:
    """Task loss and SMART's regularizer [Jiang et al. 2020, Algorithm 1], K = 1, with MT-DNN's norm and sizes.

    Clean forward, ascent forward, backward to the noise alone, final forward; the caller's backward goes through both.
    """
    evaluate = embedded_forward(network, batch)
    embeddings = network.bert.get_input_embeddings()(batch.input_ids)
    logits = evaluate(embeddings)
    noise = (NOISE_VAR * torch.randn_like(embeddings)).requires_grad_()
    ascent = _symmetric_kl(evaluate(embeddings.detach() + noise), logits.detach()).sum()
    (gradient,) = torch.autograd.grad(ascent, noise)
    if not gradient.norm().isfinite():
        raise UserError("the stand-in's gradient is not finite")
    moved = noise.detach() + STEP_SIZE * gradient
    noise = moved / (moved.abs().amax(-1, keepdim=True) + EPSILON)
    regularizer = _symmetric_kl(evaluate(embeddings + noise), logits).mean()
    return _task_loss(logits, batch) + ALPHA * regularizer


def _task_loss(logits: Tensor, batch: Batch) -> Tensor:
    assert batch.labels is not None  # batches come from a training file
    return cross_entropy(logits, batch.labels)


def _symmetric_kl(logits: Tensor, others: Tensor) -> Tensor:
    """KL(P‖Q) + KL(Q‖P) of each row, (batch,), the first distribution of each detached, as in MT-DNN."""
    first, second = log_softmax(logits, -1), log_softmax(others, -1)
    halves = (
        kl_div(first, second.detach(), reduction="none", log_target=True),
        kl_div(second, first.detach(), reduction="none", log_target=True),
    )
    return (halves[0] + halves[1]).sum(-1)


def embedded_forward(network: SANBertNetwork, batch: Batch) -> Callable[[Tensor], Tensor]:
    """The way from word embeddings (batch, tokens, hidden) to the logits of a batch."""

    def evaluate(embeddings: Tensor) -> Tensor:
        options = _types(network.bert, batch)
        output = network.bert(inputs_embeds=embeddings, attention_mask=batch.attention_mask, **options)
        return network.scoring_list[0](output.last_hidden_state)

    return evaluate


def _types(encoder: nn.Module, batch: Batch) -> dict[str, Tensor]:
    has_types = getattr(encoder.config, "type_vocab_size", 0) > 1
    return {"token_type_ids": batch.token_type_ids} if has_types else {}


class PlainAdamax:
    """Adamax [Kingma & Ba 2015, section 7.1] with decoupled weight decay, one parameter after the other.

    The arithmetic of `mt_dnn.training.optim.DecoupledAdamax`; a stand-in of its own, for that one may become faster.

    Args:
        groups: parameter groups, each with its `params` and `weight_decay`.
        learning_rate: constant.
        eps: added to |g|.
    """

    BETAS = (0.9, 0.999)

    def __init__(self, groups: Iterable[dict[str, Any]], learning_rate: float, eps: float):
        self.groups = list(groups)
        self.learning_rate = learning_rate
        self.eps = eps
        self.moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self.updates = 0

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        self.updates += 1
        beta1, beta2 = self.BETAS
        rate = self.learning_rate / (1 - beta1**self.updates)
        for group in self.groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter not in self.moments:
                    self.moments[parameter] = (torch.zeros_like(parameter), torch.zeros_like(parameter))
                mean, largest = self.moments[parameter]
                parameter.mul_(1 - self.learning_rate * group["weight_decay"])
                mean.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                torch.maximum(largest.mul_(beta2), parameter.grad.abs().add_(self.eps), out=largest)
                parameter.addcdiv_(mean, largest, value=-rate)
