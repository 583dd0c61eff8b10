"""What a run says of its method and its settings."""

from __future__ import annotations

import re
import shlex

import pytest

from mt_dnn.configuration.config import parse_args
from mt_dnn.configuration.description import changed_settings, method_in_words
from tests.mt_dnn.configuration.test_config_file import RESOLVED

RADIUS = "radius 3 % of each vector, step size 3 %"
SENTENCES = {
    "": "Plain fine-tuning: no adversarial noise",
    "--bregman_mu 1": "Plain fine-tuning: no adversarial noise, with the Bregman proximal point term, μ = 1, "
    "β = 0.99 then 0.999",
    "--adv_train": f"SMART: smooth predictions under adversarial noise at the word embeddings, {RADIUS}, α = 3",
    "--adv_train --adv_norm_level post_ln": f"SiFT: SMART's search at the normalized embeddings, {RADIUS}, α = 3",
    "--adv_train --adv_norm_level deberta --adv_k 3": "SiFT: SMART's search at the embeddings between two LayerNorms, "
    f"{RADIUS}, 3 steps, α = 3",
    "--adv_train --adv_norm_level hidden:4": "SMART: smooth predictions under adversarial noise at the output "
    f"of layer 4, {RADIUS}, α = 3",
    "--adv_train --adv_norm_level hidden:-1 --adv_opt at": "Adversarial training: the task loss under adversarial "
    f"noise at the output of the last layer, {RADIUS}, α = 1",
    "--adv_train --adv_norm_level post_ln,hidden:4": "SMART: smooth predictions under adversarial noise at the "
    f"normalized embeddings and the output of layer 4, {RADIUS}, α = 3",
    "--adv_train --adv_norm_level hidden:-2": "SMART: smooth predictions under adversarial noise at the output "
    f"of layer 2 from the end, {RADIUS}, α = 3",
    "--adv_train --adv_norm_level post_ln --adv_k 0 --adv_alpha 0.5": "SiFT: SMART's search at the normalized "
    "embeddings, radius 3 % of each vector, no ascent step, α = 0.5",
    "--adv_train --adv_norm_scope sentence --adv_radius 0.05 --bregman_mu 2 --bregman_beta 0.9": "SMART: smooth "
    "predictions under adversarial noise at the word embeddings, radius 5 % of each sentence, step size 5 %, α = 3, "
    "with the Bregman proximal point term, μ = 2, β = 0.9",
    "--adv_train --adv_opt at": "Adversarial training: the task loss under adversarial noise at the word embeddings, "
    f"{RADIUS}, α = 1",
    "--adv_train --adv_opt vat --adv_norm_level post_ln --unlabeled_datasets web,news": "VAT: predictions under "
    f"adversarial noise at the normalized embeddings stay close to the clean ones, {RADIUS}, α = 1, also on the "
    "unlabeled examples of web, news",
    "--adv_train --adv_opt alum": f"ALUM: SMART's search at the word embeddings, after a plain start, {RADIUS}, α = 3, "
    "from 50 % of the updates on",
    "--adv_train --adv_opt freelb": "FreeLB: the mean task loss over 2 points of adversarial noise at the word "
    "embeddings, radius 3 % of each sentence, step size 3 %",
    "--adv_train --adv_opt neftune": "NEFTune: the task loss under noise without a search at the word embeddings, "
    "uniform noise of at most 5 / √(tokens · hidden)",
    "--adv_train --adv_opt r3f": "R3F: smooth predictions under noise without a search at the word embeddings, uniform "
    "noise of at most 30 % of each vector's root mean square, α = 3",
    "--adv_train --adv_opt random --adv_norm_level post_ln": "Random noise: no search, noise at the normalized "
    "embeddings, standard deviation 10 % of each vector's root mean square, α = 3",
    "--adv_train --adv_p_norm inf": "SMART: smooth predictions under adversarial noise at the word embeddings, radius "
    "3 % of each vector's root mean square (ℓ∞ norm), step size 3 %, α = 3",
    "--adv_train --adv_preset smart_paper": "SMART: smooth predictions under adversarial noise at the word embeddings, "
    "radius 1e-05 for each vector (ℓ∞ norm), step size 0.001, α = 1, preset smart_paper, with the Bregman proximal "
    "point term, μ = 1, β = 0.99 then 0.999",
    "--adv_train --adv_preset mtdnn_release": "SMART: smooth predictions under adversarial noise at the word "
    "embeddings, step size 1e-05, normalized as in MT-DNN's release, α = 1, preset mtdnn_release",
    "--adv_train --adv_preset deberta_release": "SiFT: SMART's search at the embeddings between two LayerNorms, step "
    "size 0.0001, no projection, α = 5, preset deberta_release",
    "--adv_train --adv_norm_level post_ln --adv_every 2 --adv_free": "SiFT: SMART's search at the normalized "
    f"embeddings, {RADIUS}, α = 3, in one of 2 updates with 2 times the weight, noise cached between epochs in the "
    "place of a search",
}


@pytest.mark.parametrize("line", SENTENCES)
def test_every_method_level_scale_and_preset_has_its_sentence(line: str) -> None:
    assert method_in_words(parse_args(line.split()).adversarial) == SENTENCES[line]


@pytest.mark.parametrize("line", [*RESOLVED, *SENTENCES, "--task_def my.yml --data_dir d --resume --save_hf 'a b'"])
def test_the_changed_settings_are_a_command_line_that_gives_the_configuration_again(line: str) -> None:
    config = parse_args(shlex.split(line))
    assert parse_args(shlex.split(changed_settings(config))) == config


def test_all_that_differs_is_listed_and_nothing_that_follows_from_it() -> None:
    line = "--task_def my.yml --data_dir d --adv_train true --adv_norm_level post_ln --adv_radius 0.05"
    assert changed_settings(parse_args([])) == ""
    assert sorted(changed_settings(parse_args(line.split())).split()) == sorted(line.split())
    more = changed_settings(parse_args([*line.split(), "--adv_step_size", "0.04", "--adv_opt", "vat"]))
    names = {"task_def", "data_dir", "adv_train", "adv_norm_level", "adv_radius", "adv_step_size", "adv_opt"}
    assert set(re.findall(r"--(\w+)", more)) == names
