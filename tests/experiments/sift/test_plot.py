"""Curves of runs: what is drawn, and what is said of runs that are damaged or have less to show."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from data_utils.errors import DataError, FlagError, WriteError
from experiments.sift import plot
from experiments.sift.plot import draw, kinds_of, read_run, short_names
from experiments.sift.reporting.figures import COLOURS
from tests.mt_dnn.runs import SIFT, tiny_run

ALL = {"loss": 0.5, "R": 0.01, "delta_size": 0.1, "eff_perturb": 0.09, "ascent_gain": 40.0, "emb_val": 0.3}


def update(number: int, **figures: object) -> dict[str, Any]:
    return {"kind": "update", "epoch": 0, "update": number, "task": "reviews", **figures}


def write_run(folder: Path, *lines: object) -> Path:
    """A run's folder; a line that is a text stands there as it is."""
    folder.mkdir(parents=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def evaluation(epoch: int, dataset: str = "reviews_dev", **metrics: float) -> dict[str, Any]:
    return {"kind": "evaluation", "epoch": epoch, "update": 9, "dataset": dataset, **metrics}


def drawn(*runs: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """By panel and run, the points of its line in the figures."""
    found = [read_run(path) for path in runs]
    names = short_names([run.path for run in found])
    shown: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for panels in kinds_of(found).values():
        figure: Figure = draw(panels, names)
        assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == names
        for axes in figure.axes[: len(panels)]:
            points = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
            shown[axes.get_title()] = dict(zip(names, points, strict=True))
    return shown


def test_every_run_has_its_line_in_every_panel_that_it_reported(tmp_path: Path) -> None:
    sift = write_run(
        tmp_path / "sift", update(1, **ALL), update(5, **ALL | {"loss": 0.4}), evaluation(0, ACC=80.0),
        evaluation(1, ACC=82.0),
    )  # fmt: skip
    plain = write_run(tmp_path / "plain", update(2, loss=0.7), evaluation(0, ACC=70.0))
    panels = drawn(sift, plain)
    assert list(panels) == [
        "task loss", "R, the regularizer", "reviews_dev ACC", *plot.PERTURBATION.values(),
    ]  # fmt: skip
    assert panels["task loss"] == {"sift": ([1, 5], [0.5, 0.4]), "plain": ([2], [0.7])}
    assert panels["reviews_dev ACC"] == {"sift": ([1, 2], [80.0, 82.0]), "plain": ([1], [70.0])}
    for name, title in plot.PERTURBATION.items():
        assert panels[title] == {"sift": ([1, 5], [ALL[name]] * 2), "plain": ([], [])}


@pytest.mark.parametrize("hole", [None, "NaN", math.inf, "text", True, [1.0], 10**400])
def test_what_is_no_number_is_a_gap(hole: object, tmp_path: Path) -> None:
    value = json.dumps(hole) if hole != "NaN" else "NaN"
    line = '{"kind": "update", "epoch": 0, "update": 2, "loss": ' + value + "}"
    x, y = drawn(write_run(tmp_path / "run", update(1, loss=0.5), line, update(3, loss=0.4)))["task loss"]["run"]
    assert x == [1, 2, 3]
    assert y[0] == 0.5 and math.isnan(y[1]) and y[2] == 0.4


def test_a_point_alone_between_gaps_is_seen(tmp_path: Path) -> None:
    lines = [update(number, loss=None if number in (9, 11) else 0.5) for number in range(1, 21)]
    (line,) = (
        draw({"task loss": [read_run(write_run(tmp_path / "run", *lines)).figures["loss"]]}, ["run"]).axes[0].lines
    )
    assert line.get_markevery() == [9]  # of update 10


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"kind": "upd', r"line 2: found no whole JSON object"),
        ("[1, 2]", r"line 2: is neither an update nor an evaluation"),
        ('{"kind": "update", "loss": 0.1}', r"line 2: found update 'None'; accepted: a whole number"),
        ('{"kind": "evaluation", "epoch": "first"}', r"line 2: found epoch 'first'"),
        ("\0\0", r"line 2: found NUL"),
    ],
)
def test_a_damaged_line_is_told_and_the_others_are_drawn(
    line: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", update(1, loss=0.5), line, update(3, loss=0.4), line)
    assert drawn(folder)["task loss"]["run"] == ([1, 3], [0.5, 0.4])
    (said,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"skipped: {re.escape(str(folder))}/metrics.jsonl, {told}", said)
    assert said.endswith(", and 1 more lines")


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", update(1, loss=0.5))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n" + json.dumps(update(2, loss=0.4)).encode())
    assert drawn(folder)["task loss"]["run"] == ([1, 2], [0.5, 0.4])
    assert "line 2: found the byte 0xff" in capsys.readouterr().err


def test_names_are_as_short_as_tells_them_apart(tmp_path: Path) -> None:
    paths = ["a/seed1/sift", "a/seed2/sift", "b/seed2/sift", "b/seed2/plain"]
    assert short_names([tmp_path / path for path in paths]) == ["seed1/sift", "a/seed2/sift", "b/seed2/sift", "plain"]
    assert short_names([Path("/sift"), Path("/a/sift")]) == ["/sift", "a/sift"]


def test_many_runs_and_odd_names_differ_in_the_figure(tmp_path: Path) -> None:
    names = [f"{sign}run{number}" for number in range(10) for sign in ("_", "$")]
    runs = [write_run(tmp_path / name, update(1, loss=0.5), update(2, loss=0.4)) for name in names]
    figure = draw(kinds_of([read_run(run) for run in runs])["learning"], names)
    styles = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(styles)) == 20 and {colour for colour, _ in styles} == set(COLOURS)
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == names


def test_the_files_that_are_written_are_pictures_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", update(1, **ALL), evaluation(0, ACC=80.0))
    for name, start in (("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF"), ("new/c.png", b"\x89PNG")):
        plot.main([str(run), "--output", str(tmp_path / name)])
        assert capsys.readouterr().out == f"written: {tmp_path / name}\n"
        assert (tmp_path / name).read_bytes().startswith(start)
    assert (tmp_path / "c.pdf").read_bytes().count(b"/Type /Page ") == 2
    plot.main([str(run), "--output", str(tmp_path / "folder")])
    files = [tmp_path / "folder" / f"{kind}.png" for kind in ("learning", "perturbation")]
    assert capsys.readouterr().out.splitlines() == [f"written: {path}" for path in files]
    assert sorted((tmp_path / "folder").iterdir()) == files
    black = [np.all(matplotlib.image.imread(path)[..., :3] < 0.01, axis=-1).sum() for path in files]
    assert min(black) > 300  # text and points


def test_a_real_run_and_one_of_a_study_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tiny_run(tmp_path / "sift", *SIFT, "--log_per_updates", "6")
    tiny_run(tmp_path / "plain", "--epochs", "1")
    updates = [json.loads(line) for line in (tmp_path / "sift" / "metrics.jsonl").read_text().splitlines()]
    record = {"updates": [line for line in updates if line["kind"] == "update"], "history": result.history}
    (tmp_path / "near-sift-5.json").write_text(json.dumps(record))
    panels = drawn(tmp_path / "sift", tmp_path / "plain", tmp_path / "near-sift-5.json")
    for lines in panels.values():
        assert lines["sift"] == lines["near-sift-5"]
    assert panels["task loss"]["sift"][0] == [1, 6, 12, 18]
    expected = [entry["metrics"]["cola_dev"]["ACC"] for entry in result.history]
    assert panels["cola_dev ACC"]["sift"] == ([1, 2], expected)
    capsys.readouterr()
    plot.main([str(tmp_path / "plain"), str(tmp_path / "sift"), "--output", str(tmp_path / "c.png")])
    assert capsys.readouterr().out.splitlines()[0].startswith("plain: trained without a regularizer")


def test_mistakes_are_told_and_nothing_is_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", update(1, loss=0.5))
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "file").write_text("")
    begun = write_run(tmp_path / "begun")
    for wrong, told in (
        (tmp_path / "empty", "empty: found no metrics.jsonl; accepted: an output folder of train.py"),
        (tmp_path / "missing", "missing: found no metrics.jsonl"),
        (tmp_path / "other.json", "other.json: is no run of a study"),
        (begun, "begun: holds no figures of an update or an evaluation"),
    ):
        with pytest.raises(DataError, match=re.escape(told)):
            plot.main([str(run), str(wrong), "--output", str(tmp_path / "c.png")])
    with pytest.raises(FlagError, match=r"--output: found .*c.jpg, accepted: a file .png, .svg, .pdf, or a folder"):
        plot.main([str(run), "--output", str(tmp_path / "c.jpg")])
    with pytest.raises(WriteError):
        plot.main([str(run), "--output", str(tmp_path / "file" / "c.png")])
    assert not list(tmp_path.glob("c.*"))
