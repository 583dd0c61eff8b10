"""A search has no side effects, runs K + 1 forwards; which parameters R's gradient reaches; which dropout it has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mt_dnn.loss import KlCriterion
from mt_dnn.perturbation import PERTURBATIONS
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.perturbation.noise import default_generator
from tests.encoders import FAMILIES, LEVELS, hook_count, tiny_classifier, token_batch
from tests.search import Trace, clean_logits, regularize, seeds_of, smart

CPU = torch.device("cpu")


# cost, and traces


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("level", LEVELS)
def test_one_clean_forward_k_ascents_and_one_final_forward(level: str, k: int) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    forwards: list[object] = []
    model.bert.register_forward_hook(lambda *arguments: forwards.append(arguments[0]))
    regularize(smart(k=k, level=level), model, batch)
    assert len(forwards) == 2 + k


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_ascent_computes_no_parameter_gradient_and_switches_no_flag(family: str, level: str) -> None:
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    model.bert.embeddings.LayerNorm.bias.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    computed: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, name=name: computed.append(name))
    seen: list[bool] = []

    def evaluate() -> Tensor:
        seen.append({name: p.requires_grad for name, p in model.named_parameters()} == flags)
        return model(*batch)

    clean = clean_logits(model, batch, level)
    result = smart(k=2, level=level).regularize(
        evaluate, model.bert, clean, batch.attention_mask, noise_seeds=seeds_of(3)
    )
    assert computed == []
    assert all(p.grad is None for p in model.parameters())
    assert seen == [True, True, True]
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    result.loss.backward()
    assert "head.weight" in computed


@pytest.mark.parametrize("level", LEVELS)
def test_the_search_leaves_gradients_that_are_there_alone(level: str) -> None:
    """As in gradient accumulation."""
    model = tiny_classifier()
    batch = token_batch(model.bert)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    regularize(smart(level=level), model, batch)
    assert all(torch.equal(p.grad, torch.full_like(p, 0.5)) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("level", LEVELS)
def test_no_hook_stays_and_the_encoder_is_as_before(level: str) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    plain = model(*batch)
    regularize(smart(level=level), model, batch)
    assert hook_count(model) == 0
    assert torch.equal(model(*batch), plain)
    assert model.training


@pytest.mark.parametrize("failing_pass", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_no_hook_stays_after_a_forward_that_fails(level: str, failing_pass: int) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    clean = clean_logits(model, batch, level)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    passes = 0

    def evaluate() -> Tensor:
        nonlocal passes
        passes += 1
        if passes == failing_pass + 1:
            raise KeyError("out of memory")
        return model(*batch)

    with pytest.raises(KeyError, match="out of memory"):
        smart(level=level).regularize(evaluate, model.bert, clean, batch.attention_mask, noise_seeds=seeds_of(3))
    assert hook_count(model) == 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_seeds_give_the_same_regularizer_bit_for_bit(level: str) -> None:
    model = tiny_classifier(dropout=0.1)
    batch = token_batch(model.bert)
    clean = clean_logits(model, batch, level).detach()
    losses = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        losses.append(regularize(smart(level=level), model, batch, clean).loss)
    assert torch.equal(losses[0], losses[1])
    other = regularize(smart(level=level), model, batch, clean, noise_seeds=seeds_of(3, update=1)).loss
    assert not torch.equal(other, losses[0])


# dropout


@pytest.mark.parametrize("same_dropout", [True, False])
def test_perturbed_passes_do_not_move_the_stream_of_the_clean_passes(same_dropout: bool) -> None:
    """So a plain, a SMART and a SiFT run of one seed see the same dropout in their clean passes."""
    model = tiny_classifier(dropout=0.1)
    batch = token_batch(model.bert)
    torch.manual_seed(1)
    state = default_generator(CPU).get_state()
    clean = model(*batch)
    before = torch.get_rng_state()
    regularize(smart(k=2, same_dropout=same_dropout), model, batch, clean, dropout_state=state)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seeded", [True, False])
def test_same_dropout_repeats_the_masks_of_the_clean_pass(family: str, level: str, seeded: bool) -> None:
    model = tiny_classifier(family, dropout=0.2)
    batch = token_batch(model.bert)
    outputs: dict[bool, list[Tensor]] = {True: [], False: []}
    losses: dict[bool, float] = {}
    for same in (True, False):
        torch.manual_seed(1)
        state = default_generator(CPU).get_state()
        clean = clean_logits(model, batch, level)

        def evaluate(same: bool = same) -> Tensor:
            outputs[same].append(model(*batch))
            return outputs[same][-1]

        result = smart(noise_var=0.0, k=0, level=level, same_dropout=same).regularize(
            evaluate,
            model.bert,
            clean,
            batch.attention_mask,
            noise_seeds=seeds_of(3) if seeded else None,
            dropout_state=state,
        )
        losses[same] = result.loss.item()
        outputs[same].append(clean.detach())
    final, clean = outputs[True]
    assert torch.equal(final, clean)
    assert losses[True] == 0.0
    final, clean = outputs[False]
    assert (final - clean).abs().max() > 1e-3
    assert losses[False] > 1e-6


def test_same_dropout_holds_in_every_pass() -> None:
    """Without noise and step: K + 1 forwards, all equal to the clean one."""
    model = tiny_classifier(dropout=0.2)
    batch = token_batch(model.bert)
    outputs: list[Tensor] = []

    def evaluate() -> Tensor:
        outputs.append(model(*batch))
        return outputs[-1]

    state = default_generator(CPU).get_state()
    clean = model(*batch)
    method = smart(noise_var=0.0, step_size=0.0, k=2, same_dropout=True)
    method.regularize(evaluate, model.bert, clean, batch.attention_mask, noise_seeds=seeds_of(3), dropout_state=state)
    assert len(outputs) == 3
    assert all(torch.equal(output, clean) for output in outputs)
    outputs.clear()
    smart(noise_var=0.0, step_size=0.0, k=1).regularize(
        evaluate, model.bert, clean, batch.attention_mask, noise_seeds=seeds_of(3)
    )
    assert not torch.equal(outputs[0], outputs[1]), "the ascent and the final pass draw the same masks"


def test_same_dropout_needs_the_state_of_the_clean_pass() -> None:
    model = tiny_classifier(dropout=0.2)
    with pytest.raises(ValueError, match="dropout_state"):
        regularize(smart(same_dropout=True), model, token_batch(model.bert))


def test_without_seeds_torchs_generator_serves() -> None:
    model = tiny_classifier(dropout=0.1)
    batch = token_batch(model.bert)
    clean = model(*batch).detach()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(smart().regularize(lambda: model(*batch), model.bert, clean, batch.attention_mask).loss)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


# where R's gradient flows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_gradient_of_the_regularizer_is_that_of_finite_differences(family: str, level: str) -> None:
    """At K = 0 and absolute scale δ does not depend on the parameters: R may be differenced in all of them at once."""
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    method = smart(k=0, level=level, loss_map=[KlCriterion()])
    regularize(method, model, batch).loss.backward()
    generator = torch.Generator().manual_seed(2)
    directions = {p: torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()}
    slope = sum((p.grad * v).sum() for p, v in directions.items() if p.grad is not None)

    def shifted(step: float) -> Tensor:
        with torch.no_grad():
            for parameter, direction in directions.items():
                parameter.add_(step * direction)
        loss = regularize(method, model, batch).loss.detach()
        with torch.no_grad():
            for parameter, direction in directions.items():
                parameter.sub_(step * direction)
        return loss

    difference = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
    assert isinstance(slope, Tensor)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-9)
    assert difference.abs() > 1e-6


@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_detach_base_cuts_the_perturbed_pass_off_what_lies_before_the_noise(
    family: str, level: str, scale: str
) -> None:
    """With clean logits detached, R reaches the embeddings through h alone; neither δ nor h's size has a gradient."""
    model = tiny_classifier(family)
    batch = token_batch(model.bert)
    clean = clean_logits(model, batch, level).detach()
    embeddings = model.bert.embeddings
    gradients: dict[bool, dict[str, bool]] = {}
    for detach in (True, False):
        model.zero_grad()
        regularize(smart(level=level, detach_base=detach, scale=scale), model, batch, clean).loss.backward()
        gradients[detach] = {n: p.grad is not None and bool(p.grad.any()) for n, p in embeddings.named_parameters()}
        assert model.head.weight.grad is not None
        assert model.head.weight.grad.any()
    assert gradients[False]["word_embeddings.weight"]
    assert not gradients[True]["word_embeddings.weight"]
    assert gradients[False]["LayerNorm.weight"]
    assert gradients[True]["LayerNorm.weight"] == (level != "post_ln")
    if "position_embeddings.weight" in gradients[True]:
        assert gradients[True]["position_embeddings.weight"] == (level == "pre_ln")


@pytest.mark.parametrize("level", LEVELS)
def test_gradient_flows_into_the_clean_logits(level: str) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    clean = clean_logits(model, batch, level).detach().requires_grad_()
    regularize(smart(level=level), model, batch, clean).loss.backward()
    assert clean.grad is not None
    assert clean.grad.abs().max() > 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_a_frozen_encoder_is_searched_too(level: str) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    expected = regularize(smart(level=level), model, batch).loss
    model.bert.requires_grad_(False)
    found = regularize(smart(level=level), model, batch).loss
    assert torch.equal(found, expected)
    found.backward()
    assert model.head.weight.grad is not None
    assert all(p.grad is None for p in model.bert.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("level", LEVELS)
def test_recomputed_activations_change_nothing(level: str) -> None:
    """With gradient checkpointing the layers run again in the backward pass, when the noise's hook is long gone."""
    found = []
    for checkpointing in (False, True):
        model = tiny_classifier(dropout=0.1)
        if checkpointing:
            model.bert.gradient_checkpointing_enable()
        batch = token_batch(model.bert)
        torch.manual_seed(0)
        loss = regularize(smart(level=level), model, batch).loss
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (recomputed_loss, recomputed_gradients) = found
    torch.testing.assert_close(recomputed_loss, loss)
    torch.testing.assert_close(recomputed_gradients, gradients)


@pytest.mark.parametrize("level", LEVELS)
def test_under_autocast_every_weight_still_gets_its_gradient(level: str) -> None:
    """Autocast caches the cast weights: one cast without gradient in the ascent would starve the final pass."""
    model = tiny_classifier(dtype=torch.float32)
    batch = token_batch(model.bert)
    reached: dict[bool, set[str]] = {}
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            clean = clean_logits(model, batch, level).detach()
            torch.clear_autocast_cache()
            loss = regularize(smart(level=level), model, batch, clean).loss
        loss.backward()
        reached[enabled] = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert loss.isfinite()
    assert len(reached[False]) > 20
    assert reached[True] == reached[False]


def test_the_noise_is_inert_without_a_perturbation() -> None:
    """R(0) = 0: no noise, no step, no dropout."""
    model = tiny_classifier()
    batch = token_batch(model.bert)
    for level in LEVELS:
        with NoiseInjection(model.bert, level).clean():
            clean = model(*batch)
        assert regularize(smart(noise_var=0.0, k=0, level=level), model, batch, clean).loss.item() == 0.0


# half precision


@pytest.mark.parametrize(("name", "size"), [("smart", 3e-4), ("at", 1e-7), ("freelb", 1e-7)])
def test_in_half_precision_gradients_of_the_noise_do_not_vanish(
    monkeypatch: pytest.MonkeyPatch, name: str, size: float
) -> None:
    """A head so small that most entries lie below float16's smallest number, 6e-8, unless the loss is scaled."""
    gradients: dict[str, Tensor] = {}
    for precision in ("single", "half"):
        model = tiny_classifier(dtype=torch.float32)
        with torch.no_grad():
            model.head.weight.mul_(size)
        batch = token_batch(model.bert)
        trace = Trace(monkeypatch)
        method = PERTURBATIONS[name](noise_var=0.3, step_size=0.1, norm_p="l2", k=2, projection="none")
        with torch.autocast("cpu", torch.float16, enabled=precision == "half"):
            found = regularize(method, model, batch, task_loss=gold_loss)
        assert found.skipped == 0
        gradients[precision] = trace.steps[0].gradient[batch.attention_mask.bool()]
    assert gradients["single"].abs().median() < 6e-8
    assert (gradients["half"] == 0).double().mean() < 0.2
    cosine = F.cosine_similarity(gradients["single"].flatten(), gradients["half"].flatten(), dim=0)
    assert cosine > 0.9


def gold_loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), torch.tensor([0, 1, 2]))
