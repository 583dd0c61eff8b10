"""The forwards that a trainer runs of its model, seen from outside: what the model was given, and what it gave."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt_dnn.perturbation.reading import head_of
from mt_dnn.perturbation.wrappers import is_compiled, unwrapped

# Arguments that ask for another output than logits: labels, and TRL's head without logits.
NOT_FOR_LOGITS = ("labels", "shift_labels", "num_items_in_batch", "fused_lm_head")


class ObservedForward(NamedTuple):
    """A forward of a model.

    arguments: of the model, by name; output: what it returned; states: what its encoder (`encoder_below`) returned,
    None where that is not seen.
    """

    arguments: dict[str, Any]
    output: Any
    states: Any


@contextmanager
def observed_forwards(model: nn.Module) -> Iterator[list[ObservedForward]]:
    """Within the block, the model's forwards; where it is entered with gradients those under `no_grad` are left out.

    Args:
        model: wrapped or not.
    """
    enabled = torch.is_grad_enabled()
    found: list[ObservedForward] = []
    states: list[Any] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled() == enabled:
            found.append(ObservedForward(_by_name(model, args, kwargs), output, states[-1] if states else None))
        states.clear()

    compiled = is_compiled(model)
    handles = [(model if compiled else unwrapped(model)).register_forward_hook(keep, with_kwargs=True)]
    encoder = None if compiled else encoder_below(model)
    if encoder is not None:
        handles.append(encoder.register_forward_hook(lambda _, __, output: states.append(output)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def encoder_below(model: nn.Module) -> nn.Module | None:
    """The model without its head: the body of a model of transformers; None where they are one."""
    head = head_of(model)
    body = getattr(head, "base_model", head)
    if isinstance(body, nn.Module) and body is not head:
        return body
    return None if head is unwrapped(model) else head


@contextmanager
def replayed(model: nn.Module, forward: ObservedForward) -> Iterator[None]:
    """Within the block the model's encoder computes nothing: it returns what it returned in that forward."""
    encoder = encoder_below(model)
    if encoder is None or forward.states is None:
        raise ValueError(f"{type(unwrapped(model)).__name__}: the output of its encoder was not seen")
    own = vars(encoder).get("forward")
    encoder.forward = lambda *_, **__: forward.states
    try:
        yield
    finally:
        del encoder.forward
        if own is not None:
            encoder.forward = own


def clean_logits(model: nn.Module, forward: ObservedForward) -> Any:
    """The logits of a forward, with its graph; by the model's head alone where the forward computed none."""
    output = forward.output
    if has_logits(output):
        return without_loss(output)
    with replayed(model, forward):
        return unwrapped(model)(**for_logits(forward.arguments))


def has_logits(output: Any) -> bool:
    if isinstance(output, Mapping):
        return any(output.get(name) is not None for name in ("logits", "start_logits"))
    return isinstance(output, (Tensor, tuple, list)) or hasattr(output, "logits")


def without_loss(output: Any) -> Any:
    """A tuple without the loss that it begins with, as transformers' models return it; other outputs as they are."""
    if isinstance(output, (tuple, list)) and isinstance(output[0], Tensor) and output[0].dim() == 0:
        return tuple(part for part in output[1:] if isinstance(part, Tensor))
    return output


def for_logits(arguments: Mapping[str, Any], labels: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments of a forward that is to give logits.

    Args:
        labels: further names of labels.
    """
    return {name: value for name, value in arguments.items() if name not in (*NOT_FOR_LOGITS, *labels)}


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(unwrapped(model).forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}
