"""How fast is a training step? Our methods and those of others take turns in one process.

    python -m experiments.bench --rows smart,sift,standin-smart --data data/canonical_data/ENCODER/cola_train.json

Rows:

- `plain` is plain fine-tuning, and the unit of all ratios. `plain-mkl` and `plain-onednn` are the same step with the
  linear layers of one or the other library (`--cpu_linear`).
- `smart` is SMART at `pre_ln`, `sift` the same search at `post_ln`, `smart-deberta` at `deberta`. The other methods run
  at `post_ln`. All have their measured defaults.
- `evaluation` scores the same batches, without training. In a run, batches of evaluation have more examples.
- `trainer` is a plain step of transformers' Trainer, `smart-pytorch` a step with that package's SMARTLoss (compare it
  with `smart`). Both get the same batches as our rows.
- `standin` and `standin-smart` do what MT-DNN does: random batches padded to their longest sentence, Adamax one
  parameter after the other, and the loss read back in every step.

All rows train one network, with dropout. A tiny learning rate keeps its weights as they are.

The batches represent an epoch: they are taken at equal distances from its batches sorted by width, and every round has
narrow and wide ones. So the mean of a row is the mean of its epoch. Intervals are over the rounds. Every row has an
optimizer of its own; all of them together take 5 GB with MiniLM. Peak memory is measured in a separate process for each
row, on its widest batch.

`--profile ROW,...` measures nothing. It prints the share of each kind of operation in the time of these rows, by
torch's profiler. `--operators ROW,...` counts what a GPU would have to do in one step of these rows: operators, and
places where the host waits for the device.

The command prints two tables and writes `bench.json`, with every time, and `bench.png` to the output folder.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from data_utils.errors import FlagError, OneLineParser, UserError, at_least, nearest, run_command_line
from data_utils.pretrained import EMBEDDED_NAME
from data_utils.storage.files import writable_folder
from experiments.bench import measure, report
from experiments.bench import operators as counting
from experiments.bench import profile as profiler
from experiments.bench.measure import PRECISIONS, Memory, Setting
from experiments.bench.others import Step
from experiments.bench.report import Bench, Measured
from experiments.bench.rows import PLAIN, ROWS
from experiments.sift.running.runs import TRAINED_DATASET, prepare_data


def run(setting: Setting, names: Sequence[str], command: str, memory: bool = True) -> Bench:
    """Measure these rows; one that cannot run here is skipped, with its reason.

    Raises:
        UserError: `plain`, the unit of all others, cannot run here.
    """
    contest, batches = measure.prepare(setting)
    steps: dict[str, Step] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            steps[name] = ROWS[name].build(contest)
        except UserError as error:
            if name == PLAIN.name:
                raise
            skipped[name] = str(error)
    memories: dict[str, Memory] = {}
    for name in steps if memory else ():
        memories[name] = measure.peak_memory(setting, name)
        print(f"memory of {name} measured", flush=True)
    config, parts = contest.network.bert.config, {name: batches[ROWS[name].grouped] for name in steps}
    tokens = max(1, round(measure.real_tokens(batches[True])))
    rates: list[float] = []

    def after_round(line: str) -> None:
        rates.append(measure.matrix_rate(config, tokens, contest.network.bert.device, PRECISIONS[setting.precision]))
        print(line, flush=True)

    seconds = measure.alternate(steps, parts, after_round)
    rows = {
        name: Measured(
            seconds[name],
            ROWS[name].forwards,
            ROWS[name].forwards * measure.mean_flops(config, parts[name]),
            measure.real_tokens(parts[name]),
            memories.get(name),
        )
        for name in steps
    }
    settings = {**setting._asdict(), "data": str(setting.data), "command": command}
    return Bench(rows, skipped, rates, settings)


def profile(setting: Setting, names: Sequence[str]) -> str:
    """The table of `--profile`.

    Raises:
        UserError: a row that cannot run here.
    """
    contest, batches = measure.prepare(setting)
    rows = [ROWS[name] for name in names]
    return profiler.table({row.name: profiler.shares(row.build(contest), batches[row.grouped]) for row in rows})


def operators(setting: Setting, names: Sequence[str]) -> str:
    """The tables of `--operators`; every row starts from a network of its own.

    Raises:
        UserError: a row that cannot run here.
    """
    found = {}
    for name in names:
        contest, batches = measure.prepare(setting)
        found[name] = counting.count(counting.build(ROWS[name], contest), batches[ROWS[name].grouped][0][0])
    return counting.table(found)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a bench.

    Raises:
        FlagError: a value that is not accepted.
    """
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", default=",".join(ROWS), help="rows to measure in addition to plain (default: %(default)s)"
    )
    parser.add_argument("--profile", help="rows to profile by kind of operation, instead of measuring")
    parser.add_argument("--operators", help="rows whose operators and host reads to count, instead of measuring")
    parser.add_argument("--rounds", type=at_least(1), default=10, help="rounds (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=2, help="steps a row and round (default: %(default)s)")
    parser.add_argument("--batch_size", type=at_least(1), default=32, help="examples a batch (default: %(default)s)")
    parser.add_argument("--data", help="token JSON lines of a classification task (default: the demo's tweets)")
    parser.add_argument("--init_checkpoint", default=EMBEDDED_NAME, help="encoder (default: %(default)s)")
    parser.add_argument(
        "--precision", default="float32", choices=PRECISIONS, help="of the matrix products (default: %(default)s)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the encoder's layers, as train.py --compile does"
    )
    parser.add_argument("--threads", type=at_least(1), help="threads of torch (default: its own choice)")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory too (default: yes)"
    )
    parser.add_argument("--output_dir", default="bench_output", help="folder of results (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.rows = list(dict.fromkeys([PLAIN.name, *_rows(arguments.rows, "rows")]))
    for flag in ("profile", "operators"):
        if getattr(arguments, flag) is not None:
            setattr(arguments, flag, _rows(getattr(arguments, flag), flag))
    return arguments


def _rows(given: str, flag: str) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in ROWS:
            raise FlagError(f"--{flag}: found {name!r}, accepted: {', '.join(ROWS)}{nearest(name, ROWS)}")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    if arguments.data is None:
        data = prepare_data(arguments.init_checkpoint) / f"{TRAINED_DATASET}_train.json"
    else:
        data = Path(arguments.data)
    setting = Setting(
        data,
        arguments.init_checkpoint,
        arguments.batch_size,
        arguments.rounds,
        arguments.steps,
        arguments.threads,
        arguments.precision,
        arguments.compile,
    )
    if arguments.profile is not None:
        print(profile(setting, arguments.profile))
        return
    if arguments.operators is not None:
        print(operators(setting, arguments.operators))
        return
    folder = writable_folder(arguments.output_dir)
    command = shlex.join(["python", "-m", "experiments.bench", *(sys.argv[1:] if argv is None else argv)])
    bench = run(setting, arguments.rows, command, arguments.memory)
    report.write(bench, folder)
    print(f"\n{report.tables(bench)}\n{folder / 'bench.json'}, {folder / 'bench.png'}")


if __name__ == "__main__":
    run_command_line(main)
