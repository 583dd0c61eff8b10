"""When a run reports: a number of points whatever its length, and a line at least every half minute."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mt_dnn.reporting import report_points
from mt_dnn.reporting.report_points import Heartbeat, ReportPoints, duration
from tests.mt_dnn.runs import SIFT, tiny_run


@pytest.mark.parametrize("total", [50, 99, 120, 1000, 12345, 400_000])
def test_a_run_of_any_length_has_about_fifty_points(total: int) -> None:
    points = ReportPoints(0, total)
    count = sum(points.includes(update) for update in range(1, total + 1))
    assert 33 <= count <= 100
    gains = [update for update in range(1, total + 1) if points.measures_gain(update)]
    assert all(points.includes(update) for update in gains) and len(gains) <= 1 + total / 20


def test_a_short_run_reports_every_update() -> None:
    points = ReportPoints(0, 18)
    assert all(points.includes(update) for update in range(1, 19))
    assert [update for update in range(1, 19) if points.measures_gain(update)] == [1]


def test_an_interval_that_is_given_is_kept_whatever_the_length() -> None:
    points = ReportPoints(500, 1200)
    reported = [update for update in range(1, 1201) if points.includes(update)]
    assert reported == [1, 500, 1000]
    assert [update for update in range(1, 1201) if points.measures_gain(update)] == reported
    # of every third update that is regularized, the one whose figures the point at 500 shows
    assert points.measures_gain(498, every=3) and not points.measures_gain(495, every=3)


def test_a_quiet_run_says_every_thirty_seconds_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(report_points.time, "monotonic", lambda: now)
    log = logging.getLogger("heartbeat")
    beats = [Heartbeat(log, enabled=True), Heartbeat(log, enabled=False)]
    with caplog.at_level(logging.INFO, "heartbeat"):
        for seconds in (129.0, 131.0, 135.0, 150.0, 162.0, 175.0, 195.0):
            now = seconds
            if seconds == 175.0:
                beats[0].reset()  # a line of another kind
            for beat in beats:
                beat.beat(lambda: f"at {report_points.time.monotonic()}")
    assert [record.getMessage() for record in caplog.records] == ["at 131.0", "at 162.0"]


def test_lines_of_a_run_without_a_bar_tell_pace_time_left_and_scored_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_points, "QUIET_SECONDS", 0.0)
    tiny_run(tmp_path, "--epochs", "1", "--log_per_updates", "500", "--batch_size_eval", "5")
    log = (tmp_path / "log.txt").read_text()
    assert "epoch 1 of 1, update 4 of 9: " in log and "s an update, about " in log and " s left" in log
    assert "epoch 1 of 1, cola_dev: 1 of 2 batches scored" in log


@pytest.mark.parametrize("every", ["1", "5"])
def test_a_resumed_run_has_the_points_and_the_figures_of_an_unbroken_one(tmp_path: Path, every: str) -> None:
    """Those of the last regularized update too, where that was before the checkpoint."""
    flags = (*SIFT, "--adv_every", every, "--log_per_updates", "4", "--save_per_updates_on", "--save_per_updates", "3")
    tiny_run(tmp_path / "whole", *flags)
    for at in ("model_0_3.pt", "model_0_6.pt", "model_0.pt"):
        tiny_run(tmp_path / at, *flags, "--resume", "--model_ckpt", str(tmp_path / "whole" / at))
        whole, resumed = (
            [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
            for run in ("whole", at)
        )
        # In another folder the file begins with the resume.
        assert len(resumed) > 5 and resumed == whole[-len(resumed) :]


def test_durations_are_short_to_read() -> None:
    assert [duration(seconds) for seconds in (4.24, 90, 5400)] == ["4.2 s", "1.5 min", "1.5 h"]
