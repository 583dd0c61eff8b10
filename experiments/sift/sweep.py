"""How large should the noise be? Every method at every injection level, on the tweets' development set.

    python -m experiments.sift.sweep --methods smart,vat --levels pre_ln,post_ln --sizes 0.03,0.1 --alphas 1,3 --seeds 2
    python -m experiments.sift.sweep --defaults --train_fraction 1 --seeds 3

The size is the radius of the ball as a share of h's length (for `random` and `r3f`, which have no ball, the standard
deviation or bound of the noise); step size and initial noise scale with it as in the measured defaults. With
`--defaults` each method runs once at each level, with its defaults. Every run is a line of `OUTPUT_DIR/results.jsonl`.
The command continues where it was interrupted. Several processes may fill the same folder, each with a part of the grid
(`--methods at` in one, `vat` in another); the command for the whole grid then finds all runs done, and writes
`sweep.md` and `sweep.png`. No test set is read: the runs' data folder has only the training and the development set.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from data_utils.errors import FlagError, OneLineParser, at_least, nearest, run_command_line
from data_utils.pretrained import EMBEDDED_NAME
from data_utils.storage.files import atomic_write
from experiments.sift.reporting.tables import markdown_table, spread
from experiments.sift.running.runs import (
    FIRST_SEED,
    PLAIN,
    TRAINED_DATASET,
    Method,
    Record,
    RunStore,
    development_data,
    prepare_data,
    run,
)  # fmt: skip
from mt_dnn.configuration.adversarial_config import LEVELS, WITHOUT_EFFECT, measured_flags
from mt_dnn.perturbation.measured_defaults import BY_METHOD

DEV = f"{TRAINED_DATASET}_dev"
MEASURES = {"ACC": "accuracy", "F1MAC": "macro-F1", "loss": "cross-entropy"}
DIGITS = {"ACC": 1, "F1MAC": 1, "loss": 3}


class Point(NamedTuple):
    """A point of the grid: a method at a level, the size of its noise, and α, the weight of R."""

    method: str
    level: str
    size: float
    alpha: float

    @property
    def flags(self) -> dict[str, object]:
        """The flags that set this point."""
        size_flag = "adv_noise_var" if measured_flags(self.method, self.level)["adv_radius"] is None else "adv_radius"
        flags = {"adv_train": "true", "adv_opt": self.method, "adv_norm_level": self.level, size_flag: self.size}
        return flags if self.method in WITHOUT_EFFECT["adv_alpha"] else flags | {"adv_alpha": self.alpha}

    @classmethod
    def at_defaults(cls, method: str, level: str) -> Point:
        values = measured_flags(method, level)
        return cls(method, level, values["adv_radius"] or values["adv_noise_var"], values["adv_alpha"])


def points_of(arguments: argparse.Namespace) -> list[Point]:
    """The grid, or the defaults with `--defaults`; a method without α appears once for each level and size."""
    places = list(itertools.product(arguments.methods, arguments.levels))
    if arguments.defaults:
        return [Point.at_defaults(*place) for place in places]
    once = WITHOUT_EFFECT["adv_alpha"]
    grid = [Point(*place, *noise) for place in places for noise in itertools.product(arguments.sizes, arguments.alphas)]
    return [point for point in grid if point.method not in once or point.alpha == arguments.alphas[0]]


def sweep(arguments: argparse.Namespace) -> list[tuple[Point | None, Record]]:
    """Run everything, seed by seed; returns each run with its point, None for plain fine-tuning."""
    output_dir = Path(arguments.output_dir)
    with _quiet():
        source = prepare_data(arguments.init_checkpoint)
    share = f"{arguments.train_fraction:g}"
    data_dir = development_data(
        source, output_dir / f"data_{share}" / source.name, TRAINED_DATASET, arguments.train_fraction
    )
    planned = list(itertools.product(arguments.seed_list, [None, *points_of(arguments)]))
    store = RunStore(output_dir / "results.jsonl")
    done_before = store.read()
    found: list[tuple[Point | None, Record]] = []
    seconds: list[float] = []
    for seed, point in planned:
        start = time.perf_counter()
        method = PLAIN if point is None else Method(point.method, point.flags)
        with _quiet():
            record = run(
                method, seed, store, encoder=arguments.init_checkpoint, data_dir=data_dir, epochs=arguments.epochs,
                evaluated=[data_dir / f"{DEV}.json"],
            )  # fmt: skip
        found.append((point, record))
        if record["key"] not in done_before:
            seconds.append(time.perf_counter() - start)
        print(_progress(point, record, len(found), len(planned), seconds), flush=True)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress logs and progress bars within the block."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _progress(point: Point | None, record: Record, number: int, total: int, seconds: Sequence[float]) -> str:
    found = record["evaluation"][DEV]
    if not seconds:
        time_left = "done before"
    else:
        time_left = f"{seconds[-1]:.0f} s, about {mean(seconds) * (total - number) / 60:.0f} min left"
    name = PLAIN.name if point is None else f"{point.method} {point.level} size {point.size:g} α {point.alpha:g}"
    values = ", ".join(f"{title} {found[measure]:.{DIGITS[measure]}f}" for measure, title in MEASURES.items())
    return f"{number}/{total} {name}, seed {record['seed']}: {values} ({time_left})"


class Summary:
    """The runs of a sweep, by point."""

    def __init__(self, found: Sequence[tuple[Point | None, Record]]):
        self.runs: dict[Point | None, list[Record]] = {}
        for point, record in found:
            self.runs.setdefault(point, []).append(record)
        self.points = [point for point in self.runs if point is not None]
        self.alphas = sorted({point.alpha for point in self.points})

    def of(self, point: Point | None, measure: str) -> list[float]:
        """A measure on the development set, one value for each seed."""
        return [record["evaluation"][DEV][measure] for record in self.runs[point]]

    def best(self, method: str, level: str) -> Point:
        """The point with the highest mean accuracy; among equal ones, with the lowest mean cross-entropy."""
        points = [point for point in self.points if (point.method, point.level) == (method, level)]
        return max(points, key=lambda point: (round(mean(self.of(point, "ACC")), 6), -mean(self.of(point, "loss"))))

    def places(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys((point.method, point.level) for point in self.points))

    def markdown(self, measure: str) -> str:
        """A table of one measure: a row for each method, level and size, a column for each α."""
        digits = DIGITS[measure]
        rows = [[PLAIN.name, "", "", *[spread(self.of(None, measure), digits)] * len(self.alphas)]]
        for method, level, size in dict.fromkeys(point[:3] for point in self.points):
            cells = []
            for alpha in self.alphas:
                point = Point(method, level, size, alpha)
                cells.append(spread(self.of(point, measure), digits) if point in self.runs else "")
            rows.append([method, level, f"{size:g}", *cells])
        return markdown_table(["method", "level", "size", *(f"α = {alpha:g}" for alpha in self.alphas)], rows)

    def search_table(self) -> str:
        """A table of the searches: mean rises of R over logged updates and seeds, their ratio, the share of skips."""
        rows = []
        for point in self.points:
            searches = [record["search"] for record in self.runs[point]]
            row = [point.method, point.level, f"{point.size:g}", f"{point.alpha:g}"]
            if searches[0]["ascent_rise"] is None:
                row += ["", "", ""]
            else:
                found, chance = (mean(search[name] for search in searches) for name in ("ascent_rise", "chance_rise"))
                row += [f"{found:.2g}", f"{chance:.2g}", f"{found / chance:.3g}" if chance > 0 else "no rise by chance"]
            rows.append([*row, f"{max(search['skipped'] for search in searches):g}"])
        return markdown_table(
            ["method", "level", "size", "α", "R(δ) − R(0)", "R(δ′) − R(0)", "ascent gain", "skipped"], rows
        )


def write_report(summary: Summary, arguments: argparse.Namespace, command: str) -> None:
    """Write `sweep.md` and `sweep.png` to the output folder."""
    folder = Path(arguments.output_dir)
    seeds = len(arguments.seed_list)
    spreads = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    examples = int(summary.runs[None][0]["evaluation"][DEV]["examples"])
    setting = (
        f"{arguments.init_checkpoint}, epochs: {arguments.epochs}, {arguments.train_fraction:.0%} of the training set, "
        f"{spreads}; {examples} development examples"
    )
    lines = ["# Noise on the tweets' development set\n", f"Made by `{command}`: {setting}.\n"]
    for place in summary.places():
        best = summary.best(*place)
        lines.append(f"- {best.method} at {best.level}: best at size {best.size:g}, α = {best.alpha:g}")
    lines.append("")
    for measure, name in MEASURES.items():
        unit = "" if measure == "loss" else ", percent"
        lines += [f"## {name[0].upper()}{name[1:]}{unit}\n", summary.markdown(measure)]
    lines += ["## The searches\n", summary.search_table()]
    with atomic_write(folder / "sweep.md") as file:
        file.write("\n".join(lines))
    draw(summary, spreads, folder / "sweep.png")


def draw(summary: Summary, spreads: str, path: Path) -> None:
    """Draw accuracy and cross-entropy by size: a panel a method, a line a level and α, a band for plain."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(point.method for point in summary.points))
    sizes = sorted({point.size for point in summary.points})
    figure, axes = pyplot.subplots(
        2, len(methods), figsize=(max(3.4 * len(methods), 5), 7), sharex=True, sharey="row", squeeze=False
    )
    for row, measure in zip(axes, ("ACC", "loss"), strict=True):
        plain = summary.of(None, measure)
        for axis, method in zip(row, methods, strict=True):
            axis.axhline(mean(plain), color="black", linewidth=1, linestyle="--", label=PLAIN.name)
            axis.axhspan(mean(plain) - _deviation(plain), mean(plain) + _deviation(plain), color="black", alpha=0.08)
            points = [point for point in summary.points if point.method == method]
            for level, alpha in dict.fromkeys((point.level, point.alpha) for point in points):
                line = [point for point in points if (point.level, point.alpha) == (level, alpha)]
                values = [summary.of(point, measure) for point in line]
                axis.errorbar(
                    [point.size for point in line], [mean(v) for v in values], yerr=[_deviation(v) for v in values],
                    marker="o", markersize=4, linewidth=1.2, capsize=2, label=f"{level}, α = {alpha:g}",
                )  # fmt: skip
            axis.set_xscale("log")
            axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        row[0].set_ylabel("accuracy, %" if measure == "ACC" else "cross-entropy")
    for axis, method in zip(axes[0], methods, strict=True):
        axis.set_title(method)
    for axis in axes[-1]:
        axis.set_xlabel("size, share of h's length")
    axes[0][-1].legend(fontsize=7, loc="lower left")
    figure.suptitle(f"Tweets, development set; {spreads}", fontsize=11)
    figure.tight_layout()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line, with lists of methods, levels, sizes, alphas and `seed_list`.

    Raises:
        FlagError: a value outside its range.
    """
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(BY_METHOD), help="comma-separated methods (default: %(default)s)")
    parser.add_argument(
        "--levels", default=",".join(LEVELS), help="comma-separated injection levels (default: %(default)s)"
    )
    parser.add_argument("--sizes", default="0.03,0.1", help="comma-separated sizes of the noise (default: %(default)s)")
    parser.add_argument(
        "--alphas", default="1,3", help="comma-separated weights of the regularizer (default: %(default)s)"
    )
    parser.add_argument("--defaults", action="store_true", help="run each method with its defaults instead of a grid")
    parser.add_argument("--epochs", type=at_least(1), default=1, help="epochs of a run (default: %(default)s)")
    parser.add_argument("--seeds", type=at_least(1), default=1, help="runs per point (default: %(default)s)")
    parser.add_argument("--first_seed", type=at_least(0), default=FIRST_SEED, help="first seed (default: %(default)s)")
    parser.add_argument("--train_fraction", type=float, default=0.5, help="share of the training set (%(default)s)")
    parser.add_argument("--init_checkpoint", default=EMBEDDED_NAME, help="encoder (default: %(default)s)")
    parser.add_argument("--output_dir", default="sweep_output", help="folder of results (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.methods = _names("methods", arguments.methods, BY_METHOD)
    arguments.levels = _names("levels", arguments.levels, LEVELS)
    arguments.sizes = _numbers("sizes", arguments.sizes)
    arguments.alphas = _numbers("alphas", arguments.alphas)
    if not 0 < arguments.train_fraction <= 1:
        raise FlagError(f"--train_fraction: found {arguments.train_fraction}, accepted: above 0, at most 1")
    arguments.seed_list = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    return arguments


def _names(flag: str, text: str, accepted: Iterable[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in accepted:
            raise FlagError(f"--{flag}: found {name!r}, accepted: {', '.join(accepted)}{nearest(name, accepted)}")
    return names


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise FlagError(f"--{name}: found {text!r}, accepted: comma-separated numbers") from None
    if not all(0 < number < math.inf for number in numbers):
        raise FlagError(f"--{name}: found {text!r}, accepted: numbers above 0")
    return numbers


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    found = sweep(arguments)
    command = shlex.join(["python", "-m", "experiments.sift.sweep", *(sys.argv[1:] if argv is None else argv)])
    write_report(Summary(found), arguments, command)
    print(f"{Path(arguments.output_dir) / 'sweep.md'}, sweep.png")


if __name__ == "__main__":
    run_command_line(main)
