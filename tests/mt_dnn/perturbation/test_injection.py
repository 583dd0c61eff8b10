"""Where noise enters, level by level, and that nothing else of the encoder changes (docs/methods.md)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mt_dnn.perturbation.injection
from mt_dnn.perturbation.injection import (
    NO_LAYER_NORM,
    NoiseInjection,
    UnsupportedLevelError,
    available_levels,
    find_encoder,
)
from tests.encoders import (
    ALL_FAMILIES,
    LEVELS,
    NORMALIZED_FAMILIES,
    SDPA_FAMILIES,
    Classifier,
    LinearModel,
    embedding_block,
    hook_count,
    injection_site,
    inputs_of,
    levels_of,
    remove_norm_eps,
    row_of,
    scale_tables,
    tiny_classifier,
    token_batch,
)

FAMILY_AND_LEVEL = [(family, level) for family in ALL_FAMILIES for level in levels_of(family)]
IMPLEMENTATIONS = [(family, "eager", level) for family, level in FAMILY_AND_LEVEL] + [
    (family, "sdpa", level) for family, level in FAMILY_AND_LEVEL if family in SDPA_FAMILIES
]


def random_noise(model: Classifier, mask: Tensor, size: float = 0.1, seed: int = 3) -> Tensor:
    """Noise of (batch, tokens, embedding size), at padding too."""
    config = model.bert.config
    shape = (*mask.shape, getattr(config, "embedding_size", config.hidden_size))
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("family", "attention", "level"), IMPLEMENTATIONS)
def test_zero_noise_gives_the_clean_logits_bit_for_bit(
    family: str, attention: str, level: str, dtype: torch.dtype
) -> None:
    model = tiny_classifier(family, attention=attention, dropout=0.1, dtype=dtype)
    batch = token_batch(model.bert)
    injection = NoiseInjection(model.bert, level)
    torch.manual_seed(5)
    with injection.clean():
        clean = model(*batch)
    for zero in (torch.zeros_like(random_noise(model, batch.attention_mask)).to(dtype), lambda h: h):
        torch.manual_seed(5)
        with injection.add(zero):
            perturbed = model(*batch)
        assert torch.equal(perturbed, clean)
        assert perturbed.dtype == dtype


@pytest.mark.parametrize(("family", "level"), [pair for pair in FAMILY_AND_LEVEL if pair[1] != "deberta"])
def test_the_clean_pass_is_the_plain_encoder(family: str, level: str) -> None:
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    with NoiseInjection(model.bert, level).clean():
        clean = model(*batch)
    assert torch.equal(clean, model(*batch))


@pytest.mark.parametrize("family", NORMALIZED_FAMILIES)
def test_the_clean_pass_at_deberta_differs_from_the_plain_encoder_by_the_effect_of_eps(family: str) -> None:
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    with NoiseInjection(model.bert, "deberta").clean():
        with_ln0 = model(*batch)
    plain = model(*batch)
    assert not torch.equal(with_ln0, plain), "LN0 does not stand in the clean pass"
    torch.testing.assert_close(with_ln0, plain, rtol=1e-3, atol=1e-3)
    remove_norm_eps(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mt_dnn.perturbation.injection, "LN0_EPS", 1e-30)
        with NoiseInjection(model.bert, "deberta").clean():
            with_ln0 = model(*batch)
    torch.testing.assert_close(with_ln0, model(*batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("family", "level"), FAMILY_AND_LEVEL)
def test_noise_enters_where_the_level_says(family: str, level: str) -> None:
    """`LN(word + δ + …)`, `LN(word + …) + δ`, `LN(LN0(word + …) + δ)`, read off behind the injection point."""
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    noise = random_noise(model, batch.attention_mask)
    site = injection_site(model.bert, level)
    with inputs_of(site) as received:
        model(*batch)
        with NoiseInjection(model.bert, level).add(noise):
            model(*batch)
    plain, perturbed = (h.transpose(0, 1) if family == "xlnet" else h for h in received)  # (tokens, batch) there
    base = F.layer_norm(plain, plain.shape[-1:], eps=1e-7) if level == "deberta" else plain
    # DeBERTa's embedding block multiplies its output by the mask
    real = batch.attention_mask.bool()
    torch.testing.assert_close((perturbed - base)[real], noise[real], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("family", "level"), FAMILY_AND_LEVEL)
def test_the_injection_point_is_given_to_a_function(family: str, level: str) -> None:
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    noise = random_noise(model, batch.attention_mask)
    given: list[Tensor] = []

    def add_noise(h: Tensor) -> Tensor:
        given.append(h.detach())
        return h + noise

    injection = NoiseInjection(model.bert, level)
    with injection.add(add_noise):
        by_function = model(*batch)
    with injection.add(noise):
        assert torch.equal(model(*batch), by_function)
    (h,) = given
    assert h.shape == noise.shape
    if level == "pre_ln":
        assert torch.equal(h, model.bert.get_submodule(row_of(model.bert).words)(batch.input_ids))
    if level == "deberta":
        torch.testing.assert_close(h.mean(-1), torch.zeros(h.shape[:2], dtype=h.dtype), rtol=0.0, atol=1e-12)
        torch.testing.assert_close(h.square().mean(-1), torch.ones(h.shape[:2], dtype=h.dtype), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(("family", "level"), FAMILY_AND_LEVEL)
def test_nothing_is_embedded_twice(family: str, level: str) -> None:
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    noise = random_noise(model, batch.attention_mask)
    words, site = model.bert.get_submodule(row_of(model.bert).words), injection_site(model.bert, level)
    with inputs_of(words) as looked_up, inputs_of(site) as received, NoiseInjection(model.bert, level).add(noise):
        model(*batch)
    assert (len(looked_up), len(received)) == (1, 1)


@pytest.mark.parametrize("family", NORMALIZED_FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_scale_invariance(monkeypatch: pytest.MonkeyPatch, family: str, level: str) -> None:
    """Tables times c: the same clean logits; a fixed δ acts as before behind a LayerNorm, as δ/c before it."""
    monkeypatch.setattr(mt_dnn.perturbation.injection, "LN0_EPS", 1e-30)
    factor = 7.0
    model = tiny_classifier(family)
    remove_norm_eps(model)
    batch = token_batch(model.bert)
    noise = random_noise(model, batch.attention_mask)
    injection = NoiseInjection(model.bert, level)

    def logits(delta: Tensor | None) -> Tensor:
        with injection.clean() if delta is None else injection.add(delta):
            return model(*batch).detach()

    clean, perturbed, perturbed_less = logits(None), logits(noise), logits(noise / factor)
    scale_tables(model.bert, factor)
    torch.testing.assert_close(logits(None), clean, rtol=1e-9, atol=1e-9)
    expected = perturbed_less if level == "pre_ln" else perturbed
    torch.testing.assert_close(logits(noise), expected, rtol=1e-9, atol=1e-9)
    assert (perturbed - clean).abs().max() > 1e-3
    assert (perturbed - perturbed_less).abs().max() > 1e-3


class Divide(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x / self.factor


@pytest.mark.parametrize("family", NORMALIZED_FAMILIES)
@pytest.mark.parametrize("level", ["post_ln", "deberta"])
def test_reparametrized_layer_norm(family: str, level: str) -> None:
    """γ and β times c, output divided by c: `deberta` does not notice; at `post_ln` δ acts as δ/c."""
    factor = 5.0
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    noise = random_noise(model, batch.attention_mask)
    injection = NoiseInjection(model.bert, level)

    def logits(delta: Tensor | None) -> Tensor:
        with injection.clean() if delta is None else injection.add(delta):
            return model(*batch).detach()

    clean, perturbed, perturbed_less = logits(None), logits(noise), logits(noise / factor)
    block = embedding_block(model.bert)
    with torch.no_grad():
        for parameter in block.norm.parameters():
            parameter.mul_(factor)
    dropout = block.module.get_submodule(block.dropout_name)
    setattr(block.module, block.dropout_name, nn.Sequential(Divide(factor), dropout))
    torch.testing.assert_close(logits(None), clean, rtol=1e-10, atol=1e-10)
    expected = perturbed_less if level == "post_ln" else perturbed
    torch.testing.assert_close(logits(noise), expected, rtol=1e-10, atol=1e-10)
    assert (perturbed - perturbed_less).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "level"), FAMILY_AND_LEVEL)
def test_noise_at_padding_changes_nothing(family: str, level: str) -> None:
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    noise = random_noise(model, batch.attention_mask, size=3.0)
    at_padding = noise * (1 - batch.attention_mask).unsqueeze(-1)
    injection = NoiseInjection(model.bert, level)
    with injection.clean():
        clean = model(*batch)
    with injection.add(at_padding):
        assert torch.equal(model(*batch), clean)
    with injection.add(noise):
        assert not torch.allclose(model(*batch), clean)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_levels_and_modules_are_those_of_the_architecture(family: str) -> None:
    encoder = tiny_classifier(family).bert
    row = row_of(encoder)
    assert available_levels(encoder) == levels_of(family)
    assert NoiseInjection(encoder, "pre_ln").module is encoder.get_submodule(row.words)
    if row.norm is not None:
        for level in ("post_ln", "deberta"):
            assert NoiseInjection(encoder, level).module is encoder.get_submodule(row.norm)


@pytest.mark.parametrize("family", sorted(set(ALL_FAMILIES) - set(NORMALIZED_FAMILIES)))
@pytest.mark.parametrize("level", ["post_ln", "deberta"])
def test_an_encoder_without_embedding_norm_refuses_the_other_levels_in_a_line(family: str, level: str) -> None:
    encoder = tiny_classifier(family).bert
    with pytest.raises(UnsupportedLevelError) as error:
        NoiseInjection(encoder, level)
    name = type(encoder).__name__
    has = "pre_ln, hidden:0 to hidden:1"
    assert str(error.value) == f"{name} has no injection point '{level}'; it has: {has}{NO_LAYER_NORM}"


def test_an_unknown_level_is_named_with_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match=r"mid_ln.*pre_ln.*post_ln.*deberta"):
        NoiseInjection(tiny_classifier().bert, "mid_ln")


@pytest.mark.parametrize(("family", "level"), FAMILY_AND_LEVEL)
def test_hooks_are_gone_after_the_block(family: str, level: str) -> None:
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    noise = random_noise(model, batch.attention_mask)
    plain, hooks = model(*batch), hook_count(model)
    injection = NoiseInjection(model.bert, level)
    assert hook_count(model) == hooks
    for block in (injection.add(noise), injection.clean()):
        with block:
            model(*batch)
        assert hook_count(model) == hooks
        assert torch.equal(model(*batch), plain)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("after_forward", [True, False])
def test_hooks_are_gone_after_an_exception_which_stays_the_users(level: str, after_forward: bool) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    noise = random_noise(model, batch.attention_mask)
    plain, hooks = model(*batch), hook_count(model)
    injection = NoiseInjection(model.bert, level)
    for block in (injection.add(noise), injection.clean()):
        with pytest.raises(KeyError, match="of the user"), block:
            if after_forward:
                model(*batch)
            raise KeyError("of the user")
        assert hook_count(model) == hooks
        assert torch.equal(model(*batch), plain)


@pytest.mark.parametrize("level", LEVELS)
def test_noise_that_never_entered_is_an_error(level: str) -> None:
    model = tiny_classifier()
    with pytest.raises(RuntimeError), NoiseInjection(model.bert, level).add(torch.zeros(1, 1, 16)):
        pass
    assert hook_count(model) == 0


def test_the_encoder_is_found_inside_a_network_and_a_wrapper() -> None:
    model = tiny_classifier()
    assert find_encoder(model.bert) is model.bert
    assert find_encoder(model) is model.bert
    assert find_encoder(nn.Sequential(nn.Linear(2, 2), model)) is model.bert
    linear = LinearModel(torch.zeros(4, 3), torch.ones(3))
    assert find_encoder(linear) is linear
    with pytest.raises(UnsupportedLevelError, match="Sequential"):
        find_encoder(nn.Sequential(nn.Linear(2, 2)))


def test_of_encoders_side_by_side_it_is_the_one_that_is_trained() -> None:
    both = nn.ModuleDict({"teacher": tiny_classifier().bert, "student": tiny_classifier().bert})
    with pytest.raises(UnsupportedLevelError, match="ModuleDict holds 2 encoders side by side: teacher, student; acce"):
        find_encoder(both)
    both["teacher"].requires_grad_(False)
    assert find_encoder(both) is both["student"]
    both["student"].requires_grad_(False)
    with pytest.raises(UnsupportedLevelError, match="2 encoders side by side"):
        find_encoder(both)


@pytest.mark.parametrize(("family", "level"), FAMILY_AND_LEVEL)
def test_gradient_with_respect_to_the_noise_is_that_of_finite_differences(family: str, level: str) -> None:
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    noise = random_noise(model, batch.attention_mask).requires_grad_()
    direction = random_noise(model, batch.attention_mask, size=1.0, seed=4)
    injection = NoiseInjection(model.bert, level)

    def value(delta: Tensor) -> Tensor:
        with injection.add(delta):
            return model(*batch).square().sum()

    (gradient,) = torch.autograd.grad(value(noise), noise)
    step = 1e-5
    difference = (value(noise + step * direction) - value(noise - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-8)
    assert difference.abs() > 1e-2
