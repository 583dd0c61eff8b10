"""The profile of a step by kind of operation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data_utils.errors import FlagError
from experiments.bench import __main__ as bench
from experiments.bench import profile
from tests.experiments.bench.test_bench import COLA
from tests.mt_dnn.runs import RUN

WIDE = torch.randn(300, 300)


def product() -> None:
    nn.Linear(300, 300)(WIDE.repeat(20, 1)).sum().backward()


def attention() -> None:
    torch.bmm(WIDE.expand(8, -1, -1), WIDE.expand(8, -1, -1))


def optimizer() -> None:
    weight = nn.Parameter(WIDE.clone())
    weight.grad = WIDE
    torch.optim.Adamax([weight], foreach=False).step()


OPERATIONS = {
    "matrix products of linear layers": product,
    profile.OPTIMIZER: optimizer,
    "filling with zeros": lambda: torch.zeros(10**6),
    "GELU, LayerNorm, softmax": lambda: F.gelu(WIDE).softmax(-1),
    "random numbers of dropout": lambda: torch.empty_like(WIDE).normal_(),
    "products of the attention": attention,
    "adding, multiplying": lambda: WIDE + 2 * WIDE,
    "copying": lambda: torch.cat([WIDE, WIDE]),
    profile.REST: lambda: WIDE.sort(),
}


@pytest.mark.parametrize("title", [*profile.KINDS, profile.REST])
def test_an_operation_counts_as_its_kind(title: str) -> None:
    found = profile.shares(lambda _: OPERATIONS[title](), [[None] * 5])  # type: ignore[list-item]
    assert sum(found.values()) == pytest.approx(1)
    assert max(found, key=found.__getitem__) == title
    assert found[title] > 0.5


def test_what_an_optimizer_does_is_its_own_whatever_the_operation() -> None:
    assert profile.kind("aten::mul_") == "adding, multiplying"
    assert profile.kind("aten::mul_", ["Optimizer.step#Adamax.step"]) == profile.OPTIMIZER
    assert profile.kind("aten::mul_", ["aten::_foreach_mul_"]) == profile.OPTIMIZER


def test_the_command_prints_a_column_a_row_and_measures_nothing(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", str(COLA), "--init_checkpoint", str(RUN / "tiny"), "--batch_size", "4", "--rounds", "1"]
    bench.main([*flags, "--profile", "plain,sift", "--threads", "1", "--output_dir", str(tmp_path / "none")])
    header, _, *lines = capsys.readouterr().out.strip().splitlines()[-len(profile.KINDS) - 3 :]
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["operations", "plain", "sift"]
    columns = [[int(line.strip("|").split("|")[place].split()[0]) for line in lines] for place in (1, 2)]
    assert all(95 <= sum(column) <= 105 for column in columns)
    assert not (tmp_path / "none").exists()


def test_a_row_that_is_not_there_is_told() -> None:
    with pytest.raises(FlagError, match="--profile: found 'sifd', accepted: .*sift"):
        bench.parse_args(["--profile", "sifd"])
