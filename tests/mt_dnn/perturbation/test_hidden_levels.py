"""Noise at the output of a layer (`hidden:N`): where it lands, its gradients, its units, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from mt_dnn.perturbation import AdversarialTraining, FreeLbPerturbation, SiftPerturbation, SmartPerturbation
from mt_dnn.perturbation.base import AdversarialPerturbation
from mt_dnn.perturbation.injection import NoiseInjection, UnsupportedLevelError, hidden_levels
from mt_dnn.perturbation.measured_defaults import measured
from tests.encoders import (
    ALL_FAMILIES,
    NORMALIZED_FAMILIES,
    Classifier,
    LinearModel,
    remove_norm_eps,
    scale_tables,
    throughout,
    tiny_classifier,
    tiny_encoder,
    token_batch,
)
from tests.hf import collate, examples, search, tiny_model
from tests.loops.by_hand import SEEDS, assert_same, by_hand, gradients, point_of, regularizer

LAYERS = 3
FAMILY_AND_LEVEL = [(family, f"hidden:{number}") for family in ALL_FAMILIES for number in range(LAYERS)]


def three_layers(family: str, **options: Any) -> Classifier:
    return tiny_classifier(family, num_hidden_layers=LAYERS, **options)


def noise_for(mask: Tensor, hidden: int = 16, size: float = 0.1, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(*mask.shape, hidden, generator=generator, dtype=torch.float64)


# where it lands


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("number", range(LAYERS - 1))
def test_h_is_the_hidden_state_that_transformers_returns(family: str, number: int) -> None:
    """`hidden_states[N + 1]` is the output of layer N; that of the last layer is normalized in some families."""
    model = three_layers(family)
    batch = token_batch(model.bert)
    injection = NoiseInjection(model.bert, f"hidden:{number}")
    delta = noise_for(batch.attention_mask)

    def states() -> tuple[Tensor, ...]:
        types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
        with throughout(torch.float64):
            found: tuple[Tensor, ...] = model.bert(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True, **types
            ).hidden_states
        return found

    with injection.clean() as bases:
        clean = states()
    with injection.add(delta):
        perturbed = states()
    (h,) = bases
    assert torch.equal(h, clean[number + 1])
    assert injection.size == h.size(-1)
    assert all(torch.equal(one, other) for one, other in zip(clean[: number + 1], perturbed, strict=False))
    assert (perturbed[number + 2] - clean[number + 2]).abs().max() > 1e-3
    at = NoiseInjection(model.bert, f"hidden:{number - LAYERS}")
    with at.clean() as bases:
        states()
    assert torch.equal(bases[0], h)


@pytest.mark.parametrize(("family", "level"), FAMILY_AND_LEVEL)
def test_zero_noise_and_noise_at_padding_change_nothing(family: str, level: str) -> None:
    model = three_layers(family)
    batch = token_batch(model.bert)
    injection, plain = NoiseInjection(model.bert, level), model(*batch)
    noise = noise_for(batch.attention_mask, size=3.0)
    with injection.clean():
        assert torch.equal(model(*batch), plain)
    for nothing in (0 * noise, noise * (1 - batch.attention_mask).unsqueeze(-1)):
        with injection.add(nothing):
            assert torch.equal(model(*batch), plain)
    with injection.add(noise):
        assert not torch.allclose(model(*batch), plain)
    assert torch.equal(model(*batch), plain)


@pytest.mark.parametrize(("family", "level"), FAMILY_AND_LEVEL)
def test_the_gradient_of_the_noise_is_that_of_finite_differences(family: str, level: str) -> None:
    model = three_layers(family)
    batch = token_batch(model.bert)
    noise = noise_for(batch.attention_mask).requires_grad_()
    direction = noise_for(batch.attention_mask, size=1.0, seed=4)
    injection = NoiseInjection(model.bert, level)

    def value(delta: Tensor) -> Tensor:
        with injection.add(delta):
            return model(*batch).square().sum()

    (gradient,) = torch.autograd.grad(value(noise), noise)
    step = 1e-5
    difference = (value(noise + step * direction) - value(noise - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-8)
    assert difference.abs() > 1e-2


def test_of_albert_which_runs_one_layer_several_times_it_is_the_nth_run() -> None:
    model = three_layers("albert")
    batch = token_batch(model.bert)
    delta = noise_for(batch.attention_mask)
    (group,) = model.bert.encoder.albert_layer_groups
    found = []
    for number in range(LAYERS):
        with NoiseInjection(model.bert, f"hidden:{number}").add(delta):
            found.append((model(*batch), model(*batch)))  # the count starts again in each forward
        runs = 0

        def add(_: nn.Module, __: Any, output: Any, number: int = number) -> Any:
            nonlocal runs
            runs += 1
            if runs != number + 1:
                return output
            return (output[0] + delta, *output[1:]) if isinstance(output, tuple) else output + delta

        handle = group.register_forward_hook(add)
        expected = model(*batch)
        handle.remove()
        assert runs == LAYERS
        assert all(torch.equal(logits, expected) for logits in found[-1])
    assert not torch.allclose(found[0][0], found[1][0])


@pytest.mark.parametrize("family", NORMALIZED_FAMILIES)
@pytest.mark.parametrize("level", ["hidden:0", "hidden:-1"])
def test_the_effect_does_not_depend_on_the_scale_of_the_tables(family: str, level: str) -> None:
    model = three_layers(family)
    remove_norm_eps(model)
    batch = token_batch(model.bert)
    injection, delta = NoiseInjection(model.bert, level), noise_for(batch.attention_mask)

    def logits() -> Tensor:
        with injection.add(delta):
            return model(*batch).detach()

    before = logits()
    scale_tables(model.bert, 7.0)
    torch.testing.assert_close(logits(), before, rtol=1e-9, atol=1e-9)


# the search


@pytest.mark.parametrize("head", ["classification", "generation"])
@pytest.mark.parametrize("level", ["hidden:0", "hidden:-1"])
@pytest.mark.parametrize("name", ["smart", "vat", "at", "freelb"])
def test_r_and_its_gradient_are_those_by_hand(name: str, level: str, head: str) -> None:
    model, batch = tiny_model(head), collate(examples(head))
    bound = regularizer(name, model, level, 2)
    with bound.clean(model):
        output = model(**batch)
    found = bound(model, batch, None if name == "freelb" else output, noise_seeds=SEEDS[:3])
    value = by_hand(name, lambda: model(**batch), point_of(model, level), batch, level=level, k=2)
    # transformers' decoder computes its loss and its norms in single precision.
    assert_same(gradients(model, found), gradients(model, value), 1e-6 if head == "generation" else 1e-9)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5"])
def test_activation_checkpointing_changes_nothing(family: str) -> None:
    def found(checkpointed: bool) -> tuple[float, dict[str, Tensor]]:
        model = three_layers(family, dtype=torch.float32)
        if checkpointed:
            model.bert.gradient_checkpointing_enable({"use_reentrant": False})
        batch = token_batch(model.bert)
        method = search(SmartPerturbation, level="hidden:1", k=2)
        injection = NoiseInjection(model.bert, "hidden:1")
        with injection.clean() as bases:
            clean = model(*batch)
        result = method.regularize(
            lambda: model(*batch), injection, clean, batch.attention_mask, noise_seeds=SEEDS[:3], base=bases[0]
        )
        (clean.square().sum() + result.loss).backward()
        return result.loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    (value, gradients_found), (expected, wanted) = found(True), found(False)
    assert value == pytest.approx(expected, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients_found[name], gradient, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_is_recomputed_as_a_whole_is_refused() -> None:
    for family in ("bert", "albert"):
        model = three_layers(family)
        batch = token_batch(model.bert)

        def whole(model: Classifier = model, batch: Any = batch) -> Tensor:
            output: Tensor = torch.utils.checkpoint.checkpoint(lambda: model(*batch), use_reentrant=False)
            return output

        method = search(SmartPerturbation, level="hidden:1")
        with pytest.raises(ValueError, match=r"^the backward pass recomputes layer 1 of \w+, without the noise; acc"):
            method.regularize(whole, model.bert, model(*batch), batch.attention_mask)


def test_perturbed_passes_share_the_dropout_of_the_layers_before_the_noise() -> None:
    """Without noise and without dropout after the last layer R is 0, whatever the layers draw."""
    model = tiny_model("classification", dropout=0.3, classifier_dropout=0.0)
    batch = collate(examples("classification"))
    bound = regularizer("random", model, "hidden:-1", radius=None, projection="none", noise_var=0.0)
    with bound.clean(model):
        output = model(**batch)
    assert bound(model, batch, output).item() == 0.0
    with pytest.raises(ValueError, match="^level 'hidden:-1': run the clean pass of each batch within"):
        bound(model, batch, model(**batch))
    labeled = regularizer("at", model, "hidden:-1")
    assert labeled(model, batch, None).item() > 0


def test_a_relative_radius_is_a_share_of_h_at_that_layer() -> None:
    model, batch = tiny_model("classification", dtype=torch.float32), collate(examples("classification"))
    method = SmartPerturbation.with_defaults(level="hidden:0", step_size=10.0)
    method.reports_relative_sizes = True
    with NoiseInjection(model, "hidden:0").clean() as bases:
        output = model(**batch)
    result = method.regularize(
        lambda: model(**batch), model, output.logits, batch["attention_mask"], base=bases[0], measure_gain=True
    )
    assert result.relative_sizes is not None
    torch.testing.assert_close(result.relative_sizes, torch.full_like(result.relative_sizes, 0.03))


def test_h_at_padding_is_in_no_size() -> None:
    """With padding on the left, a layer's output may be not a number there: such tokens attend to none."""
    ball = SmartPerturbation.with_defaults().ball
    mask = torch.tensor([[0, 1, 1]])
    h = torch.ones(1, 3, 4)
    h[0, 0] = torch.nan
    assert torch.isfinite(ball.units(h, mask)[1]).all()


# names


def test_the_levels_of_the_layers_are_named() -> None:
    assert hidden_levels(three_layers("bert").bert) == ("hidden:0", "hidden:1", "hidden:2")
    assert hidden_levels(three_layers("albert").bert) == ("hidden:0", "hidden:1", "hidden:2")
    assert hidden_levels(LinearModel(torch.zeros(4, 3), torch.ones(3))) == ()
    assert measured("smart", "hidden:4") == measured("smart", "post_ln")


@pytest.mark.parametrize("kind", [SmartPerturbation, SiftPerturbation, AdversarialTraining, FreeLbPerturbation])
def test_every_method_takes_the_level(kind: type[AdversarialPerturbation]) -> None:
    assert kind.for_model(tiny_model("classification"), level="hidden:-2").perturbation.level == "hidden:-2"


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("hidden:3", r"^BertModel has no layer 3; accepted: hidden:0 to hidden:2, or hidden:-3 to hidden:-1, counted"),
        ("hidden:-4", r"^BertModel has no layer -4; accepted: hidden:0 to hidden:2"),
        ("hidden", r"^level is 'hidden'; accepted: one of pre_ln, post_ln, deberta, or hidden:N, the output of layer"),
        ("hidden:1,2", r"^level is 'hidden:1,2'; accepted: one of .* or several of them split by commas$"),
        ("hidden:1,", r"^level is 'hidden:1,'; accepted: one of .* or several of them split by commas$"),
        ("hidden:1.0", "accepted: one of"),
    ],
)
def test_other_levels_are_refused_in_a_line(level: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        SmartPerturbation.for_model(three_layers("bert"), level=level)
    assert "\n" not in str(error.value)


class Lists(nn.Module):
    """Words and lists of these lengths, as XLM has its layers in four lists."""

    def __init__(self, *lengths: int) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        for number, length in enumerate(lengths):
            setattr(self, f"list{number}", nn.ModuleList(nn.Linear(4, 4) for _ in range(length)))

    def get_input_embeddings(self) -> nn.Module:
        return self.words


def test_layers_that_cannot_be_found_are_refused_in_a_line() -> None:
    assert hidden_levels(Lists(2)) == ("hidden:0", "hidden:1")
    for stack in (Lists(), Lists(0), Lists(2, 2), Lists(3, 2)):
        with pytest.raises(UnsupportedLevelError, match=r"^the layers of Lists cannot be found; accepted for hidden:N"):
            NoiseInjection(stack, "hidden:0")
    stack = Lists(2, 1)
    stack.config = transformers.BertConfig(num_hidden_layers=2)
    assert hidden_levels(stack) == ("hidden:0", "hidden:1")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            {"states": 1},
            r"^Layer returns a dict; accepted for hidden:N: layers that return \(batch, tokens, hidden\), alo",
        ),
        (torch.zeros(2, 4), "^Layer returns 2 dimensions; accepted for hidden:N"),
        ((), r"^Layer returns a tuple; accepted"),
    ],
)
def test_layers_that_return_something_else_are_refused_in_a_line(output: Any, message: str) -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return output

    stack = Lists(1)
    stack.list0[0] = Layer()  # type: ignore[operator]
    with pytest.raises(ValueError, match=message), NoiseInjection(stack, "hidden:0").clean():
        stack.list0[0](torch.zeros(1, 2, 4))  # type: ignore[operator]


def test_an_encoder_of_an_encoder_decoder_has_them() -> None:
    whole = tiny_encoder("t5", model=transformers.T5Model)
    assert hidden_levels(whole.get_encoder()) == ("hidden:0", "hidden:1")
