"""What a run does, in words: its method with the sizes that matter, and its settings that differ from the defaults."""

from __future__ import annotations

import shlex
from typing import Any

from mt_dnn.configuration.adversarial_config import (
    WITHOUT_EFFECT,
    AdversarialConfig,
    default_flags,
    default_level,
)
from mt_dnn.configuration.config import Config
from mt_dnn.configuration.flags import plain_text
from mt_dnn.perturbation.levels import hidden_layer, levels_of

# Where the noise enters, by `--adv_norm_level`; for `hidden:N` see `_place`.
PLACES = {
    "pre_ln": "the word embeddings",
    "post_ln": "the normalized embeddings",
    "deberta": "the embeddings between two LayerNorms",
}
# What a method does, by `--adv_opt`.
METHODS = {
    "random": "Random noise: no search, noise at {place}",
    "at": "Adversarial training: the task loss under adversarial noise at {place}",
    "vat": "VAT: predictions under adversarial noise at {place} stay close to the clean ones",
    "smart": "SMART: smooth predictions under adversarial noise at {place}",
    "alum": "ALUM: SMART's search at {place}, after a plain start",
    "freelb": "FreeLB: the mean task loss over {steps} points of adversarial noise at {place}",
    "neftune": "NEFTune: the task loss under noise without a search at {place}",
    "r3f": "R3F: smooth predictions under noise without a search at {place}",
}
SIFT = "SiFT: SMART's search at {place}"  # smart at a normalized level
RMS = "'s root mean square"
NORMS = {"inf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}


def method_in_words(adversarial: AdversarialConfig) -> str:
    """One line: the method, where its noise enters, and its sizes, such as

    "SiFT: SMART's search at the normalized embeddings, radius 3 % of each vector, step size 3 %, α = 3".
    """
    if not adversarial.adv_train:
        parts = ["Plain fine-tuning: no adversarial noise"]
    else:
        sentence = SIFT if adversarial.is_sift else METHODS[adversarial.adv_opt]
        parts = [sentence.format(place=_places(adversarial.adv_norm_level), steps=adversarial.adv_k)]
        parts += _sizes(adversarial) + _when(adversarial)
        if adversarial.adv_preset is not None:
            parts.append(f"preset {adversarial.adv_preset}")
    if adversarial.bregman_mu > 0:
        betas = " then ".join(adversarial.bregman_beta)
        parts.append(f"with the Bregman proximal point term, μ = {adversarial.bregman_mu:g}, β = {betas}")
    return ", ".join(parts)


def _places(level: str) -> str:
    """Where the noise of a level enters, at one place or several."""
    return " and ".join(map(_place, levels_of(level)))


def _place(level: str) -> str:
    """Where the noise of a level at one place enters."""
    number = hidden_layer(level)
    if number is None:
        return PLACES[level]
    if number >= 0:
        return f"the output of layer {number}"
    return "the output of the last layer" if number == -1 else f"the output of layer {-number} from the end"


def _sizes(adversarial: AdversarialConfig) -> list[str]:
    """Radius, steps and weight, where the method has them."""
    parts = []
    if adversarial.adv_opt == "neftune":
        measure = " times each vector's root mean square" if adversarial.adv_scale == "relative" else ""
        parts.append(f"uniform noise of at most {adversarial.adv_noise_var:g} / √(tokens · hidden){measure}")
    elif adversarial.adv_opt in WITHOUT_EFFECT["adv_step_size"]:
        size = _with_unit(adversarial.adv_noise_var, adversarial, RMS)
        is_uniform = adversarial.adv_noise == "uniform"
        parts.append(f"uniform noise of at most {size}" if is_uniform else f"standard deviation {size}")
    else:
        if adversarial.adv_radius is not None:
            parts.append(f"radius {_length(adversarial.adv_radius, adversarial)}")
        steps, step = adversarial.adv_k, _short(adversarial.adv_step_size, adversarial)
        parts.append("no ascent step" if steps == 0 else f"step size {step}")
        if steps > 1 and adversarial.adv_opt != "freelb":
            parts.append(f"{steps} steps")
        if adversarial.adv_projection == "normalize":
            parts.append("normalized as in MT-DNN's release")
        elif adversarial.adv_projection == "none":
            parts.append("no projection")
    if adversarial.adv_opt not in WITHOUT_EFFECT["adv_alpha"]:
        parts.append(f"α = {adversarial.adv_alpha:g}")
    return parts


def _when(adversarial: AdversarialConfig) -> list[str]:
    """In which updates, and on which examples, beyond every update and the training examples."""
    parts = []
    if adversarial.adv_start_ratio > 0:
        parts.append(f"from {_percent(adversarial.adv_start_ratio)} of the updates on")
    if adversarial.adv_every > 1:
        parts.append(f"in one of {adversarial.adv_every} updates with {adversarial.adv_every} times the weight")
    if adversarial.adv_free:
        parts.append("noise cached between epochs in the place of a search")
    if adversarial.unlabeled_datasets:
        parts.append(f"also on the unlabeled examples of {', '.join(adversarial.unlabeled_datasets)}")
    return parts


def _length(value: float, adversarial: AdversarialConfig) -> str:
    """A radius with its unit and, where it is not that of a vector's own length, its norm."""
    if adversarial.adv_scale == "relative" and adversarial.adv_p_norm == "l2":
        return _with_unit(value, adversarial, "")
    return f"{_with_unit(value, adversarial, RMS)} ({NORMS[adversarial.adv_p_norm]} norm)"


def _with_unit(value: float, adversarial: AdversarialConfig, measure: str) -> str:
    scope = {"token": "vector", "sentence": "sentence"}[adversarial.adv_norm_scope]
    if adversarial.adv_scale == "relative":
        return f"{_percent(value)} of each {scope}{measure}"
    return f"{value:g} for each {scope}"


def _short(value: float, adversarial: AdversarialConfig) -> str:
    return _percent(value) if adversarial.adv_scale == "relative" else f"{value:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def changed_settings(config: Config) -> str:
    """The flags whose values differ from the defaults, as a command line that gives this configuration again.

    The defaults of the noise are those of its method, level, preset and radius: a flag that follows from these is not
    repeated.
    """
    own = config.to_flat()
    default = Config().to_flat() | _noise_defaults(config.adversarial)
    changed = {name: value for name, value in own.items() if value != default[name]}
    words = {name: "" if value is None else plain_text(value) for name, value in changed.items()}
    return " ".join(f"--{name} {shlex.quote(word)}" for name, word in words.items())


def _noise_defaults(adversarial: AdversarialConfig) -> dict[str, Any]:
    """What the flags of the noise would be by its method, level, preset and radius alone."""
    method, level, preset = adversarial.adv_opt, adversarial.adv_norm_level, adversarial.adv_preset
    without_radius = default_flags(method, level, preset, None, adversarial.adv_train)
    usual = without_radius["adv_radius"] if adversarial.adv_projection == "project" else None
    radius = adversarial.adv_radius if adversarial.adv_radius != usual else None
    values = default_flags(method, level, preset, radius, adversarial.adv_train)
    return values | {"adv_norm_level": default_level(preset), "adv_radius": usual}
