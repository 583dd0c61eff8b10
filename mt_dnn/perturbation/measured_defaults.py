"""Default hyperparameters of each method, chosen by measurement (docs/results.md).

They were measured at `post_ln`, for `smart` at `pre_ln` too. Relative noise has the same meaning at every level, so the
other levels share them; `BY_LEVEL` holds the exceptions. At `hidden:N` nothing was measured: the defaults there are a
place to start a search for better ones.
"""

from __future__ import annotations

from typing import Any

SHARED: dict[str, Any] = {
    "norm_p": "l2",
    "norm_scope": "token",
    "scale": "relative",
    "projection": "project",
    "k": 1,
    "radius": 0.03,
    "step_size": 0.03,
    "noise_var": 0.003,
    "alpha": 3.0,
    "epsilon": 1e-6,
    "noise": "normal",
    "noise_clamp": False,
    "detach_base": False,
    "start_ratio": 0.0,
}
# Noise without a search needs no ball: its standard deviation, or bound, is its size.
NO_SEARCH: dict[str, Any] = {"k": 0, "step_size": 0.0, "radius": None, "projection": "none"}
# Differences from SHARED, by method.
BY_METHOD: dict[str, dict[str, Any]] = {
    "random": NO_SEARCH | {"noise_var": 0.1},
    "at": {"alpha": 1.0},
    "vat": {"alpha": 1.0},
    "smart": {},
    "alum": {"start_ratio": 0.5},
    "freelb": {"norm_scope": "sentence", "noise": "uniform", "k": 2, "noise_var": 0.03},
    "r3f": NO_SEARCH | {"noise": "uniform", "noise_var": 0.3},
    # Not measured here: the smallest size of its paper, and of transformers' documentation.
    "neftune": NO_SEARCH | {"noise": "uniform", "noise_var": 5.0, "scale": "absolute", "alpha": 1.0},
}
# Further differences, by method and level.
BY_LEVEL: dict[tuple[str, str], dict[str, Any]] = {}


def measured(method: str, level: str, radius: float | None = None) -> dict[str, Any]:
    """The measured hyperparameters of a method at a level, and its `alpha`.

    The names are those of `AdversarialPerturbation`'s arguments, with `norm_scope` instead of `norm_level`.

    Args:
        method: a name in `PERTURBATIONS`.
        level: an injection level.
        radius: replaces the measured radius; step size and initial noise are scaled with it.
    """
    values = SHARED | BY_METHOD[method] | BY_LEVEL.get((method, level), {})
    if radius is not None and values["radius"] is not None:
        factor = radius / values["radius"]
        values |= {name: values[name] * factor for name in ("step_size", "noise_var")}
        values["radius"] = radius
    return values
