"""Optimizers and their groups, schedules against closed forms, clipping, states."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from transformers import BertConfig, BertModel, DebertaConfig, DebertaModel, T5Config, T5EncoderModel

from mt_dnn.configuration.flag_groups import TrainingConfig
from mt_dnn.training.optim import (
    build_optimizer,
    build_schedule,
    clip_gradients,
    decay_groups,
    load_optimizer_state,
)

OPTIMIZERS = ("adamax", "adamw", "adam", "sgd", "adadelta")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def updates(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for parameter in parameters]


SIZES = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def test_groups_of_bert_are_those_of_mtdnn():
    model = BertModel(BertConfig(**SIZES))
    decayed, plain = decay_groups(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    exempt = [name for name, _ in model.named_parameters() if name.endswith(".bias") or "LayerNorm" in name]
    assert names_of(model, plain["params"]) == exempt
    rest = [name for name, _ in model.named_parameters() if name not in exempt]
    assert names_of(model, decayed["params"]) == rest


def test_groups_know_other_normalizations_and_biases():
    deberta = DebertaModel(DebertaConfig(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"]))
    exempt = names_of(deberta, decay_groups(deberta, 0.1)[1]["params"])
    assert "embeddings.LayerNorm.weight" in exempt
    assert any(name.endswith("q_bias") for name in exempt)
    assert not any(name.endswith("proj.weight") for name in exempt)
    t5 = T5EncoderModel(T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    exempt = names_of(t5, decay_groups(t5, 0.1)[1]["params"])
    assert "encoder.final_layer_norm.weight" in exempt
    assert not any("relative_attention_bias" in name for name in exempt)


def test_groups_leave_frozen_parameters_out():
    model = two_layers()
    model[0].requires_grad_(False)
    assert [names_of(model, group["params"]) for group in decay_groups(model, 0.1)] == [
        ["2.weight"],
        ["1.weight", "1.bias", "2.bias"],
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_and_honours_its_flags(name):
    training = TrainingConfig(optimizer=name, learning_rate=0.01, weight_decay=0.2, momentum=0.9, adam_eps=1e-5)
    model = two_layers()
    inputs = torch.ones(1, 3)
    before = model(inputs).square().sum().item()
    optimizer = build_optimizer(model, training)
    updates(model, optimizer, 30)
    assert model(inputs).square().sum().item() < before
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    if name.startswith("adam"):
        assert {group["eps"] for group in optimizer.param_groups} == {1e-5}
    if name == "sgd":
        assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def test_adamw_is_fused_where_torch_has_it():
    training = TrainingConfig(optimizer="adamw")
    groups = build_optimizer(two_layers(), training).param_groups
    try:
        torch.optim.AdamW(two_layers().parameters(), fused=True)
    except RuntimeError:
        assert not groups[0]["fused"]
    else:
        assert groups[0]["fused"]
    assert not build_optimizer(two_layers().to("meta"), training).param_groups[0]["fused"]


def rates(training: TrainingConfig, total: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    schedule = build_schedule(optimizer, training, total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


PEAK, END = 0.02, 1e-7
CLOSED_FORMS = {
    0: lambda share: PEAK * (1 - share),
    1: lambda share: PEAK * (1 + math.cos(math.pi * share)) / 2,
    2: lambda share: PEAK,
    3: lambda share: END + (PEAK - END) * (1 - share),
}


@pytest.mark.parametrize("kind", list(CLOSED_FORMS))
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_schedules_have_their_closed_forms(kind, warmup):
    total = 20
    rise = round(warmup * total)
    expected = [
        PEAK * update / rise if update < rise else CLOSED_FORMS[kind]((update - rise) / (total - rise))
        for update in range(total)
    ]
    found = rates(TrainingConfig(learning_rate=PEAK, scheduler_type=kind, warmup=warmup), total)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_rate_below_the_polynomials_end_is_scheduled():
    found = rates(TrainingConfig(learning_rate=1e-8, scheduler_type=3, warmup=0.0), 4)
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(1e-8)


@pytest.mark.parametrize("kind", list(CLOSED_FORMS))
def test_a_resumed_schedule_goes_on_where_it_was(kind):
    training = TrainingConfig(learning_rate=PEAK, scheduler_type=kind, warmup=0.25)
    whole = rates(training, 16)
    for done in (1, 3, 4, 9):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
        schedule = build_schedule(optimizer, training, 16, updates_done=done)
        resumed = []
        for _ in range(done, 16):
            resumed.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert resumed == whole[done:]


def gradients_of_size(model: nn.Module, size: float) -> torch.Tensor:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, size)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_global_clipping_bounds_the_whole_norm_and_keeps_the_direction():
    model = two_layers()
    whole = gradients_of_size(model, 3.0)
    norm = clip_gradients(model, TrainingConfig(global_grad_clipping=0.5))
    clipped = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert norm.item() == pytest.approx(whole.norm().item())
    torch.testing.assert_close(clipped, whole * 0.5 / whole.norm(), rtol=1e-5, atol=0)


def test_clipping_of_each_tensor_and_none():
    model = two_layers()
    gradients_of_size(model, 3.0)
    expected = [min(0.5, parameter.grad.norm().item()) for parameter in model.parameters()]
    norm = clip_gradients(model, TrainingConfig(grad_clipping=0.5, global_grad_clipping=0.0))
    assert [parameter.grad.norm().item() for parameter in model.parameters()] == pytest.approx(expected, rel=1e-5)
    assert norm.item() == pytest.approx(math.hypot(*expected), rel=1e-5)
    whole = gradients_of_size(model, 3.0)
    norm = clip_gradients(model, TrainingConfig(global_grad_clipping=0.0))
    assert norm.item() == pytest.approx(whole.norm().item())
    assert all((parameter.grad == 3.0).all() for parameter in model.parameters())


@pytest.mark.parametrize("size", [1e-3, 0.2, 3.0])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.5, 1.0), (0.5, 0.0)])
def test_clipping_is_torchs_bit_for_bit(size, bounds):
    model = two_layers()
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn_like(parameter) * (size if number == 1 else min(size, 1.0))
    twin = copy.deepcopy(model)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.grad = parameter.grad.clone()
        if bounds[0]:
            clip_grad_norm_(other, bounds[0])
    expected = get_total_norm(parameter.grad for parameter in twin.parameters())
    if bounds[1]:
        clip_grad_norm_(twin.parameters(), bounds[1])
    norm = clip_gradients(model, TrainingConfig(grad_clipping=bounds[0], global_grad_clipping=bounds[1]))
    torch.testing.assert_close(norm, expected, rtol=0, atol=0)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=0)


@pytest.mark.parametrize("size", [math.inf, math.nan])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.5, 0.0)])
def test_a_gradient_that_is_not_finite_is_told_by_its_norm_and_spoils_no_other(size, bounds):
    model = two_layers()
    gradients = [torch.full_like(parameter, 0.01) for parameter in model.parameters()]
    gradients[1][0] = size
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = clip_gradients(model, TrainingConfig(grad_clipping=bounds[0], global_grad_clipping=bounds[1]))
    assert not norm.isfinite()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("bound", "scaled"), [(0.0, False), (100.0, False), (1e-3, True)])
def test_gradients_below_the_bound_are_not_gone_over_again(bound, scaled):
    model = two_layers()
    gradients_of_size(model, 0.1)
    versions = [parameter.grad._version for parameter in model.parameters()]
    clip_gradients(model, TrainingConfig(global_grad_clipping=bound))
    assert all(
        (parameter.grad._version > before) == scaled
        for parameter, before in zip(model.parameters(), versions, strict=True)
    )


def mtdnn_state(model: nn.Module) -> dict:
    """A state as in MT-DNN's checkpoints: integer steps, its own settings, an unused parameter without moments."""
    groups = decay_groups(model, 0.01)
    parameters = [parameter for group in groups for parameter in group["params"]]
    settings = {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "initial_lr": 0.01}
    moments = {
        index: {"step": 9, "exp_avg": torch.full_like(parameter, 0.1), "exp_inf": torch.full_like(parameter, 0.5)}
        for index, parameter in enumerate(parameters)
        if index != 1
    }
    count = len(groups[0]["params"])
    indices = [list(range(count)), list(range(count, len(parameters)))]
    return {
        "state": moments,
        "param_groups": [
            settings | {"weight_decay": group["weight_decay"], "params": which}
            for group, which in zip(groups, indices, strict=True)
        ],
    }


def test_the_state_of_mtdnns_adamax_is_taken_over():
    model = two_layers().double()
    training = TrainingConfig(learning_rate=0.02, weight_decay=0.3, adam_eps=1e-4)
    optimizer = build_optimizer(model, training)
    assert load_optimizer_state(optimizer, mtdnn_state(model))
    build_schedule(optimizer, TrainingConfig(learning_rate=0.02, scheduler_type=2, warmup=0.0), 10, updates_done=9)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    weight = model[0].weight
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, 2.0)
    optimizer.step()
    # step 10 by hand: m = 0.9·0.1 + 0.1·2, u = max(0.999·0.5, 2 + eps)
    expected = before * (1 - 0.02 * 0.3) - 0.02 / (1 - 0.9**10) * (0.09 + 0.2) / (2 + 1e-4)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=0)
    assert optimizer.state[weight]["step"] == 10


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_saved_and_loaded_goes_on_bit_for_bit(name):
    training = TrainingConfig(optimizer=name, learning_rate=0.01, momentum=0.9)
    model = two_layers()
    optimizer = build_optimizer(model, training)
    updates(model, optimizer, 3)
    twin, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    updates(model, optimizer, 3, seed=2)
    resumed = build_optimizer(twin, training)
    assert load_optimizer_state(resumed, state)
    updates(twin, resumed, 3, seed=2)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters(), strict=True))


def wrong_shape(state: dict) -> dict:
    state["state"][0]["exp_avg"] = torch.zeros(7, 7)
    return state


def missing_group(state: dict) -> dict:
    return state | {"param_groups": state["param_groups"][:1]}


def other_kind(state: dict) -> dict:
    for moments in state["state"].values():
        moments["exp_avg_sq"] = moments.pop("exp_inf")
    return state


@pytest.mark.parametrize("damage", [wrong_shape, missing_group, other_kind, lambda state: {}])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage):
    model = two_layers()
    optimizer = build_optimizer(model, TrainingConfig())
    updates(model, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    assert not load_optimizer_state(optimizer, damage(mtdnn_state(model)))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, moments in before["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in moments.items())


def test_the_state_of_another_optimizer_is_refused():
    model = two_layers()
    sgd = build_optimizer(model, TrainingConfig(optimizer="sgd"))
    updates(model, sgd, 1)
    assert not load_optimizer_state(build_optimizer(model, TrainingConfig()), sgd.state_dict())
    assert not load_optimizer_state(sgd, mtdnn_state(model))
