"""The counts of operators, and of the places where the host waits for a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils.errors import FlagError
from experiments.bench import __main__ as bench
from experiments.bench import operators
from experiments.bench.rows import ROWS
from tests.experiments.bench.test_bench import COLA
from tests.experiments.bench.test_rows import batch_of, tiny_contest
from tests.mt_dnn.runs import RUN

METHODS = ("plain", "smart", "sift", "vat", "at", "freelb", "sift-free")

READS: dict[str, Callable[[Tensor], Any]] = {
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu().numpy(),
    "numpy": lambda x: x.detach().numpy(),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "index": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x + 1),
    operators.COPY: lambda x: torch.tensor([1.0, 2.0], device=x.device),
}
NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(), "float": lambda x: float(x.sum()), "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
}  # fmt: skip


def count(name: str, examples: int = 6, **options: Any) -> operators.Count:
    contest = tiny_contest(0.1, attention="sdpa")
    contest = contest._replace(lengths=np.full(examples, 12))
    return operators.count(operators.build(ROWS[name], contest), batch_of(examples, **options))


@pytest.mark.parametrize(
    "operator, read", [*READS.items(), *(("_local_scalar_dense", read) for read in NUMBERS.values())]
)
def test_a_read_is_told_with_its_place(operator: str, read: Callable[[Tensor], Any]) -> None:
    x = torch.ones(3)
    with operators.counted(batch_of()) as counting:
        read(x)
        x = x + 1
        read(x)
    ((found, times),) = counting.reads.items()
    line = read.__code__.co_firstlineno
    assert found == (f"tests/experiments/bench/test_operators.py:{line}", operator)
    assert times == 2


def test_what_is_on_the_host_is_read_without_waiting() -> None:
    batch = batch_of(padding=2)
    with operators.counted(batch) as counting:
        batch.attention_mask.sum(1).tolist()
        int(torch.tensor([1, 2]).sum())
        batch.input_ids[batch.attention_mask.bool()].numpy()
    assert not counting.reads
    moved = operators.HostBatch(**vars(batch)).to("cpu")
    assert torch.equal(moved.input_ids, batch.input_ids)
    with operators.counted(batch) as counting:
        moved.attention_mask.sum().item()
        torch.tensor([1]).to(torch.device("cpu"), non_blocking=True).sum().item()
        torch.tensor([1]).to(torch.device("cpu"))
    assert sorted(read.operator for read in counting.reads) == [
        "_local_scalar_dense",
        "_local_scalar_dense",
        operators.COPY,
    ]


def test_views_have_no_kernel_and_backwards_count() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with operators.counted(batch_of()) as counting:
        x.t().unsqueeze(0)[2:]
        assert (counting.calls.total(), counting.kernels) == (3, 0)
        (2 * x).sum().backward()
    assert counting.calls["mul"] == 2  # one of them in the backward
    assert counting.kernels > 3


def test_dropout_and_attention_are_an_operator_each_as_on_a_gpu() -> None:
    x = torch.ones(1, 2, 4, 8)
    with operators.counted(batch_of()) as counting:
        nn.Dropout(0.5)(x)
        assert dict(counting.calls) == {"native_dropout": 1}
        F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)
    assert counting.kernels == 2


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_its_device_where_stopping_and_finite_numbers_need_it_alone(name: str) -> None:
    """Beside δ that is kept on a disk."""
    found = count(name, padding=3).reads
    by_file = {file: sum(times for read, times in found.items() if read.place.startswith(file)) for file in FILES}
    assert sum(by_file.values()) == sum(found.values())
    assert by_file["mt_dnn/model.py"] == 1
    assert by_file["mt_dnn/training/delta_cache.py"] == (3 if name == "sift-free" else 0)


FILES = ("mt_dnn/model.py", "mt_dnn/training/delta_cache.py")


@pytest.mark.parametrize("name", METHODS)
def test_a_step_calls_as_many_operators_for_any_number_of_examples(name: str) -> None:
    few, many = count(name, 4, padding=1), count(name, 16, padding=1)
    assert few.calls == many.calls
    assert few.kernels == many.kernels


def test_a_smart_step_calls_few_operators_beside_its_passes() -> None:
    """Two forwards, a backward to δ and a second backward are 2.7 times a plain step of many layers."""
    plain, smart = count("plain", padding=1), count("smart", padding=1)
    deeper = [added_by_a_layer(name) for name in ("plain", "smart")]
    assert deeper[1] / deeper[0] < 2.7
    assert smart.calls - plain.calls * deeper[1] / deeper[0] < 160


def added_by_a_layer(name: str) -> int:
    calls = []
    for layers in (1, 2):
        contest = tiny_contest(0.1, attention="sdpa", num_hidden_layers=layers)
        calls.append(operators.count(operators.build(ROWS[name], contest), batch_of(padding=1)).calls)
    return calls[1] - calls[0]


def test_the_command_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", str(COLA), "--init_checkpoint", str(RUN / "tiny"), "--batch_size", "4", "--threads", "1"]
    bench.main([*flags, "--rounds", "1", "--steps", "1", "--operators", "plain,smart"])
    counts, reads = capsys.readouterr().out.strip().split("\n\n")[-2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in counts.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["plain", "smart"]
    assert rows[0][2] == "1.00"
    assert 2 < float(rows[1][2]) < 4
    assert "mt_dnn/model.py:" in reads


def test_a_row_that_is_not_there_is_told() -> None:
    with pytest.raises(FlagError, match="--operators: found 'sifd', accepted: .*sift"):
        bench.parse_args(["--operators", "sifd"])
