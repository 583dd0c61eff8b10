"""The Bregman proximal point term: the model stays close to a running average of its own parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mt_dnn.loss import KlCriterion, MseCriterion
from mt_dnn.perturbation.outputs import Comparison

FIRST_SHARE = 0.1  # of the updates, with the first β


def proximal_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """ℓ_s(P, Q) = KL(P‖Q) + KL(Q‖P) of logits (rows, classes), a mean over rows.

    Nothing is detached: the student gets the gradient of both halves (SMART, section 3.2).
    """
    divergence = KlCriterion()
    return divergence(student, teacher) + divergence(teacher, student)


class BregmanTerm:
    """μ · mean ℓ_s(f(x; θ), f(x; θ̃)), with the teacher θ̃ ← β θ̃ + (1 − β) θ after each update.

    Paper: Jiang et al. 2020 (SMART), section 3.2: momentum Bregman proximal point method (MBPP).

    Args:
        network: θ; the teacher starts as a copy of it.
        mu: μ.
        betas: β in the first tenth of the updates, and after it.
        total_updates: of the run.

    Attributes:
        teacher: the network of θ̃, in evaluation mode, without gradients.
    """

    def __init__(self, network: nn.Module, mu: float, betas: tuple[float, float], total_updates: int):
        self.mu = mu
        self.betas = betas
        self.total_updates = total_updates
        self._average = AveragedModel(network, multi_avg_fn=self._lerp)
        self._average.requires_grad_(False)
        self._average.eval()
        self.start(network)

    def start(self, network: nn.Module) -> None:
        """Restart the average at these parameters."""
        self._average.n_averaged.zero_()
        # The first call copies the parameters, so that the first update already is averaged.
        self._average.update_parameters(network)

    @property
    def teacher(self) -> nn.Module:
        return self._average.module

    def __call__(self, output: Any, teacher_output: Callable[[nn.Module], Any], mask: Tensor, **view: Any) -> Tensor:
        """The term on one batch.

        Args:
            output: the output of the student's clean pass.
            teacher_output: runs a network on the batch.
            mask: (batch, tokens), 1 at real tokens.
            view: how outputs are compared as distributions, see `Comparison`.
        """
        with torch.no_grad():
            target = teacher_output(self.teacher)
        batch = Comparison(target, mask, proximal_divergence, **view)
        squared = MseCriterion() if batch.view == "numbers" else None
        terms = [batch.distance(rows, clean, squared) for rows, clean in batch.pairs(output)]
        return self.mu * torch.stack(terms).sum()

    def update(self, network: nn.Module) -> None:
        """Add the parameters after an update to the average."""
        self._average.update_parameters(network)

    def beta(self, update: int) -> float:
        """β of an update, counted from 1."""
        return self.betas[0] if update <= FIRST_SHARE * self.total_updates else self.betas[1]

    def state_dict(self) -> dict[str, Tensor]:
        return self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._average.load_state_dict(state)

    def _lerp(self, averages: Any, parameters: Any, averaged: Any) -> None:
        """θ̃ ← θ̃ + (1 − β)(θ − θ̃), after `averaged` earlier calls, the copy included."""
        torch._foreach_lerp_(averages, parameters, 1 - self.beta(int(averaged)))
