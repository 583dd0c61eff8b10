"""What a search and a regularizer need to know of a method, and what a method finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Regularization(NamedTuple):
    """What one search over a batch gives; all scalar tensors, means over the entries of real tokens.

    loss: R, the only one with a gradient; emb_val: mean |h|; eff_perturb: mean size of what the last ascent step added;
    delta_size: mean |δ|; skipped: number of examples whose ascent met a value that is not finite; ascent_rise:
    R(δ) − R(0); chance_rise: R(δ′) − R(0), with δ′ the entries of δ shuffled, each with a random sign; these two are
    there where they were asked for; their ratio is the ascent gain. token_shares is no scalar: ‖δ‖₂/‖h‖₂ of each real
    token, (tokens,), where the method's `shares_tokens` asks for it.
    """

    loss: Tensor
    emb_val: Tensor
    eff_perturb: Tensor
    delta_size: Tensor
    skipped: Tensor
    ascent_rise: Tensor | None = None
    chance_rise: Tensor | None = None
    token_shares: Tensor | None = None


class SearchSettings(Protocol):
    """The hyperparameters of a search, as `AdversarialPerturbation` has them."""

    noise: str
    noise_var: float
    noise_clamp: bool
    scale: str
    norm_p: str
    scope: str
    projection: str
    radius: float | None
    epsilon: float
    step_size: float
    needs_clean: bool
    same_dropout: bool
    detach_base: bool

    @property
    def ascent_steps(self) -> int: ...

    def noise_unit(self, unit: Tensor, mask: Tensor, hidden: int) -> Tensor: ...


class Method(Protocol):
    """A method in somebody's loop, as `AdversarialPerturbation` has it."""

    name: str
    level: str
    scope: str
    k: int
    needs_clean: bool
    learns_from_clean: bool
    needs_labels: bool
    replaces_task_loss: bool
    same_dropout: bool
    radius: float | None

    @property
    def ascent_steps(self) -> int: ...

    def begun(self, update: int, updates: int) -> bool: ...

    def set_radius(self, radius: float) -> None: ...

    @property
    def measured_alpha(self) -> float: ...

    @property
    def regularize(self) -> Callable[..., Regularization]: ...
