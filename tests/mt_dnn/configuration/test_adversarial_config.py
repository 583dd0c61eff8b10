"""The flags of the noise: measured defaults, published presets, what goes together."""

from __future__ import annotations

import pytest

from data_utils.errors import FlagError
from mt_dnn.configuration.adversarial_config import LEVELS, PRESETS, AdversarialConfig
from mt_dnn.configuration.config import parse_args
from mt_dnn.perturbation import measured_defaults


@pytest.mark.parametrize(("number", "scope"), [("0", "token"), ("1", "sentence")])
def test_mtdnns_numbers_of_levels_are_scopes(number, scope):
    config = parse_args(["--adv_train", "--adv_norm_level", number])
    assert (config.adversarial.adv_norm_level, config.adversarial.adv_norm_scope) == ("pre_ln", scope)
    assert f"--adv_norm_level {number}: taken as --adv_norm_level pre_ln --adv_norm_scope {scope}" in config.notices


def test_a_scope_given_beside_mtdnns_number_wins():
    config = parse_args(["--adv_norm_level", "0", "--adv_norm_scope", "sentence"])
    assert config.adversarial.adv_norm_scope == "sentence"


@pytest.mark.parametrize("method", list(measured_defaults.BY_METHOD))
@pytest.mark.parametrize("level", LEVELS)
def test_flags_left_out_take_the_measured_defaults_of_method_and_level(method, level, monkeypatch):
    own = {"alpha": 0.7, "k": 7, "noise_var": 0.123, "norm_p": "inf"}
    monkeypatch.setitem(measured_defaults.BY_LEVEL, (method, level), own)
    adversarial = parse_args(["--adv_opt", method, "--adv_norm_level", level, "--adv_alpha", "4"]).adversarial
    assert (adversarial.adv_k, adversarial.adv_noise_var, adversarial.adv_p_norm) == (7, 0.123, "inf")
    assert adversarial.adv_alpha == 4.0
    assert adversarial == AdversarialConfig(adv_opt=method, adv_norm_level=level, adv_alpha=4.0)


def test_step_and_noise_follow_a_radius_given_alone():
    measured = parse_args([]).adversarial
    factor = 0.5 / measured.adv_radius
    scaled = parse_args(["--adv_radius", "0.5"]).adversarial
    assert scaled.adv_step_size == pytest.approx(factor * measured.adv_step_size)
    assert scaled.adv_noise_var == pytest.approx(factor * measured.adv_noise_var)
    assert parse_args(["--adv_radius", "0.5", "--adv_step_size", "0.1"]).adversarial.adv_step_size == 0.1


def test_methods_that_differ_from_smart_by_more_than_sizes():
    found = {method: parse_args(["--adv_opt", method]).adversarial for method in measured_defaults.BY_METHOD}
    assert found["alum"].adv_start_ratio == 0.5
    assert {a.adv_start_ratio for name, a in found.items() if name != "alum"} == {0.0}
    assert [name for name, a in found.items() if a.adv_noise == "uniform"] == ["freelb", "r3f", "neftune"]
    assert [name for name, a in found.items() if a.adv_k == 0] == ["random", "r3f", "neftune"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--unlabeled_datasets a", "--unlabeled_datasets: needs --adv_train"),
        ("--adv_train --adv_opt at --unlabeled_datasets a", "needs labels, accepted: random, vat, smart, alum, r3f"),
        ("--adv_opt freelb --adv_k 0", "--adv_k: found 0, accepted with --adv_opt freelb: at least 1"),
        ("--bregman_beta 0.9,x", "--bregman_beta: found '0.9,x', accepted: one or two numbers from 0 to 1"),
        ("--bregman_beta 0.9,0.99,0.999", "--bregman_beta: found '0.9,0.99,0.999'"),
        ("--bregman_beta 1.5", "--bregman_beta: found '1.5'"),
        ("--bregman_beta nan", "--bregman_beta: found 'nan'"),
        ("--bregman_mu -1", "--bregman_mu: found '-1.0', accepted: a number, at least 0"),
        ("--adv_opt smrat", "--adv_opt: found 'smrat', accepted: random, at, vat, smart, alum, freelb, r3f"),
        ("--adv_start_ratio 1", "--adv_start_ratio: found '1.0'"),
    ],
)
def test_mistakes_in_the_methods_flags_are_one_line(line, expected):
    with pytest.raises(FlagError) as error:
        parse_args(line.split())
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_the_bregman_term_is_off_unless_asked_for_by_flag_or_by_smarts_preset():
    assert parse_args(["--adv_train"]).adversarial.bregman_mu == 0
    assert parse_args(["--bregman_mu", "2"]).adversarial.bregman_mu == 2
    assert parse_args(["--adv_train", "--adv_preset", "smart_paper"]).adversarial.bregman_mu == 1
    assert parse_args(["--adv_train", "--adv_preset", "smart_paper", "--bregman_mu", "0"]).adversarial.bregman_mu == 0
    assert parse_args(["--adv_preset", "smart_paper"]).adversarial.bregman_mu == 0
    assert parse_args(["--adv_train", "--adv_preset", "smart_paper", "--adv_opt", "at"]).adversarial.bregman_mu == 0


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_leaves_a_method_what_makes_it_that_method(preset):
    freelb = parse_args(["--adv_train", "--adv_opt", "freelb", "--adv_preset", preset]).adversarial
    assert (freelb.adv_k, freelb.adv_noise, freelb.adv_norm_scope) == (2, "uniform", "sentence")
    r3f = parse_args(["--adv_train", "--adv_opt", "r3f", "--adv_preset", preset]).adversarial
    assert (r3f.adv_noise, r3f.adv_noise_var) == ("uniform", PRESETS[preset]["adv_noise_var"])


def test_a_beta_without_a_weight_is_pointed_out():
    assert parse_args(["--bregman_beta", "0.9"]).notices == ("--bregman_beta: no effect without --bregman_mu",)
    assert parse_args(["--bregman_beta", "0.9", "--bregman_mu", "1"]).notices == ()


def test_one_beta_serves_for_both():
    assert parse_args([]).adversarial.betas == (0.99, 0.999)
    assert parse_args(["--bregman_beta", "0.5"]).adversarial.betas == (0.5, 0.5)


@pytest.mark.parametrize(("method", "flag"), [("random", "adv_k"), ("r3f", "adv_step_size"), ("freelb", "adv_alpha")])
def test_flags_that_a_method_does_not_use_are_pointed_out(method, flag):
    notices = parse_args(["--adv_train", "--adv_opt", method, f"--{flag}", "1"]).notices
    assert f"--{flag}: no effect with --adv_opt {method}" in notices


# alpha, radius, step size, noise, K, norm, projection, level: the table of published hyperparameters
PUBLISHED_ROWS = {
    "smart_paper": (1, 1e-5, 1e-3, 1e-5, 1, "inf", "project", "pre_ln"),
    "mtdnn_release": (1, None, 1e-5, 1e-5, 1, "inf", "normalize", "pre_ln"),
    "deberta_release": (5, None, 1e-4, 1e-2, 1, "inf", "none", "deberta"),
}
ROW_NAMES = ["alpha", "radius", "step_size", "noise_var", "k", "p_norm", "projection", "norm_level"]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_sets_its_published_row(preset):
    adversarial = parse_args(["--adv_preset", preset]).adversarial
    assert tuple(getattr(adversarial, f"adv_{name}") for name in ROW_NAMES) == PUBLISHED_ROWS[preset]
    assert (adversarial.adv_scale, adversarial.adv_norm_scope, adversarial.adv_epsilon) == ("absolute", "token", 1e-6)
    is_deberta = preset == "deberta_release"
    assert (adversarial.adv_noise_clamp, adversarial.adv_detach_base) == (is_deberta, is_deberta)


@pytest.mark.parametrize("order", [1, -1])
def test_flags_given_override_the_preset_in_any_order(order):
    pairs = [["--adv_preset", "smart_paper"], ["--adv_alpha", "3"], ["--adv_norm_level", "post_ln"]][::order]
    adversarial = parse_args([word for pair in pairs for word in pair]).adversarial
    assert (adversarial.adv_alpha, adversarial.adv_norm_level) == (3.0, "post_ln")
    assert (adversarial.adv_radius, adversarial.adv_step_size) == (1e-5, 1e-3)


def test_a_projection_without_ball_leaves_the_measured_radius_out():
    assert parse_args(["--adv_projection", "none"]).adversarial.adv_radius is None


def test_sizes_measured_for_other_noise_are_pointed_out():
    given = ["--adv_train", "--adv_scale", "absolute", "--adv_radius", "0.1", "--adv_step_size", "0.1"]
    assert parse_args(given).notices == (
        "--adv_scale: the defaults of --adv_noise_var are for other noise; set them, too",
    )
    assert parse_args([*given, "--adv_noise_var", "0.01"]).notices == ()


def test_the_case_of_the_saved_tokenizer_has_an_effect_with_save_hf_alone():
    assert parse_args(["--do_lower_case", "--save_hf", "d"]).notices == ()
    (notice,) = parse_args(["--do_lower_case"]).notices
    assert notice.startswith("--do_lower_case: no effect without --save_hf;")


def test_the_tokenizer_is_the_encoders_unless_it_is_named():
    assert parse_args(["--init_checkpoint", "embedded-minilm"]).tokenizer == "embedded-minilm"
    checkpoint = ["--init_checkpoint", "old/model_0.pt", "--bert_model_type", "roberta-base"]
    assert parse_args(checkpoint).tokenizer == "roberta-base"
    assert parse_args([*checkpoint, "--tokenizer", "mine"]).tokenizer == "mine"
