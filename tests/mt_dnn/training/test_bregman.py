"""The Bregman proximal point term (METHODS section 5): its average, its gradient, its effect, its place in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_utils.task_def import TaskType
from mt_dnn.perturbation.divergences import MseCriterion
from mt_dnn.training.bregman import BregmanTerm, proximal_divergence
from tests.mt_dnn.runs import SIFT, assert_same, parameters, tiny_config, tiny_run


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2).double()


def step(network: nn.Linear, number: int) -> None:
    """Stands for an update: other parameters."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def weight_of(network: nn.Module) -> Tensor:
    weight: Tensor = network.weight.detach().clone()  # type: ignore[union-attr, operator, assignment]
    return weight


# the average


@pytest.mark.parametrize("betas", [(0.9, 0.9), (0.5, 0.99)])
def test_the_average_after_five_updates_is_the_hand_computation_the_first_included(betas: tuple[float, float]) -> None:
    network = linear()
    term = BregmanTerm(network, 1.0, betas, total_updates=20)  # the first β for updates 1 and 2
    expected = weight_of(network)
    for update in range(1, 6):
        step(network, update)
        term.update(network)
        beta = betas[0] if update <= 2 else betas[1]
        expected = beta * expected + (1 - beta) * weight_of(network)
        torch.testing.assert_close(weight_of(term.teacher), expected, rtol=1e-12, atol=0.0)


def test_with_beta_zero_the_teacher_is_the_last_iterate_and_with_one_it_stays() -> None:
    for beta in (0.0, 1.0):
        network = linear()
        start = weight_of(network)
        term = BregmanTerm(network, 1.0, (beta, beta), total_updates=3)
        for update in range(3):
            step(network, update)
            term.update(network)
            torch.testing.assert_close(weight_of(term.teacher), weight_of(network) if beta == 0 else start)


@pytest.mark.parametrize(("total", "last_of_first"), [(100, 10), (74, 7), (5, 0)])
def test_the_first_beta_serves_the_first_tenth_of_the_updates(total: int, last_of_first: int) -> None:
    term = BregmanTerm(linear(), 1.0, (0.1, 0.2), total)
    assert [term.beta(update) for update in range(1, total + 1)].count(0.1) == last_of_first
    assert term.beta(last_of_first) == 0.1
    assert term.beta(last_of_first + 1) == 0.2


def test_the_state_restores_the_average_and_its_place_in_the_schedule() -> None:
    network = linear()
    whole = BregmanTerm(network, 1.0, (0.2, 0.9), total_updates=20)
    step(network, 0)
    whole.update(network)
    resumed = BregmanTerm(linear(seed=9), 1.0, (0.2, 0.9), total_updates=20)
    resumed.load_state_dict(whole.state_dict())
    for update in range(1, 4):
        step(network, update)
        whole.update(network)
        resumed.update(network)
    assert torch.equal(weight_of(whole.teacher), weight_of(resumed.teacher))


# the term


def test_the_term_has_the_gradient_of_both_halves() -> None:
    """Finite differences of KL(P‖Q) + KL(Q‖P), of which a criterion with detached targets would give one half."""
    generator = torch.Generator().manual_seed(1)
    student, teacher, direction = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    value = proximal_divergence(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    log_p, log_q = student.detach().log_softmax(-1), teacher.log_softmax(-1)
    torch.testing.assert_close(value.detach(), ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean())

    def at(size: float) -> Tensor:
        return proximal_divergence(student.detach() + size * direction, teacher)

    difference = (at(1e-6) - at(-1e-6)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-7, atol=1e-10)


def test_regression_takes_the_squared_error() -> None:
    student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])
    term = BregmanTerm(nn.Linear(1, 1), 1.0, (0.9, 0.9), 1)
    assert term(student, lambda _: teacher, torch.ones(2, 1), task_type="numbers").item() == 2.5


class Point(nn.Module):
    """f(θ) = θ, a column of numbers, with a dropout to tell training from evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([[1.0], [-2.0]], dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self) -> Tensor:
        return self.dropout(self.theta)


def test_the_teacher_runs_in_evaluation_mode_without_gradient_and_the_student_in_training_mode() -> None:
    student = Point().train()
    term = BregmanTerm(student, 3.0, (0.9, 0.9), total_updates=10)
    mask = torch.ones(2, 1)
    seen: list[Tensor] = []

    def teacher_output(teacher: nn.Module) -> Tensor:
        seen.append(teacher())
        return seen[-1]

    value = term(student.theta * 2, teacher_output, mask, task_type=TaskType.Regression)
    assert torch.equal(seen[0], student.theta.detach())  # no dropout
    assert not seen[0].requires_grad
    assert student.training and student.dropout.training
    assert not any(parameter.requires_grad for parameter in term.teacher.parameters())
    torch.testing.assert_close(value, 3.0 * student.theta.square().mean())


@pytest.mark.parametrize("divergence", [MseCriterion(), proximal_divergence])
def test_with_a_frozen_teacher_the_solution_nears_it_as_one_over_mu(divergence: Any) -> None:
    """min ½‖θ − a‖² + μ·ℓ_s(θ, θ̃): for large μ, ‖θ − θ̃‖·μ goes to a constant."""
    target = torch.tensor([[1.0, -0.5, 0.2]], dtype=torch.float64)
    start = torch.tensor([[0.1, 0.3, -0.4]], dtype=torch.float64)
    products = []
    for mu in (100.0, 200.0, 400.0):
        theta = start.clone().requires_grad_()
        solver = torch.optim.LBFGS([theta], lr=1, max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16,
                                   line_search_fn="strong_wolfe")  # fmt: skip

        def loss(theta: Tensor = theta, mu: float = mu) -> Tensor:
            return (theta - target).square().sum() / 2 + mu * divergence(theta, start)

        def closure(theta: Tensor = theta, solver: torch.optim.LBFGS = solver) -> Tensor:
            solver.zero_grad()
            value = loss(theta)
            value.backward()
            return value

        solver.step(closure)
        assert theta.grad is not None and theta.grad.abs().max() < 1e-6
        distance = (theta.detach() - start).square().sum().sqrt()
        if divergence is proximal_divergence:  # a shift of all logits is no distance between distributions
            distance = (theta.detach() - start - (theta.detach() - start).mean()).square().sum().sqrt()
        products.append(float(distance) * mu)
    assert products[1] == pytest.approx(products[0], rel=0.03)
    assert products[2] == pytest.approx(products[1], rel=0.015)


# in a run


def test_it_runs_alone_and_with_a_method_and_changes_the_run(tmp_path: Path) -> None:
    tiny_run(tmp_path / "plain")
    tiny_run(tmp_path / "zero", "--bregman_mu", "0")
    assert_same(parameters(tmp_path / "plain" / "model_1.pt"), parameters(tmp_path / "zero" / "model_1.pt"))
    tiny_run(tmp_path / "alone", "--bregman_mu", "5")
    tiny_run(tmp_path / "sift", *SIFT)
    tiny_run(tmp_path / "both", *SIFT, "--bregman_mu", "5")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    found = [parameters(tmp_path / run / "model_1.pt")[name] for run in ("plain", "alone", "sift", "both")]
    for index, first in enumerate(found):
        assert not any(torch.equal(first, second) for second in found[index + 1 :])


def test_a_large_mu_keeps_the_predictions_near_where_they_began(tmp_path: Path) -> None:
    """Against the run's own start, with a teacher that never moves."""
    from mt_dnn.batcher import Collater
    from mt_dnn.training.trainer import Trainer

    moved = {}
    for mu in ("0", "100"):
        flags = ("--bregman_mu", mu, "--bregman_beta", "1", "--bert_dropout_p", "0", "--dropout_p", "0")
        trainer = Trainer(tiny_config(tmp_path / mu, *flags, "--train_datasets", "mnli", "--test_datasets",
                                      "mnli_matched", "--epochs", "6", "--learning_rate", "3e-3"))  # fmt: skip
        dataset = trainer.data.train[0]
        batch = Collater(0)([dataset[index] for index in range(len(dataset))])
        before, _ = trainer.model.predict(batch)
        trainer.run()
        after, _ = trainer.model.predict(batch)
        moved[mu] = abs(after - before).max()
    assert moved["0"] > 0.02
    assert moved["100"] < 0.2 * moved["0"]


@pytest.mark.parametrize("checkpoint", ["model_0_4.pt", "model_0.pt"])
def test_a_resumed_run_ends_as_the_unbroken_one(checkpoint: str, tmp_path: Path) -> None:
    flags = ("--bregman_mu", "3", "--bregman_beta", "0.5,0.9", "--save_per_updates_on", "--save_per_updates", "4")
    tiny_run(tmp_path / "whole", *flags)
    start = str(tmp_path / "whole" / checkpoint)
    tiny_run(tmp_path / "resumed", *flags, "--resume", "--model_ckpt", start)
    assert_same(parameters(tmp_path / "whole" / "model_1.pt"), parameters(tmp_path / "resumed" / "model_1.pt"))


def test_a_checkpoint_without_an_average_starts_one_at_its_parameters(tmp_path: Path) -> None:
    from mt_dnn.training.trainer import Trainer

    tiny_run(tmp_path / "plain", "--epochs", "1")
    trainer = Trainer(tiny_config(tmp_path / "on", "--epochs", "1", "--bregman_mu", "1"))
    trainer.model.load(str(tmp_path / "plain" / "model_0.pt"))
    assert trainer.model.bregman is not None
    saved = parameters(tmp_path / "plain" / "model_0.pt")
    assert_same(saved, {name: tensor.detach() for name, tensor in trainer.model.bregman.teacher.state_dict().items()})
