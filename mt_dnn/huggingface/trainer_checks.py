"""What a regularized trainer refuses, each with an error of one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mt_dnn.perturbation import AdversarialPerturbation
from mt_dnn.perturbation.method import check_ascent_loss
from mt_dnn.perturbation.reading import PACKED
from mt_dnn.perturbation.wrappers import REENTRANT

SHARDED_BY = 'accepted: fsdp=True with fsdp_config={"version": 2}, or DistributedDataParallel'
ONE_PROCESS_A_DEVICE = "accepted: DistributedDataParallel with one process a device, by torchrun or accelerate launch"
# Dimensions of accelerate's ParallelismConfig, and what processes split in them.
SPLIT = {"tp": "products of matrices", "cp": "a text's tokens", "sp": "a text's tokens"}
# Modules of trainers that do not call a model once a batch, and what they do instead.
LOSS_FROM_BODY = "computes its loss from the states of the student's body, not by its forward"
UNSUPPORTED = {
    "sentence_transformers": "encodes the texts of a batch one after the other (use SentenceAdversarialMixin)",
    "trl.trainer.distillation_trainer": LOSS_FROM_BODY,
    "trl.experimental.async_distillation": LOSS_FROM_BODY,
}


def refuse_bases(kind: type, mixin: type, unsupported: Mapping[str, str]) -> None:
    """Check that a trainer's `compute_loss` calls the mixin's, and that its base calls a model once a batch.

    Args:
        unsupported: modules of trainers that do not, and what they do instead.

    Raises:
        ValueError: it does not.
    """
    bases = kind.__mro__
    for before in bases[: bases.index(mixin)]:
        override = vars(before).get("compute_loss")
        code = getattr(override, "__code__", None)
        if override is not None and code is not None and "compute_loss" not in code.co_names:
            raise ValueError(unreached(kind))
    for base in bases:
        for module, reason in unsupported.items():
            if f"{base.__module__}.".startswith(f"{module}."):
                raise ValueError(
                    f"{kind.__name__}: {base.__name__} {reason}; accepted: transformers' Trainer and those that call a "
                    "model once a batch"
                )


def refuse_settings(trainer: Any) -> None:
    """Check that perturbed passes get their gradients with a trainer's settings.

    Raises:
        ValueError: they do not.
    """
    if trainer.is_deepspeed_enabled:
        raise ValueError(f"no perturbed passes with DeepSpeed; {SHARDED_BY}")
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(f"no perturbed passes with version 1 of FSDP; {SHARDED_BY}")
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    for kind, what in SPLIT.items():
        if parallelism is not None and getattr(parallelism, f"{kind}_size", 1) > 1:
            raise ValueError(f"no perturbed passes where processes split {what} ({kind}_size); {SHARDED_BY}")
    if trainer.args.n_gpu > 1:
        raise ValueError(f"several GPUs in one process; {ONE_PROCESS_A_DEVICE}")
    settings = vars(trainer.args)
    for name in ("activation_checkpointing", "gradient_checkpointing"):  # the second is transformers' older name
        if settings.get(name) and (settings.get(f"{name}_kwargs") or {}).get("use_reentrant"):
            raise ValueError(REENTRANT)


def refuse_method(trainer: Any, perturbation: AdversarialPerturbation, unlabeled_dataset: Any) -> None:
    """Check that a method can be computed from a trainer's loss and batches.

    Raises:
        ValueError: it cannot.
    """
    if perturbation.needs_labels:
        if unlabeled_dataset is not None:
            raise ValueError(f"unlabeled_dataset: {perturbation.name} needs labels; accepted: methods that compare")
        _refuse_losses(trainer, perturbation.name)
    if perturbation.scope == "sentence" and getattr(trainer, "padding_free", False):
        raise ValueError(PACKED)


def refuse_losses(perturbation: AdversarialPerturbation, task_loss: object, ascent_loss: object) -> None:
    """Check that a method uses the losses that a trainer was given for it.

    Raises:
        ValueError: it does not.
    """
    if task_loss is not None and not perturbation.takes_ascent_loss:
        raise ValueError(
            f"task_loss: the R of {perturbation.name} is not a loss of a caller; accepted: AdversarialTraining (at)"
        )
    check_ascent_loss(perturbation, ascent_loss)


def refuse_arguments(trainer: Any, inputs: Mapping[str, Any]) -> None:
    """Check that a batch holds the model's arguments, if the method has no clean pass that shows them.

    Raises:
        ValueError: it does not.
    """
    method = trainer.regularizer.perturbation
    if method.replaces_task_loss and "input_ids" not in inputs:
        raise ValueError(
            f"{method.name} has no clean pass that shows the model's arguments, and the batches of "
            f"{type(trainer).__name__} have {', '.join(inputs)}; accepted: batches with input_ids, or another method"
        )


def refuse_unlabeled_tokens(trainer: Any, arguments: Mapping[str, Any]) -> None:
    """Check that the labels say which tokens a comparison of next tokens is over.

    Raises:
        ValueError: there are none.
    """
    regularizer = trainer.regularizer
    compares_tokens = regularizer.perturbation.needs_clean and regularizer.read["task_type"] == "next_tokens"
    if compares_tokens and all(arguments.get(name) is None for name in ("labels", "shift_labels")):
        raise ValueError(
            f"{type(trainer).__name__}.compute_loss gives its forward no labels, so that it is not known which tokens "
            "R compares; accepted: labels in the batch, or in the forward that gives the loss"
        )


def _refuse_losses(trainer: Any, method: str) -> None:
    kind = type(trainer).__name__
    if getattr(trainer, "loss_is_scaled_for_ga", None):
        raise ValueError(
            f"{method} needs the loss of a batch, and that of {kind} is a share of an update's; accepted: methods that "
            "compare, such as smart, vat, alum and random"
        )
    if getattr(trainer, "aux_loss_enabled", False):
        raise ValueError(
            f"{method} needs the loss on the labels alone, and that of {kind} has the experts' auxiliary loss in it; "
            "accepted: router_aux_loss_coef=0, or methods that compare"
        )


def unreached(kind: type) -> str:
    """The message for a trainer of this class whose loss has no R."""
    return (
        f"{kind.__name__}: its compute_loss does not call AdversarialMixin's, so that no R is added; accepted: "
        "super().compute_loss(...) in it, or its class after the mixin: class Mine(AdversarialMixin, Base)"
    )
