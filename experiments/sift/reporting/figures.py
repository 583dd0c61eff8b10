"""The report's figures: small panels, an SVG each."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

from data_utils.storage.files import atomic_write
from experiments.sift.reporting.document import Panel

# Colours that colour-blind readers can distinguish [Okabe & Ito 2008].
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c00")
MARKERS = "osD^vPX*"
SIZE = (4.6, 3.7)  # inches
NARROW = "-narrow"  # ends the name of a picture for narrow screens
NARROW_SHAPE = 0.75  # height of a panel by its width
NAME_WIDTH = 27  # characters of a line of a name at the vertical axis
LINE_HEIGHT = 0.21  # inches
NARROW_WIDTH = 4.6  # inches; 400 pixels of a telephone show its letters at about their size
# The fixed salt makes ids inside the SVG, and so the file, reproducible.
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "sift",
    "svg.fonttype": "path",
    "font.size": 10,
    "font.family": "DejaVu Sans",
}


@dataclass(frozen=True)
class Series:
    """A method's line.

    place: number of the method, for colour and marker; x: points; mean, error: of y at each point, the standard error.
    """

    name: str
    place: int
    x: Sequence[float]
    mean: Sequence[float]
    error: Sequence[float]

    @classmethod
    def over_seeds(cls, name: str, place: int, x: Sequence[float], values: np.ndarray) -> Series:
        """The line of mean and standard error of values (seeds, points)."""
        seeds = len(values)
        error = values.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.zeros(values.shape[1])
        return cls(name, place, x, values.mean(axis=0).tolist(), error.tolist())


def panel(
    name: str, title: str, x_label: str, y_label: str, series: Sequence[Series], ticks: Sequence[str] | None = None,
    joined: bool = True,
) -> Panel:  # fmt: skip
    """A panel of lines with error bars and a legend below; its alternative text gives the same values in words.

    Args:
        ticks: names of the points x = 0, 1, …; methods are then shifted a little against one another.
        joined: whether lines connect the points.
    """
    with matplotlib.rc_context(SETTINGS):
        drawing = Drawing(figsize=SIZE, layout="constrained")
        axes = drawing.add_subplot()
        for number, line in enumerate(series):
            shift = 0.0 if ticks is None else 0.5 * ((number + 0.5) / len(series) - 0.5)
            colour, marker = COLOURS[line.place % len(COLOURS)], MARKERS[line.place % len(MARKERS)]
            axes.errorbar(
                np.asarray(line.x) + shift, line.mean, yerr=line.error, color=colour, capsize=2, label=line.name,
                marker=marker if len(line.x) <= 12 else "", markersize=4.5, linewidth=1.3,
                linestyle="-" if joined else "", elinewidth=1,
            )  # fmt: skip
        if ticks is not None:
            broken = max(map(len, ticks)) > 12
            axes.set_xticks(range(len(ticks)), [tick.replace("_", "_\n") if broken else tick for tick in ticks])
            axes.set_xlim(-0.5, len(ticks) - 0.5)
            axes.tick_params(axis="x", labelsize=8 if len(ticks) > 3 else 9)
        elif all(float(x).is_integer() for line in series for x in line.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_axes(axes, title, x_label, y_label)
        drawing.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
        file = io.StringIO()
        drawing.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return Panel(name, _in_words(title, x_label, y_label, series, ticks), file.getvalue())


def save_pictures(drawing: Drawing, folder: Path, name: str, columns: int = 1) -> None:
    """Write a picture for the docs, NAME.svg, and one for narrow screens with the same panels, NAME-narrow.svg.

    Args:
        columns: panels side by side on a narrow screen.
    """
    _save(drawing, folder / f"{name}.svg")
    _stack(drawing, columns)
    _save(drawing, folder / f"{name}{NARROW}.svg")


def _stack(drawing: Drawing, columns: int) -> None:
    """Put the panels into so many columns of a narrow picture, and break long names at the vertical axis."""
    rows = -(-len(drawing.axes) // columns)
    lines = 0
    grid = GridSpec(rows, columns, drawing)
    for number, axes in enumerate(drawing.axes):
        axes.set_subplotspec(grid[number])
        axes.tick_params(labelleft=bool(len(axes.get_yticks())))
        names = [textwrap.fill(tick.get_text(), NAME_WIDTH) for tick in axes.get_yticklabels()]
        if max(map(len, names), default=0) > NAME_WIDTH:
            axes.set_yticks(axes.get_yticks(), names, parse_math=False)
            lines = sum(1 + name.count("\n") for name in names)
            if legend := axes.get_legend():  # stands above the panel, which is narrow now
                legend.set_loc("upper right")
                legend.set_bbox_to_anchor((1, 1.12), axes.transAxes)
    shape = 1.1 if drawing.axes[0].get_aspect() == 1 else NARROW_SHAPE  # 1.1: a square below its title
    height = max(NARROW_WIDTH / columns * shape, lines * LINE_HEIGHT)
    drawing.set_size_inches(NARROW_WIDTH, rows * height)


def _save(drawing: Drawing, path: Path) -> None:
    with matplotlib.rc_context(SETTINGS), atomic_write(path) as file:
        drawing.savefig(file, format="svg", metadata={"Date": None})


def plain_axes(axes: Axes, title: str, x_label: str, y_label: str = "") -> None:
    """Set title and labels, a light grid, and no frame at top and right."""
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _in_words(title: str, x_label: str, y_label: str, series: Sequence[Series], ticks: Sequence[str] | None) -> str:
    def at(x: float) -> str:
        return f"{x:g}" if ticks is None else ticks[round(x)]

    parts = []
    for line in series:
        ends = range(len(line.x)) if ticks is not None else dict.fromkeys((0, len(line.x) - 1))
        parts.append(f"{line.name} " + ", ".join(f"{line.mean[end]:.3g} at {at(line.x[end])}" for end in ends))
    by = f" by {x_label}" if x_label else ""
    return f"{title}: {y_label}{by}. {'; '.join(parts)}."
