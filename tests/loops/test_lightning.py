"""Lightning: Fabric's wrapper in a loop of one's own, and the Trainer with R in a LightningModule's training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.hf import ALPHA, collate, examples, tiny_model
from tests.loops.by_hand import LEVELS, SEEDS, by_hand, gradients, point_of, regularizer

lightning = pytest.importorskip("lightning")
from lightning.fabric import Fabric  # noqa: E402

from tests.loops.lightning_module import Module, trainer  # noqa: E402

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
HEADS = ("classification", "generation")


def fabric_of(precision: Any = "64-true", **options: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, precision=precision, **options)


def setup(fabric: Fabric, model: Any) -> tuple[Any, Any]:
    found: tuple[Any, Any] = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.0))
    return found


def data(head: str) -> dict[str, Tensor]:
    return collate(examples(head))


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().double().clone() for p in model.parameters()]


@pytest.mark.parametrize("bound_to", ["wrapped", "unwrapped"])
@pytest.mark.parametrize("name", ["smart", "vat", "at", "freelb"])
@pytest.mark.parametrize("head", HEADS)
def test_fabrics_loop_has_the_gradient_by_hand(head: str, name: str, bound_to: str) -> None:
    fabric, inner, batch = fabric_of(), tiny_model(head), data(head)
    model, _ = setup(fabric, inner)
    bound = regularizer(name, model if bound_to == "wrapped" else inner, k=2)
    output = model(**batch)
    value = bound(model, batch, None if name == "freelb" else output, noise_seeds=SEEDS[:3])
    total = value if name == "freelb" else output.loss + ALPHA * value
    fabric.backward(total)
    found = {key: p.grad.clone() for key, p in inner.named_parameters() if p.grad is not None}
    if name != "freelb" and head == "generation":
        assert bound.read["task_type"] == "next_tokens"

    expected = by_hand(name, lambda: inner(**batch), point_of(inner, "pre_ln"), batch, k=2)
    loss = expected if name == "freelb" else inner(**batch).loss + ALPHA * expected
    tolerance = 1e-6  # Fabric returns logits in single precision
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    inner.zero_grad()
    loss.backward()
    assert max(float(x.abs().max()) for x in found.values()) > 1e-2
    for key, parameter in inner.named_parameters():
        torch.testing.assert_close(found.get(key), parameter.grad, rtol=0, atol=tolerance)


NOTHING: dict[str, Any] = {"radius": None, "projection": "none", "noise_var": 0.0}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("head", (*HEADS, "regression"))  # whose labels Fabric rounds
@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_noise_the_perturbed_pass_is_the_clean_one_in_each_precision(
    precision: str, head: str, level: str
) -> None:
    if head == "generation" and level != "pre_ln":
        return
    dtype = torch.float64 if precision == "64-true" else torch.float32
    model, _ = setup(fabric_of(precision), tiny_model(head, dtype=dtype))
    batch = data(head)
    still = regularizer("random", model, level, **NOTHING)
    with still.clean(model):
        output = model(**batch)
    assert still(model, batch, output).item() == 0.0
    labels = regularizer("at", model, level, k=0, **NOTHING)
    with labels.clean(model):
        loss = model(**batch).loss
    assert labels(model, batch, output).item() == loss.item()


LAST = {"classification": "bert.encoder.layer.1.output.dense", "generation": "model.layers.1.mlp.down_proj"}


@pytest.mark.parametrize(
    ("head", "precision", "compiled"),
    [(head, precision, False) for head in HEADS for precision in ("bf16-mixed", "bf16-true")]
    + [("generation", "bf16-mixed", True)],
)
def test_r_in_half_precision_is_near_that_in_single(head: str, precision: str, compiled: bool) -> None:
    torch._dynamo.reset()
    batch, values = data(head), {}
    for kind in ("32-true", precision):
        own: Any = tiny_model(head, dtype=torch.float32)
        seen: list[torch.dtype] = []
        model, _ = setup(fabric_of(kind), torch.compile(own, backend="eager") if compiled else own)
        bound = regularizer("smart", model)
        output = model(**batch)
        own.get_submodule(LAST[head]).register_forward_hook(lambda _, __, x, seen=seen: seen.append(x.dtype))
        values[kind] = bound(model, batch, output, noise_seeds=SEEDS[:3]).item()
        assert seen == 2 * [torch.float32 if kind == "32-true" else torch.bfloat16]
    assert values[precision] == pytest.approx(values["32-true"], rel=0.1)
    assert values[precision] != values["32-true"]


METHODS = [("smart", "deberta"), ("vat", "post_ln"), ("at", "pre_ln"), ("freelb", "pre_ln")]


def batches(head: str, parts: int) -> torch.utils.data.DataLoader[Any]:
    """Two equal rows of the examples a batch, with the seeds of their noise."""
    rows, seeds = examples(head, (7, 4) * parts), SEEDS
    places = [slice(2 * part, 2 * part + 2) for part in range(parts)]
    found = [(collate(rows[place]), list(seeds[place])) for place in places]
    return torch.utils.data.DataLoader(found, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("bound_to", ["self", "model"])
@pytest.mark.parametrize(("name", "level"), METHODS)
def test_lightnings_trainer_has_the_gradient_by_hand_over_accumulated_batches(
    name: str, level: str, bound_to: str
) -> None:
    model = tiny_model("classification")
    module = Module(model, name, level, 2, bound_to, alone=name == "freelb")
    trainer(accumulate_grad_batches=3, precision=64).fit(module, batches("classification", 3))
    assert len(module.values) == 3
    point, expected = point_of(model, level), torch.zeros((), dtype=torch.float64)
    for (batch, seeds), value in zip(batches("classification", 3), module.values, strict=True):
        r = by_hand(name, lambda batch=batch: model(**batch), point, batch, level=level, k=2, seeds=seeds)  # type: ignore[misc]
        assert value.item() == pytest.approx(r.item(), rel=1e-9)
        clean = regularizer("random", model, level)  # LN0 stands in deberta's clean pass
        with clean.clean(model):
            loss = model(**batch).loss
        expected = expected + (r if name == "freelb" else loss + ALPHA * r) / 3
    wanted = gradients(model, expected)
    assert max(float(x.abs().max()) for x in wanted.gradients.values()) > 1e-2
    for key, gradient in wanted.gradients.items():
        torch.testing.assert_close(module.found[key], gradient, rtol=0, atol=1e-10, msg=key)


@pytest.mark.parametrize("bound_to", ["self", "model"])
@pytest.mark.parametrize("head", HEADS)
def test_lightnings_trainer_in_half_precision(head: str, bound_to: str) -> None:
    """Noise of size zero gives R = 0, noise an R near that in single precision."""
    values = {}
    for precision in ("32-true", "bf16-mixed"):
        module = Module(tiny_model(head, dtype=torch.float32), "smart", "pre_ln", 1, bound_to)
        trainer(precision=precision).fit(module, batches(head, 1))
        values[precision] = module.values[0].item()
        assert module.logits[0].dtype == (torch.float32 if precision == "32-true" else torch.bfloat16)
        assert head == "classification" or module.regularizer.read["task_type"] == "next_tokens"
        still = Module(tiny_model(head, dtype=torch.float32), "smart", "pre_ln", 1, bound_to)
        still.regularizer = regularizer("random", still, **NOTHING)
        trainer(precision=precision).fit(still, batches(head, 1))
        assert still.values[0].item() == 0.0
    assert values["bf16-mixed"] == pytest.approx(values["32-true"], rel=0.1)
    assert values["bf16-mixed"] != values["32-true"]


@pytest.mark.slow
def test_a_compiled_lightning_module_has_the_r_of_the_plain_one() -> None:
    torch._dynamo.reset()
    values = []
    for compiled in (False, True):
        module: Any = Module(tiny_model("classification"), "smart", "post_ln", 2)
        trainer(precision=64).fit(
            torch.compile(module, backend="eager") if compiled else module, batches("classification", 1)
        )
        values.append((module.values[0].item(), module.found))
    assert values[1][0] == pytest.approx(values[0][0], rel=1e-9)
    for key, gradient in values[0][1].items():
        torch.testing.assert_close(values[1][1][key], gradient, rtol=0, atol=1e-10, msg=key)


def test_logits_of_fabrics_wrapper_belong_to_the_wrapper() -> None:
    """The model inside would compute in another precision."""
    inner, batch = tiny_model("classification", dtype=torch.float32), data("classification")
    model, _ = setup(fabric_of("bf16-mixed"), inner)
    with pytest.raises(ValueError, match="the clean logits are Fabric's; accepted: the model as fabric.setup"):
        regularizer("smart", inner)(inner, batch, model(**batch))


class FullyShardedDataParallel(nn.Module):
    """The name of torch's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_what_is_refused_is_seen_inside_fabrics_wrapper() -> None:
    model, _ = setup(fabric_of(), tiny_model("classification"))
    model._forward_module = FullyShardedDataParallel(model._forward_module)
    with pytest.raises(
        ValueError,
        match="no perturbed passes in FullyShardedDataParallel; accepted: torch.distributed.fsdp.fully_shard",
    ):
        regularizer("smart", model)
