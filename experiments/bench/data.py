"""How fast data is prepared, opened and evaluated, on made-up pairs of MNLI's number and lengths.

    python -m experiments.bench.data                     all three
    python -m experiments.bench.data --parts open        what it takes to open a token file; memory is read from /proc

Times are given twice, by the clock and in seconds of processor, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.errors import OneLineParser, at_least, run_command_line
from data_utils.storage.text_files import write_lines
from experiments.preparation import command as preparation
from mt_dnn.batcher import Collater, SingleTaskDataset
from mt_dnn.configuration.config import Config
from mt_dnn.data import sampler
from mt_dnn.inference import eval_model
from tasks.definition import TaskDefs

MNLI_EXAMPLES = 392_702
TASK_DEF = "experiments/glue/glue_task_def.yml"
ENCODER = "embedded-minilm"
LABELS = ("contradiction", "neutral", "entailment")
PARTS = ("open", "prepro", "evaluation")
ROUNDS = 3


def pair_lengths(count: int) -> np.ndarray:
    """Tokens of both texts of each pair, (count, 2): 27 together on average, with a tail of long premises."""
    generator = np.random.default_rng(0)
    drawn = np.stack([generator.gamma(2, 8.5, count), generator.gamma(4, 2.5, count)], axis=1)
    return np.clip(drawn.round().astype(int), 1, 120)


def token_lines(count: int) -> Iterator[str]:
    """Token JSON lines, with type ids and attention masks as `prepro_std.py` writes them; 30 tokens on average."""
    generator = np.random.default_rng(1)
    for number, (first, second) in enumerate(pair_lengths(count).tolist()):
        ids = generator.integers(1000, 30000, first + second).tolist()
        tokens = [101, *ids[:first], 102, *ids[first:], 102]
        types = [0] * (first + 2) + [1] * (second + 1)
        yield (
            f'{{"uid": "{number}", "label": {number % 3}, "token_id": {tokens}, "type_id": {types}, '
            f'"attention_mask": {[1] * len(tokens)}}}'
        )


def text_lines(count: int) -> Iterator[str]:
    """A canonical TSV of the same lengths, in words of the tokenizer's vocabulary."""
    from data_utils.tokenizer import load_tokenizer

    words = np.array(sorted(word for word in load_tokenizer(ENCODER).get_vocab() if word.isalpha()))
    generator = np.random.default_rng(1)
    for number, lengths in enumerate(pair_lengths(count).tolist()):
        texts = [" ".join(words[generator.integers(len(words), size=length)]) for length in lengths]
        yield "\t".join([str(number), LABELS[number % 3], *texts])


def seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """By the clock, and of the processor in this process with all its threads."""
    clock, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - processor


def memory(field: str) -> float:
    """VmRSS or VmHWM (its peak) of this process in MB of a million bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024 / 1e6


def opened(path: Path) -> str:
    """What it takes to open a token file, in words; to be called in a fresh process."""
    task_def = TaskDefs(TASK_DEF).get_task_def("mnli")
    before = memory("VmRSS")
    clock, processor = seconds(lambda: opened_sets.append(SingleTaskDataset(path, True, 0, task_def)))
    added, peak = memory("VmRSS") - before, memory("VmHWM") - before
    return f"{clock:6.2f} s, processor {processor:5.2f} s, memory added {added:4.0f} MB, at most {peak:4.0f} MB"


opened_sets: list[SingleTaskDataset] = []


def bench_open(folder: Path, examples: int) -> None:
    path = folder / "mnli_train.json"
    write_lines(path, token_lines(examples))
    os.utime(path, (1.7e9, 1.7e9))  # a file just written is not cached
    print(f"open {examples} examples ({path.stat().st_size / 1e6:.0f} MB of JSON)")
    for what in ("from JSON", *["from the cache"] * ROUNDS):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            print(f"  {what:15}{pool.submit(opened, path).result()}", flush=True)


def bench_prepro(folder: Path, examples: int) -> None:
    write_lines(folder / "mnli_train.tsv", text_lines(examples))
    for workers in (1, os.cpu_count() or 1):
        words = ["--model", ENCODER, "--root_dir", str(folder), "--task_def", TASK_DEF, "--workers", str(workers)]
        clock, processor = seconds(lambda words=words: preparation.main(words))  # type: ignore[misc]
        print(f"prepro_std.py --workers {workers}: {examples / clock:.0f} examples/s, processor {processor:.2f} s")


def bench_evaluation(folder: Path, examples: int) -> None:
    """Batch sizes in alternation; medians of the processor's seconds."""
    from mt_dnn.model import MTDNNModel

    path = folder / "mnli_dev.json"
    write_lines(path, token_lines(examples))
    task_def = TaskDefs(TASK_DEF).get_task_def("mnli")
    dataset = SingleTaskDataset(path, False, 0, task_def)
    model = MTDNNModel(Config.from_flags({"init_checkpoint": ENCODER}), [task_def])
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for size, tokens in [(8, 0), (32, 0), *((None, tokens) for tokens in (512, 1024, 2048, 4096))]:
            sampler.EVALUATION_TOKENS = tokens
            _, processor = seconds(lambda size=size: eval_model(model, dataset, (), Collater(0), size))  # type: ignore[misc]
            found.setdefault(f"{size} examples" if size else f"{tokens} tokens", []).append(processor)
    base = statistics.median(found["8 examples"])
    for what, times in found.items():
        took = statistics.median(times)
        print(f"evaluation in batches of {what:12}{examples / took:6.0f} examples/s, {took / base:.2f} of 8 examples'")


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--examples", type=at_least(1), default=MNLI_EXAMPLES, help="of the file to open (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        for part in arguments.parts.split(","):
            if part == "open":
                bench_open(Path(name), arguments.examples)
            elif part == "prepro":
                bench_prepro(Path(name), arguments.examples // 10)
            elif part == "evaluation":
                bench_evaluation(Path(name), arguments.examples // 1000)
            else:
                parser.error(f"--parts: found {part!r}, accepted: {', '.join(PARTS)}")


if __name__ == "__main__":
    run_command_line(main)
