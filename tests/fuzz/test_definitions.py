"""Definitions and results: task definitions, studies, the files of runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from hypothesis import example, given

from experiments.sift.reporting.results import read_run
from experiments.sift.running import study_run
from experiments.sift.running.runs import RunStore
from experiments.sift.running.study import read_study
from mt_dnn.configuration.config import parse_args
from mt_dnn.reporting.telemetry import _lines_until
from tasks.definition import TaskDefs
from tests.fuzz.check import reading
from tests.fuzz.inputs import DRAWN, Choices

TASKS = b"""
cola:
  data_format: PremiseOnly
  task_type: Classification
  n_class: 2
  metric_meta: [ACC, MCC]
  labels: &names [a, 'b']
  dropout_p: 0.1
mnli:
  data_format: PremiseAndOneHypothesis
  task_type: Classification
  n_class: 2
  labels: *names
  metric_meta: [ACC]
  split_names: [train, matched_dev]
"""
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b", ".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefghijk"
)


def entries(definitions: TaskDefs) -> dict[str, dict[str, Any]]:
    return {name: vars(definitions.get_task_def(name)) for name in definitions.names}


def plain(entry: dict[str, Any]) -> dict[str, Any]:
    """A definition as a YAML has it."""
    labels = entry["label_vocab"]
    return {
        "data_format": entry["data_type"].name,
        "task_type": entry["task_type"].name,
        "n_class": entry["n_class"],
        "metric_meta": [metric.name for metric in entry["metric_meta"]],
        "labels": None if labels is None else list(labels.tok2ind),
        "split_names": entry["split_names"],
        "enable_san": entry["enable_san"],
        "dropout_p": entry["dropout_p"],
        "actf": entry["actf"],
        **{name: entry[name].name for name in ("loss", "kd_loss", "adv_loss")},
    }


@given(DRAWN.map(lambda drawn: Choices(drawn).text([TASKS])))
@example(BOMB)
@example(BOMB + b"<<: *k\n")
@example(b"a: &a [*a]\n")
@example(b"a: " + b"[" * 500)
@example(b"a: {n_class: " + b"9" * 5000 + b"}\n")
@example(b"a: {dropout_p: 2001-13-45}\n")
@example(b'a: {labels: ["\\ud800"]}\n')
def test_task_definitions(tmp_path: Path, content: bytes) -> None:
    path, again = tmp_path / "tasks.yml", tmp_path / "again.yml"
    path.write_bytes(content)
    found = reading("task definitions (YAML)", lambda: TaskDefs(path), path)
    if found is not None:
        written = {name: plain(entry) for name, entry in entries(found).items()}
        again.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
        assert {name: plain(entry) for name, entry in entries(TaskDefs(again)).items()} == written


FLAGS = b"""
# data
train_datasets: cola,mnli
tokenizer: null
epochs: 3
learning_rate: 1e-4
vb_dropout: true
bregman_beta: [0.9, 0.99]
adv_train: true
adv_opt: smart
adv_norm_level: post_ln
adv_radius: 0.1
"""


@given(DRAWN.map(lambda drawn: Choices(drawn).text([FLAGS])))
@example(BOMB)
@example(b"epochs: " + b"9" * 5000)
@example(b"adv_preset: deberta_release\nadv_scale: relative\nadv_projection: normalize\n")
@example(b"adv_preset: deberta_release\nadv_projection: project\n")
def test_flags(tmp_path: Path, content: bytes) -> None:
    path, again = tmp_path / "run.yml", tmp_path / "again.yml"
    path.write_bytes(content)
    found = reading("flags (YAML)", lambda: parse_args(["--config", str(path)]), path)
    if found is not None:
        again.write_text(found.to_yaml(), encoding="utf-8")
        assert parse_args(["--config", str(again)]).to_yaml() == found.to_yaml()


STUDY = b"""
study: tiny
question: Does it help?
task_def: tasks.yml
task: cola
metric: MCC
data: [cola]
comparison: {methods: [plain, sift], setting: cola, tests: [cola_test]}
settings:
  cola: {train: cola, tests: [cola_test], stages: {more: {train: cola_more, tests: [cola_out_test]}}}
flags: {epochs: 2}
methods: {plain: {}, sift: &sift {adv_train: true}, other: {<<: *sift, adv_k: 2}}
seeds: {compared: 2, others: 1}
"""


@given(DRAWN.map(lambda drawn: Choices(drawn).text([STUDY])))
@example(BOMB)
def test_studies(tmp_path: Path, content: bytes) -> None:
    path, again = tmp_path / "study.yml", tmp_path / "again.yml"
    path.write_bytes(content)
    found = reading("studies (YAML)", lambda: read_study(path), path)
    if found is not None:
        again.write_text(yaml.safe_dump(found.model_dump()), encoding="utf-8")
        assert read_study(again).model_dump() == found.model_dump()
        assert (tmp_path / found.folder).resolve().parent == tmp_path.resolve()


RUN: dict[str, Any] = {
    "key": "k",
    "setting": "s",
    "method": "m",
    "seed": 1,
    "config": {"a": 1},
    "environment": {},
    "history": [{"epoch": 0, "metrics": {"cola_dev": {"MCC": 50.0}}}],
    "updates": [{"update": 1}],
    "evaluation": {
        "trained": {"t": {"golds": [0, 1], "probabilities": [[0.9, 0.1], [0.2, 0.8]], "metrics": {"ACC": 100.0}}}
    },
    "robustness": {
        "pgd": {"t": {"pre_ln": {"radii": [0.1], "correct": [[0, 1]]}}},
        "characters": {"t": {"clean": [1, 1], "attacked": [0, 1], "queries": [3, 4], "examples": [["a", "b"]]}},
    },
}


@given(DRAWN.map(lambda drawn: Choices(drawn).json([RUN])))
def test_run_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    found = reading("a study's runs (JSON)", lambda: read_run(path), path)
    for tests in found.evaluation.values() if found else ():
        for predictions in tests.values():
            assert predictions.measures
    unfinished: Any = SimpleNamespace(result=str(path), key=lambda: "k")
    record = study_run.finished(unfinished)  # of damage it makes a run to do again
    assert record is None or record["key"] == "k"


UPDATES = [
    {"kind": "update", "epoch": 0, "update": 1, "task": "cola", "loss": 0.5},
    {"kind": "evaluation", "epoch": 0, "update": 2, "dataset": "cola_dev", "MCC": 1.0},
    {"kind": "update", "epoch": 1, "update": 3, "task": "cola", "loss": None, "key": "k"},
]


@given(DRAWN.map(lambda drawn: Choices(drawn).json_lines(UPDATES)))
def test_lines_of_interrupted_runs(tmp_path: Path, content: bytes) -> None:
    """Damaged lines are passed over, whole ones kept."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    kept = reading(
        "metrics.jsonl and run stores (JSON lines)", lambda: (_lines_until(path, 2, 1), RunStore(path).read()), path
    )
    assert kept is not None
    path.write_text("".join(kept[0]), encoding="utf-8")
    assert _lines_until(path, 2, 1) == kept[0] and all(json.loads(line) for line in kept[0])
