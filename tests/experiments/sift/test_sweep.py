from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import FlagError
from experiments.sift import sweep
from experiments.sift.running.runs import TRAINED_DATASET, Method, configure, development_data, search_figures
from mt_dnn.configuration.adversarial_config import measured_flags

LOSS = 0.25
SMART, VAT = sweep.Point("smart", "pre_ln", 0.1, 1), sweep.Point("vat", "post_ln", 0.1, 1)


def record(seed: int, accuracy: float, loss: float = LOSS, gain: float | None = None) -> dict[str, Any]:
    found = {"ACC": accuracy, "F1MAC": accuracy - 1, "loss": loss, "examples": 40}
    search = {"ascent_rise": gain, "chance_rise": 0.5, "skipped": 0.0}
    return {"key": "", "method": "", "seed": seed, "evaluation": {sweep.DEV: found}, "search": search}


def grid(accuracies: Mapping[sweep.Point, float], seeds: int = 1) -> sweep.Summary:
    """Runs whose accuracy is that of their point plus the seed's number."""
    found: list[tuple[sweep.Point | None, dict[str, Any]]] = [(None, record(seed, 90 + seed)) for seed in range(seeds)]
    for point, accuracy in accuracies.items():
        found += [(point, record(seed, accuracy + seed, LOSS - accuracy / 1000)) for seed in range(seeds)]
    return sweep.Summary(found)


@pytest.mark.parametrize("method", ["at", "vat", "smart", "alum", "freelb"])
def test_a_points_size_is_its_radius_and_the_step_follows(method: str, tmp_path: Path):
    point = sweep.Point(method, "post_ln", 0.02, 3)
    found = configure(Method(method, point.flags), 1, encoder="tiny", data_dir=tmp_path, epochs=1).adversarial
    assert found.adv_train and (found.adv_opt, found.adv_norm_level) == (method, "post_ln")
    default = measured_flags(method, "post_ln")
    ratio = default["adv_step_size"] / default["adv_radius"]
    assert (found.adv_radius, found.adv_step_size) == (0.02, pytest.approx(0.02 * ratio))
    assert method == "freelb" or found.adv_alpha == 3
    assert found.adv_scale == "relative"


@pytest.mark.parametrize("method", ["random", "r3f"])
def test_without_a_ball_a_points_size_is_that_of_the_noise(method: str, tmp_path: Path):
    point = sweep.Point(method, "pre_ln", 0.02, 3)
    found = configure(Method(method, point.flags), 1, encoder="tiny", data_dir=tmp_path, epochs=1).adversarial
    assert (found.adv_noise_var, found.adv_radius, found.adv_alpha) == (0.02, None, 3)


def test_the_grid_has_freelb_once_for_it_has_no_alpha():
    arguments = sweep.parse_args(["--methods", "freelb,at", "--levels", "pre_ln", "--sizes", "0.1", "--alphas", "1,3"])
    assert sweep.points_of(arguments) == [
        sweep.Point("freelb", "pre_ln", 0.1, 1),
        sweep.Point("at", "pre_ln", 0.1, 1),
        sweep.Point("at", "pre_ln", 0.1, 3),
    ]


def test_defaults_are_one_point_a_method_and_level_whose_flags_change_nothing(tmp_path: Path):
    points = sweep.points_of(sweep.parse_args(["--defaults"]))
    assert len(points) == 8 * 3
    for point in points:
        own = {"adv_train": "true", "adv_opt": point.method, "adv_norm_level": point.level}
        options: dict[str, Any] = {"encoder": "tiny", "data_dir": tmp_path, "epochs": 1}
        by_name = configure(Method("", own), 1, **options).adversarial
        assert configure(Method("", point.flags), 1, **options).adversarial == by_name


def test_runs_see_no_test_set_and_the_asked_share_of_the_training_set(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for split in ("train", "dev", "test"):
        (source / f"{TRAINED_DATASET}_{split}.json").write_text("".join(f"{split} {number}\n" for number in range(10)))
    folder = development_data(source, tmp_path / "folder", TRAINED_DATASET, 0.25)
    assert {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()} == {
        f"{TRAINED_DATASET}_train.json": 3,
        f"{TRAINED_DATASET}_dev.json": 10,
    }


def test_a_row_is_a_method_level_and_size_a_column_an_alpha():
    points = {sweep.Point("smart", level, size, alpha): 50 + 10 * alpha + 100 * size for level in ("pre_ln", "deberta")
              for size in (0.01, 0.1) for alpha in (1, 3)}  # fmt: skip
    table = grid(points | {sweep.Point("freelb", "pre_ln", 0.1, 1): 88}, seeds=2).markdown("ACC")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["method", "level", "size", "α = 1", "α = 3"]
    assert rows[2] == ["plain", "", "", "90.5 ± 0.7", "90.5 ± 0.7"]
    assert rows[3:] == [
        ["smart", "pre_ln", "0.01", "61.5 ± 0.7", "81.5 ± 0.7"],
        ["smart", "pre_ln", "0.1", "70.5 ± 0.7", "90.5 ± 0.7"],
        ["smart", "deberta", "0.01", "61.5 ± 0.7", "81.5 ± 0.7"],
        ["smart", "deberta", "0.1", "70.5 ± 0.7", "90.5 ± 0.7"],
        ["freelb", "pre_ln", "0.1", "88.5 ± 0.7", ""],
    ]


def test_the_best_point_has_the_highest_accuracy_then_the_lowest_loss():
    points = {SMART._replace(size=0.01): 80, SMART._replace(size=0.01, alpha=3): 91, SMART: 90, VAT: 99}
    assert grid(points).best("smart", "pre_ln") == SMART._replace(size=0.01, alpha=3)
    tied = [(SMART._replace(size=0.01), record(1, 90, loss=0.3)), (SMART, record(1, 90, loss=0.2))]
    assert sweep.Summary(tied).best("smart", "pre_ln") == SMART


def test_the_searches_are_told_by_point():
    found = [(SMART, record(1, 90, gain=10.0)), (SMART, record(2, 90, gain=30.0)), (VAT, record(1, 90))]
    rows = sweep.Summary(found).search_table().splitlines()
    assert [cell.strip() for cell in rows[2].split("|")][1:-1] == [
        "smart",
        "pre_ln",
        "0.1",
        "1",
        "20",
        "0.5",
        "40",
        "0",
    ]
    assert [cell.strip() for cell in rows[3].split("|")][5:8] == ["", "", ""]


def test_the_figures_of_a_search_are_means_over_the_logged_updates(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"kind": "update", "ascent_rise": 3.0, "chance_rise": 1.0, "skipped": 0.0},
        {"kind": "update", "ascent_rise": 5.0, "chance_rise": -0.5, "skipped": 0.25},
        {"kind": "evaluation", "ACC": 90.0},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert search_figures(path) == {"ascent_rise": 4.0, "chance_rise": 0.25, "skipped": 0.25}
    path.write_text(json.dumps({"kind": "update", "loss": 1.0}) + "\n")
    assert search_figures(path) == {"ascent_rise": None, "chance_rise": None, "skipped": 0.0}


def test_a_sweep_runs_plain_and_the_grid_by_seed_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    source = tmp_path / "tiny"
    source.mkdir()
    for split in ("train", "dev"):
        (source / f"{TRAINED_DATASET}_{split}.json").write_text("{}\n")
    asked = []

    def run(method: Method, seed: int, store: object, *, evaluated: list[Path], **options: object) -> dict[str, Any]:
        asked.append((method.name, method.flags.get("adv_norm_level"), method.flags.get("adv_radius"), seed))
        assert [path.name for path in evaluated] == [f"{TRAINED_DATASET}_dev.json"]
        return record(seed, 90.0, gain=None if method.name == "plain" else 5.0)

    monkeypatch.setattr(sweep, "prepare_data", lambda encoder: source)
    monkeypatch.setattr(sweep, "run", run)
    command = "--methods smart,vat --levels pre_ln --sizes 0.1,0.01 --alphas 1 --seeds 2 --output_dir"
    sweep.main([*command.split(), str(tmp_path / "found")])
    one_seed = [("plain", None, None)]
    one_seed += [(method, "pre_ln", size) for method in ("smart", "vat") for size in (0.01, 0.1)]
    assert asked == [(*point, seed) for seed in (2018, 2019) for point in one_seed]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("2/10 smart pre_ln size 0.01 α 1, seed 2018: accuracy 90.0, macro-F1 89.0")
    text = (tmp_path / "found" / "sweep.md").read_text()
    assert f"`python -m experiments.sift.sweep {command} {tmp_path / 'found'}`" in text
    assert "40 development examples" in text and "over 2 seeds" in text
    assert (tmp_path / "found" / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "flags",
    [
        "--methods smort",
        "--levels mid",
        "--levels pre_ln,hidden:0",
        "--sizes 0.1,x",
        "--alphas 0",
        "--train_fraction 0",
        "--seeds 0",
    ],
)
def test_a_flag_that_cannot_be_used_is_told(flags: str):
    with pytest.raises(FlagError, match=f"{flags.split()[0]}.*accepted: "):
        sweep.parse_args(flags.split())
