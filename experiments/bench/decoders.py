"""What R costs a decoder with a large vocabulary, in memory and time: plain, SMART with and without chunks, FreeLB.

    python -m experiments.bench.decoders --vocabulary 150000 --batch_size 4 --tokens 64

The decoder is a tiny Llama with random weights, so that nearly all memory is that of logits. Each row runs in a process
of its own. `logits` is one copy of all logits in single precision, the unit of the last column.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import torch

from data_utils.errors import OneLineParser, at_least, run_command_line
from experiments.sift.reporting.tables import markdown_table
from mt_dnn.perturbation import FreeLbPerturbation, SmartPerturbation, chunks

ROWS = ("plain", "SMART, whole", "SMART, in chunks", "FreeLB, K = 3")
STEPS = 3


class Sizes(NamedTuple):
    vocabulary: int
    batch_size: int
    tokens: int


class Cost(NamedTuple):
    """Peak memory of the steps in bytes, beyond what the process had before; median seconds of the processor a
    step; the loss."""

    memory: int
    seconds: float
    loss: float


def cost(row: str, sizes: Sizes) -> Cost:
    """What steps of this row take; to be called in a fresh process, whose peak is theirs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    ids = torch.randint(5, sizes.vocabulary, (sizes.batch_size, sizes.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    if row == "SMART, whole":
        chunks.CHUNK_NUMBERS = sys.maxsize
    smart = SmartPerturbation.for_model(model, radius=0.1) if "SMART" in row else None
    freelb = FreeLbPerturbation.for_model(model, radius=0.1, k=3) if "FreeLB" in row else None
    before, seconds, loss = _peak(), [], 0.0
    for _ in range(STEPS):
        torch.manual_seed(1)  # the same noise in every step
        model.zero_grad()
        start = time.process_time()
        output: Any = None
        if freelb is not None:
            total = freelb(model, batch, None)
        else:
            output = model(**batch)
            total = output.loss
        if smart is not None:
            total = total + smart.alpha * smart(model, batch, output)
        total.backward()
        seconds.append(time.process_time() - start)
        loss = total.item()
        del output, total
    return Cost(_peak() - before, median(seconds), loss)


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure(sizes: Sizes) -> dict[str, Cost]:
    """The cost of every row, each in a fresh process."""
    found = {}
    for row in ROWS:
        # A forked process would begin with this one's peak; the server has imported the code and done nothing.
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with context.Pool(1) as pool:
            found[row] = pool.apply(cost, (row, sizes))
    return found


def table(found: dict[str, Cost], sizes: Sizes) -> str:
    copy = 4 * sizes.vocabulary * sizes.batch_size * sizes.tokens
    rows = [
        [name, f"{row.seconds:.2f}", f"{row.memory / 1e6:.0f}", f"{row.memory / copy:.1f}"]
        for name, row in found.items()
    ]
    return markdown_table(("row", "processor s/step", "MB", "copies of the logits"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=at_least(10), default=150_000, help="(default: %(default)s)")
    parser.add_argument("--batch_size", type=at_least(1), default=4, help="(default: %(default)s)")
    parser.add_argument("--tokens", type=at_least(2), default=64, help="of each text (default: %(default)s)")
    arguments = parser.parse_args(argv)
    sizes = Sizes(arguments.vocabulary, arguments.batch_size, arguments.tokens)
    print(table(measure(sizes), sizes))


if __name__ == "__main__":
    run_command_line(main)
