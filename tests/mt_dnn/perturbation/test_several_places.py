"""Noise at several places at once: one ascent, each δ in its own ball; against computations by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mt_dnn.perturbation import AdversarialTraining, SiftPerturbation, SmartPerturbation
from mt_dnn.perturbation.delta import CachedDelta
from mt_dnn.perturbation.injection import UnsupportedLevelError
from mt_dnn.perturbation.noise import place_seeds
from mt_dnn.perturbation.outputs import Comparison
from mt_dnn.perturbation.places import clean_pass, find_places
from mt_dnn.perturbation.search import Search
from tests.encoders import (
    NORMALIZED_FAMILIES,
    hook_count,
    remove_norm_eps,
    scale_tables,
    throughout,
    tiny_classifier,
    token_batch,
)
from tests.hf import collate, examples, search, tiny_model
from tests.loops.by_hand import SEEDS, assert_same, gradients, regularizer
from tests.mt_dnn.perturbation.several_places import RELATIVE, by_hand, changed
from tests.search import seeds_of

LAYERS = ("hidden:0", "hidden:1")
PLACES = {
    "classification": (LAYERS, ("pre_ln", "hidden:0"), ("pre_ln", "post_ln"), ("deberta", "hidden:-1")),
    "generation": (LAYERS, ("pre_ln", "hidden:-1"), ("pre_ln", *LAYERS)),
}
CASES = [(head, levels) for head, several in PLACES.items() for levels in several]


def searched(method: Any, model: Any, batch: Any) -> tuple[Any, Search]:
    """The result of a search on the tiny encoders, and the search after it."""
    found: list[Search] = []
    original = method.search
    method.search = lambda search, comparison: found.append(search) or original(search, comparison)
    places = find_places(model.bert, method.level)
    with clean_pass(places) as recorded:
        clean = model(*batch)
    result = method.regularize(
        lambda: model(*batch),
        places,
        clean,
        batch.attention_mask,
        noise_seeds=seeds_of(len(batch.attention_mask)),
        base=[h for (h,) in recorded],
    )
    return result, found[0]


def three_layers(**options: Any) -> Any:
    return tiny_classifier(num_hidden_layers=3, **options)


# against computations by hand


@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["smart", "at"])
@pytest.mark.parametrize(("head", "levels"), CASES)
def test_r_and_its_gradient_are_those_by_hand(
    head: str, levels: tuple[str, ...], name: str, k: int, scale: str
) -> None:
    model, batch = tiny_model(head), collate(examples(head))
    options = RELATIVE if scale == "relative" else {}
    bound = regularizer(name, model, levels, k, **options)  # type: ignore[arg-type]
    output = None
    if name == "smart" or "deberta" in levels:
        with bound.clean(model):
            output = model(**batch)
    if name == "at" and output is not None:
        bound._clean = bound._clean._replace(bases=None)  # type: ignore[union-attr]
    found = bound(model, batch, output, noise_seeds=SEEDS[:3])
    value = by_hand(name, model, batch, levels, k=k, relative=scale == "relative")
    assert_same(gradients(model, found), gradients(model, value), 1e-6 if head == "generation" else 1e-9)
    assert hook_count(model) == 0


@pytest.mark.parametrize(("head", "levels"), [("classification", LAYERS), ("generation", ("pre_ln", "hidden:0"))])
def test_the_gradient_of_each_delta_is_that_of_finite_differences(head: str, levels: tuple[str, ...]) -> None:
    model, batch = tiny_model(head), collate(examples(head))
    found: dict[str, Any] = {}

    class Recording(AdversarialTraining):
        def search(self, search: Search, comparison: Comparison) -> Tensor:
            loss = self.ascent_loss(search.ascent_output(), comparison)
            found["gradients"] = search.gradient(loss)
            found["deltas"] = [delta.value.detach() for delta in search.deltas.values()]
            return loss.detach()

    def forward() -> Any:
        with throughout(torch.float64):
            return model(**batch)

    method = search(Recording, level=levels)
    method.regularize(
        forward, model, None, batch["attention_mask"], task_loss=lambda x: x.loss, noise_seeds=SEEDS[:3],
        task_type="next_tokens" if head == "generation" else "classes",
        loss_mask=torch.ones_like(batch["attention_mask"]) if head == "generation" else None,
    )  # fmt: skip
    terms = 3 if head == "classification" else batch["attention_mask"].numel()
    real = batch["attention_mask"].unsqueeze(-1)

    def value(deltas: list[Tensor]) -> Tensor:
        with changed(model, levels, [lambda h, delta=delta: h + delta for delta in deltas]):  # type: ignore[misc]
            loss: Tensor = forward().loss * terms
        return loss

    generator = torch.Generator().manual_seed(4)
    step = 1e-5
    for number, gradient in enumerate(found["gradients"]):
        direction = real * torch.randn(gradient.shape, generator=generator, dtype=torch.float64)

        def moved(sign: int, number: int = number, direction: Tensor = direction) -> list[Tensor]:
            deltas = list(found["deltas"])
            deltas[number] = deltas[number] + sign * step * direction
            return deltas

        difference = (value(moved(1)) - value(moved(-1))) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=0)
        assert difference.abs() > 1e-2


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5"])
def test_activation_checkpointing_changes_nothing(family: str) -> None:
    def found(checkpointed: bool) -> tuple[float, dict[str, Tensor]]:
        model = tiny_classifier(family, num_hidden_layers=3, dtype=torch.float32)
        if checkpointed:
            model.bert.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        result, _ = searched(search(SmartPerturbation, level=LAYERS, k=2), model, token_batch(model.bert))
        result.loss.backward()
        return result.loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    (value, gradients_found), (expected, wanted) = found(True), found(False)
    assert value == pytest.approx(expected, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients_found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["smart", "at"])
def test_compiling_the_model_or_its_layers_changes_nothing(name: str) -> None:
    batch = collate(examples("generation"))

    def value(compile_: Callable[[Any], Any]) -> float:
        model = compile_(tiny_model("generation", dtype=torch.float32))
        bound = regularizer(name, model, ("pre_ln", "hidden:0"), 2, **RELATIVE)  # type: ignore[arg-type]
        with bound.clean(model):
            output = model(**batch)
        return bound(model, batch, output, noise_seeds=SEEDS[:3]).item()

    def layers_compiled(model: Any) -> Any:
        for layer in model.model.layers:
            layer.compile(backend="eager")
        return model

    plain = value(lambda model: model)
    assert value(lambda model: torch.compile(model, backend="eager")) == plain
    assert value(layers_compiled) == plain


# properties


def test_the_order_of_the_names_does_not_matter() -> None:
    model = three_layers()
    batch = token_batch(model.bert)
    several = (("hidden:0", "hidden:2"), ("hidden:2", "hidden:0"), ["hidden:-1", "hidden:-3"], "hidden:2, hidden:0")
    (first, _), *others = (searched(search(level=level, k=2), model, batch) for level in several)
    assert all(torch.equal(result.loss, first.loss) for result, _ in others)
    alone, _ = searched(search(level="hidden:0", k=2), model, batch)
    assert not torch.equal(alone.loss, first.loss)


def test_the_first_place_draws_as_if_alone_and_each_other_draws_its_own() -> None:
    model = three_layers()
    batch = token_batch(model.bert)
    _, alone = searched(search(level="hidden:0", k=0), model, batch)
    _, three = searched(search(level=("hidden:0", "hidden:1", "hidden:2"), k=0), model, batch)
    deltas = [delta.value for delta in three.deltas.values()]
    assert torch.equal(deltas[0], alone.deltas[0].value)
    assert all(not torch.equal(deltas[one], deltas[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    assert place_seeds(None, 1) is None


@pytest.mark.parametrize("rows", [1, 2])
def test_a_later_place_that_meets_another_batch_is_refused(rows: int) -> None:
    """Of one row it would be repeated for all rows of δ, without a word."""
    model = three_layers()
    _, found = searched(search(level=("pre_ln", "hidden:0"), k=0), model, token_batch(model.bert))
    h = found.deltas[1].h
    assert len(h) > rows
    assert found._delta_at(1, h) is found.deltas[1]
    with pytest.raises(ValueError, match="accepted: passes on one batch"):
        found._delta_at(1, h[:rows])


def test_without_noise_and_ascent_nothing_is_left() -> None:
    model = tiny_model("classification", dropout=0.3)
    batch = collate(examples("classification"))
    options: dict[str, Any] = {"radius": None, "projection": "none", "noise_var": 0.0, "same_dropout": True}
    bound = regularizer("random", model, ("pre_ln", *LAYERS), **options)  # type: ignore[arg-type]
    with bound.clean(model):
        output = model(**batch)
    assert bound(model, batch, output).item() == 0.0
    assert bound.last is not None and bound.last.delta_size == 0


@pytest.mark.parametrize("family", NORMALIZED_FAMILIES)
def test_with_relative_noise_the_scale_of_the_tables_does_not_matter(family: str) -> None:
    def value(scale: float) -> Tensor:
        model = tiny_classifier(family, num_hidden_layers=2)
        remove_norm_eps(model)
        scale_tables(model.bert, scale)
        result, _ = searched(search(level=("pre_ln", "hidden:0"), k=2, **RELATIVE), model, token_batch(model.bert))
        loss: Tensor = result.loss.detach()
        return loss

    torch.testing.assert_close(value(7.0), value(1.0), rtol=1e-8, atol=0)


def test_an_examples_deltas_depend_on_nothing_else_in_its_batch() -> None:
    model = three_layers()
    both, alone = token_batch(model.bert), token_batch(model.bert, lengths=(7,))
    one = type(both)(*(None if x is None else x[:1] for x in both))
    assert torch.equal(one.attention_mask, alone.attention_mask)
    method: dict[str, Any] = {"level": ("pre_ln", "hidden:1"), "k": 2}
    (_, found), (_, single) = searched(search(**method), model, both), searched(search(**method), model, one)
    for number in (0, 1):
        torch.testing.assert_close(found.deltas[number].value[:1], single.deltas[number].value, rtol=1e-9, atol=1e-12)


def test_the_figures_are_means_over_the_entries_of_all_places() -> None:
    model = three_layers()
    batch = token_batch(model.bert)
    result, found = searched(search(level=("pre_ln", "hidden:2"), k=1), model, batch)
    real = batch.attention_mask.bool()
    for figure, tensors in {
        "delta_size": [delta.value for delta in found.deltas.values()],
        "eff_perturb": [delta.last_step for delta in found.deltas.values()],
        "emb_val": [delta.h for delta in found.deltas.values()],
    }.items():
        entries = torch.cat([x[real].abs().flatten() for x in tensors])
        torch.testing.assert_close(getattr(result, figure), entries.mean())
    gained = search(level=LAYERS, k=2)
    clean = model(*batch)
    measured = gained.regularize(
        lambda: model(*batch), model.bert, clean, batch.attention_mask, noise_seeds=seeds_of(3), measure_gain=True
    )
    assert measured.ascent_rise > 2 * measured.chance_rise


def test_the_relative_sizes_are_those_of_all_places() -> None:
    model = three_layers(dtype=torch.float32)
    batch = token_batch(model.bert)
    options: dict[str, Any] = {**RELATIVE, "radius": 0.03, "step_size": 10.0}
    _, found = searched(search(level=("pre_ln", "hidden:0"), **options), model, batch)
    sizes = found.relative_sizes()
    assert len(sizes) == 2 * batch.attention_mask.sum()
    torch.testing.assert_close(sizes, torch.full_like(sizes, 0.03))


def test_an_example_whose_gradient_is_not_finite_at_one_place_keeps_all_its_deltas() -> None:
    model = three_layers()
    _, found = searched(search(level=LAYERS, k=1), model, token_batch(model.bert))
    before = [delta.value.detach().clone() for delta in found.deltas.values()]
    wanted = [torch.ones_like(delta) for delta in before]
    wanted[1][0, 0, 0] = torch.inf
    found.ascend(wanted, torch.tensor([True, True, True]))
    for delta, old in zip(found.deltas.values(), before, strict=True):
        assert torch.equal(delta.value[0], old[0])
        assert not torch.equal(delta.value[1], old[1])
    assert found.skipped.tolist() == [True, False, False]


# what is refused


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (("hidden:0", "hidden:0"), "^level is 'hidden:0,hidden:0', which names a place twice; accepted: different pl"),
        (("hidden:0", "hidden:-3"), "^hidden:0 and hidden:-3 are one place of BertModel; accepted: different places$"),
        (("hidden:0", "hidden:3"), r"^BertModel has no layer 3; accepted: hidden:0 to hidden:2"),
        (("hidden:0", 4), r"^level is 'hidden:0,4'; accepted: one of .* or several of them split by commas$"),
        (("hidden:0", "mid_ln"), r"^level is 'hidden:0,mid_ln'; accepted: one of pre_ln, post_ln, deberta, or hidden"),
    ],
)
def test_other_places_are_refused_in_a_line(level: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        SmartPerturbation.for_model(three_layers(), level=level)
    assert "\n" not in str(error.value)


def test_sift_at_a_place_that_a_decoder_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedLevelError, match="has no injection point 'post_ln'; it has: pre_ln, hidden:0 to"):
        SiftPerturbation.for_model(tiny_model("generation"), level=("post_ln", "hidden:0"))


def test_methods_that_compare_need_the_clean_pass_at_all_places() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    for levels in (("pre_ln", "post_ln"), LAYERS):
        bound = SmartPerturbation.for_model(model, level=levels)
        with pytest.raises(ValueError, match=f"^level '{','.join(levels)}': run the clean pass of each batch within"):
            bound(model, batch, model(**batch))
    assert AdversarialTraining.for_model(model, level=LAYERS)(model, batch, None) > 0


def test_deltas_of_several_places_are_not_cached() -> None:
    model = three_layers()
    batch = token_batch(model.bert)
    cached = CachedDelta(torch.zeros(3, 7, 16), torch.zeros(3, dtype=torch.bool), lambda delta: None)
    with pytest.raises(ValueError, match="^δ is cached for all real tokens at one place, found 2 places$"):
        search(level=LAYERS).regularize(
            lambda: model(*batch), model.bert, model(*batch), batch.attention_mask, cached=cached
        )
