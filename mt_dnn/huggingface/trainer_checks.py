"""What a regularized trainer refuses when it is made, each in one line."""

from __future__ import annotations

from typing import Any

from mt_dnn.perturbation import AdversarialPerturbation
from mt_dnn.perturbation.reading import PACKED
from mt_dnn.perturbation.wrappers import REENTRANT

ONE_PROCESS_A_DEVICE = "accepted: DistributedDataParallel with one process a device, by torchrun or accelerate launch"
# Modules of trainers that do not call a model once a batch, and what they do instead.
OF_THE_BODY = "computes its loss from the states of the student's body, not by its forward"
OTHERWISE = {
    "sentence_transformers": "encodes the texts of a batch one after the other, which have no R together",
    "trl.trainer.distillation_trainer": OF_THE_BODY,
    "trl.experimental.async_distillation": OF_THE_BODY,
}


def refuse_bases(kind: type, mixin: type) -> None:
    """See that a trainer's loss comes by the mixin, and that its base calls a model once a batch.

    Raises:
        ValueError: it does not.
    """
    kinds = kind.__mro__
    for before in kinds[: kinds.index(mixin)]:
        own = vars(before).get("compute_loss")
        code = getattr(own, "__code__", None)
        if own is not None and code is not None and "compute_loss" not in code.co_names:
            raise ValueError(unreached(kind))
    for base in kinds:
        for module, what in OTHERWISE.items():
            if f"{base.__module__}.".startswith(f"{module}."):
                raise ValueError(
                    f"{kind.__name__}: {base.__name__} {what}; accepted: transformers' Trainer and those that call a "
                    "model once a batch"
                )


def refuse_settings(trainer: Any) -> None:
    """See that perturbed passes give their gradients with a trainer's settings.

    Raises:
        ValueError: they do not.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(f"no perturbed passes with FSDP or DeepSpeed; {ONE_PROCESS_A_DEVICE}")
    if trainer.args.n_gpu > 1:
        raise ValueError(f"several GPUs in one process; {ONE_PROCESS_A_DEVICE}")
    settings = vars(trainer.args)
    for name in ("activation_checkpointing", "gradient_checkpointing"):  # the second is transformers' older name
        if settings.get(name) and (settings.get(f"{name}_kwargs") or {}).get("use_reentrant"):
            raise ValueError(REENTRANT)


def refuse_method(trainer: Any, perturbation: AdversarialPerturbation) -> None:
    """See that a method can be computed from a trainer's loss and batches.

    Raises:
        ValueError: it cannot.
    """
    if perturbation.needs_labels:
        _refuse_losses(trainer, perturbation.name)
    if perturbation.scope == "sentence" and getattr(trainer, "padding_free", False):
        raise ValueError(PACKED)


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
    return (
        f"{kind.__name__}: its compute_loss does not call AdversarialMixin's, so that no R is added; accepted: "
        "super().compute_loss(...) in it, or its class after the mixin: class Mine(AdversarialMixin, Base)"
    )
