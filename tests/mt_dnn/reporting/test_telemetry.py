"""What a run reports: the log line, `metrics.jsonl`, TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_utils.errors import UserError
from mt_dnn.reporting.telemetry import Telemetry, ascent_gain
from mt_dnn.training.update import UpdateReport
from tests.mt_dnn.runs import SIFT, tiny_config, tiny_run


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def report(loss: float, **figures: float) -> UpdateReport:
    return UpdateReport(torch.tensor(loss), **{name: torch.tensor(value) for name, value in figures.items()})


def test_losses_are_means_since_the_last_report_and_figures_are_the_updates_own(tmp_path: Path) -> None:
    figures = {"emb_val": 0.5, "eff_perturb": 0.1, "delta_size": 0.2, "skipped": 0.25}
    with Telemetry(tiny_config(tmp_path)) as telemetry:
        telemetry.add(report(1.0, adv_loss=0.1, bregman=0.5))
        last = report(3.0, adv_loss=0.3, bregman=1.5, ascent_rise=0.6, chance_rise=0.2, **figures)
        telemetry.add(last)
        line = telemetry.flush(0, 2, "mnli", last, 1e-3)
        telemetry.add(report(7.0))
        telemetry.add(report(8.0, adv_loss=0.002134))
        assert telemetry.recent() == "loss 7.5, R 0.00213"
        telemetry.flush(1, 3, "cola", report(7.0), 5e-4)
    R = pytest.approx(0.002134)
    assert line == (
        "loss 2, R 0.2, bregman 1, emb_val 0.5, eff_perturb 0.1, delta_size 0.2, skipped 0.25, ascent_gain 3, lr 0.001"
    )
    first, second = lines_of(tmp_path)
    expected = {"loss": 2, "R": 0.2, "bregman": 1, "ascent_rise": 0.6, "chance_rise": 0.2, "ascent_gain": 3, "lr": 1e-3}
    expected |= figures
    assert {name: first.pop(name) for name in ("kind", "epoch", "update", "task")} == {
        "kind": "update", "epoch": 0, "update": 2, "task": "mnli",
    }  # fmt: skip
    assert first == pytest.approx(expected)
    assert second == {"kind": "update", "epoch": 1, "update": 3, "task": "cola", "loss": 7.5, "R": R, "lr": 5e-4}


@pytest.mark.parametrize(
    ("rise", "chance", "gain"), [(0.6, 0.2, 3.0), (0.1, 0.2, 0.5), (0.6, 0.0, None), (0.6, -0.1, None)]
)
def test_the_gain_is_a_ratio_where_chance_raised_something(rise: float, chance: float, gain: float | None) -> None:
    found = ascent_gain({"ascent_rise": rise, "chance_rise": chance})
    assert found == (None if gain is None else pytest.approx(gain))
    assert ascent_gain({"loss": 1.0}) is None


def test_numbers_that_are_not_finite_are_null_and_every_line_is_json(tmp_path: Path) -> None:
    with Telemetry(tiny_config(tmp_path)) as telemetry:
        telemetry.add(report(float("nan")))
        telemetry.flush(0, 1, "mnli", report(float("nan")), 1e-3)
        telemetry.evaluation(0, 1, {"mnli_dev": {"ACC": 50.0, "MCC": float("nan")}})
    update, evaluation = lines_of(tmp_path)
    assert update["loss"] is None
    assert evaluation == {
        "kind": "evaluation", "epoch": 0, "update": 1, "dataset": "mnli_dev", "ACC": 50.0, "MCC": None,
    }  # fmt: skip


def test_a_run_writes_updates_and_evaluations_with_the_ascent_gain(tmp_path: Path) -> None:
    tiny_run(tmp_path, *SIFT, "--log_per_updates", "4")
    found = lines_of(tmp_path)
    updates = [line for line in found if line["kind"] == "update"]
    assert [line["update"] for line in updates] == [1, 4, 8, 12, 16]
    assert all({"loss", "R", "emb_val", "delta_size", "skipped", "ascent_rise"} <= line.keys() for line in updates)
    datasets = {line["dataset"] for line in found if line["kind"] == "evaluation"}
    assert datasets == {"cola_dev", "mnli_matched_dev", "mnli_mismatched_dev", "stsb_dev"}


def test_how_often_a_run_is_logged_changes_no_parameter(tmp_path: Path) -> None:
    from tests.mt_dnn.runs import assert_same, parameters

    tiny_run(tmp_path / "seldom", *SIFT, "--log_per_updates", "500")
    tiny_run(tmp_path / "always", *SIFT, "--log_per_updates", "1")
    assert_same(parameters(tmp_path / "seldom" / "model_1.pt"), parameters(tmp_path / "always" / "model_1.pt"))


def test_a_resumed_run_drops_what_was_reported_after_its_checkpoint(tmp_path: Path) -> None:
    flags = (*SIFT, "--log_per_updates", "2", "--save_per_updates_on", "--save_per_updates", "5")
    tiny_run(tmp_path, *flags)
    whole = lines_of(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "upd')  # cut by an interruption
    tiny_run(tmp_path, *flags, "--resume", "--model_ckpt", str(tmp_path / "model_0_5.pt"))
    resumed = lines_of(tmp_path)
    assert resumed == whole  # the losses of the first report after the resume, too
    tiny_run(tmp_path, "--epochs", "1", "--log_per_updates", "500")
    assert [line["update"] for line in lines_of(tmp_path) if line["kind"] == "update"] == [1]


def test_evaluations_that_come_again_are_not_there_twice(tmp_path: Path) -> None:
    """A checkpoint of an epoch's last update lies before the epoch's evaluation, the epoch's own behind it."""
    flags = (*SIFT, "--save_per_updates_on", "--save_per_updates", "9")
    tiny_run(tmp_path, *flags)
    whole = lines_of(tmp_path)
    for checkpoint in ("model_0_9.pt", "model_0.pt"):
        tiny_run(tmp_path, *flags, "--resume", "--model_ckpt", str(tmp_path / checkpoint))
        assert lines_of(tmp_path) == whole


def test_lines_of_another_run_in_the_folder_are_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that is resumed from a checkpoint in another folder."""
    flags = (*SIFT, "--log_per_updates", "2", "--save_per_updates_on", "--save_per_updates", "5")
    first, other = tmp_path / "first", tmp_path / "other"
    tiny_run(first, *flags)
    tiny_run(other, *SIFT, "--epochs", "1", "--log_per_updates", "1")
    theirs = (other / "metrics.jsonl").read_text()
    for own in ("metrics_1.jsonl", "metrics_2.jsonl"):
        tiny_run(other, *flags, "--resume", "--model_ckpt", str(first / "model_0_5.pt"))
        assert lines_of(other) == [line for line in lines_of(first) if line["update"] > 5]
        assert f"metrics.jsonl: of another run, now {own}" in capsys.readouterr().out
    assert (other / "metrics_1.jsonl").read_text() == theirs
    tiny_run(other, *flags, "--resume")
    assert not (other / "metrics_3.jsonl").exists()


def test_alum_is_plain_for_the_first_half_of_its_updates(tmp_path: Path) -> None:
    alum = ("--adv_train", "--adv_opt", "alum", "--adv_norm_level", "post_ln", "--log_per_updates", "1")
    tiny_run(tmp_path / "alum", *alum, "--save_per_updates_on", "--save_per_updates", "9")
    found = {line["update"]: "R" in line for line in lines_of(tmp_path / "alum") if line["kind"] == "update"}
    assert found == {update: update > 9 for update in range(1, 19)}


def test_a_file_that_cannot_be_written_ends_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        tiny_run(tmp_path, "--epochs", "1")
