from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_utils.errors import DataError, FlagError
from experiments.sift.running.study import Study, command_line, read_study
from mt_dnn.configuration.config import parse_args

STUDIES = Path("experiments/sift/studies")
GLUE = ("glue", "glue-rte", "glue-stsb")
MPNET = ("hate-mpnet", "sentiment-mpnet")
SMALL: dict[str, Any] = {
    "study": "small",
    "question": "Is it so?",
    "task_def": "experiments/sift/sentiment_task_def.yml",
    "task": "sentiment",
    "metric": "ACC",
    "data": [],
    "comparison": {"methods": ["plain", "sift"], "setting": "near", "tests": ["sentiment_b_test"]},
    "settings": {"near": {"train": "sentiment_a", "tests": ["sentiment_a_test", "sentiment_b_test"]}},
    "flags": {"epochs": 1},
    "methods": {"plain": {}, "sift": {"adv_train": True, "adv_norm_level": "post_ln"}, "random": {"adv_train": True}},
    "seeds": {"compared": 4, "others": 2, "first": 7},
}


def study(**changes: Any) -> Study:
    return Study.model_validate(SMALL | changes)


def read(tmp_path: Path, **changes: Any) -> Study:
    path = tmp_path / "study.yml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return read_study(path)


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        *((name, 10) for name in ("cola", "hate", "sentiment")),
        *((name, 5) for name in GLUE),
        *((name, 3) for name in MPNET),
    ],
)
def test_a_study_compares_plain_smart_and_sift_with_as_many_seeds_at_an_equal_budget(name: str, seeds: int):
    found = read_study(STUDIES / f"{name}.yml")
    assert found.study == name.removesuffix("-mpnet")
    assert found.comparison.methods == ["plain", "smart", "sift"]
    assert {len(found.seeds_of(method, found.comparison.setting)) for method in found.comparison.methods} == {seeds}
    assert all(len(found.seeds_of(method, setting)) >= 3 for method in found.methods for setting in found.settings)
    assert found.tuning is not None and set(found.tuning.grid) == set(found.methods)


@pytest.mark.parametrize("name", ["cola", "hate", "sentiment", *GLUE, *MPNET])
@pytest.mark.parametrize("encoder", [None, "bert-base-uncased", "microsoft/deberta-v3-base"])
def test_the_flags_of_every_method_and_trial_are_those_of_a_run(name: str, encoder: str | None):
    found = read_study(STUDIES / f"{name}.yml")
    found = found if encoder is None else found.with_encoder(encoder)
    grid = {} if found.tuning is None else found.tuning.grid
    for method, flags in found.methods.items():
        for trial in grid.get(method, [{}]):
            given = found.flags | flags | trial
            config = parse_args(command_line(given))
            assert config.adversarial.adv_train == (method != "plain")


def test_an_encoder_with_a_recipe_has_published_flags_that_are_not_tuned():
    found = read_study(STUDIES / "cola.yml").with_encoder("bert-base-uncased")
    assert found.folder == "cola-bert-base-uncased"
    assert found.methods["smart"]["adv_preset"] == "smart_paper"
    assert found.tuning is None and found.methods["vat"]["adv_opt"] == "vat"
    assert (found.flags["epochs"], found.flags["batch_size"]) == (6, 32)


def test_compared_methods_have_more_seeds_and_a_setting_may_have_fewer():
    found = study(
        settings={**SMALL["settings"], "far": {"train": "sentiment_b", "tests": ["sentiment_a_test"], "seeds": 3}}
    )
    assert list(found.seeds_of("sift", "near")) == [7, 8, 9, 10]
    assert list(found.seeds_of("random", "near")) == [7, 8]
    assert list(found.seeds_of("sift", "far")) == [7, 8, 9]
    assert list(found.seeds_of("random", "far")) == [7, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrik": "ACC"}, r"metrik: found an unknown key \(did you mean 'metric'\?\), accepted: study, question"),
        ({"seeds": {"compared": 0, "others": 1}}, "seeds, compared: found 0"),
        ({"comparison": {**SMALL["comparison"], "methods": ["plain", "sfit"]}}, r"'sfit', .*\(did you mean 'sift'"),
        ({"comparison": {**SMALL["comparison"], "setting": "far"}}, "setting: found 'far', accepted: near"),
        ({"comparison": {**SMALL["comparison"], "tests": ["other_test"]}}, "tests: found 'other_test'"),
        ({"tuning": {"grid": {"plain": [{}], "sift": [{}, {}]}}}, r"plain 1, sift 2.*as many for each"),
        ({"tuning": {"grid": {"plane": [{}]}}}, "tuning, grid: found 'plane'"),
        ({"tuning": {"grid": {"plain": [{}], "sift": [{}]}}}, "tuning, grid: random missing; .* for each method"),
        ({"tuning": {"grid": {}}}, "tuning, grid: plain, random, sift missing"),
        ({"tuning": {"grid": {name: [{"epochs": 3}] for name in SMALL["methods"]}, "flags": {"epochs": 1}}},
         "tuning: flags: found epochs, which trials vary"),
        ({"test_examples": 0}, "test_examples: found 0"),
        ({"robustness": {"seeds": 1, "measured": {"pgd": {}}}}, "robustness: robustness: pgd: radii: missing"),
        ({"robustness": {"seeds": 1, "measured": {"tests": ["other"]}}}, "robustness, tests: found 'other'"),
        ({"settings": {"near": {"train": "sentiment_a_test", "tests": ["sentiment_b_test"]}}}, "a test set"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_line_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, **changes)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("text", ["a: [", "- a\n", "study: x\n"])
def test_what_is_no_study_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "study.yml"
    path.write_text(text)
    with pytest.raises(DataError, match="study.yml: "):
        read_study(path)


def test_some_of_the_methods():
    tuning = {"grid": {"plain": [{}], "sift": [{}], "random": [{}]}}
    found = study(tuning=tuning).with_methods(["plain", "sift"])
    assert list(found.methods) == ["plain", "sift"]
    assert found.tuning is not None and list(found.tuning.grid) == ["plain", "sift"]
    assert Study.model_validate(found.model_dump()) == found
    with pytest.raises(FlagError, match=r"--methods: found 'sfit', .*\(did you mean 'sift'\?\)"):
        study().with_methods(["sfit"])
    with pytest.raises(FlagError, match="--methods: plain missing, which the study compares"):
        study().with_methods(["sift"])
