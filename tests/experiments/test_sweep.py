from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import FlagError
from experiments.sift import sweep
from experiments.sift.runs import TRAINED_DATASET, Method, configure

LOSS = 0.25


def record(method: Method, seed: int, accuracy: float, loss: float = LOSS) -> dict[str, Any]:
    found = {"ACC": accuracy, "F1MAC": accuracy - 1, "loss": loss, "examples": 40}
    config = {name: method.flags.get(name) for name in ("adv_radius", "adv_alpha")}
    return {"key": "", "method": method.name, "seed": seed, "evaluation": {sweep.DEV: found}, "config": config}


def grid(accuracies: Mapping[tuple[str, float, float], float], seeds: int = 1) -> sweep.Summary:
    """Runs whose accuracy is that of their point plus the seed's number."""
    records = [record(sweep.PLAIN, seed, 90 + seed) for seed in range(seeds)]
    for (level, radius, alpha), accuracy in accuracies.items():
        method = sweep.noise_method(level, radius, alpha, 0.1)
        records += [record(method, seed, accuracy + seed, LOSS - accuracy / 1000) for seed in range(seeds)]
    return sweep.Summary(records)


def test_the_noise_of_a_point_is_what_the_flags_set(tmp_path: Path):
    method = sweep.noise_method("post_ln", 0.02, 3, 0.1)
    found = configure(method, 1, encoder="tiny", data_dir=tmp_path, epochs=1).adversarial
    assert method.name == "SiFT" and found.adv_train and found.adv_norm_level == "post_ln"
    assert (found.adv_radius, found.adv_step_size, found.adv_noise_var) == (0.02, 0.02, pytest.approx(0.002))
    assert (found.adv_alpha, found.adv_k, found.adv_p_norm) == (3, 1, "l2")
    assert (found.adv_scale, found.adv_norm_scope, found.adv_projection) == ("relative", "token", "project")


def test_runs_see_no_test_set_and_the_asked_share_of_the_training_set(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for split in ("train", "dev", "test"):
        (source / f"{TRAINED_DATASET}_{split}.json").write_text("".join(f"{split} {number}\n" for number in range(10)))
    folder = sweep.development_data(source, tmp_path / "folder", 0.25)
    assert {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()} == {
        f"{TRAINED_DATASET}_train.json": 3,
        f"{TRAINED_DATASET}_dev.json": 10,
    }


def test_a_row_is_a_method_and_radius_a_column_an_alpha():
    points = {(level, radius, alpha): 50 + 10 * alpha + 100 * radius for level in ("pre_ln", "post_ln")
              for radius in (0.01, 0.1) for alpha in (1, 3)}  # fmt: skip
    table = grid(points, seeds=2).markdown("ACC")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["method", "radius", "α = 1", "α = 3"]
    assert rows[2] == ["plain", "", "90.5 ± 0.7", "90.5 ± 0.7"]
    assert rows[3:] == [
        ["SMART", "0.01", "61.5 ± 0.7", "81.5 ± 0.7"],
        ["SMART", "0.1", "70.5 ± 0.7", "90.5 ± 0.7"],
        ["SiFT", "0.01", "61.5 ± 0.7", "81.5 ± 0.7"],
        ["SiFT", "0.1", "70.5 ± 0.7", "90.5 ± 0.7"],
    ]


def test_the_best_point_has_the_highest_accuracy_then_the_lowest_loss():
    points = {("pre_ln", 0.01, 1): 80, ("pre_ln", 0.01, 3): 91, ("pre_ln", 0.1, 1): 90, ("pre_ln", 0.1, 3): 70}
    assert grid(points).best("SMART") == (0.01, 3)
    method = [sweep.noise_method("pre_ln", radius, 1, 0.1) for radius in (0.01, 0.1)]
    tied = [record(method[0], 1, 90, loss=0.3), record(method[1], 1, 90, loss=0.2)]
    assert sweep.Summary(tied).best("SMART") == (0.1, 1)


def test_a_sweep_runs_plain_and_the_grid_by_seed_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    source = tmp_path / "tiny"
    source.mkdir()
    for split in ("train", "dev"):
        (source / f"{TRAINED_DATASET}_{split}.json").write_text("{}\n")
    asked = []

    def run(method: Method, seed: int, store: object, *, evaluated: list[Path], **options: object) -> dict[str, Any]:
        asked.append((method.name, method.flags.get("adv_radius"), seed))
        assert [path.name for path in evaluated] == [f"{TRAINED_DATASET}_dev.json"]
        return record(method, seed, 90.0)

    monkeypatch.setattr(sweep, "prepare_data", lambda encoder: source)
    monkeypatch.setattr(sweep, "run", run)
    command = "--radii 0.1,0.01 --alphas 1 --seeds 2 --output_dir"
    sweep.main([*command.split(), str(tmp_path / "found")])
    one_seed = [("plain", None), ("SMART", 0.01), ("SMART", 0.1), ("SiFT", 0.01), ("SiFT", 0.1)]
    assert asked == [(*point, seed) for seed in (2018, 2019) for point in one_seed]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("2/10 SMART radius 0.01 α 1, seed 2018: accuracy 90.0, macro-F1 89.0")
    text = (tmp_path / "found" / "sweep.md").read_text()
    assert f"`python -m experiments.sift.sweep {command} {tmp_path / 'found'}`" in text
    assert "40 development examples" in text and "over 2 seeds" in text
    assert (tmp_path / "found" / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "flags", ["--methods deberta", "--radii 0.1,x", "--alphas 0", "--train_fraction 0", "--seeds 0"]
)
def test_a_flag_that_cannot_be_used_is_told(flags: str):
    with pytest.raises(FlagError, match=f"{flags.split()[0]}.*accepted: "):
        sweep.parse_args(flags.split())
