from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_utils.readers import write_score_file
from data_utils.storage.text_files import write_lines
from experiments.sift.reporting.tables import markdown_table, spread
from experiments.sift.running.runs import (
    PLAIN,
    SIFT,
    SMART,
    TRAINED_DATASET,
    Method,
    RunStore,
    configure,
    evaluate,
    run_key,
)
from mt_dnn.configuration.config import Config


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        (tmp_path / f"{TRAINED_DATASET}_{split}.json").write_text(f"{split}\n")
    return tmp_path


def config(method: Method, data_dir: Path, seed: int = 1, epochs: int = 2, output_dir: str = "out") -> Config:
    return configure(method, seed, encoder="tiny", data_dir=data_dir, epochs=epochs, output_dir=output_dir)


def test_methods_differ_by_their_adversarial_flags_alone(data_dir: Path):
    plain, smart, sift = (config(method, data_dir) for method in (PLAIN, SMART, SIFT))
    assert plain.training == smart.training == sift.training
    assert plain.data == smart.data == sift.data
    assert (plain.adversarial.adv_train, smart.adversarial.adv_train, sift.adversarial.adv_train) == (False, True, True)
    assert (smart.adversarial.adv_norm_level, sift.adversarial.adv_norm_level) == ("pre_ln", "post_ln")


def test_a_run_is_known_by_its_settings_and_data_but_not_by_its_places(data_dir: Path):
    evaluated = [data_dir / f"{TRAINED_DATASET}_test.json"]
    key = run_key(config(SIFT, data_dir), evaluated)
    assert key == run_key(config(SIFT, data_dir, output_dir="elsewhere"), evaluated)
    larger = Method("SiFT", {**SIFT.flags, "adv_radius": 0.07})
    others = [config(SMART, data_dir), config(SIFT, data_dir, seed=2), config(SIFT, data_dir, epochs=3)]
    keys = {run_key(other, evaluated) for other in [*others, config(larger, data_dir)]}
    keys.add(run_key(config(SIFT, data_dir), []))
    for split in ("train", "test"):
        (data_dir / f"{TRAINED_DATASET}_{split}.json").write_text("changed\n")
        keys.add(run_key(config(SIFT, data_dir), evaluated))
    assert len(keys | {key}) == 8


def test_a_flag_that_is_new_and_at_its_default_makes_no_other_run(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    found = config(SIFT, data_dir)
    key, flat, default = run_key(found, []), found.to_flat(), Config().to_flat()
    shown = {id(found): flat | {"newer": 1}}
    monkeypatch.setattr(Config, "to_flat", lambda self: shown.get(id(self), default | {"newer": 1}))
    assert run_key(found, []) == key
    shown[id(found)] = flat | {"newer": 2}
    assert run_key(found, []) != key


def test_finished_runs_are_found_by_key(tmp_path: Path):
    store = RunStore(tmp_path / "folder" / "runs.jsonl")
    assert store.read() == {}
    records = [{"key": "a", "name": "α\u2028β"}, {"key": "b", "name": "plain"}]
    for record in records:
        store.add(record)
    assert RunStore(store.path).read() == {"a": records[0], "b": records[1]}
    assert [json.loads(line) for line in store.path.read_text().split("\n")[:-1]] == records


def test_several_processes_fill_one_file_and_lose_no_run(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path; from experiments.sift.running.runs import RunStore\n"
        "store = RunStore(Path(sys.argv[1]))\n"
        "for number in range(200): store.add({'key': f'{sys.argv[2]}/{number}', 'filling': 'x' * 3000})"
    )
    path = tmp_path / "runs.jsonl"
    started = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "ab"]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    assert set(RunStore(path).read()) == {f"{name}/{number}" for name in "ab" for number in range(200)}


def test_a_line_that_an_interruption_cut_costs_no_other_run(tmp_path: Path):
    store = RunStore(tmp_path / "runs.jsonl")
    store.add({"key": "a"})
    with store.path.open("a") as file:
        file.write('{"key": "b", "eval')
    assert store.read() == {"a": {"key": "a"}}
    store.add({"key": "c"})
    assert store.read() == {"a": {"key": "a"}, "c": {"key": "c"}}


def test_the_loss_is_the_cross_entropy_of_the_score_file(tmp_path: Path):
    examples = [{"uid": str(gold), "label": gold, "token_id": [5]} for gold in (0, 1, 1)]
    write_lines(tmp_path / "set.json", map(json.dumps, examples))
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [0.0, 1.0]])
    write_score_file(tmp_path / "set_scores_epoch_1.json", {"ACC": 66.0}, [0, 0, 1], ["0", "1", "1"], probabilities)
    found = evaluate(tmp_path, 1, tmp_path / "set.json")
    assert found == {"ACC": 66.0, "loss": pytest.approx((math.log(2) + math.log(4)) / 3), "examples": 3}


def test_a_wrong_certainty_costs_a_finite_loss(tmp_path: Path):
    write_lines(tmp_path / "set.json", map(json.dumps, [{"uid": "0", "label": 1, "token_id": [5]}]))
    write_score_file(tmp_path / "set_scores_epoch_0.json", {}, [0], ["0"], [[1.0, 0.0]])
    assert 80 < evaluate(tmp_path, 0, tmp_path / "set.json")["loss"] < 90


def test_spread_is_the_standard_deviation_of_a_sample():
    assert spread([90.0, 92.0, 94.0]) == "92.0 ± 2.0"
    assert spread([0.125], digits=2) == "0.12"


def test_columns_of_a_table_are_aligned():
    assert markdown_table(["name", "x"], [["a", "1.0"], ["longer", "10.0"]]) == (
        "| name   |    x |\n| ------ | ---: |\n| a      |  1.0 |\n| longer | 10.0 |\n"
    )


@pytest.mark.parametrize("line", [b"[]", b"1", b'{"key": []}', b'{"other": 1}', b"\xff\xfe", b"[" * 5000])
def test_a_damaged_line_is_no_run(tmp_path: Path, line: bytes):
    store = RunStore(tmp_path / "runs.jsonl")
    store.add({"key": "a"})
    store.path.write_bytes(store.path.read_bytes() + line + b"\n")
    assert store.read() == {"a": {"key": "a"}}
