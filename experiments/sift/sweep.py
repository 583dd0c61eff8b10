"""How large should the noise be? SMART and SiFT over radius and α, on the tweets' development set alone.

    python -m experiments.sift.sweep --seeds 2

Noise: ℓ2 by token, relative scale, one ascent step as long as the radius, initial noise a tenth of it. Every run is a
line of `OUTPUT_DIR/results.jsonl`; the command goes on where it was interrupted, and parts of a grid may fill the same
folder at once (`--methods pre_ln` in one process, `post_ln` in another): the whole command then finds all runs done. At
its end it writes `sweep.md` and `sweep.png` there. No test set is read: the runs see a folder that holds the training
and the development set alone.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

from data_utils.errors import FlagError, run_command_line
from data_utils.files import atomic_write
from data_utils.pretrained import EMBEDDED_NAME
from data_utils.readers import read_lines
from experiments.sift.runs import (
    FIRST_SEED,
    PLAIN,
    SIFT,
    SMART,
    TRAINED_DATASET,
    Method,
    Record,
    RunStore,
    prepare_data,
    run,
)
from experiments.sift.tables import markdown_table, spread

LEVELS = {"pre_ln": SMART, "post_ln": SIFT}
DEV = f"{TRAINED_DATASET}_dev"
MEASURES = {"ACC": "accuracy", "F1MAC": "macro-F1", "loss": "cross-entropy"}
DIGITS = {"ACC": 1, "F1MAC": 1, "loss": 3}


def noise_method(level: str, radius: float, alpha: float, noise_fraction: float) -> Method:
    """SMART or SiFT with noise of that radius (a share of the vector's length) and weight."""
    noise = {
        "adv_p_norm": "l2",
        "adv_norm_scope": "token",
        "adv_scale": "relative",
        "adv_projection": "project",
        "adv_k": 1,
        "adv_radius": radius,
        "adv_step_size": radius,
        "adv_noise_var": noise_fraction * radius,
        "adv_alpha": alpha,
    }
    return Method(LEVELS[level].name, {**LEVELS[level].flags, **noise})


def development_data(source: Path, folder: Path, train_fraction: float) -> Path:
    """Copy development set and the first part of the training set, whose order is random, to `folder`."""
    for split, share in (("train", train_fraction), ("dev", 1.0)):
        name = f"{TRAINED_DATASET}_{split}.json"
        lines = [line for _, line in read_lines(source / name)]
        with atomic_write(folder / name) as file:
            file.writelines(f"{line}\n" for line in lines[: math.ceil(share * len(lines))])
    return folder


def sweep(arguments: argparse.Namespace) -> list[Record]:
    """All runs of the grid, seed by seed, so that an interrupted sweep has whole grids."""
    output_dir = Path(arguments.output_dir)
    with _quiet():
        source = prepare_data(arguments.init_checkpoint)
    data_dir = development_data(source, output_dir / "data" / source.name, arguments.train_fraction)
    grid = itertools.product(arguments.methods, arguments.radii, arguments.alphas)
    methods = [PLAIN, *(noise_method(*point, arguments.noise_fraction) for point in grid)]
    planned = [(seed, method) for seed in arguments.seed_list for method in methods]
    store = RunStore(output_dir / "results.jsonl")
    done_before = store.read()
    records: list[Record] = []
    seconds: list[float] = []
    for seed, method in planned:
        start = time.perf_counter()
        with _quiet():
            record = run(
                method, seed, store, encoder=arguments.init_checkpoint, data_dir=data_dir, epochs=arguments.epochs,
                evaluated=[data_dir / f"{DEV}.json"],
            )  # fmt: skip
        records.append(record)
        if record["key"] not in done_before:
            seconds.append(time.perf_counter() - start)
        print(_progress(record, len(records), len(planned), seconds), flush=True)
    return records


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without logs and bars: a run of the sweep is one line."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _progress(record: Record, number: int, total: int, seconds: Sequence[float]) -> str:
    found = record["evaluation"][DEV]
    if not seconds:
        time_left = "kept"
    else:
        time_left = f"{seconds[-1]:.0f} s, about {mean(seconds) * (total - number) / 60:.0f} min left"
    values = ", ".join(f"{name} {found[measure]:.{DIGITS[measure]}f}" for measure, name in MEASURES.items())
    return f"{number}/{total} {_point(record)}, seed {record['seed']}: {values} ({time_left})"


def _point(record: Record) -> str:
    config = record["config"]
    if record["method"] == PLAIN.name:
        return PLAIN.name
    return f"{record['method']} radius {config['adv_radius']:g} α {config['adv_alpha']:g}"


class Summary:
    """The runs of a sweep by point of the grid."""

    def __init__(self, records: Sequence[Record]):
        self.values: dict[tuple[str, float, float], list[dict[str, float]]] = {}
        for record in records:
            config, is_plain = record["config"], record["method"] == PLAIN.name
            point = (record["method"], *((0.0, 0.0) if is_plain else (config["adv_radius"], config["adv_alpha"])))
            self.values.setdefault(point, []).append(record["evaluation"][DEV])
        noisy = [point for point in self.values if point[0] != PLAIN.name]
        self.methods = list(dict.fromkeys(method for method, _, _ in noisy))
        self.radii = sorted({radius for _, radius, _ in noisy})
        self.alphas = sorted({alpha for _, _, alpha in noisy})

    def of(self, method: str, radius: float, alpha: float, measure: str) -> list[float]:
        """A measure of each seed at a point."""
        return [found[measure] for found in self.values[method, radius, alpha]]

    def plain(self, measure: str) -> list[float]:
        return self.of(PLAIN.name, 0.0, 0.0, measure)

    def best(self, method: str) -> tuple[float, float]:
        """Radius and α with the highest mean accuracy; of equal ones, the lowest mean cross-entropy."""

        def merit(point: tuple[float, float]) -> tuple[float, float]:
            return round(mean(self.of(method, *point, "ACC")), 6), -mean(self.of(method, *point, "loss"))

        return max(itertools.product(self.radii, self.alphas), key=merit)

    def markdown(self, measure: str) -> str:
        """A table of one measure: a row a method and radius, a column an α."""
        digits = DIGITS[measure]
        rows = [[PLAIN.name, "", *[spread(self.plain(measure), digits)] * len(self.alphas)]]
        for method, radius in itertools.product(self.methods, self.radii):
            cells = [spread(self.of(method, radius, alpha, measure), digits) for alpha in self.alphas]
            rows.append([method, f"{radius:g}", *cells])
        return markdown_table(["method", "radius", *(f"α = {alpha:g}" for alpha in self.alphas)], rows)


def write_report(summary: Summary, arguments: argparse.Namespace, command: str) -> None:
    """`sweep.md` and `sweep.png` in the output folder."""
    folder = Path(arguments.output_dir)
    seeds = len(arguments.seed_list)
    spreads = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    examples = int(summary.values[PLAIN.name, 0.0, 0.0][0]["examples"])
    setting = (
        f"{arguments.init_checkpoint}, epochs: {arguments.epochs}, {arguments.train_fraction:.0%} of the training set, "
        f"{spreads}; {examples} development examples"
    )
    lines = ["# Radius and α on the tweets' development set\n", f"Made by `{command}`: {setting}.\n"]
    for method in summary.methods:
        radius, alpha = summary.best(method)
        lines.append(f"Best accuracy, then cross-entropy, of {method}: radius {radius:g}, α = {alpha:g}.\n")
    for measure, name in MEASURES.items():
        unit = "" if measure == "loss" else ", percent"
        lines += [f"## {name[0].upper()}{name[1:]}{unit}\n", summary.markdown(measure)]
    with atomic_write(folder / "sweep.md") as file:
        file.write("\n".join(lines))
    draw(summary, spreads, folder / "sweep.png")


def draw(summary: Summary, spreads: str, path: Path) -> None:
    """Accuracy and cross-entropy by radius, a panel a method, a line an α, the plain runs as a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(summary.methods), figsize=(4.8 * len(summary.methods), 7), sharex=True, sharey="row", squeeze=False
    )
    for row, measure in zip(axes, ("ACC", "loss"), strict=True):
        plain = summary.plain(measure)
        for axis, method in zip(row, summary.methods, strict=True):
            axis.axhline(mean(plain), color="black", linewidth=1, linestyle="--", label=PLAIN.name)
            axis.axhspan(mean(plain) - _deviation(plain), mean(plain) + _deviation(plain), color="black", alpha=0.08)
            for number, alpha in enumerate(summary.alphas):
                values = [summary.of(method, radius, alpha, measure) for radius in summary.radii]
                # the α side by side, so that their bars do not lie on each other
                shift = 1 + 0.05 * (number - (len(summary.alphas) - 1) / 2)
                axis.errorbar(
                    [radius * shift for radius in summary.radii], [mean(v) for v in values],
                    yerr=[_deviation(v) for v in values], marker="o", markersize=4, linewidth=1.2, capsize=2,
                    label=f"α = {alpha:g}",
                )  # fmt: skip
            axis.set_xscale("log")
            axis.set_xticks(summary.radii, [f"{radius:g}" for radius in summary.radii])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        row[0].set_ylabel("accuracy, %" if measure == "ACC" else "cross-entropy")
    for axis, method in zip(axes[0], summary.methods, strict=True):
        level = next(level for level, known in LEVELS.items() if known.name == method)
        axis.set_title(f"{method} ({level})")
    for axis in axes[-1]:
        axis.set_xlabel("radius, share of a token vector's length")
    axes[0][-1].legend(fontsize=8, loc="lower left")
    figure.suptitle(f"Tweets, development set; {spreads}", fontsize=11)
    figure.tight_layout()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a sweep, `seed_list` among them.

    Raises:
        FlagError: a value outside its range.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="pre_ln,post_ln", help="injection levels (default: %(default)s)")
    parser.add_argument("--radii", default="0.005,0.01,0.02,0.05,0.1", help="radii (default: %(default)s)")
    parser.add_argument("--alphas", default="1,3", help="weights of the regularizer (default: %(default)s)")
    parser.add_argument("--noise_fraction", type=float, default=0.1, help="σ as a share of the radius (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of a run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs a point (default: %(default)s)")
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED, help="first of the seeds (default: %(default)s)")
    parser.add_argument("--train_fraction", type=float, default=1.0, help="share of the training set (%(default)s)")
    parser.add_argument("--init_checkpoint", default=EMBEDDED_NAME, help="encoder (default: %(default)s)")
    parser.add_argument("--output_dir", default="sweep_output", help="folder of results (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.methods = [name.strip() for name in arguments.methods.split(",")]
    for name in arguments.methods:
        if name not in LEVELS:
            raise FlagError(f"--methods: found {name!r}, accepted: {', '.join(LEVELS)}")
    arguments.radii = _numbers("radii", arguments.radii)
    arguments.alphas = _numbers("alphas", arguments.alphas)
    if arguments.epochs < 1 or arguments.seeds < 1:
        raise FlagError("--epochs, --seeds: accepted: at least 1")
    if not 0 < arguments.train_fraction <= 1:
        raise FlagError(f"--train_fraction: found {arguments.train_fraction}, accepted: above 0, at most 1")
    arguments.seed_list = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    return arguments


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise FlagError(f"--{name}: found {text!r}, accepted: numbers split by commas") from None
    if not all(0 < number < math.inf for number in numbers):
        raise FlagError(f"--{name}: found {text!r}, accepted: numbers above 0")
    return numbers


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    records = sweep(arguments)
    command = shlex.join(["python", "-m", "experiments.sift.sweep", *(sys.argv[1:] if argv is None else argv)])
    write_report(Summary(records), arguments, command)
    print(f"{Path(arguments.output_dir) / 'sweep.md'}, sweep.png")


if __name__ == "__main__":
    run_command_line(main)
