"""Where a step's time goes: its share by kind of operation, from torch's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.bench.measure import Rounds
from experiments.bench.others import Step
from experiments.sift.reporting.tables import markdown_table

OPTIMIZER = "optimizer, norms of the gradient"
REST = "the rest"
# All within these belongs to the optimizer; torch names the first itself.
OPTIMIZER_PARTS = ("Optimizer.step#", "aten::_foreach_", "aten::_fused_")
# Kinds of operations, and how their names begin after "aten::"; the first kind that fits counts.
KINDS: dict[str, tuple[str, ...]] = {
    "matrix products of linear layers": (
        "addmm", "mm", "convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "mkldnn_linear",
    ),
    OPTIMIZER: ("linalg_vector_norm",),
    "filling with zeros": ("zero", "fill_"),
    "GELU, LayerNorm, softmax": ("gelu", "native_layer_norm", "_softmax", "_log_softmax", "tanh"),
    "random numbers of dropout": ("bernoulli_", "native_dropout", "normal_", "uniform_"),
    "products of the attention": ("bmm", "baddbmm", "_scaled_dot_product", "_flash", "_efficient"),
    "adding, multiplying": ("add", "sub", "mul", "div", "sum", "neg", "index_add"),
    "copying": ("copy_", "cat", "_to_copy", "clone", "contiguous"),
}  # fmt: skip


def kind(name: str, parents: Sequence[str] = ()) -> str:
    """The kind of an operation by torch's name for it, and the names of what it is part of."""
    if any(part.startswith(OPTIMIZER_PARTS) for part in (name, *parents)):
        return OPTIMIZER
    operation = name.removeprefix("aten::")
    return next((title for title, beginnings in KINDS.items() if operation.startswith(beginnings)), REST)


def shares(step: Step, batches: Rounds) -> dict[str, float]:
    """The share of each kind in the time of a row's steps, once over all batches, after a step that does not count.

    An operation's time is its own: without what it calls, which counts by itself. On a GPU it is the GPU's.
    """
    step(batches[0][0])
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for part in batches:
            for batch in part:
                step(batch)
    seconds: Counter[str] = Counter()
    for event in profiler.events() or ():
        parents = []
        outer: Any = event.cpu_parent
        while outer is not None:
            parents.append(outer.name)
            outer = outer.cpu_parent
        seconds[kind(event.name, parents)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {title: seconds[title] / seconds.total() for title in (*KINDS, REST)}


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Rows by kind, a column for each row of the bench, in Markdown."""
    lines = [[title, *(f"{100 * parts[title]:.0f} %" for parts in found.values())] for title in (*KINDS, REST)]
    return markdown_table(("operations", *found), lines)
