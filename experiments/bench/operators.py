"""A step as a GPU sees it, counted on the CPU: how many operators it calls, and where the host reads a device's number.

A small model's step on a GPU is bound by launches and by waits of the host. Tensors of a batch are the host's until
`Batch.to` moves them, and so is what is computed from them alone; all others count as the device's.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.bench.others import Contest, Step
from experiments.bench.rows import Row
from experiments.sift.tables import markdown_table
from mt_dnn.batcher import Batch
from mt_dnn.word_gradient import WordGradient

ROOT = Path(__file__).parents[2]
# Operators that launch nothing, beside views.
WITHOUT_KERNEL = {"detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "new_empty_strided"}
# What the host waits for: a number, or a size that depends on numbers.
READS = {
    "_local_scalar_dense", "_unique2", "allclose", "equal", "is_nonzero", "masked_select", "nonzero", "unique_consecutive",
    "unique_dim",
}  # fmt: skip
# Operators whose boolean tensors among their arguments are turned into places first.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
METHODS: dict[Callable[..., Any], str] = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.cpu: "cpu"}
# Functions that read a number only where it lies on the CPU.
ON_CPU_ALONE = {("mt_dnn/optim.py", "_clip"), ("mt_dnn/optim.py", "_step_in_pieces")}


class Read(NamedTuple):
    """A place where the host waits for a device.

    place: file and line, of the innermost frame of this project; operator: what is read by.
    """

    place: str
    operator: str


class Count(NamedTuple):
    """What a step does.

    calls: operators; kernels: those of them that compute something, which views do not; reads: how often the host
    waits, place by place.
    """

    calls: int
    kernels: int
    reads: Mapping[Read, int]


class Operators(TorchDispatchMode):
    """Within it operator calls and reads are counted, those of backwards too.

    Args:
        batch: whose tensors lie on the host.
    """

    def __init__(self, batch: Batch):
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.kernels = 0
        self.reads: Counter[Read] = Counter()
        self._host: dict[int, Any] = {}  # storages by their address, kept so that none is used again
        for tensor in vars(batch).values():
            if isinstance(tensor, Tensor):
                self.keep(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors and all(map(self.is_of_host, tensors)):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.keep(leaf)
            return result
        self.calls[name] += 1
        self.kernels += not (func.is_view or name in WITHOUT_KERNEL or name in READS)
        indices = tree_leaves(args[1]) if name in INDEXING else []
        if name in READS or any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices):
            self.add_read(name)
        return result

    def is_of_host(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and tensor.untyped_storage()._cdata in self._host

    def add_read(self, name: str) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and path != Path(__file__):
                file = str(path.relative_to(ROOT))
                if (file, frame.f_code.co_name) not in ON_CPU_ALONE:
                    self.reads[Read(f"{file}:{frame.f_lineno}", name)] += 1
                return
            frame = frame.f_back
        self.reads[Read("elsewhere", name)] += 1

    def keep(self, tensor: Tensor) -> None:
        if tensor.layout == torch.strided:
            self._host[tensor.untyped_storage()._cdata] = tensor.untyped_storage()


class Methods(TorchFunctionMode):
    """Within it reads are counted that call no operator on the CPU, and copies of lists, for which the host waits."""

    def __init__(self, operators: Operators):
        super().__init__()
        self.operators = operators

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in METHODS and not self.operators.is_of_host(args[0]):
            self.operators.add_read(METHODS[func])
        result = func(*args, **(kwargs or {}))
        if func is torch.tensor and "device" in (kwargs or {}):
            self.operators.add_read("copy of a list")
        elif func is torch.tensor:
            self.operators.keep(result)
        return result


class HostBatch(Batch):
    """A batch on the host: `to` moves it, where a CPU's would be the same one."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        moved = {name: torch.from_numpy(x.numpy().copy()) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Batch(**{**vars(self), **moved})


def build(row: Row, contest: Contest) -> Step:
    """The row's step as it is on a GPU: torch's own linear layers, the word table's gradient dense."""
    with patch.object(WordGradient, "of", return_value=None):
        return row.build(contest._replace(flags={"cpu_linear": "mkl"}))


def count(step: Step, batch: Batch) -> Count:
    """What a row's second step does, on this batch."""
    own = HostBatch(**{field.name: getattr(batch, field.name) for field in fields(batch)})
    step(own)
    operators = Operators(own)
    with operators, Methods(operators):
        step(own)
    return Count(operators.calls.total(), operators.kernels, dict(operators.reads))


def table(found: Mapping[str, Count]) -> str:
    """A line a row of the bench, beside the first; then a line a place that is read."""
    first = next(iter(found.values()))
    lines = [
        [name, str(own.calls), f"{own.calls / first.calls:.2f}", str(own.kernels), str(sum(own.reads.values()))]
        for name, own in found.items()
    ]
    places = sorted({read for own in found.values() for read in own.reads})
    reads = [[*read, *(str(own.reads.get(read, 0)) for own in found.values())] for read in places]
    counts = markdown_table(("row", "operators", "× the first", "of them with a kernel", "host reads"), lines)
    return f"{counts}\n\n{markdown_table(('read at', 'by', *found), reads)}"


def names_of(rows: Sequence[str]) -> list[str]:
    """The rows, each once."""
    return list(dict.fromkeys(rows))
