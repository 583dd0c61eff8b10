"""The layers of an encoder or decoder, found by structure, and a hook on the output of one of them (`hidden:N`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from .levels import UnsupportedLevelError


class Layer(NamedTuple):
    """One of the layers that a forward of a stack runs.

    Attributes:
        stack: the module whose forward runs the layers.
        modules: the module that is this layer. If the stack runs the same modules several times per forward, as ALBERT
            does, all modules of its list.
        number: which layer of a forward it is, from 0.
        is_shared: whether its module may run as other layers, too.
    """

    stack: nn.Module
    modules: tuple[nn.Module, ...]
    number: int
    is_shared: bool


def find_layer(stack: nn.Module, number: int) -> Layer:
    """Layer `number` of a stack, counted from 0, or from the end if it is negative.

    Raises:
        UnsupportedLevelError: the stack has no such layer, or no list of layers.
    """
    modules, count = _layers_of(stack)
    if not -count <= number < count:
        raise UnsupportedLevelError(
            f"{type(stack).__name__} has no layer {number}; accepted: {names_of(count)}, or hidden:-{count} to "
            "hidden:-1, counted from the end"
        )
    index = number % count
    is_shared = len(modules) < count
    return Layer(stack, modules if is_shared else (modules[index],), index, is_shared)


def count_layers(stack: nn.Module) -> int:
    """The number of layers that a forward of a stack runs; 0 if they cannot be found."""
    try:
        return _layers_of(stack)[1]
    except UnsupportedLevelError:
        return 0


def names_of(count: int) -> str:
    """The levels at so many layers, in words."""
    return "hidden:0" if count == 1 else f"hidden:0 to hidden:{count - 1}"


def _layers_of(stack: nn.Module) -> tuple[tuple[nn.Module, ...], int]:
    """The different modules in a stack's list of layers, and the number of layers that a forward runs.

    The list is the outermost `ModuleList`. Where the stack has several, it is the one whose length is the number of
    layers in the configuration.

    Raises:
        UnsupportedLevelError: no list, or several, could be it.
    """
    lists = [found for found in _outermost_lists(stack) if len(found)]
    configured: int = getattr(getattr(stack, "config", None), "num_hidden_layers", None) or 0
    if len(lists) > 1:
        lists = [found for found in lists if len(found) == configured]
    if len(lists) != 1 or any(isinstance(layer, nn.ModuleList) for layer in lists[0]):
        raise UnsupportedLevelError(
            f"the layers of {type(stack).__name__} cannot be found; accepted for hidden:N: a stack with its layers in "
            "one nn.ModuleList"
        )
    (layers,) = lists
    return tuple(dict.fromkeys(layers)), max(len(layers), configured)


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


@contextmanager
def changed_output(layer: Layer, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """In this block `change` is applied to the output of the layer, or to the first element of a tuple.

    Raises:
        ValueError: the layer returns something else than a tensor of three dimensions.
    """
    calls = 0

    def restart(*_: Any) -> None:
        nonlocal calls
        calls = 0

    def after(module: nn.Module, _: object, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if layer.is_shared and calls != layer.number + 1:
            return output
        states = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(states, Tensor) or states.dim() != 3:
            raise ValueError(
                f"{type(module).__name__} returns {_described(states)}; accepted for hidden:N: layers that return "
                "(batch, tokens, hidden), alone or first in a tuple"
            )
        changed = change(states)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with ExitStack() as hooks:
        hooks.enter_context(layer.stack.register_forward_pre_hook(restart))
        for module in layer.modules:
            hooks.enter_context(module.register_forward_hook(after))
        yield


def _described(states: object) -> str:
    return f"{states.dim()} dimensions" if isinstance(states, Tensor) else f"a {type(states).__name__}"
