"""Models inside wrappers: several processes, torch.compile, Fabric, adapters; and what of it is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn

Call = TypeVar("Call", bound=Callable[..., Any])
# Where wrappers hold the model: torch.compile's and Lightning Fabric's. Those of torch.nn have it as `module`.
COMPILED, FABRIC = "_orig_mod", "_forward_module"
REENTRANT = (
    "activation checkpointing with use_reentrant=True gives no gradient of the noise; accepted: use_reentrant=False"
)
SHARDED = ("FullyShardedDataParallel", "DeepSpeedEngine")
# PEFT's learned prompts, which stand among the words; a learned prefix stands in the attention.
PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrappers; an adapter (PEFT) is part of the model."""
    *_, inner = _layers(model)
    return inner


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The wrappers from outside to inside, then the model."""
    yield model
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        yield from _layers(model.module)
        return
    for place in (COMPILED, FABRIC):
        inner = model._modules.get(place)
        if inner is not None:
            yield from _layers(inner)
            return


def base_model(model: nn.Module) -> nn.Module:
    """The model of transformers inside wrappers and adapters."""
    inner: Any = unwrapped(model)
    while hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return inner


def is_compiled(model: nn.Module, point: nn.Module | None = None) -> bool:
    """Whether torch.compile makes code of the whole model, or of a part with `point` in it.

    Such code does not see hooks that are set later.
    """
    if any(map(_has_code, _layers(model))):
        return True
    return point is not None and any(_has_code(m) and point in m.modules() for m in unwrapped(model).modules())


def _has_code(module: nn.Module) -> bool:
    """Whether torch.compile was called on it, in place, or on its forward."""
    own = vars(module).get("forward")
    return COMPILED in module._modules or module._compiled_call_impl is not None or hasattr(own, "_torchdynamo_inline")


def never_compiled(method: Call) -> Call:
    """A method whose calls break off the code that torch.compile makes of a step: hooks and searches are none of it.

    torch.compile is imported by those who use it; without it that takes seconds.
    """

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = torch.compiler.disable(method) if "torch._dynamo" in sys.modules else method
        return run(*args, **kwargs)

    return cast(Call, call)


@contextmanager
def uncompiled(model: nn.Module, point: nn.Module) -> Iterator[None]:
    """Within the block nothing runs by compiled code where that would not see hooks at `point`."""
    with torch.compiler.set_stance("force_eager") if is_compiled(model, point) else nullcontext():
        yield


def run_as_wrapped(model: nn.Module, forward: Callable[[Any], Any], batch: Any) -> Any:
    """`forward(batch)` in the precision of the model's wrapper (Fabric): input, computation and output."""
    for layer in _layers(model):
        if FABRIC in layer._modules:
            strategy: Any = layer._strategy
            precision = strategy.precision
            with precision.forward_context():
                output = forward(precision.convert_input(batch))
            return precision.convert_output(output)
    return forward(batch)


def came_by_fabric(logits: Any) -> bool:
    """Whether Fabric's wrapper returned them: it hangs a hook of its own on each tensor."""
    hooks = getattr(logits, "_backward_hooks", None) or {}
    origins = [getattr(getattr(hook, "func", hook), "__module__", None) or "" for hook in hooks.values()]
    return any(origin.endswith("fabric.wrappers") for origin in origins)


def in_fabric(model: nn.Module) -> bool:
    return any(FABRIC in layer._modules for layer in _layers(model))


def check_wrappers(model: nn.Module, several_graphs: bool) -> None:
    """See that perturbed passes give their gradients in this model.

    Args:
        several_graphs: the method's forwards of the wrapper are more than one an update (FreeLB).

    Raises:
        ValueError: they would not; says what to do instead.
    """
    for layer in _layers(model):
        if type(layer).__name__ in SHARDED:
            raise ValueError(
                f"no perturbed passes in {type(layer).__name__}; accepted: DistributedDataParallel, or "
                "torch.distributed.fsdp.fully_shard"
            )
        if several_graphs and getattr(layer, "static_graph", False):
            raise ValueError(
                "DistributedDataParallel(static_graph=True) takes one forward an update, this method has several; "
                "accepted: static_graph=False, or k=1"
            )
    inner: Any = unwrapped(model)
    if any(type(module).__name__ in SHARDED for module in inner.modules()):
        raise ValueError(
            "no perturbed passes in parts of a model under FullyShardedDataParallel; accepted: fully_shard"
        )
    _refuse_prompts(inner)
    if any(_is_reentrant(module) for module in inner.modules()):
        raise ValueError(REENTRANT)


def _refuse_prompts(inner: Any) -> None:
    active = getattr(inner, "active_peft_config", None)
    kind = getattr(getattr(active, "peft_type", None), "value", "")
    if kind in PROMPTS:
        raise ValueError(
            f"{kind.lower().replace('_', ' ')} puts learned vectors before the words, so that the tokens of the model "
            "are not those of the batch; accepted: adapters that leave the words alone, such as LoRA or prefix tuning"
        )


def _is_reentrant(module: nn.Module) -> bool:
    """Whether transformers recomputes this module's layers by torch's reentrant checkpointing."""
    function = getattr(module, "_gradient_checkpointing_func", None)
    on = getattr(module, "gradient_checkpointing", False)
    return bool(on) and bool(getattr(function, "keywords", {}).get("use_reentrant", False))
