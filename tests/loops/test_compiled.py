"""torch.compile, of the model and of parts of it, with dropout: R and its gradient by hand at every level."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from tests.hf import collate, examples, tiny_model
from tests.loops.by_hand import LEVELS, SEEDS, assert_same, by_hand, gradients, point_of, regularizer

BATCH = collate(examples("classification"))


def compiled(model: Any, way: str, **options: Any) -> Any:
    """The model, with code of torch.compile in this way."""
    torch._dynamo.reset()
    options = {"backend": "eager", **options}
    if way == "model":
        return torch.compile(model, **options)
    if way == "in place":
        model.compile(**options)
    elif way == "forward":
        model.forward = torch.compile(model.forward, **options)
    elif way == "encoder":
        model.bert = torch.compile(model.bert, **options)
    elif way == "encoder in place":
        model.bert.compile(**options)
    elif way == "embeddings in place":
        model.bert.embeddings.compile(**options)
    elif way == "layers":
        for layer in model.bert.encoder.layer:
            layer.compile(**options)
    return model


def check(model: Any, called: Any, level: str, same_dropout: bool, dropout: float = 0.3) -> None:
    """R of the model as it is called, again and again, beside that by hand of an equal one that is not compiled."""
    if level.startswith("hidden:"):
        dropout = 0.0  # what the layers before the noise draw is shared with the clean pass, not by hand
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    plain = tiny_model("classification", num_hidden_layers=1, dropout=dropout)
    bound = regularizer("smart", called, level, 2, same_dropout=same_dropout)
    for _ in range(2):
        torch.manual_seed(5)
        state = torch.get_rng_state()
        with bound.clean(called):
            output = called(**BATCH)
        found = gradients(model, bound(called, BATCH, output, noise_seeds=SEEDS[:3]))
        value = by_hand(
            "smart",
            lambda: plain(**BATCH),
            point_of(plain, level),
            BATCH,
            level=level,
            k=2,
            state=state,
            same_dropout=same_dropout,
        )
        expected = gradients(plain, value)
        renamed = {name.replace("_orig_mod.", ""): x for name, x in found.gradients.items()}
        assert_same(found._replace(gradients=renamed), expected, 1e-9)


@pytest.mark.parametrize("level", [*LEVELS, "hidden:0"])
@pytest.mark.parametrize(
    "way", ["model", "in place", "forward", "encoder", "encoder in place", "embeddings in place", "layers"]
)
def test_a_compiled_model_has_the_r_by_hand(way: str, level: str) -> None:
    model = tiny_model("classification", num_hidden_layers=1, dropout=0.3)
    check(model, compiled(model, way), level, same_dropout=level == "post_ln")


@pytest.mark.parametrize(
    "options",
    [
        {"fullgraph": True},
        *(pytest.param(own, marks=pytest.mark.slow) for own in ({"dynamic": True}, {"backend": "aot_eager"})),
    ],
    ids=str,
)
def test_options_of_compile_change_nothing(options: dict[str, Any]) -> None:
    """`aot_eager` draws other dropout in the clean pass, so there is none."""
    dropout = 0.0 if "backend" in options else 0.3
    model = tiny_model("classification", num_hidden_layers=1, dropout=dropout)
    check(model, compiled(model, "model", **options), "post_ln", False, dropout=dropout)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("options", [{}, {"fullgraph": True}, {"mode": "reduce-overhead"}], ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_inductor_changes_nothing(level: str, options: dict[str, Any]) -> None:
    model = tiny_model("classification", num_hidden_layers=1)
    check(model, compiled(model, "model", backend="inductor", **options), level, False, dropout=0.0)


@pytest.mark.parametrize("level", ["pre_ln", pytest.param("deberta", marks=pytest.mark.slow)])
def test_a_compiled_step_has_the_r_by_hand(level: str) -> None:
    """All of a step under torch.compile: the code is broken off around R."""
    torch._dynamo.reset()
    model, plain = tiny_model("classification", num_hidden_layers=1), tiny_model("classification", num_hidden_layers=1)
    bound = regularizer("smart", model, level, 2)

    @torch.compile(backend="eager")
    def step() -> Any:
        with bound.clean(model):
            output = model(**BATCH)
        return bound(model, BATCH, output, noise_seeds=SEEDS[:3])

    value = by_hand("smart", lambda: plain(**BATCH), point_of(plain, level), BATCH, level=level, k=2)
    expected = gradients(plain, value)
    for _ in range(2):
        assert_same(gradients(model, step()), expected)


def test_a_step_without_breaks_says_that_r_is_not_compiled() -> None:
    torch._dynamo.reset()
    model = tiny_model("classification", num_hidden_layers=1)
    bound = regularizer("smart", model)
    step: Any = torch.compile(lambda: bound(model, BATCH, model(**BATCH)), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="torch.compiler.disable"):
        step()
