"""Plain, SMART and SiFT fine-tuning on tweets, tested on tweets, Amazon reviews, movie reviews and editorials.

    python -m experiments.sift.demo --seeds 5

Missing data are downloaded. Every method has the same seeds, data order and initial heads; results are those of the
last epoch, and no test set is used to choose anything. The output folder gets `results.md` (table), `results.png`
(figure), `results.json` (all numbers and settings) and `runs.jsonl`, the finished runs, which are not run again when
you repeat the command.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from data_utils.errors import FlagError, OneLineParser, at_least, nearest, run_command_line
from data_utils.pretrained import EMBEDDED_NAME
from data_utils.storage.files import atomic_write
from experiments.sift.data.hutto import DOMAINS
from experiments.sift.reporting.tables import markdown_table, spread
from experiments.sift.running.runs import FIRST_SEED, METHODS, TASK, Record, RunStore, prepare_data, run

COMPARED = ("plain", "smart", "sift")
TITLES = {"tweets": "Tweets", "amazon": "Amazon reviews", "movies": "Movie reviews", "editorials": "Editorials"}
ABOUT = (
    "Sentiment of a sentence, positive or negative, learned from tweets alone (Hutto & Gilbert 2014). Accuracy / "
    "macro-F1 in percent on the test set of each domain; seconds of a training step (median)."
)


def test_set(domain: str) -> str:
    return f"{TASK}_{domain}_test"


def run_all(arguments: argparse.Namespace) -> list[Record]:
    """The runs of all seeds and methods, seed by seed."""
    data_dir = prepare_data(arguments.init_checkpoint)
    store = RunStore(Path(arguments.output_dir) / "runs.jsonl")
    evaluated = [data_dir / f"{test_set(domain)}.json" for domain in DOMAINS]
    records = []
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
        for name in arguments.methods:
            print(f"\n{METHODS[name].name}, seed {seed}", flush=True)
            options = {"encoder": arguments.init_checkpoint, "data_dir": data_dir, "epochs": arguments.epochs}
            records.append(run(METHODS[name], seed, store, **options, evaluated=evaluated))
    return records


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of each method, methods in the order of their first run."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["method"], []).append(record)
    return groups


def measured(records: Sequence[Record], domain: str, measure: str) -> list[float]:
    """A measure on a domain's test set, one value for each run."""
    return [record["evaluation"][test_set(domain)][measure] for record in records]


def result_table(records: Sequence[Record]) -> str:
    """The table in Markdown: a row for each method, a column for each domain."""
    header = ["method", *(TITLES[domain] for domain in DOMAINS), "s/step"]
    rows = []
    for method, runs in by_method(records).items():
        cells = [
            " / ".join(spread(measured(runs, domain, measure)) for measure in ("ACC", "F1MAC")) for domain in DOMAINS
        ]
        rows.append([method, *cells, spread([found["seconds_per_update"] for found in runs], digits=2)])
    return markdown_table(header, rows)


def uncertainty(runs: Sequence[Record]) -> list[float]:
    """The uncertainty of a method's accuracy on each domain, in points.

    With several seeds it is the standard deviation over seeds; with one, √(p (1 - p) / n) for n test examples.
    """
    if len(runs) > 1:
        return [stdev(measured(runs, domain, "ACC")) for domain in DOMAINS]
    shares = [measured(runs, domain, "ACC")[0] / 100 for domain in DOMAINS]
    sizes = [measured(runs, domain, "examples")[0] for domain in DOMAINS]
    return [100 * math.sqrt(share * (1 - share) / size) for share, size in zip(shares, sizes, strict=True)]


def spread_note(runs: Sequence[Record]) -> str:
    """The note that says what ± means; for a single run, the standard errors of its accuracies."""
    if len(runs) > 1:
        return f"Mean ± standard deviation over {len(runs)} seeds."
    errors = [f"{TITLES[domain]} {error:.1f}" for domain, error in zip(DOMAINS, uncertainty(runs), strict=True)]
    return f"One seed; standard error of an accuracy by the size of the test set: {', '.join(errors)}."


def write_report(records: Sequence[Record], arguments: argparse.Namespace, command: str) -> str:
    """Write `results.md`, `results.json` and `results.png`; returns the text of `results.md`."""
    folder = Path(arguments.output_dir)
    sizes = ", ".join(f"{TITLES[domain]} {measured(records, domain, 'examples')[0]:,}" for domain in DOMAINS)
    first_runs = next(iter(by_method(records).values()))
    setting = f"Encoder {arguments.init_checkpoint}, epochs: {arguments.epochs}; test examples: {sizes}."
    notes = [ABOUT, f"{setting} {spread_note(first_runs)}", f"Made by `{command}`."]
    text = "\n".join(
        ["# Plain, SMART and SiFT fine-tuning on four text domains\n", result_table(records), "\n\n".join(notes), ""]
    )
    with atomic_write(folder / "results.md") as file:
        file.write(text)
    with atomic_write(folder / "results.json") as file:
        json.dump({"command": command, "runs": list(records)}, file, indent=1)
    draw(records, folder / "results.png", command)
    return text


def draw(records: Sequence[Record], path: Path, command: str) -> None:
    """Write the figure: accuracy as bars, grouped by domain, with their uncertainty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = by_method(records)
    width = 0.8 / len(groups)
    figure, axis = pyplot.subplots(figsize=(9, 4.5))
    for number, (method, runs) in enumerate(groups.items()):
        places = [index + (number - (len(groups) - 1) / 2) * width for index in range(len(DOMAINS))]
        heights = [mean(measured(runs, domain, "ACC")) for domain in DOMAINS]
        axis.bar(places, heights, width * 0.92, yerr=uncertainty(runs), capsize=3, label=method)
        for place, height in zip(places, heights, strict=True):
            axis.text(place, 51, f"{height:.1f}", ha="center", color="white", fontsize=9)
    meaning = "standard deviation over seeds" if len(records) > len(groups) else "standard error of the test set's size"
    axis.set_title(f"Trained on tweets, tested on four domains (bars: {meaning})", fontsize=11)
    axis.set_xticks(range(len(DOMAINS)), [TITLES[domain] for domain in DOMAINS])
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(50, 100)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(loc="upper right", ncols=len(groups))
    figure.text(0.01, 0.01, command, fontsize=7, family="monospace", color="dimgray")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line.

    Raises:
        FlagError: a value that is not accepted.
    """
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=1, help="runs per method (default: %(default)s)")
    parser.add_argument("--epochs", type=at_least(1), default=1, help="epochs of a run (default: %(default)s)")
    parser.add_argument(
        "--methods", default=",".join(COMPARED), help=f"comma-separated, of {', '.join(METHODS)} (default: %(default)s)"
    )
    parser.add_argument("--init_checkpoint", default=EMBEDDED_NAME, help="encoder (default: %(default)s)")
    parser.add_argument("--output_dir", default="demo_output", help="folder of results (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.methods = [name.strip().lower() for name in arguments.methods.split(",")]
    for name in arguments.methods:
        if name not in METHODS:
            raise FlagError(f"--methods: found {name!r}, accepted: {', '.join(METHODS)}{nearest(name, METHODS)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    records = run_all(arguments)
    command = shlex.join(["python", "-m", "experiments.sift.demo", *(sys.argv[1:] if argv is None else argv)])
    print(f"\n{write_report(records, arguments, command)}")
    folder = Path(arguments.output_dir)
    print(f"{folder / 'results.md'}, {folder / 'results.json'}, {folder / 'results.png'}")


if __name__ == "__main__":
    run_command_line(main)
