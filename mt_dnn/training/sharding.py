"""Parameters sharded over processes (`--fsdp`), by torch's `fully_shard`; full tensors for checkpoints."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from data_utils.errors import FlagError
from module.encoder import layers_of
from mt_dnn.matcher import SANBertNetwork


def shard_parameters(networks: Sequence[SANBertNetwork], accelerator: Accelerator) -> DeviceMesh:
    """Leave each process its share of the parameters, in place, on the accelerator's device.

    Each layer of the encoder is a unit, which is gathered while it computes; all that is left (embeddings, heads) is
    one more. None stays gathered after a forward without a backward, as that of the teacher or of an evaluation, so
    that the parameters which an optimizer or an average reads are always the shares. Names and order stay.

    Args:
        networks: whole and equal on every process; the Bregman teacher is one, too.

    Returns:
        The processes that share them; see `release_group`.

    Raises:
        FlagError: the encoder has no list of layers, or a task runs another number of forwards in each process.
    """
    for network in networks:
        _check(network)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for network in networks:
        for part in (*layers_of(network.bert), network):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return mesh


def release_group(mesh: DeviceMesh) -> None:
    """Let go of the process group that a mesh holds, when no network is sharded over it any more.

    torch caches what operations on shards do, and with it the mesh, until the interpreter ends. Threads of gloo that
    wait for the interpreter then may abort the process.
    """
    getattr(mesh, "_pg_registry", {}).clear()
    gc.collect()


def _check(network: SANBertNetwork) -> None:
    if not list(layers_of(network.bert)):
        raise FlagError(f"--fsdp: {type(network.bert).__name__} holds no list of layers; accepted: to leave it out")
    writing = [type(task).__name__ for task in network.tasks if task.generates]
    if writing:
        raise FlagError(
            f"--fsdp: {writing[0]} writes texts of unequal lengths, in each process another number of forwards; "
            "accepted: tasks that do not generate, or to leave it out"
        )


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, which shares its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor, whole and on its device; any other tensor as it is. All processes have to call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full


def whole(value: Any, keep: bool = True) -> Any:
    """A value whose sharded tensors, in dictionaries of any depth, are whole and on the CPU; others stay as they are.

    All processes have to call it at the same point, with the same keys.

    Args:
        keep: false in processes that do not need the result: in it sharded tensors are None, which saves the memory.
    """
    if isinstance(value, DTensor):
        full = gathered(value)
        return full.cpu() if keep else None
    return {key: whole(part, keep) for key, part in value.items()} if isinstance(value, Mapping) else value


def sharded_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same in every process, sharded like another of its shape; as it is if that is not sharded."""
    if not isinstance(other, DTensor):
        return tensor
    tensor = tensor.to(other.device)
    with torch.no_grad():
        return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
