"""Adamax against a hand computation, and piece by piece against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mt_dnn.training.optim import (
    PIECE,
    DecoupledAdamax,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    monkeypatch.setattr("mt_dnn.training.optim.PIECE", 16)
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
