"""The flags of the adversarial noise: published presets, measured defaults, and which settings exclude each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from data_utils.errors import FlagError
from mt_dnn.configuration.flags import check_flag, check_flags, flag, plain_text
from mt_dnn.perturbation.levels import HIDDEN_FORM, LEVELS, NORMALIZED, PLACES, check_levels, levels_of
from mt_dnn.perturbation.measured_defaults import BY_METHOD, measured

LEFT_OUT: Any = object()  # the value of a field that preset and measured defaults may set

PUBLISHED: dict[str, Any] = {
    "adv_p_norm": "inf",
    "adv_norm_scope": "token",
    "adv_scale": "absolute",
    "adv_projection": "project",
    "adv_alpha": 1.0,
    "adv_k": 1,
    "adv_noise": "normal",
    "adv_noise_clamp": False,
    "adv_detach_base": False,
}

# published hyperparameters, level included
PRESETS: dict[str, dict[str, Any]] = {
    # Jiang et al. 2020, section 4.1, with the smallest of its three weights
    "smart_paper": PUBLISHED
    | {
        "adv_norm_level": "pre_ln",
        "adv_radius": 1e-5,
        "adv_step_size": 1e-3,
        "adv_noise_var": 1e-5,
        "bregman_mu": 1.0,
    },
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

NEED_LABELS = ("at", "freelb", "neftune")
CLIMBS_R = ("at", "vat", "smart", "alum")  # methods whose ascent climbs what is added to the loss
# Settings that define a method; a preset of another method does not set them.
OWN_BY_METHOD = {
    "freelb": ("adv_k", "adv_noise", "adv_norm_scope"),
    "r3f": ("adv_k", "adv_noise"),
    "random": ("adv_k",),
    "neftune": ("adv_k", "adv_noise", "adv_scale"),
}
NO_SEARCH = ("random", "r3f", "neftune")
WITHOUT_EFFECT = {"adv_k": NO_SEARCH, "adv_step_size": NO_SEARCH, "adv_alpha": ("freelb", "neftune")}
NOISE_SIZES = ("adv_radius", "adv_step_size", "adv_noise_var")


def measured_flags(method: str, level: str, radius: float | None = None) -> dict[str, Any]:
    """The measured hyperparameters of a method at a level, by flag."""
    renamed = {"norm_p": "adv_p_norm"}
    return {renamed.get(name, f"adv_{name}"): value for name, value in measured(method, level, radius).items()}


def default_level(preset: str | None) -> str:
    """`adv_norm_level` where it is left out."""
    level: str = PRESETS.get(preset or "", {}).get("adv_norm_level", "pre_ln")
    return level


def default_flags(
    method: str, level: str, preset: str | None = None, radius: float | None = None, train: bool = True
) -> dict[str, Any]:
    """The values of the noise's flags that are left out: the preset's, or else the measured ones.

    Args:
        method, level, preset, radius, train: `adv_opt`, `adv_norm_level`, `adv_preset`, `adv_radius` (None: left out)
            and `adv_train`.
    """
    measured_values = measured_flags(method, level, radius)
    values = {"bregman_mu": 0.0} | measured_values | PRESETS.get(preset or "", {})
    values |= {name: measured_values[name] for name in OWN_BY_METHOD.get(method, ())}
    if not train or method != "smart":
        values["bregman_mu"] = 0.0
    return values


def _by_method(name: str) -> str:
    """The measured default of a flag for `--help`: smart's, and those of methods that have another."""
    values = {method: plain_text(measured_flags(method, "pre_ln")[name]) for method in BY_METHOD}
    others: dict[str, list[str]] = {}
    for method, value in values.items():
        if value != values["smart"]:
            others.setdefault(value, []).append(method)
    return "; ".join([values["smart"], *(f"{value} for {', '.join(methods)}" for value, methods in others.items())])


@dataclass(frozen=True)
class AdversarialConfig:
    """The noise and its regularizer.

    A field that is left out is set by `adv_preset`, or otherwise by the measured defaults of method and level. After
    construction every field has its value. `adv_radius` is None if the projection has no ball.
    """

    adv_train: bool = flag(False, "train with adversarial noise; without it, plain fine-tuning")
    adv_preset: str | None = flag(
        None, "use published hyperparameters; flags that you give win over the preset", choices=tuple(PRESETS)
    )
    adv_opt: str = flag(
        "smart",
        "method: random noise, adversarial training (at), VAT, SMART, ALUM, FreeLB, R3F or NEFTune; 0 and 1 mean smart",
        choices=tuple(BY_METHOD),
    )
    adv_norm_level: str = flag(
        LEFT_OUT,
        "where the noise enters: at the word embeddings (pre_ln), after the embeddings' LayerNorm (post_ln: SiFT), "
        "between two LayerNorms as in DeBERTa's release (deberta), or at the output of layer N (hidden:N; 0 is the "
        "first layer, -1 the last); several places at once, split by commas: hidden:0,hidden:4; MT-DNN's 0 and 1 mean "
        "pre_ln with the scope token and sentence",
        choices=LEVELS,
        pattern=PLACES,
        pattern_shown=HIDDEN_FORM,
        shown="pre_ln, or the preset's",
    )
    adv_norm_scope: str = flag(
        LEFT_OUT,
        "bound the noise for each token, or for each sentence",
        choices=("token", "sentence"),
        shown=_by_method("adv_norm_scope"),
    )
    adv_p_norm: str = flag(
        LEFT_OUT,
        "norm that radius and step size are measured in",
        choices=("inf", "l2", "l1"),
        shown=_by_method("adv_p_norm"),
    )
    adv_scale: str = flag(
        LEFT_OUT,
        "relative: radius, step size and noise are shares of each vector's size; absolute: they are taken as they are",
        choices=("absolute", "relative"),
        shown=_by_method("adv_scale"),
    )
    adv_projection: str = flag(
        LEFT_OUT,
        "what follows an ascent step: projection onto the ball, MT-DNN's division by the norm, or nothing",
        choices=("project", "normalize", "none"),
        shown=_by_method("adv_projection"),
    )
    adv_alpha: float = flag(
        LEFT_OUT, "weight of the regularizer in the loss", at_least=0, shown=_by_method("adv_alpha")
    )
    adv_k: int = flag(LEFT_OUT, "ascent steps in the search for the noise", at_least=0, shown=_by_method("adv_k"))
    adv_radius: float | None = flag(
        LEFT_OUT,
        "radius of the ball that bounds the noise; if you set only this, step size and initial noise scale with it",
        above=0,
        shown=_by_method("adv_radius"),
    )
    adv_step_size: float = flag(LEFT_OUT, "length of an ascent step", at_least=0, shown=_by_method("adv_step_size"))
    adv_noise_var: float = flag(
        LEFT_OUT,
        "standard deviation of the initial noise; for uniform noise, its bound",
        at_least=0,
        shown=_by_method("adv_noise_var"),
    )
    adv_epsilon: float = flag(
        LEFT_OUT,
        "small constant of --adv_projection normalize, against division by zero",
        above=0,
        shown=_by_method("adv_epsilon"),
    )
    adv_noise: str = flag(
        LEFT_OUT, "distribution of the initial noise", choices=("normal", "uniform"), shown=_by_method("adv_noise")
    )
    adv_noise_clamp: bool = flag(
        LEFT_OUT, "clip the initial noise to two standard deviations", shown="false, or the preset's"
    )
    adv_detach_base: bool = flag(
        LEFT_OUT, "stop the regularizer's gradient before the embeddings", shown="false, or the preset's"
    )
    adv_same_dropout: bool = flag(False, "use the same dropout in the clean and the perturbed pass")
    adv_start_ratio: float = flag(
        LEFT_OUT, "share of all updates, at the start, without the regularizer", at_least=0, below=1,
        shown=_by_method("adv_start_ratio"),
    )  # fmt: skip
    adv_every: int = flag(1, "regularize only every Nth update, with N times the weight: less time", at_least=1)
    adv_free: bool = flag(
        False,
        "cache each example's noise between epochs and improve it in the usual backward pass: no extra search",
    )
    adv_free_budget: float = flag(8.0, "most gigabytes in --output_dir for the noise that --adv_free caches", above=0)
    unlabeled_datasets: tuple[str, ...] | None = flag(
        None, "also regularize the unlabeled examples of NAME_unlabeled.json; for vat, smart, alum, random and r3f"
    )
    bregman_mu: float = flag(
        LEFT_OUT, "weight of SMART's Bregman proximal point term; works without --adv_train too", at_least=0,
        shown="0, or the preset's",
    )  # fmt: skip
    bregman_beta: tuple[str, ...] = flag(
        ("0.99", "0.999"),
        "decay of the averaged parameters that --bregman_mu keeps the model close to: in the first 10 % of the "
        "updates, and after them; one value for both",
    )

    def __post_init__(self) -> None:
        given = {item.name for item in fields(self) if getattr(self, item.name) is not LEFT_OUT}
        check_flag(self, "adv_opt")
        check_flag(self, "adv_preset")
        if "adv_norm_level" not in given:
            self._set("adv_norm_level", default_level(self.adv_preset))
        check_flag(self, "adv_norm_level")
        radius = None
        if "adv_radius" in given:
            check_flag(self, "adv_radius")
            radius = self.adv_radius
        values = default_flags(self.adv_opt, self.adv_norm_level, self.adv_preset, radius, self.adv_train)
        for name, value in values.items():
            if name not in given and name != "adv_norm_level":
                self._set(name, value)
        if "adv_radius" not in given and self.adv_projection != "project":
            self._set("adv_radius", None)
        check_flags(self)
        self._check_combinations()

    @property
    def is_sift(self) -> bool:
        """Whether the method is SMART's search at normalized embeddings."""
        return self.adv_opt == "smart" and self.adv_norm_level in NORMALIZED

    @property
    def betas(self) -> tuple[float, float]:
        """The two decays of the Bregman term's average."""
        first, *rest = (float(text) for text in self.bregman_beta)
        return first, rest[0] if rest else first

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_combinations(self) -> None:
        try:
            check_levels(self.adv_norm_level)
        except ValueError as error:
            raise FlagError(f"--adv_norm_level: {error}") from error
        try:
            usable = len(self.bregman_beta) <= 2 and all(0 <= float(text) <= 1 for text in self.bregman_beta)
        except ValueError:
            usable = False
        if not usable:
            found = ",".join(self.bregman_beta)
            raise FlagError(f"--bregman_beta: found {found!r}, accepted: one or two numbers from 0 to 1, as 0.99,0.999")
        if self.unlabeled_datasets and not self.adv_train:
            raise FlagError("--unlabeled_datasets: needs --adv_train: unlabeled examples enter its regularizer only")
        if self.unlabeled_datasets and self.adv_opt in NEED_LABELS:
            accepted = ", ".join(method for method in BY_METHOD if method not in NEED_LABELS)
            raise FlagError(f"--unlabeled_datasets: --adv_opt {self.adv_opt} needs labels, accepted: {accepted}")
        if self.adv_train and self.adv_free:
            self._check_free()
        if self.adv_opt == "freelb" and self.adv_k < 1:
            raise FlagError(f"--adv_k: found {self.adv_k}, accepted with --adv_opt freelb: at least 1")
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

    def _check_free(self) -> None:
        """Check that the gradient of the training loss is a multiple of the ascent's, as `--adv_free` needs."""
        if self.adv_opt not in CLIMBS_R:
            raise FlagError(
                f"--adv_free: no search to spare with --adv_opt {self.adv_opt}, accepted: {', '.join(CLIMBS_R)}"
            )
        if len(levels_of(self.adv_norm_level)) > 1:
            raise FlagError(f"--adv_free: found --adv_norm_level {self.adv_norm_level}, accepted: one place")
        if self.adv_k != 1:
            raise FlagError(f"--adv_free: takes one ascent step an epoch, found --adv_k {self.adv_k}, accepted: 1")
        if self.adv_projection != "project":
            raise FlagError(f"--adv_free: no meaning with --adv_projection {self.adv_projection}, accepted: project")
        if self.adv_alpha == 0:
            raise FlagError("--adv_free: with --adv_alpha 0 no gradient reaches the noise, accepted: above 0")
        if self.unlabeled_datasets:
            raise FlagError("--adv_free: caches the noise of labeled examples only; leave out --unlabeled_datasets")


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


def adversarial_without_effect(given: Iterable[str], adversarial: AdversarialConfig) -> dict[str, str]:
    """Of the flags named in `given` those that have no effect, each with the reason."""
    found = {}
    if "bregman_beta" in given and adversarial.bregman_mu == 0:
        found["bregman_beta"] = "no effect without --bregman_mu"
    if "adv_epsilon" in given and adversarial.adv_projection != "normalize":
        found["adv_epsilon"] = "no effect without --adv_projection normalize"
    if "adv_free_budget" in given and not adversarial.adv_free:
        found["adv_free_budget"] = "no effect without --adv_free"
    if not adversarial.adv_train:
        own = [name for name in given if name.startswith("adv_") and name != "adv_train"]
        return found | dict.fromkeys(own, "no effect without --adv_train")
    for name, methods in WITHOUT_EFFECT.items():
        if name in given and adversarial.adv_opt in methods:
            found[name] = f"no effect with --adv_opt {adversarial.adv_opt}"
    return found


def adversarial_hints(given: Mapping[str, Any], adversarial: AdversarialConfig) -> list[str]:
    """A line for each flag given in MT-DNN's meaning, or combined with defaults that do not fit it."""
    if not adversarial.adv_train:
        return []
    lines = []
    if str(given.get("adv_norm_level")) in ("0", "1"):
        lines.append(
            f"--adv_norm_level {given['adv_norm_level']}: taken as --adv_norm_level pre_ln "
            f"--adv_norm_scope {adversarial.adv_norm_scope}"
        )
    expected = measured_flags(adversarial.adv_opt, adversarial.adv_norm_level)
    expected |= PRESETS.get(adversarial.adv_preset or "", {})
    units = ("adv_scale", "adv_p_norm", "adv_norm_scope")
    changed = [f"--{name}" for name in units if getattr(adversarial, name) != expected[name]]
    missing = [f"--{name}" for name in NOISE_SIZES if name not in given and getattr(adversarial, name) is not None]
    if changed and missing:
        lines.append(f"{', '.join(changed)}: the defaults of {', '.join(missing)} are for other noise; set them, too")
    return lines
