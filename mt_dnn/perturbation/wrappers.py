"""Models in wrappers (DistributedDataParallel, torch.compile, Lightning Fabric) and with adapters; what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn

Call = TypeVar("Call", bound=Callable[..., Any])
# The attribute with the model in wrappers of torch.compile and Lightning Fabric; in those of torch.nn it is `module`.
COMPILED, FABRIC = "_orig_mod", "_forward_module"
REENTRANT = (
    "activation checkpointing with use_reentrant=True gives no gradient of the noise; accepted: use_reentrant=False"
)
SHARDED = ("FullyShardedDataParallel", "DeepSpeedEngine")
SHARDED_BY = "accepted: torch.distributed.fsdp.fully_shard, or DistributedDataParallel"
# PEFT's methods that insert learned vectors among the words; a learned prefix is inserted in the attention instead.
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


def is_compiled(model: nn.Module, *points: nn.Module) -> bool:
    """Whether torch.compile compiles the model, or a part that contains one of the `points`.

    Compiled code does not run hooks that are registered later.
    """
    if any(map(_is_compiled_module, _layers(model))):
        return True
    compiled = [part for part in unwrapped(model).modules() if _is_compiled_module(part)] if points else []
    return any(point in part.modules() for part in compiled for point in points)


def _is_compiled_module(module: nn.Module) -> bool:
    """Whether torch.compile was called on the module, in place, or on its forward."""
    forward = vars(module).get("forward")
    compiled_forward = hasattr(forward, "_torchdynamo_inline")
    return COMPILED in module._modules or module._compiled_call_impl is not None or compiled_forward


def never_compiled(method: Call) -> Call:
    """A decorator: torch.compile leaves calls of the method out of a compiled step, because hooks cannot be compiled.

    It does not import torch.compile, which takes seconds, unless the caller has.
    """

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = torch.compiler.disable(method) if "torch._dynamo" in sys.modules else method
        return run(*args, **kwargs)

    return cast(Call, call)


@contextmanager
def uncompiled(model: nn.Module, *points: nn.Module) -> Iterator[None]:
    """The model in this block runs uncompiled if compiled code would not run hooks at the `points`."""
    with torch.compiler.set_stance("force_eager") if is_compiled(model, *points) else nullcontext():
        yield


def run_in_wrapper_precision(model: nn.Module, forward: Callable[[Any], Any], batch: Any) -> Any:
    """`forward(batch)` with input, computation and output in the precision of the model's wrapper (Fabric)."""
    for layer in _layers(model):
        if FABRIC in layer._modules:
            strategy: Any = layer._strategy
            precision = strategy.precision
            with precision.forward_context():
                output = forward(precision.convert_input(batch))
            return precision.convert_output(output)
    return forward(batch)


def is_fabric_output(logits: Any) -> bool:
    """Whether Fabric's wrapper returned these logits: it registers a hook on each tensor."""
    hooks = getattr(logits, "_backward_hooks", None) or {}
    origins = [getattr(getattr(hook, "func", hook), "__module__", None) or "" for hook in hooks.values()]
    return any(origin.endswith("fabric.wrappers") for origin in origins)


def has_fabric_wrapper(model: nn.Module) -> bool:
    return any(FABRIC in layer._modules for layer in _layers(model))


def check_wrappers(model: nn.Module, several_graphs: bool) -> None:
    """Check that perturbed passes through this model produce gradients.

    Args:
        several_graphs: the method runs the wrapper's forward more than once per update (FreeLB).

    Raises:
        ValueError: they do not; the message says what to use instead.
    """
    for layer in _layers(model):
        if type(layer).__name__ in SHARDED:
            raise ValueError(f"no perturbed passes in {type(layer).__name__}; {SHARDED_BY}")
        if several_graphs and getattr(layer, "static_graph", False):
            raise ValueError(
                "DistributedDataParallel(static_graph=True) takes one forward an update, this method has several; "
                "accepted: static_graph=False, or k=1"
            )
    inner: Any = unwrapped(model)
    if any(type(module).__name__ in SHARDED for module in inner.modules()):
        raise ValueError(f"no perturbed passes in parts of a model under FullyShardedDataParallel; {SHARDED_BY}")
    if _is_tensor_parallel(inner):
        raise ValueError(
            f"no perturbed passes under tensor parallelism, which splits products of matrices; {SHARDED_BY}"
        )
    _refuse_prompts(inner)
    if any(_is_reentrant(module) for module in inner.modules()):
        raise ValueError(REENTRANT)


def _is_tensor_parallel(inner: nn.Module) -> bool:
    """Whether parameters are split over processes otherwise than by `fully_shard`, which gathers them to compute.

    The modules of torch are only looked up: a model with such parameters has imported them.
    """
    tensors, sharding = (sys.modules.get(f"torch.distributed.{name}") for name in ("tensor", "fsdp"))
    if tensors is None:
        return False
    units = [part for part in inner.modules() if sharding is not None and isinstance(part, sharding.FSDPModule)]
    gathered = {id(parameter) for unit in units for parameter in unit.parameters()}
    for parameter in inner.parameters():
        if isinstance(parameter, tensors.DTensor):
            splits = sum(not placement.is_replicate() for placement in parameter.placements)
            if id(parameter) not in gathered or splits > 1:
                return True
    return False


def _refuse_prompts(inner: Any) -> None:
    active = getattr(inner, "active_peft_config", None)
    kind = getattr(getattr(active, "peft_type", None), "value", "")
    if kind in PROMPTS:
        raise ValueError(
            f"{kind.lower().replace('_', ' ')} puts learned vectors before the words, so that the model has more "
            "tokens than the batch; accepted: adapters that do not add tokens, such as LoRA or prefix tuning"
        )


def _is_reentrant(module: nn.Module) -> bool:
    """Whether transformers recomputes this module's layers with torch's reentrant checkpointing."""
    function = getattr(module, "_gradient_checkpointing_func", None)
    on = getattr(module, "gradient_checkpointing", False)
    return bool(on) and bool(getattr(function, "keywords", {}).get("use_reentrant", False))
