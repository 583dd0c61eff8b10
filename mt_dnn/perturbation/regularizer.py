"""A method bound to a model that is called on a dictionary of tensors: for loops other than this project's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data_utils.task_def import TaskType
from module.noise import default_generator
from module.noise_injection import NoiseInjection, find_encoder
from mt_dnn.perturbation.outputs import TaskLoss, logits_of

if TYPE_CHECKING:
    from mt_dnn.perturbation.base import AdversarialPerturbation, Regularization

IGNORED_LABEL = -100  # transformers' mark of tokens without a label

Forward = Callable[[nn.Module, Mapping[str, Any]], Any]


class ModelRegularizer:
    """R of a batch in any training loop; made by `AdversarialPerturbation.for_model`.

    Args:
        perturbation: the method.
        model: a model of transformers, or any module that holds an encoder with `get_input_embeddings()`.
        task_type: how logits are viewed as distributions; None: as the model's class and configuration say.
        forward: runs the model on a batch and returns logits or an output of transformers; None: `model(**batch)`.
        task_loss: ℓ of what `forward` returns, for methods that need labels; None: its `.loss`.

    Attributes:
        alpha: the measured weight of R for this method and level.
        last: what the last call found.

    Raises:
        UnsupportedLevelError: the encoder has no injection point of the method's level.

    Example:
        >>> regularizer = SiftPerturbation.for_model(model, radius=0.03)
        >>> output = model(**batch)
        >>> loss = output.loss + regularizer.alpha * regularizer(model, batch, output.logits)
    """

    def __init__(
        self,
        perturbation: AdversarialPerturbation,
        model: nn.Module,
        *,
        task_type: TaskType | None = None,
        forward: Forward | None = None,
        task_loss: TaskLoss | None = None,
    ):
        NoiseInjection(find_encoder(model), perturbation.level)
        self.perturbation = perturbation
        self.task_type = task_type
        self.forward = forward or _call
        self.task_loss = task_loss or _own_loss
        self.alpha: float = perturbation.measured_alpha
        self.last: Regularization | None = None
        self._dropout_state: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], logits: Any) -> Tensor:
        """R, a scalar with gradient.

        Args:
            model: the model, wrapped for several processes or not; the perturbed passes run on the model inside.
            batch: the model's arguments, `input_ids` (batch, tokens) and `attention_mask` among them.
            logits: the clean pass on this batch: logits, a tuple of them, or an output of transformers. None where
                the method needs no clean pass.
        """
        inner = unwrapped(model)
        mask = _mask(batch)
        perturbation = self.perturbation
        reference = logits if perturbation.needs_clean else None
        found = perturbation.regularize(
            lambda: self.forward(inner, batch),
            find_encoder(inner),
            reference,
            mask,
            **self._view(inner, batch, logits),
            dropout_state=self._dropout_state,
            task_loss=self.task_loss,
        )
        self.last = found
        return found.loss

    @contextmanager
    def clean(self, model: nn.Module) -> Iterator[None]:
        """The clean pass belongs in this block at level `deberta` and with `same_dropout`; it is optional elsewhere."""
        if self.perturbation.same_dropout:
            device = next(model.parameters()).device
            self._dropout_state = default_generator(device).get_state()
        with NoiseInjection(find_encoder(unwrapped(model)), self.perturbation.level).clean():
            yield

    def _view(self, model: nn.Module, batch: Mapping[str, Any], logits: Any) -> dict[str, Any]:
        task_type = self.task_type
        if task_type is None and logits is not None:
            task_type = task_type_of(model, logits)
        if task_type in (TaskType.SeqenceGeneration, TaskType.MaskLM):
            shifted = task_type == TaskType.SeqenceGeneration
            return {"task_type": task_type, "counted": _counted(batch, shifted)}
        return {} if task_type is None else {"task_type": task_type}


def task_type_of(model: nn.Module, output: Any) -> TaskType:
    """The task type of a model of transformers, by its output's shape, its configuration and its class.

    Raises:
        ValueError: several labels an example, which are no distribution.
    """
    inner: Any = model
    while hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()  # the model inside an adapter of PEFT
    name, config = type(inner).__name__, getattr(inner, "config", None)
    logits = logits_of(output)
    if len(logits) == 2:
        return TaskType.SpanClassification
    if logits[0].dim() == 3:
        if "CausalLM" in name or "LMHead" in name:
            return TaskType.SeqenceGeneration
        return TaskType.MaskLM if "MaskedLM" in name else TaskType.SeqenceLabeling
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        raise ValueError(f"{name}: no divergence for {problem}; accepted: single_label_classification, regression")
    return TaskType.Regression if problem == "regression" or logits[0].size(-1) == 1 else TaskType.Classification


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a wrapper for several devices or processes."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return unwrapped(model.module) if isinstance(model, wrappers) else model


def _mask(batch: Mapping[str, Any]) -> Tensor:
    """(rows, tokens): 1 at real tokens; the choices of an example, where it has several, are rows of their own."""
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    return mask.reshape(-1, mask.size(-1))


def _counted(batch: Mapping[str, Any], shifted: bool) -> Tensor:
    """The tokens whose distribution counts: those with a label, where logits come one token earlier if `shifted`."""
    labels = batch.get("labels")
    counted = _mask(batch) != 0 if labels is None else labels != IGNORED_LABEL
    if not shifted:
        return counted
    following = torch.zeros_like(counted)
    following[:, :-1] = counted[:, 1:]
    return following


def _call(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    return model(**batch)


def _own_loss(output: Any) -> Tensor:
    loss = getattr(output, "loss", None)
    if loss is None:
        raise ValueError("this method needs labels: give labels in the batch, or task_loss, the loss of an output")
    return loss
