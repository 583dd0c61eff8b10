"""Synthetic results of the three studies, in the format of a study's folder: golds, probabilities, attacks, curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_utils.metrics import Metric, calc_metrics

METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smart": {"adv_train": True, "adv_norm_level": "pre_ln"},
    "sift": {"adv_train": True, "adv_norm_level": "post_ln"},
    "vat": {"adv_train": True, "adv_opt": "vat"},
}
UCI = [f"sentiment_uci{site}_test" for site in ("amazon", "imdb", "yelp")]
DOMAINS = ("tweets", "amazon", "movies", "editorials")
FIRST = 2018
RATE = 1e-4  # what tuning chose


def definition(name: str) -> dict[str, Any]:
    """The `study.yml` of `cola`, `hate` or `sentiment`."""
    shared = {
        "study": name,
        "encoder": "embedded-minilm",
        "task_def": "experiments/sift/sentiment_task_def.yml",
        "task": "cola" if name == "cola" else "sentiment",
        "metric": "MCC" if name == "cola" else "ACC",
        "flags": {"epochs": 2, "batch_size": 32},
        "methods": METHODS,
        "seeds": {"compared": 4, "others": 3, "first": FIRST},
        "tuning": {"seeds": 1, "train_fraction": 0.5, "flags": {"epochs": 1}, "grid": {
            "plain": [{"learning_rate": 5e-5}, {"learning_rate": RATE}],
            "smart": [{"learning_rate": RATE}, {"learning_rate": 2e-4}],
            "sift": [{"learning_rate": RATE}, {"learning_rate": 2e-4}],
            "vat": [{"learning_rate": RATE}, {"learning_rate": 2e-4}]}},
        "data": [name],
    }  # fmt: skip
    attacks = {"pgd": {"levels": ["pre_ln", "post_ln"], "radii": [0.01, 0.05], "examples": 41}}
    if name == "cola":
        tests = ["cola_in_test", "cola_out_test"]
        return shared | {
            "question": "Does SiFT judge sentences of other sources better than SMART?",
            "settings": {"cola": {"train": "cola", "tests": tests}},
            "comparison": {"methods": ["plain", "smart", "sift"], "setting": "cola", "tests": ["cola_out_test"]},
            "published": ["smart_glue_dev", "wang_kuang_bharti_2021"],
        }
    if name == "hate":
        settings = {
            setting: {"train": train, "stages": {f"uci {share} %": {"train": f"sentiment_uci{share}", "tests": UCI}
                                                 for share in (1, 10)},
                      "tests": [f"{train}_test", *UCI]}
            for setting, train in (("balanced", "sentiment_hatebalanced"), ("raw", "sentiment_hate"))
        }  # fmt: skip
        return shared | {
            "question": "Does SiFT carry over from hateful tweets to reviews better than SMART?",
            "settings": settings,
            "comparison": {
                "methods": ["plain", "smart", "sift"],
                "setting": "balanced",
                "stage": "trained",
                "tests": UCI,
            },
            "robustness": {"seeds": 4, "measured": {"tests": UCI[:1], **attacks}},
            "published": ["wang_kuang_bharti_2021"],
        }
    tests = [f"sentiment_{domain}_test" for domain in DOMAINS]
    return shared | {
        "question": "Does SiFT carry over from one domain of sentiment to the others better than SMART?",
        "settings": {domain: {"train": f"sentiment_{domain}", "tests": tests} for domain in DOMAINS},
        "comparison": {"methods": ["plain", "smart", "sift"], "setting": "tweets", "tests": tests[1:]},
        "robustness": {"seeds": 4, "measured": {"tests": tests[:1], **attacks}},
        "published": [],
    }


def seeds_of(study: Mapping[str, Any], method: str) -> range:
    compared = method in study["comparison"]["methods"]
    return range(FIRST, FIRST + study["seeds"]["compared" if compared else "others"])


def run(study: Mapping[str, Any], setting: str, method: str, seed: int, examples: int, gain: float) -> dict[str, Any]:
    """A run's file. gain: what the method adds to the logit of the gold class."""
    generator = np.random.default_rng([seed, *map(ord, setting + method)])
    details = study["settings"][setting]
    flags = {**study["flags"], **METHODS[method], "learning_rate": RATE, "seed": seed}
    file: dict[str, Any] = {
        "key": f"{generator.integers(2**32):08x}",
        "study": study["study"],
        "setting": setting,
        "encoder": study["encoder"],
        "method": method,
        "seed": seed,
        "config": flags,
        "environment": {
            "python": "3.12.1",
            "torch": "2.13.0",
            "platform": "Linux",
            "processor": "x86_64",
            "threads": 1,
        },
        "history": [
            {"epoch": epoch, "metrics": {f"{details['train']}_dev": _metrics(80 + 5 * epoch + generator.normal())}}
            for epoch in range(2)
        ],
        "updates": [
            {"kind": "update", "update": update, "loss": 0.7 * 0.98**update + 0.01 * generator.random(), "R": 0.1}
            for update in range(25, 101, 25)
        ],
        "seconds": float(generator.random()),
        "evaluation": {
            stage: {test: _tested(test, examples, gain + 0.5 * number, generator) for test in part["tests"]}
            for number, (stage, part) in enumerate({"trained": details, **details.get("stages", {})}.items())
        },
    }
    if "robustness" in study:
        file["robustness"] = _attacked(study["robustness"]["measured"], gain, generator)
    return file


def _metrics(value: float) -> dict[str, float]:
    return {"ACC": value, "MCC": value - 20, "F1MAC": value - 1}


def _tested(test: str, examples: int, gain: float, generator: np.random.Generator) -> dict[str, Any]:
    """Examples have the same golds and difficulty in every run."""
    of_test = np.random.default_rng(list(map(ord, test)))
    golds, difficulty = of_test.integers(2, size=examples), of_test.normal(size=examples)
    logits = 2 * (1 + gain - difficulty + 0.1 * generator.normal() + 0.5 * generator.normal(size=examples))
    of_gold = np.round(1 / (1 + np.exp(-logits)), 5)
    of_one = np.where(golds == 1, of_gold, np.round(1 - of_gold, 5))
    probabilities = np.stack([np.round(1 - of_one, 5), of_one], axis=1)
    metrics = calc_metrics((Metric.ACC, Metric.F1MAC, Metric.MCC), golds, probabilities.argmax(1), probabilities)
    return {"golds": golds.tolist(), "probabilities": probabilities.tolist(), "metrics": metrics}


def _attacked(spec: Mapping[str, Any], gain: float, generator: np.random.Generator) -> dict[str, Any]:
    strengths = generator.normal(1 + gain, 1, size=spec["pgd"]["examples"])
    radii = [0.0, *spec["pgd"]["radii"]]
    worst = {"radii": radii, "correct": [(strengths > 30 * radius).astype(int).tolist() for radius in radii]}
    characters = {
        "clean": (strengths > 0).astype(int).tolist(),
        "attacked": (strengths > 1).astype(int).tolist(),
        "queries": generator.integers(5, 40, size=len(strengths)).tolist(),
        "examples": [["It is good, <b>really</b> | good", "It is goood, <b>really</b> | good"]],
    }
    return {
        "pgd": {test: dict.fromkeys(spec["pgd"]["levels"], worst) for test in spec["tests"]},
        "characters": {test: characters for test in spec["tests"]},
    }


def write_run(folder: Path, file: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file['setting']}-{file['method']}-{file['seed']}-{file['key']}.json"
    path.write_text(json.dumps(file))
    return path


def write_results(
    results: Path,
    names: Sequence[str] = ("cola", "hate", "sentiment"),
    examples: int = 60,
    gains: Mapping[str, float] | None = None,
) -> Path:
    """Whole studies with tuning runs. gains: by method, see `run`."""
    for name in names:
        study, folder = definition(name), results / name
        folder.mkdir(parents=True)
        (folder / "study.yml").write_text(yaml.safe_dump(study, sort_keys=False))
        for setting in study["settings"]:
            for method in METHODS:
                gain = (gains or {}).get(method, 0.0)
                for seed in seeds_of(study, method):
                    write_run(folder / "runs", run(study, setting, method, seed, examples, gain))
                for number, point in enumerate(study["tuning"]["grid"].get(method, [])):
                    tried = run(study, setting, method, FIRST, examples, gain)
                    flags = {**tried["config"], **point, **study["tuning"]["flags"]}
                    write_run(folder / "tuning", tried | {"config": flags, "evaluation": {}, "key": f"{number}"})
            chosen = {"chosen": {"learning_rate": RATE}, "trials": []}
            (folder / "tuned.json").write_text(json.dumps(dict.fromkeys(METHODS, chosen)))
    return results
