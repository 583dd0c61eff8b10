"""What two processes find in loops of several kinds: started by torch.distributed.run, read by test_distributed.py.

With TEST_DEVICE=cuda each has a GPU, in the loops that are torch's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.hf import ALPHA, collate, examples, tiny_model
from tests.loops.by_hand import SEEDS, by_hand, point_of, regularizer

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
LENGTHS = {"classification": (7, 3, 6, 5, 4, 7), "generation": (7, 7, 7, 7)}
# name: method, level, K
METHODS = {
    "smart": ("smart", "pre_ln", 1),
    "sift": ("smart", "post_ln", 2),
    "deberta": ("smart", "deberta", 1),
    "vat": ("vat", "pre_ln", 2),
    "layer": ("smart", "hidden:0", 1),
    "at": ("at", "post_ln", 2),
    "at without logits": ("at", "pre_ln", 2),
    "at alone": ("at", "pre_ln", 2),
    "freelb": ("freelb", "pre_ln", 2),
    "freelb of one": ("freelb", "pre_ln", 1),
}
DDP: dict[str, dict[str, Any]] = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "find_unused": {"find_unused_parameters": True},
    "bucket_view": {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.01},
}
# In these the clean pass is the wrapper's.
BESIDE_THE_LOSS = ("smart", "sift", "deberta", "vat", "layer", "at", "at without logits")
JOBS = {
    **{f"ddp {kind}/{method}": "classification" for kind in DDP for method in METHODS},
    **{f"accumulated/{method}": "classification" for method in METHODS},
    **{f"fully_shard/{method}": "classification" for method in METHODS},
    **{f"fully_shard layers/{method}": "classification" for method in METHODS},
    **{f"fabric/{method}": "classification" for method in METHODS},
    **{f"accelerate/{method}": "classification" for method in METHODS},
    "fabric/smart/generation": "generation",
    "fabric/freelb/generation": "generation",
    "ddp plain/smart/generation": "generation",
    "fully_shard layers/smart/generation": "generation",
    "fully_shard layers/layer/generation": "generation",
    "fully_shard layers/freelb/generation": "generation",
    "lightning/sift": "classification",
    "lightning/freelb": "classification",
}
# Loops that take their device from the model; Fabric, Accelerate and Lightning are told the CPU here.
JOBS_ON_GPUS = [job for job in JOBS if job.startswith(("ddp", "accumulated", "fully_shard"))]
# A static graph has one forward of the wrapper an update.
REFUSED = ("ddp static_graph/freelb",)


def expected(job: str) -> dict[str, Tensor]:
    """The gradients of one process with the whole batch, by hand, on the CPU."""
    head = JOBS[job]
    name, level, k = METHODS[job.split("/")[1]]
    model = tiny_model(head)
    batch = collate(examples(head, LENGTHS[head]))
    point = point_of(model, level)

    def r() -> Tensor:
        return by_hand(name, lambda: model(**batch), point, batch, level=level, k=k)

    total = r()
    if job.split("/")[1] in BESIDE_THE_LOSS:
        handle = (
            point.register_forward_pre_hook(lambda _, given: (nn.functional.layer_norm(given[0], (16,), eps=1e-7),))
            if level == "deberta"
            else None
        )
        total = model(**batch).loss + ALPHA * total
        if handle is not None:
            handle.remove()
    total.backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def network(head: str, unused: bool = False) -> Any:
    model = tiny_model(head).to(DEVICE)
    if unused:
        model.register_parameter("unused", nn.Parameter(torch.ones(1, dtype=torch.float64, device=DEVICE)))
    return model


def share(head: str, parts: int = 1) -> Iterator[tuple[dict[str, Tensor], tuple[int, ...]]]:
    """This process's part of the batch, in so many batches of equal size, and the seeds of its rows."""
    rows = list(zip(examples(head, LENGTHS[head]), SEEDS, strict=False))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    size = len(rows) // (world * parts)
    for part in range(parts):
        first = (part * world + rank) * size
        mine = rows[first : first + size]
        batch = {name: values.to(DEVICE) for name, values in collate([row for row, _ in mine]).items()}
        yield batch, tuple(seed for _, seed in mine)


def total_loss(job: str, model: Any, bound: Any, batch: dict[str, Tensor], seeds: tuple[int, ...]) -> Tensor:
    """The objective of one batch in a loop that calls `model`."""
    if job.split("/")[1] not in BESIDE_THE_LOSS:
        found: Tensor = bound(model, batch, None, noise_seeds=seeds)
        return found
    with bound.clean(model):
        output = model(**batch)
    given = None if "without logits" in job else output
    total: Tensor = output.loss + ALPHA * bound(model, batch, given, noise_seeds=seeds)
    return total


def of_ddp(job: str, options: dict[str, Any]) -> Any:
    model = network(JOBS[job], unused="find_unused" in job)
    wrapped = DistributedDataParallel(model, **options)
    bound = regularizer(*of_method(job, wrapped))
    for _ in range(3):  # what DDP has seen in the first update it does not look at again
        model.zero_grad()
        for batch, seeds in share(JOBS[job]):
            total_loss(job, wrapped, bound, batch, seeds).backward()
    return model


def of_method(job: str, model: nn.Module) -> tuple[Any, ...]:
    name, level, k = METHODS[job.split("/")[1]]
    return name, model, level, k


def accumulated(job: str) -> Any:
    model = network(JOBS[job])
    wrapped = DistributedDataParallel(model)
    bound = regularizer(*of_method(job, wrapped))
    for _ in range(2):
        model.zero_grad()
        for part, (batch, seeds) in enumerate(share(JOBS[job], 3)):
            with wrapped.no_sync() if part < 2 else nullcontext():
                (total_loss(job, wrapped, bound, batch, seeds) / 3).backward()
    return model


def of_fully_shard(job: str) -> Any:
    model = network(JOBS[job])
    mesh = init_device_mesh(DEVICE, (2,))
    if "layers" in job:
        units = (
            (model.bert.embeddings, *model.bert.encoder.layer)
            if hasattr(model, "bert")
            else (model.model.embed_tokens, *model.model.layers)
        )
        for part in units:
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    bound = regularizer(*of_method(job, model))
    for _ in range(2):
        model.zero_grad()
        for batch, seeds in share(JOBS[job]):
            total_loss(job, model, bound, batch, seeds).backward()
    return model


def of_fabric(job: str) -> Any:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="64-true")
    fabric.launch()
    inner = network(JOBS[job])
    model, optimizer = fabric.setup(inner, torch.optim.SGD(inner.parameters(), lr=0.0))
    bound = regularizer(*of_method(job, model))
    for _ in range(2):
        optimizer.zero_grad()
        for batch, seeds in share(JOBS[job]):
            fabric.backward(total_loss(job, model, bound, batch, seeds))
        optimizer.step()
    return inner


def of_accelerate(job: str) -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    inner = network(JOBS[job])
    model, optimizer = accelerator.prepare(inner, torch.optim.SGD(inner.parameters(), lr=0.0))
    bound = regularizer(*of_method(job, model))
    for batch, seeds in share(JOBS[job], 3):
        with accelerator.accumulate(model):
            accelerator.backward(total_loss(job, model, bound, batch, seeds))
            optimizer.step()
    return inner


def of_lightning(job: str) -> Any:
    from tests.loops.lightning_module import Module, trainer

    method = job.split("/")[1]
    module = Module(network(JOBS[job]), *METHODS[method], alone=method not in BESIDE_THE_LOSS)
    loader = torch.utils.data.DataLoader(list(share(JOBS[job], 3)), batch_size=None)  # type: ignore[arg-type]
    trainer(devices=2, strategy="ddp", accumulate_grad_batches=3, use_distributed_sampler=False, precision=64).fit(
        module, loader
    )
    return module


KINDS: dict[str, Callable[[str], Any]] = {
    "accumulated": accumulated,
    "fully_shard": of_fully_shard,
    "fully_shard layers": of_fully_shard,
    "fabric": of_fabric,
    "accelerate": of_accelerate,
    "lightning": of_lightning,
    **{f"ddp {kind}": lambda job, options=options: of_ddp(job, options) for kind, options in DDP.items()},
}


def gradient_of(job: str) -> dict[str, Tensor] | str:
    try:
        model = KINDS[job.split("/")[0]](job)
    except ValueError as error:
        return str(error)
    if hasattr(model, "found"):
        return dict(model.found)
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: (x.full_tensor() if hasattr(x, "full_tensor") else x.clone()).cpu() for name, x in named.items()}


def main(file: Path) -> None:
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    found = {job: gradient_of(job) for job in (JOBS if DEVICE == "cpu" else JOBS_ON_GPUS)}
    if torch.distributed.get_rank() == 0:
        torch.save(found, file)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
