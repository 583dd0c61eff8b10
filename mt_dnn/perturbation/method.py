"""The interface of a method: what `Search` and `ModelRegularizer` use of one, and what a method returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from .ball import Ball
from .noise import InitialNoise


class Regularization(NamedTuple):
    """The result of one search over a batch. All but `relative_sizes` are scalar tensors; sizes are means over the
    entries of real tokens, of several places over those of all.

    Attributes:
        loss: R; it alone has a gradient.
        emb_val: mean |h|.
        eff_perturb: mean size of what the last ascent step contributed to δ.
        delta_size: mean |δ|.
        skipped: number of examples whose ascent met a value that is not finite.
        ascent_rise, chance_rise: R(δ) − R(0) and R(δ′) − R(0), where δ′ has the entries of δ shuffled and with random
            signs. Their ratio is the ascent gain. None unless the call measures it.
        relative_sizes: ‖δ‖₂ / ‖h‖₂ of each real token, (tokens,). None unless the method's `reports_relative_sizes` is
            set and the call measures the gain.
    """

    loss: Tensor
    emb_val: Tensor
    eff_perturb: Tensor
    delta_size: Tensor
    skipped: Tensor
    ascent_rise: Tensor | None = None
    chance_rise: Tensor | None = None
    relative_sizes: Tensor | None = None


class SearchSettings(Protocol):
    """The hyperparameters of a search; `AdversarialPerturbation` has them."""

    step_size: float
    needs_clean: bool
    same_dropout: bool
    detach_base: bool

    @property
    def ball(self) -> Ball: ...

    @property
    def initial_noise(self) -> InitialNoise: ...

    @property
    def ascent_steps(self) -> int: ...

    def noise_unit(self, unit: Tensor, mask: Tensor, hidden: int) -> Tensor: ...


class Method(Protocol):
    """A method as a training loop uses it; `AdversarialPerturbation` is one."""

    name: str
    level: str
    scope: str
    k: int
    needs_clean: bool
    learns_from_clean: bool
    needs_labels: bool
    replaces_task_loss: bool
    takes_ascent_loss: bool
    same_dropout: bool
    radius: float | None

    @property
    def ascent_steps(self) -> int: ...

    def is_active(self, update: int, total_updates: int) -> bool: ...

    def set_radius(self, radius: float) -> None: ...

    @property
    def measured_alpha(self) -> float: ...

    @property
    def regularize(self) -> Callable[..., Regularization]: ...


def check_ascent_loss(method: Method, ascent_loss: object) -> None:
    """Check that the method can climb one loss and descend another, if the caller gives one for the ascent.

    Raises:
        ValueError: it cannot.
    """
    if ascent_loss is not None and not method.takes_ascent_loss:
        raise ValueError(
            f"ascent_loss: {method.name} has no ascent on a loss other than its own; accepted: AdversarialTraining (at)"
        )
