"""Loops of one's own around plain PyTorch: autocast, evaluation mode, averaged models, tied weights, Accelerate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.hf import ALPHA, collate, examples, tiny_model
from tests.loops.by_hand import LEVELS, SEEDS, Found, assert_same, by_hand, gradients, point_of, regularizer

NOTHING: dict[str, Any] = {"radius": None, "projection": "none", "noise_var": 0.0}


def in_bfloat16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["smart", "vat", "at", "freelb"])
def test_within_autocast_r_and_its_gradient_are_those_by_hand(name: str, level: str) -> None:
    """The gradients of several passes are added up in bfloat16 where they share one autocast block."""
    model, batch = tiny_model("classification", dtype=torch.float32), collate(examples("classification"))
    bound = regularizer(name, model, level, 2)
    with in_bfloat16():
        with bound.clean(model):
            output = model(**batch)
        found = bound(model, batch, None if name == "freelb" else output, noise_seeds=SEEDS[:3])
    value = by_hand(
        name,
        lambda: model(**batch),
        point_of(model, level),
        batch,
        level=level,
        k=2,
        precision=in_bfloat16,
        dtype=torch.float32,
    )
    assert found.item() == pytest.approx(value.item(), rel=1e-6)
    assert_same(gradients(model, found), gradients(model, value), 2e-3)
    still = regularizer("random", model, level, **NOTHING)
    with in_bfloat16():
        with still.clean(model):
            output = model(**batch)
        assert still(model, batch, output).item() == 0.0


def test_a_regularizer_outside_of_the_clean_passs_autocast_is_refused() -> None:
    model, batch = tiny_model("classification", dtype=torch.float32), collate(examples("classification"))
    with in_bfloat16():
        output = model(**batch)
    with pytest.raises(ValueError, match=r"clean logits are torch.bfloat16, the perturbed ones torch.float32; acc"):
        regularizer("smart", model)(model, batch, output)


@pytest.mark.parametrize("wrap", ["evaluation mode", "DataParallel", "AveragedModel"])
@pytest.mark.parametrize("name", ["smart", "at", "freelb"])
def test_wrapped_and_evaluated_models_have_the_r_by_hand(name: str, wrap: str) -> None:
    model: Any = tiny_model("classification", dropout=0.4 if wrap == "evaluation mode" else 0.0)
    batch = collate(examples("classification"))
    called: Any = model
    if wrap == "evaluation mode":
        model.eval()
    elif wrap == "DataParallel":
        called = nn.DataParallel(model)
    else:
        called = AveragedModel(model)
        model = called.module
        model.requires_grad_(True)
    bound = regularizer(name, called, "post_ln", 2)
    output = called(**batch)
    found = gradients(model, bound(called, batch, None if name == "freelb" else output, noise_seeds=SEEDS[:3]))
    value = by_hand(name, lambda: model(**batch), point_of(model, "post_ln"), batch, level="post_ln", k=2)
    assert_same(found, gradients(model, value), 1e-9)


def test_a_decoder_with_tied_words_has_the_gradient_of_both_uses() -> None:
    model, batch = tiny_model("generation", tie_word_embeddings=True), collate(examples("generation"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name in ("smart", "vat", "freelb"):
        bound = regularizer(name, model, k=2)
        output = model(**batch)
        found = gradients(model, bound(model, batch, None if name == "freelb" else output, noise_seeds=SEEDS[:3]))
        value = by_hand(name, lambda: model(**batch), point_of(model, "pre_ln"), batch, k=2)
        # The loss of transformers is in single precision.
        assert_same(found, gradients(model, value), 1e-6 if name == "freelb" else 1e-9)


@pytest.mark.parametrize("level", ["post_ln", "deberta"])
def test_given_embeddings_have_the_r_by_hand_behind_the_words(level: str) -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    vectors = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    embedded = {name: x for name, x in batch.items() if name != "input_ids"} | {"inputs_embeds": vectors}
    bound = regularizer("smart", model, level, 2)
    with bound.clean(model):
        output = model(**embedded)
    found = bound(model, embedded, output, noise_seeds=SEEDS[:3])
    value = by_hand("smart", lambda: model(**embedded), point_of(model, level), batch, level=level, k=2)
    torch.testing.assert_close(*(torch.autograd.grad(x, vectors, retain_graph=True)[0] for x in (found, value)))
    assert_same(gradients(model, found), gradients(model, value), 1e-9)


class DeepSpeedEngine(nn.Module):
    """The name of DeepSpeed's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_engines_that_cut_parameters_are_refused() -> None:
    model = tiny_model("classification")
    with pytest.raises(
        ValueError,
        match="^no perturbed passes in DeepSpeedEngine; accepted: torch.distributed.fsdp.fully_shard, or Dist",
    ):
        regularizer("smart", DeepSpeedEngine(model))
    bound = regularizer("smart", model)
    batch = collate(examples("classification"))
    engine = DeepSpeedEngine(model)
    with pytest.raises(ValueError, match="no perturbed passes in DeepSpeedEngine"):
        bound(engine, batch, model(**batch))


def of_accelerate(name: str, parts: int, mixed_precision: str = "no", dtype: torch.dtype = torch.float64) -> Found:
    """The mean R and the gradient of one update over so many batches in Accelerate's own loop."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision, gradient_accumulation_steps=parts)
    inner = tiny_model("classification", dtype=dtype)
    rows = examples("classification", (7, 3, 6, 5))
    size = len(rows) // parts
    model, optimizer = accelerator.prepare(inner, torch.optim.SGD(inner.parameters(), lr=0.0))
    bound, values = regularizer(name, model, "post_ln", 2), []
    for part in range(parts):
        batch = collate(rows[part * size : (part + 1) * size])
        with accelerator.accumulate(model):
            output = model(**batch)
            value = bound(model, batch, output, noise_seeds=SEEDS[part * size : (part + 1) * size])
            accelerator.backward(output.loss + ALPHA * value)
            optimizer.step()
            values.append(value.item())
    found = {key: p.grad.clone() for key, p in inner.named_parameters() if p.grad is not None}
    still = regularizer("random", model, "post_ln", **NOTHING)
    assert still(model, batch, model(**batch)).item() == 0.0
    AcceleratorState._reset_state(reset_partial_state=True)
    return Found(sum(values) / parts, found)


@pytest.mark.parametrize("name", ["smart", "at"])
def test_accelerates_loop_has_the_gradient_by_hand(name: str) -> None:
    model, batch = tiny_model("classification"), collate(examples("classification", (7, 3, 6, 5)))
    r = by_hand(name, lambda: model(**batch), point_of(model, "post_ln"), batch, level="post_ln", k=2)
    expected = gradients(model, model(**batch).loss + ALPHA * r)
    for parts in (1, 2):
        found = of_accelerate(name, parts)
        assert_same(found._replace(value=expected.value), expected, 1e-7)
        assert found.value == pytest.approx(r.item(), rel=1e-6)
    single, half = (of_accelerate(name, 2, precision, torch.float32) for precision in ("no", "bf16"))
    assert half.value == pytest.approx(single.value, rel=0.1)
    assert half.value != single.value
