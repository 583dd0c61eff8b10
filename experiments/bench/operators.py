"""A step as a GPU sees it, counted on the CPU: how many operators it calls, and where the host reads a device's number.

A small model's step on a GPU is bound by launches and by waits of the host. What is made of a batch, of lists or of
arrays is the host's until `to` moves it, and so is what is computed of such alone; the rest counts as the device's.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.bench.others import Contest, Step
from experiments.bench.rows import Row
from experiments.sift.reporting.tables import markdown_table
from mt_dnn.batcher import Batch
from mt_dnn.training.word_gradient import WordGradient

ROOT = Path(__file__).parents[2]
# Operators other than views that launch nothing.
WITHOUT_KERNEL = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# What the host waits for: a number, or a size that depends on numbers.
READS = {
    "_local_scalar_dense", "_unique2", "allclose", "equal", "is_nonzero", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
# Operators whose boolean tensors among their arguments are turned into places first.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
METHODS = ("cpu", "numpy", "tolist")  # reads that call no operator where the tensor lies on the CPU
COPY = "copy to the device"
# Functions that read a number only where it lies on the CPU.
ON_CPU_ALONE = {("mt_dnn/training/optim.py", "_clip"), ("mt_dnn/training/optim.py", "_step_in_pieces")}


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
        if name == "lift_fresh" or (tensors and all(map(self.is_of_host, tensors))):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.keep(leaf)
            return result
        if func.namespace == "profiler":
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
            own = path.is_relative_to(ROOT) and "site-packages" not in path.parts  # an environment may lie in the tree
            if own and path != Path(__file__):
                file = str(path.relative_to(ROOT))
                if (file, frame.f_code.co_name) not in ON_CPU_ALONE:
                    self.reads[Read(f"{file}:{frame.f_lineno}", name)] += 1
                return
            frame = frame.f_back
        self.reads[Read("elsewhere", name)] += 1

    def keep(self, tensor: Tensor) -> None:
        """Take a tensor for the host's."""
        if tensor.layout == torch.strided:
            self._host[tensor.untyped_storage()._cdata] = tensor.untyped_storage()

    def forget(self, tensor: Tensor) -> None:
        """Take a tensor for the device's."""
        self._host.pop(tensor.untyped_storage()._cdata, None)


class Functions(TorchFunctionMode):
    """Within it functions run as on a GPU: dropout and attention are an operator each.

    Copies to a device count as reads, for the host waits for them too.
    """

    def __init__(self, operators: Operators):
        super().__init__()
        self.operators = operators

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = dict(kwargs or {})
        if func is F.dropout and arguments.get("training", True):
            return torch.native_dropout(args[0], arguments.get("p", 0.5), True)[0]
        if func is F.scaled_dot_product_attention:
            arguments["dropout_p"] = 0.0  # with which the CPU too has one operator for all
        result = func(*args, **arguments)
        places = [place for place in (*args, *arguments.values()) if isinstance(place, torch.device)]
        if func in (torch.zeros, torch.empty) and not places:
            self.operators.keep(result)
        if func in (torch.tensor, Tensor.to) and places and self.operators.is_of_host(result):
            self.operators.forget(result)
            if not arguments.get("non_blocking"):
                self.operators.add_read(COPY)
        return result


@contextmanager
def counted(batch: Batch) -> Iterator[Operators]:
    """Within the block operators and reads are counted; the tensors of `batch` lie on the host."""
    operators = Operators(batch)

    def watched(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if operators.is_of_host(tensor):
                return original(tensor, *args, **kwargs)
            operators.add_read(name)
            operators.keep(tensor)  # torch calls this method again, to ask the modes of functions
            result = original(tensor, *args, **kwargs)
            if name == "cpu":
                result = result.clone()
            operators.forget(tensor)
            return result

        return method

    with ExitStack() as stack:
        for name in METHODS:
            stack.enter_context(patch.object(Tensor, name, watched(name)))
        stack.enter_context(operators)
        stack.enter_context(Functions(operators))
        yield operators


class HostBatch(Batch):
    """A batch on the host: `to` moves it, where a CPU's would be the same one."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def moved(tensor: Tensor) -> Tensor:
            return torch.from_numpy(tensor.numpy().copy()).to(torch.device(device), non_blocking=non_blocking)

        return replace(self._with_tensors(moved), padded=self._has_padding())


def build(row: Row, contest: Contest) -> Step:
    """The row's step as it is on a GPU: torch's own linear layers, the word table's gradient dense."""
    with patch.object(WordGradient, "of", return_value=None):
        return row.build(contest._replace(flags={"cpu_linear": "mkl"}))


def count(step: Step, batch: Batch) -> Count:
    """What a row's second step does, on this batch."""
    own = HostBatch(**{field.name: getattr(batch, field.name) for field in fields(batch)})
    step(own)
    with counted(own) as operators:
        step(own)
    return Count(operators.calls.total(), operators.kernels, dict(operators.reads))


def table(found: Mapping[str, Count]) -> str:
    """A table with a line per row of the bench compared with the first, then one with a line per place that is read."""
    first = next(iter(found.values()))
    lines = [
        [name, str(own.calls), f"{own.calls / first.calls:.2f}", str(own.kernels), str(sum(own.reads.values()))]
        for name, own in found.items()
    ]
    places = sorted({read for own in found.values() for read in own.reads})
    reads = [[*read, *(str(own.reads.get(read, 0)) for own in found.values())] for read in places]
    counts = markdown_table(("row", "operators", "× the first", "kernels among them", "host reads"), lines)
    return f"{counts}\n\n{markdown_table(('read at', 'by', *found), reads)}"
