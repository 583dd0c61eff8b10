"""What several processes make of a training step: examples a second against one process, in alternation.

    python -m experiments.bench.processes --processes 2 --task_def TASKS.yml --data_dir DIR --train_datasets cola \
        --test_datasets cola --init_checkpoint embedded-minilm --batch_size 32 --adv_train --adv_norm_level post_ln

The flags are those of train.py and a few of its own (--help). One process and the several take turns, so that they meet
the same conditions; each process has one thread (--threads). The several train twice: on the same batches, dealt out
among them, and on batches of which each has as many examples as the one process.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

from data_utils.errors import OneLineParser, UserError, at_least, run_command_line
from mt_dnn.batcher import Batch
from mt_dnn.configuration.config import parse_args


class Block(NamedTuple):
    """Some updates of one process: wall-clock and processor seconds, and the examples of all processes."""

    wall: float
    processor: float
    examples: int


class Run:
    """Training as train.py does it, a few updates at a time."""

    def __init__(self, flags: Sequence[str]):
        from mt_dnn.training.trainer import Trainer

        self.trainer = Trainer(parse_args(flags))
        self.batches = self._endless()

    def block(self, updates: int) -> Block:
        model = self.trainer.model
        model.accelerator.wait_for_everyone()
        wall, processor, examples = time.perf_counter(), time.process_time(), 0
        for batch in islice(self.batches, updates):
            model.update(batch)
            examples += batch.counted
        model.accelerator.wait_for_everyone()
        return Block(time.perf_counter() - wall, time.process_time() - processor, examples)

    def _endless(self) -> Iterator[Batch]:
        for epoch in count():
            self.trainer.sampler.set_epoch(epoch)
            yield from self.trainer.loader()


class Group:
    """Processes that train together: each has the same runs and trains a block of one of them on request."""

    def __init__(self, processes: int, runs: Sequence[Sequence[str]]):
        context = get_context("spawn")
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self.pipes: list[Connection] = []
        for rank in range(processes):
            environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
            ours, theirs = context.Pipe()
            context.Process(
                target=_serve, args=(theirs, environment if processes > 1 else {}, runs), daemon=True
            ).start()
            theirs.close()
            self.pipes.append(ours)

    def block(self, run: int, updates: int) -> Block:
        """Wall-clock seconds are those of the slowest process, processor seconds and examples those of all.

        Raises:
            UserError: the processes could not set up their runs.
        """
        for pipe in self.pipes:
            pipe.send((run, updates))
        found = [pipe.recv() for pipe in self.pipes]
        for problem in found:
            if isinstance(problem, str):
                raise UserError(problem)
        wall, processor, examples = zip(*found, strict=True)
        return Block(max(wall), sum(processor), sum(examples))

    def end(self) -> None:
        for pipe in self.pipes:
            with suppress(BrokenPipeError):  # of a process that has failed
                pipe.send(None)


def _serve(pipe: Connection, environment: dict[str, str], flags: Sequence[Sequence[str]]) -> None:
    os.environ.update(environment)
    runs, problem = [], None
    try:
        runs = [Run(run) for run in flags]
    except UserError as error:
        problem = str(error)
    for run, updates in iter(pipe.recv, None):
        pipe.send(problem or runs[run].block(updates))


def measure(flags: Sequence[str], processes: int, blocks: int, updates: int) -> list[str]:
    """The lines of the report."""
    size = parse_args(flags).training.batch_size
    with tempfile.TemporaryDirectory() as folder:
        # A process has one core and collates its batches itself.
        alone = ["--dataloader_num_workers", "0"]
        own = [*flags, *alone, "--output_dir", folder, "--log_file", f"{folder}/log.txt"]
        share = [*own, "--batch_size", str(size * processes)]
        one, several = Group(1, [own]), Group(processes, [own, share])
        kinds: dict[str, tuple[Group, int, int]] = {
            "one process": (one, 0, updates),
            f"{processes} processes, the same batches": (several, 0, updates),
            f"{processes} processes, {size} examples each": (several, 1, -(-updates // processes)),
        }
        found: dict[str, list[Block]] = {name: [] for name in kinds}
        try:
            for block in range(blocks + 1):
                for name, (group, run, length) in kinds.items():
                    result = group.block(run, length)
                    if block > 0:  # the first one warms up
                        found[name].append(result)
        finally:
            one.end()
            several.end()
    lines = [f"{'':36} examples/s   processor ms/example   against one process (lowest to highest block)"]
    for name, results in found.items():
        rates = [result.examples / result.wall for result in results]
        base = [result.examples / result.wall for result in found["one process"]]
        ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
        processor = median(1e3 * result.processor / result.examples for result in results)
        shown = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"{name:36} {median(rates):10.1f}   {processor:20.2f}   {shown}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; without `argv`, this process's own command line."""
    parser = OneLineParser(prog="python -m experiments.bench.processes", description="All other flags are train.py's.")
    own: dict[str, tuple[int, str]] = {
        "processes": (2, "how many processes stand against one"),
        "threads": (1, "of each process"),
        "blocks": (8, "that each of the two does in turn"),
        "updates": (8, "of a block"),
    }
    for name, (default, meaning) in own.items():
        parser.add_argument(f"--{name}", type=at_least(1), default=default, help=f"{meaning} (default: {default})")
    found, flags = parser.parse_known_args(argv)
    values: dict[str, Any] = vars(found)
    os.environ["OMP_NUM_THREADS"] = str(values.pop("threads"))
    print("\n".join(measure(flags, **values)))


if __name__ == "__main__":
    run_command_line(main)
