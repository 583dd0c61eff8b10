"""Draw learning curves and perturbation statistics of runs.

    python -m experiments.sift.plot checkpoint/smart checkpoint/sift --output curves.png

A RUN is an output folder of train.py, or the file of a study's run, RESULTS/STUDY/runs/NAME.json.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from data_utils.errors import DataError, FlagError, OneLineParser, run_command_line
from data_utils.storage.files import atomic_write
from data_utils.storage.text_files import decode_line, parse_json, read_json
from experiments.sift.reporting.figures import COLOURS, SETTINGS, plain_axes
from mt_dnn.reporting.telemetry import METRICS_FILE

FORMATS = (".png", ".svg", ".pdf")
LINES = ("-", "--", ":", "-.")  # the next one when all colours are used
COLUMNS = 2
PANEL = (4.6, 3.1)  # inches
FEW = 12  # points of a curve that all get a marker
LEGEND = 85  # characters of a line of the legend
LEARNING = {"loss": "task loss", "R": "R, the regularizer"}
PERTURBATION = {
    "delta_size": "delta_size: mean |δ|",
    "eff_perturb": "eff_perturb: mean |last step|",
    "ascent_gain": "ascent_gain: search over chance",
    "emb_val": "emb_val: mean |h|",
}
RATIOS = ("R", "ascent_gain")  # drawn on a logarithmic axis
Curve = dict[int, float]  # values by update, or by epoch from 1; NaN is a gap


@dataclass
class Run:
    """The curves of a run.

    figures: values by update, by name; metrics: values by epoch, by `DATASET METRIC`.
    """

    path: Path
    figures: dict[str, Curve] = field(default_factory=dict)
    metrics: dict[str, Curve] = field(default_factory=dict)

    def add_update(self, line: Mapping[str, Any]) -> None:
        update = _integer(line, "update")
        for name in (*LEARNING, *PERTURBATION):
            if name in line:
                self.figures.setdefault(name, {})[update] = number(line[name])

    def add_evaluation(self, epoch: int, dataset: str, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            self.metrics.setdefault(f"{dataset} {name}", {})[epoch + 1] = number(value)


def number(value: object) -> float:
    """The value as a finite number; NaN for null and anything else that no axis can show."""
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def _integer(line: Mapping[str, Any], name: str) -> int:
    if type(line.get(name)) is not int:
        raise ValueError(f"found {name} {str(line.get(name))[:40]!r}; accepted: a whole number")
    return int(line[name])


def read_run(path: Path) -> Run:
    """Read a run from its folder, its `metrics.jsonl`, or its file in a study's results.

    Damaged lines of `metrics.jsonl` are skipped; a line on standard error names the first.

    Raises:
        DataError: the path is none of these, or holds no values.
    """
    if path.suffix == ".json" and path.is_file():
        run = _read_study_run(path)
    else:
        file = path / METRICS_FILE if path.is_dir() else path
        if file.name != METRICS_FILE or not file.is_file():
            raise DataError(
                f"found no {METRICS_FILE}; accepted: an output folder of train.py, or the file of a study's run, "
                "RESULTS/STUDY/runs/NAME.json",
                path,
            )
        run = _read_metrics(file)
    if not run.figures and not run.metrics:
        raise DataError("holds no figures of an update or an evaluation (yet)", path)
    return run


def _read_metrics(path: Path) -> Run:
    run, damaged = Run(path.parent), []
    for line_number, line in _lines(path):
        try:
            found = parse_json(decode_line(line, path, line_number), path, line_number)
            kind = found.get("kind") if isinstance(found, dict) else None
            if kind == "update":
                run.add_update(found)
            elif kind == "evaluation":
                names = ("kind", "epoch", "update", "dataset")
                metrics = {name: value for name, value in found.items() if name not in names}
                run.add_evaluation(_integer(found, "epoch"), str(found.get("dataset")), metrics)
            else:
                raise ValueError("is neither an update nor an evaluation")
        except DataError as error:
            damaged.append(str(error))
        except ValueError as error:
            damaged.append(f"{path}, line {line_number}: {error}")
    if damaged:
        more = f", and {len(damaged) - 1} more lines" if len(damaged) > 1 else ""
        print(f"skipped: {damaged[0]}{more}", file=sys.stderr)
    return run


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from enumerate((line.rstrip(b"\r\n") for line in file), start=1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error


def _read_study_run(path: Path) -> Run:
    """Read a run's file that `study_run.py` wrote."""
    run, record = Run(path.with_suffix("")), read_json(path)
    try:
        for line in record["updates"]:
            run.add_update(line)
        for entry in record["history"]:
            for dataset, metrics in entry["metrics"].items():
                run.add_evaluation(_integer(entry, "epoch"), dataset, metrics)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError("is no run of a study; accepted: RESULTS/STUDY/runs/NAME.json", path) from error
    return run


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as distinguish it from the others."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for path in parts:
        count = 1
        while sum(other[-count:] == path[-count:] for other in parts) > 1 and count < len(path):
            count += 1
        names.append("/".join(path[-count:]).replace("//", "/"))
    return names


def kinds_of(runs: Sequence[Run]) -> dict[str, dict[str, list[Curve]]]:
    """The panels of each figure: title → a curve for each run; panels without any curve are left out."""
    learning = {title: [run.figures.get(name, {}) for run in runs] for name, title in LEARNING.items()}
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    learning |= {name: [run.metrics.get(name, {}) for run in runs] for name in names}
    perturbation = {title: [run.figures.get(name, {}) for run in runs] for name, title in PERTURBATION.items()}
    kinds = {"learning": learning, "perturbation": perturbation}
    found = {kind: {title: curves for title, curves in panels.items() if any(curves)} for kind, panels in kinds.items()}
    return {kind: panels for kind, panels in found.items() if panels}


def draw(panels: Mapping[str, Sequence[Curve]], names: Sequence[str]) -> Figure:
    """A figure of panels with one legend."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    legend_columns = max(1, min(len(names), LEGEND * columns // COLUMNS // (max(map(len, names)) + 6)))
    legend_rows = math.ceil(len(names) / legend_columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.2 * legend_rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    logarithmic = {(LEARNING | PERTURBATION)[name] for name in RATIOS}
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        by_update = title in (*LEARNING.values(), *PERTURBATION.values())
        _draw_panel(axis, curves, title in logarithmic)
        plain_axes(axis, title, "update" if by_update else "epoch")
    for axis in axes[len(panels) :]:
        axis.axis("off")
    handles = [Line2D([], [], linewidth=1.5, **_style(place)) for place in range(len(names))]
    labels = [f" {name}" for name in names]  # matplotlib leaves out those that begin with an underscore
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns, frameon=False)
    for text in (*legend.get_texts(), *(axis.title for axis in axes)):
        text.set_parse_math(False)  # names may hold a $
    return figure


def _draw_panel(axes: Axes, curves: Sequence[Curve], logarithmic: bool) -> None:
    for place, curve in enumerate(curves):
        points = sorted(curve.items())
        values = [math.nan, *(value for _, value in points), math.nan]
        # a point between gaps has no line
        alone = [at for at in range(len(points)) if math.isnan(values[at]) and math.isnan(values[at + 2])]
        marked = list(range(len(points))) if len(points) <= FEW else alone
        axes.plot(
            [x for x, _ in points], values[1:-1], linewidth=1.3, marker="o", markersize=3.5, markevery=marked,
            **_style(place),
        )  # fmt: skip
    found = [value for curve in curves for value in curve.values() if not math.isnan(value)]
    if logarithmic and found and min(found) > 0:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _style(place: int) -> dict[str, Any]:
    colours = len(COLOURS)
    return {"color": COLOURS[place % colours], "linestyle": LINES[place // colours % len(LINES)]}


def write(kinds: Mapping[str, Mapping[str, Sequence[Curve]]], names: Sequence[str], output: Path) -> list[Path]:
    """Write one file with all panels (a PDF has a page for each kind), or into a folder one PNG for each kind.

    Returns:
        the paths of the files.

    Raises:
        WriteError: it cannot be written.
    """
    with matplotlib.rc_context(SETTINGS):
        if output.suffix == ".pdf":
            with atomic_write(output, "wb") as file, PdfPages(file) as pages:
                for panels in kinds.values():
                    pages.savefig(draw(panels, names))
            return [output]
        figures = {output: {title: curves for panels in kinds.values() for title, curves in panels.items()}}
        if not output.suffix:
            figures = {output / f"{kind}.png": dict(panels) for kind, panels in kinds.items()}
        for path, panels in figures.items():
            with atomic_write(path, "wb") as file:
                metadata = {"Date": None} if path.suffix == ".svg" else None
                draw(panels, names).savefig(file, format=path.suffix[1:], dpi=120, metadata=metadata)
    return list(figures)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="output folder of train.py, or a run's file of a study: a line in every panel",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("curves.png"),
        help="a .png, .svg or .pdf file, or a folder for one picture of each kind (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.output.suffix and arguments.output.suffix not in FORMATS:
        raise FlagError(f"--output: found {arguments.output}, accepted: a file {', '.join(FORMATS)}, or a folder")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    runs = list({run.path.resolve(): run for run in map(read_run, arguments.runs)}.values())
    names = short_names([run.path for run in runs])
    for run, name in zip(runs, names, strict=True):
        if not run.figures.keys() & {"R", *PERTURBATION}:
            print(f"{name}: trained without a regularizer: only losses and metrics are drawn")
    print(*(f"written: {path}" for path in write(kinds_of(runs), names, arguments.output)), sep="\n")


if __name__ == "__main__":
    run_command_line(main)
