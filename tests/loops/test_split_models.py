"""Models whose parameters processes split: `fully_shard` is accepted, other ways are refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.hf import tiny_model
from tests.loops.by_hand import regularizer

ACCEPTED = "; accepted: torch.distributed.fsdp.fully_shard, or DistributedDataParallel"


@pytest.fixture(autouse=True)
def group_of_one() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def llama() -> Any:
    return tiny_model("generation")


def split_products(model: Any, mesh: Any) -> None:
    for layer in model.model.layers:
        parallelize_module(layer, mesh, {"mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()})


def test_tensor_parallelism_is_refused() -> None:
    model = llama()
    split_products(model, init_device_mesh("cpu", (1,)))
    with pytest.raises(ValueError, match="^no perturbed passes under tensor parallelism, .*" + ACCEPTED) as caught:
        regularizer("smart", model)
    assert "\n" not in str(caught.value)


def test_tensor_parallelism_is_refused_in_a_sharded_model_too() -> None:
    model, mesh = llama(), init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))
    split_products(model, mesh["tensor"])
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh["data"])
    with pytest.raises(ValueError, match="tensor parallelism"):
        regularizer("smart", model)


@pytest.mark.parametrize("names", [("shard",), ("replicate", "shard")])
def test_fully_shard_is_accepted_with_and_without_replicas(names: tuple[str, ...]) -> None:
    model, mesh = llama(), init_device_mesh("cpu", (1,) * len(names), mesh_dim_names=names)
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh)
    regularizer("smart", model)


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
def test_the_first_version_of_fsdp_is_refused_around_a_model_and_inside_it() -> None:
    model = llama()
    with pytest.raises(ValueError, match="^no perturbed passes in FullyShardedDataParallel" + ACCEPTED):
        regularizer("smart", FullyShardedDataParallel(llama(), device_id=torch.device("cpu")))
    model.model.layers[0] = FullyShardedDataParallel(model.model.layers[0], device_id=torch.device("cpu"))
    with pytest.raises(
        ValueError, match="^no perturbed passes in parts of a model under FullyShardedDataP.*" + ACCEPTED
    ):
        regularizer("smart", model)
