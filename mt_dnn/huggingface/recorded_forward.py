"""The forwards that a trainer runs of its model, recorded by hooks: the model's arguments and its output."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt_dnn.perturbation.reading import head_of
from mt_dnn.perturbation.wrappers import is_compiled, unwrapped

# With these arguments a model may return another output than logits: labels, and TRL's head that computes none.
NOT_FOR_LOGITS = ("labels", "shift_labels", "num_items_in_batch", "fused_lm_head")


class RecordedForward(NamedTuple):
    """A forward of a model.

    arguments: of the model, by name; output: what the model returned; body_output: what its body (`body_of`) returned,
    None where that was not recorded.
    """

    arguments: dict[str, Any]
    output: Any
    body_output: Any


@contextmanager
def recorded_forwards(model: nn.Module) -> Iterator[list[RecordedForward]]:
    """A list to which each forward of the model is added while the block runs.

    If gradients are on when the block begins, forwards under `no_grad` are left out, and the other way round.

    Args:
        model: wrapped or not.
    """
    gradients = torch.is_grad_enabled()
    forwards: list[RecordedForward] = []
    body_outputs: list[Any] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled() == gradients:
            body_output = body_outputs[-1] if body_outputs else None
            forwards.append(RecordedForward(_by_name(model, args, kwargs), output, body_output))
        body_outputs.clear()

    compiled = is_compiled(model)
    handles = [(model if compiled else unwrapped(model)).register_forward_hook(record, with_kwargs=True)]
    body = None if compiled else body_of(model)
    if body is not None:
        handles.append(body.register_forward_hook(lambda _, __, output: body_outputs.append(output)))
    try:
        yield forwards
    finally:
        for handle in handles:
            handle.remove()


def body_of(model: nn.Module) -> nn.Module | None:
    """The model without its head, transformers' `base_model`; None for a model that has no head."""
    head = head_of(model)
    body = getattr(head, "base_model", head)
    if isinstance(body, nn.Module) and body is not head:
        return body
    return None if head is unwrapped(model) else head


@contextmanager
def replayed_body(model: nn.Module, forward: RecordedForward) -> Iterator[None]:
    """Within the block the model's body computes nothing: it returns what it returned in the recorded forward."""
    body = body_of(model)
    if body is None or forward.body_output is None:
        raise ValueError(f"{type(unwrapped(model)).__name__}: the output of its encoder was not recorded")
    original = vars(body).get("forward")
    body.forward = lambda *_, **__: forward.body_output
    try:
        yield
    finally:
        del body.forward
        if original is not None:
            body.forward = original


def clean_logits(model: nn.Module, forward: RecordedForward) -> Any:
    """The logits of a recorded forward, with their graph; where it computed none, the head computes them now."""
    output = forward.output
    if has_logits(output):
        return without_loss(output)
    with replayed_body(model, forward):
        return unwrapped(model)(**without_labels(forward.arguments))


def has_logits(output: Any) -> bool:
    if isinstance(output, Mapping):
        return any(output.get(name) is not None for name in ("logits", "start_logits"))
    return isinstance(output, (Tensor, tuple, list)) or hasattr(output, "logits")


def without_loss(output: Any) -> Any:
    """A tuple without the loss at its start, as transformers' models return it; other outputs unchanged."""
    if isinstance(output, (tuple, list)) and isinstance(output[0], Tensor) and output[0].dim() == 0:
        return tuple(part for part in output[1:] if isinstance(part, Tensor))
    return output


def without_labels(arguments: Mapping[str, Any], label_names: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments of a forward that returns logits.

    Args:
        label_names: further names of labels.
    """
    return {name: value for name, value in arguments.items() if name not in (*NOT_FOR_LOGITS, *label_names)}


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(unwrapped(model).forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}
