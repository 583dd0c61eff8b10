"""The flags of the adversarial noise: published presets, measured defaults, and which settings exclude each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from data_utils.errors import FlagError
from mt_dnn.flags import check_flag, check_flags, flag

LEFT_OUT: Any = object()  # the value of a field that preset and measured defaults may set

PERTURBATIONS = ("smart",)
LATER_PERTURBATIONS = ("random", "at", "vat", "alum")

SHARED_DEFAULTS: dict[str, Any] = {
    "adv_norm_scope": "token",
    "adv_p_norm": "l2",
    "adv_scale": "relative",
    "adv_projection": "project",
    "adv_alpha": 1.0,
    "adv_k": 1,
    "adv_epsilon": 1e-6,
    "adv_noise_clamp": False,
    "adv_detach_base": False,
}

# What flags left out are set to, by injection level: docs/results.md. `deberta` takes post_ln's, unmeasured.
SWEPT: dict[str, Any] = SHARED_DEFAULTS | {
    "adv_alpha": 3.0,
    "adv_radius": 0.03,
    "adv_step_size": 0.03,
    "adv_noise_var": 0.003,
}
MEASURED_DEFAULTS: dict[str, dict[str, Any]] = {"pre_ln": SWEPT, "post_ln": SWEPT, "deberta": SWEPT}

PUBLISHED: dict[str, Any] = SHARED_DEFAULTS | {"adv_p_norm": "inf", "adv_scale": "absolute"}

# published hyperparameters, level included
PRESETS: dict[str, dict[str, Any]] = {
    # Jiang et al. 2020, section 4.1, with the smallest of its three weights
    "smart_paper": PUBLISHED
    | {"adv_norm_level": "pre_ln", "adv_radius": 1e-5, "adv_step_size": 1e-3, "adv_noise_var": 1e-5},
    # MT-DNN's command-line defaults
    "mtdnn_release": PUBLISHED
    | {
        "adv_norm_level": "pre_ln",
        "adv_projection": "normalize",
        "adv_radius": None,
        "adv_step_size": 1e-5,
        "adv_noise_var": 1e-5,
    },
    # the MNLI scripts of DeBERTa's release
    "deberta_release": PUBLISHED
    | {
        "adv_norm_level": "deberta",
        "adv_projection": "none",
        "adv_radius": None,
        "adv_alpha": 5.0,
        "adv_step_size": 1e-4,
        "adv_noise_var": 1e-2,
        "adv_noise_clamp": True,
        "adv_detach_base": True,
    },
}

NOISE_SIZES = ("adv_radius", "adv_step_size", "adv_noise_var")


@dataclass(frozen=True)
class AdversarialConfig:
    """The noise and its regularizer.

    A field left out is set by `adv_preset`, or else by the measured defaults of the level; after construction every
    field has its value. `adv_radius` is None where the projection has no ball.
    """

    adv_train: bool = flag(False, "train under adversarial noise")
    adv_preset: str | None = flag(None, "published hyperparameters; flags given beside it win", choices=tuple(PRESETS))
    adv_opt: str = flag("smart", "objective (0 and 1 mean smart)", choices=PERTURBATIONS)
    adv_norm_level: str = flag(
        LEFT_OUT, "where the noise enters", choices=tuple(MEASURED_DEFAULTS), shown="pre_ln, or the preset's"
    )
    adv_norm_scope: str = flag(
        LEFT_OUT, "one norm a token or a sentence", choices=("token", "sentence"), shown="measured"
    )
    adv_p_norm: str = flag(LEFT_OUT, "norm", choices=("inf", "l2", "l1"), shown="measured")
    adv_scale: str = flag(
        LEFT_OUT, "unit of radius, step size and noise", choices=("absolute", "relative"), shown="measured"
    )
    adv_projection: str = flag(
        LEFT_OUT, "what follows an ascent step", choices=("project", "normalize", "none"), shown="measured"
    )
    adv_alpha: float = flag(LEFT_OUT, "weight of the regularizer", at_least=0, shown="measured")
    adv_k: int = flag(LEFT_OUT, "ascent steps", at_least=0, shown="measured")
    adv_radius: float | None = flag(
        LEFT_OUT, "radius of the ball that the noise is projected on", above=0, shown="measured"
    )
    adv_step_size: float = flag(LEFT_OUT, "length of an ascent step", at_least=0, shown="measured")
    adv_noise_var: float = flag(LEFT_OUT, "standard deviation of the initial noise", at_least=0, shown="measured")
    adv_epsilon: float = flag(LEFT_OUT, "small constant of --adv_projection normalize", above=0, shown="1e-06")
    adv_noise_clamp: bool = flag(
        LEFT_OUT, "clamp the initial noise to two standard deviations", shown="false, or the preset's"
    )
    adv_detach_base: bool = flag(
        LEFT_OUT, "no gradient of the regularizer into the embeddings", shown="false, or the preset's"
    )
    adv_same_dropout: bool = flag(False, "the same dropout in the clean and the perturbed pass")

    def __post_init__(self) -> None:
        given = {item.name for item in fields(self) if getattr(self, item.name) is not LEFT_OUT}
        if self.adv_opt in LATER_PERTURBATIONS:
            raise FlagError(f"--adv_opt: {self.adv_opt} is not built yet, accepted: {', '.join(PERTURBATIONS)}")
        check_flag(self, "adv_preset")
        preset = PRESETS[self.adv_preset] if self.adv_preset else {}
        if "adv_norm_level" not in given:
            self._set("adv_norm_level", preset.get("adv_norm_level", "pre_ln"))
        check_flag(self, "adv_norm_level")
        for name, value in (preset or MEASURED_DEFAULTS[self.adv_norm_level]).items():
            if name not in given and name != "adv_norm_level":
                self._set(name, value)
        if "adv_radius" not in given and self.adv_projection != "project":
            self._set("adv_radius", None)
        check_flags(self)
        self._check_combinations()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_combinations(self) -> None:
        if self.adv_projection == "normalize" and self.adv_scale == "relative":
            raise FlagError(
                "--adv_projection normalize: no meaning with --adv_scale relative, accepted: --adv_scale absolute, "
                "or --adv_preset mtdnn_release for both"
            )
        if self.adv_projection == "normalize" and self.adv_p_norm == "l1":
            raise FlagError("--adv_projection normalize: no meaning with --adv_p_norm l1, accepted: inf, l2")
        if self.adv_projection == "project" and self.adv_radius is None:
            raise FlagError("--adv_projection project: needs --adv_radius, a number above 0")
        if self.adv_projection != "project" and self.adv_radius is not None:
            raise FlagError(f"--adv_radius: no meaning with --adv_projection {self.adv_projection}, accepted: project")


def translate_numbers(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with MT-DNN's numbers replaced: `adv_opt` 0 and 1 are smart, `adv_norm_level` 0 and 1 are pre_ln with
    token and sentence scope."""
    values = dict(given)
    if str(values.get("adv_opt")) in ("0", "1"):
        values["adv_opt"] = "smart"
    if str(values.get("adv_norm_level")) in ("0", "1"):
        scope = ("token", "sentence")[int(values["adv_norm_level"])]
        values["adv_norm_level"] = "pre_ln"
        values.setdefault("adv_norm_scope", scope)
    return values


def adversarial_notices(given: Mapping[str, Any], adversarial: AdversarialConfig) -> list[str]:
    """A line for each flag given without effect, in MT-DNN's meaning, or beside defaults that do not fit it."""
    flags = [f"--{name}" for name in given if name.startswith("adv_") and name != "adv_train"]
    if flags and not adversarial.adv_train:
        return [f"{', '.join(flags)}: no effect without --adv_train"]
    lines = []
    if str(given.get("adv_norm_level")) in ("0", "1"):
        lines.append(
            f"--adv_norm_level {given['adv_norm_level']}: taken as --adv_norm_level pre_ln "
            f"--adv_norm_scope {adversarial.adv_norm_scope}"
        )
    if adversarial.adv_preset == "smart_paper":
        lines.append("--adv_preset smart_paper: without its Bregman term (μ = 1), which is not built yet")
    expected = PRESETS.get(adversarial.adv_preset or "") or MEASURED_DEFAULTS[adversarial.adv_norm_level]
    units = ("adv_scale", "adv_p_norm", "adv_norm_scope")
    changed = [f"--{name}" for name in units if getattr(adversarial, name) != expected[name]]
    missing = [f"--{name}" for name in NOISE_SIZES if name not in given and getattr(adversarial, name) is not None]
    if changed and missing:
        lines.append(f"{', '.join(changed)}: the defaults of {', '.join(missing)} are for other noise; give them too")
    return lines
