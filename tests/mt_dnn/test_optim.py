"""Optimizers against hand computations, schedules against closed forms, groups, clipping, states."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from transformers import BertConfig, BertModel, DebertaConfig, DebertaModel, T5Config, T5EncoderModel

from mt_dnn.config import TrainingConfig
from mt_dnn.optim import (
    PIECE,
    DecoupledAdamax,
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


def adamax_by_hand(start, gradients, rate, decay, eps, beta1=0.9, beta2=0.999):
    """The algorithm of Kingma & Ba 2015, section 7.1, in numpy, with the decay before each step."""
    p, m, u = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(gradients, 1):
        p = p * (1 - rate * decay)
        m = beta1 * m + (1 - beta1) * g
        u = np.maximum(beta2 * u, np.abs(g) + eps)
        p = p - rate / (1 - beta1**t) * m / u
    return p


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamax_equals_the_hand_computation(decay):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=(4, 3)), random.normal(size=(6, 4, 3))
    gradients[2] = 0
    parameter = nn.Parameter(torch.tensor(start))
    optimizer = DecoupledAdamax([parameter], lr=0.02, eps=1e-3, weight_decay=decay)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    expected = adamax_by_hand(start, gradients, 0.02, decay, 1e-3)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=1e-15)
    assert optimizer.param_groups[0]["weight_decay"] == decay


def test_adamax_decay_is_outside_the_gradient():
    parameter = nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
    idle = nn.Parameter(torch.tensor([5.0], dtype=torch.float64))
    optimizer = DecoupledAdamax([parameter, idle], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    expected = torch.tensor([2.0, -3.0], dtype=torch.float64) * 0.95**3
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-15, atol=0)
    assert idle.item() == 5.0
    assert not optimizer.state[idle]


def test_adamax_calls_a_closure_with_gradients():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = DecoupledAdamax([parameter], lr=0.1)

    def loss():
        optimizer.zero_grad()
        value = parameter.square().sum()
        value.backward()
        return value

    assert optimizer.step(loss).item() == 1.0
    assert parameter.item() == pytest.approx(0.9, abs=1e-8)


SHAPES = ((), (0,), (1,), (7,), (3, 5), (64,), (9, 31), (129, 2))


def adamax_pair(
    shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, **options: object
) -> tuple[DecoupledAdamax, torch.optim.Adamax]:
    """Ours, with decay on all but the last parameter, and torch's, to which the decay is done by hand."""
    torch.manual_seed(3)
    ours = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    groups = [{"params": ours[:-1], "weight_decay": 0.3}, {"params": ours[-1:], "weight_decay": 0.0}]
    return DecoupledAdamax(groups, lr=0.02, **options), torch.optim.Adamax(theirs, lr=0.02, **options)


def step_both(ours: DecoupledAdamax, theirs: torch.optim.Adamax, rate: float, idle: int) -> None:
    """One step of each on the same gradients, with this learning rate; parameter number `idle` has none."""
    parameters = [parameter for group in ours.param_groups for parameter in group["params"]]
    for group in (*ours.param_groups, *theirs.param_groups):
        group["lr"] = rate
    for number, (one, other) in enumerate(zip(parameters, theirs.param_groups[0]["params"], strict=True)):
        one.grad = None if number == idle else torch.randn_like(one)
        other.grad = None if one.grad is None else one.grad.clone()
        if other.grad is not None and number < len(parameters) - 1:
            other.data.mul_(1 - rate * 0.3)
    ours.step()
    theirs.step()


def assert_same(ours: DecoupledAdamax, theirs: torch.optim.Adamax) -> None:
    state, other_state = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert state.keys() == other_state.keys()
    for number, moments in state.items():
        assert moments.keys() == {"step", "exp_avg", "exp_inf"}
        for key, value in moments.items():
            assert torch.equal(value, other_state[number][key])
            assert value.dtype == other_state[number][key].dtype
    parameters = [parameter for group in ours.param_groups for parameter in group["params"]]
    for one, other in zip(parameters, theirs.param_groups[0]["params"], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_adamax_in_pieces_is_torchs_bit_for_bit(monkeypatch, dtype, threads):
    torch.set_num_threads(threads)
    monkeypatch.setattr("mt_dnn.optim.PIECE", 16)
    monkeypatch.delattr(DecoupledAdamax, "_step_by_torch")
    ours, theirs = adamax_pair(SHAPES, dtype, eps=1e-4, betas=(0.8, 0.99))
    for number in range(6):
        step_both(ours, theirs, 0.02 / (1 + number), idle=number)
        assert_same(ours, theirs)


def test_adamax_of_a_tensor_longer_than_a_piece_as_it_is_set():
    ours, theirs = adamax_pair(((2 * PIECE + 77,), (3,)), torch.float32)
    for _ in range(2):
        step_both(ours, theirs, 0.01, idle=-1)
    assert_same(ours, theirs)


@pytest.mark.parametrize("why", ["not contiguous", "gradient not contiguous", "complex", "maximize", "foreach"])
def test_adamax_leaves_to_torch_what_does_not_go_in_pieces(monkeypatch, why):
    monkeypatch.delattr(DecoupledAdamax, "_step_in_pieces")
    options = {why: True} if why in ("maximize", "foreach") else {}
    ours, theirs = adamax_pair(((3, 5), (4, 2)), torch.complex64 if why == "complex" else torch.float32, **options)
    for optimizer in (ours, theirs):
        parameter = optimizer.param_groups[0]["params"][0]
        if why == "not contiguous":
            parameter.data = parameter.data.T.contiguous().T
    for number in range(3):
        if why == "gradient not contiguous":
            monkeypatch.setattr(torch, "randn_like", lambda one: torch.randn(one.mT.shape).mT)
        step_both(ours, theirs, 0.02, idle=-1)
        assert ours.state[ours.param_groups[0]["params"][0]]["step"] == number + 1
    assert_same(ours, theirs)


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


@pytest.mark.parametrize("size", [1e-3, 0.2, 3.0, math.inf, math.nan])
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
    torch.testing.assert_close(norm, expected, rtol=0, atol=0, equal_nan=True)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=0, equal_nan=True)


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
