"""Builds networks and training objectives from a configuration or a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data_utils.errors import DataError, FlagError, TaskDefError
from data_utils.task_def import EncoderModelType
from module.encoder import checkpoint_activations, encoder_from_config, is_checkpoint, load_encoder, without_attention
from mt_dnn.checkpoints.checkpoint import load_checkpoint, network_of, trained_definitions
from mt_dnn.configuration.config import Config
from mt_dnn.loss import DIVERGENCES, LOSS_REGISTRY, Criterion, LossCriterion
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.perturbation import PERTURBATIONS, AdversarialPerturbation, MtdnnReleasePerturbation, SiftPerturbation
from mt_dnn.perturbation.injection import UnsupportedLevelError
from mt_dnn.training.bregman import BregmanTerm
from mt_dnn.training.objective import TrainingObjective
from tasks import Task, needs_decoder
from tasks.definition import TaskDef

logger = logging.getLogger(__name__)


def build_network(config: Config, task_defs: Sequence[TaskDef]) -> SANBertNetwork:
    """The network over the configuration's encoder: by name, from a folder, or out of an MT-DNN checkpoint.

    Of a checkpoint only the encoder is used; the heads are new, because the tasks may be others. With
    `--encoder_type 4` only its word embeddings are used, under LSTMs.
    """
    model, training = config.model, config.training
    opt = {**config.to_flat(), "tokenizer": config.tokenizer, "task_def_list": list(task_defs)}
    settings: dict[str, Any] = {
        "with_decoder": needs_decoder(task_defs),
        "dropout_p": training.bert_dropout_p,
        "num_hidden_layers": model.num_hidden_layers,
    }
    if not is_checkpoint(config.encoder):
        encoder = load_encoder(config.encoder, cache_dir=training.transformer_cache, **settings)
        network = SANBertNetwork(opt, encoder)
        for task, head in zip(network.tasks, network.scoring_list, strict=True):
            task.take_over_head(head, config.encoder)
    else:
        content = load_checkpoint(config.encoder)
        if model.num_hidden_layers > 0:
            content["state"] = _lowest_layers(content["state"], model.num_hidden_layers)

        def over_encoder() -> SANBertNetwork:
            return SANBertNetwork(opt, encoder_from_config(content["config"], **settings))

        network = network_of(content, over_encoder, config.encoder, encoder_only=True)
    if model.encoder_type == EncoderModelType.SAN:
        network = SANBertNetwork(opt, without_attention(network.bert, training.bert_dropout_p))
    if training.grad_checkpointing:
        try:
            checkpoint_activations(network.bert)
        except ValueError as error:
            raise FlagError(f"--grad_checkpointing: {error}") from error
    return network


def _lowest_layers(state: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """A checkpoint's parameters without the encoder's layers from number `count` on; a decoder keeps all of its own."""

    def stays(name: str) -> bool:
        layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        return layer < count or name.startswith("bert.decoder.")

    return {name: tensor for name, tensor in state.items() if stays(name)}


def restore_network(path: str) -> tuple[SANBertNetwork, dict[str, Any]]:
    """The whole network of a checkpoint, heads included, and the checkpoint's flat configuration."""
    return network_in(load_checkpoint(path), path)


def network_in(content: Mapping[str, Any], path: str) -> tuple[SANBertNetwork, dict[str, Any]]:
    """The result of `restore_network` for a checkpoint that was loaded from `path`."""
    listed, trained = content["config"]["task_def_list"], trained_definitions(content)
    if not listed:
        raise DataError("holds no task definitions (task_def_list); its heads cannot be rebuilt", path)
    ignored = sorted({own.actf for own, found in zip(listed, trained, strict=True) if own.actf != found.actf})
    if ignored:
        logger.info(
            "%s: written by MT-DNN, where `actf` (%s) has no effect: its heads are used without an activation",
            path,
            ", ".join(ignored),
        )
    # A file from elsewhere must not choose the folder for downloads.
    flat = {
        **content["config"],
        "task_def_list": trained,
        "transformer_cache": Config().training.transformer_cache,
    }

    def whole() -> SANBertNetwork:
        return SANBertNetwork({**flat, "tokenizer": Config.from_flat(flat).tokenizer})

    return network_of(content, whole, path), flat


def build_objective(
    config: Config,
    network: SANBertNetwork,
    total_updates: int = 1,
    class_weights: Mapping[int, Sequence[float]] | None = None,
) -> TrainingObjective:
    """The task losses, with the regularizer and the proximal term of the configuration.

    Args:
        class_weights: by task id, the class weights of the task loss (`mt_dnn/data/class_weights.py`).
    """
    adversarial = config.adversarial
    criteria = [_criterion(task, "loss") for task in network.tasks]
    for task_id, weights in (class_weights or {}).items():
        criteria[task_id].class_weights = torch.tensor(weights)
    kd_criteria = []
    if config.data.mkd_opt > 0:
        kd_criteria = [_criterion(task, "kd_loss") for task in network.tasks]
    bregman = None
    if adversarial.bregman_mu > 0:
        bregman = BregmanTerm(network, adversarial.bregman_mu, adversarial.betas, total_updates)
    try:
        perturbation = build_perturbation(config, network)
        alpha = adversarial.adv_alpha * adversarial.adv_every
        return TrainingObjective(network, criteria, perturbation, alpha, bregman, kd_criteria)
    except UnsupportedLevelError as error:
        raise FlagError(f"--adv_norm_level: {error}") from error


def build_perturbation(config: Config, network: SANBertNetwork) -> AdversarialPerturbation | None:
    """The regularizer of the configuration; None without `--adv_train`."""
    adversarial = config.adversarial
    if not adversarial.adv_train:
        return None
    method = PERTURBATIONS[adversarial.adv_opt]
    if adversarial.adv_opt == "smart" and adversarial.adv_preset == "mtdnn_release":
        method = MtdnnReleasePerturbation
    elif adversarial.adv_opt == "smart" and adversarial.adv_norm_level == SiftPerturbation.default_level:
        method = SiftPerturbation
    perturbation = method(
        epsilon=adversarial.adv_epsilon,
        step_size=adversarial.adv_step_size,
        noise_var=adversarial.adv_noise_var,
        norm_p=adversarial.adv_p_norm,
        k=adversarial.adv_k,
        loss_map=[_criterion(task, "adv_loss") for task in network.tasks],
        norm_level=("token", "sentence").index(adversarial.adv_norm_scope),
        radius=adversarial.adv_radius,
        projection=adversarial.adv_projection,
        scale=adversarial.adv_scale,
        level=adversarial.adv_norm_level,
        noise_clamp=adversarial.adv_noise_clamp,
        detach_base=adversarial.adv_detach_base,
        same_dropout=adversarial.adv_same_dropout,
        noise=adversarial.adv_noise,
        start_ratio=adversarial.adv_start_ratio,
    )
    perturbation.reports_relative_sizes = config.data.tensorboard
    return perturbation


def _criterion(task: Task, key: str) -> Criterion:
    """The criterion that a task's definition names as `loss`, `kd_loss` or `adv_loss`.

    Raises:
        TaskDefError: the criterion cannot compare logits with labels, or logits with logits.
    """
    found: LossCriterion = getattr(task.task_def, key)
    accepted = task.losses if key == "loss" else DIVERGENCES
    if found not in accepted:
        kind, names = task.task_def.task_type.name, ", ".join(criterion.name for criterion in accepted)
        raise TaskDefError(f"task definition, key {key!r}: found {found.name}, accepted: {names} for {kind}")
    return LOSS_REGISTRY[found]()
