"""What the mixin for sentence-transformers' trainers refuses, each with an error of one line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from mt_dnn.huggingface.trainer_checks import ONE_PROCESS_A_DEVICE
from mt_dnn.perturbation import AdversarialPerturbation
from mt_dnn.perturbation.levels import has_layers, levels_of
from mt_dnn.perturbation.wrappers import is_compiled

# The trainers that are supported, and the key of what their models return.
RESULTS = {"SentenceTransformerTrainer": "sentence_embedding", "CrossEncoderTrainer": "scores"}
# How the classes of losses begin that do not embed each text once, with gradients, and why.
UNSUPPORTED_LOSSES = {
    "Cached": "computes the embeddings without gradients first",
    "MegaBatchMargin": "computes the embeddings without gradients first",
    "Matryoshka": "shortens the embeddings within the model's forward",
    "AdaptiveLayer": "removes layers within the model's forward",
    "ContrastiveTension": "trains two models",
    "DenoisingAutoEncoder": "compares no embeddings",
}
ONE_VIEW = ("classes", "labels", "numbers")


def result_of(kind: type) -> str:
    """The key of what the model of a trainer's class returns.

    Raises:
        ValueError: the class derives from none of the supported trainers.
    """
    bases = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "sentence_transformers"]
    if not bases or bases[0].__name__ not in RESULTS:
        found = bases[0].__name__ if bases else "no trainer of sentence-transformers"
        raise ValueError(f"{kind.__name__}: found {found} after the mixin; accepted: {' or '.join(RESULTS)}")
    return RESULTS[bases[0].__name__]


def refuse_options(kind: type, result: str, task_type: Any, options: Iterable[str]) -> None:
    """Check the mixin's arguments.

    Raises:
        ValueError: one of them has no meaning for these trainers.
    """
    for name in ("unlabeled_dataset", "pairwise", "noise_mask"):
        if name in options:
            raise ValueError(
                f"{kind.__name__}: {name} is not supported for sentence-transformers; accepted: to leave it out"
            )
    if task_type is not None and (result == "sentence_embedding" or task_type not in ONE_VIEW):
        without = "to leave it out, since R compares similarity scores"
        accepted = without if result == "sentence_embedding" else ", ".join(ONE_VIEW)
        raise ValueError(f"{kind.__name__}: task_type is {task_type!r}; accepted: {accepted}")


def refuse_search(perturbation: AdversarialPerturbation) -> None:
    """Check that the method compares, with what several forwards of a loss have in common.

    Raises:
        ValueError: it does not.
    """
    name = perturbation.name
    if not perturbation.needs_clean:
        raise ValueError(
            f"{name} needs the loss of a perturbed pass, which sentence-transformers' losses do not give; accepted: "
            "methods that compare, such as smart, vat, alum and random"
        )
    if has_layers(perturbation.level) or len(levels_of(perturbation.level)) > 1:
        raise ValueError(
            f"level {perturbation.level!r} with sentence-transformers, whose losses run several forwards; accepted: "
            "one of pre_ln, post_ln, deberta"
        )
    if perturbation.same_dropout:
        raise ValueError(
            "same_dropout with sentence-transformers, whose losses run several forwards; accepted: same_dropout=False"
        )


def refuse_setup(trainer: Any) -> None:
    """Check a trainer's model, losses and settings.

    Raises:
        ValueError: the texts of a batch cannot be embedded together, or the loss does not embed each of them once.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(f"sentence-transformers with FSDP or DeepSpeed; {ONE_PROCESS_A_DEVICE}")
    if trainer.args.torch_compile or is_compiled(trainer.model):
        raise ValueError("perturbed passes of a compiled sentence-transformers model; accepted: torch_compile=False")
    if getattr(trainer.args, "neftune_noise_alpha", None) is not None:
        raise ValueError("NEFTune draws noise in every forward of a loss; accepted: neftune_noise_alpha=None")
    if any(kind.__name__ == "Router" for module in trainer.model.modules() for kind in type(module).__mro__):
        raise ValueError("Router encodes the columns with different modules; accepted: one encoder for all texts")
    if any(getattr(module, "can_flatten_inputs", False) for module in trainer.model.modules()):
        raise ValueError("texts in one row without padding (unpad_inputs); accepted: unpad_inputs=False")
    for loss in losses_of(trainer):
        _refuse_loss(loss)


def losses_of(trainer: Any) -> list[nn.Module]:
    """The losses of a trainer: one, or one for each dataset."""
    return list(trainer.loss.values()) if isinstance(trainer.loss, dict) else [trainer.loss]


def view_of_scores(trainer: Any) -> str:
    """How the scores of a cross-encoder are read, by its number of labels and its loss.

    Several labels are classes. One score is a yes or no where the loss is the binary cross-entropy, otherwise a number.

    Raises:
        ValueError: its losses need different readings.
    """
    if trainer.model.num_labels > 1:
        return "classes"
    views = {"labels" if _is_binary(loss) else "numbers" for loss in losses_of(trainer)}
    if len(views) > 1:
        raise ValueError("losses that read a score as yes or no and as a number; accepted: one kind, or task_type=")
    return views.pop()


def _is_binary(loss: nn.Module) -> bool:
    return any(kind.__name__ == "BinaryCrossEntropyLoss" for kind in type(loss).__mro__)


def _refuse_loss(loss: nn.Module) -> None:
    for module in loss.modules():
        for begin, reason in UNSUPPORTED_LOSSES.items():
            if type(module).__name__.startswith(begin):
                raise ValueError(
                    f"{type(module).__name__} {reason}; accepted: losses that embed each text of a batch once, such as "
                    "MultipleNegativesRankingLoss, CoSENTLoss or CosineSimilarityLoss"
                )
