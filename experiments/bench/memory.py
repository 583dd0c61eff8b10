"""What a large decoder needs in memory, by calculation: full fine-tuning and LoRA, on one GPU and sharded over several.

    python -m experiments.bench.memory --vocabulary 32000 --batch_size 4 --tokens 1024

The decoder has Llama's layers. Nothing is run; GB are 10⁹ bytes. What it is calculated from:

- Full fine-tuning on one GPU is torch's mixed precision: parameters, gradients and AdamW's two moments in single
  precision, 16 bytes a parameter, and the copy in bfloat16 that a pass computes with, 2 more.
- LoRA: the model in bfloat16, 2 bytes a parameter; 16 bytes for each parameter of the adapters, which are at all linear
  layers of rank 16. Activations are counted as in full fine-tuning, which is an upper bound.
- Sharded over N GPUs each holds one N-th of that. It gathers two layers, the word table and the head in bfloat16; full
  fine-tuning also their gradients, before they are shared out.
- Activations: what a layer stores for the backward in bfloat16, 24 · hidden + 8 · intermediate bytes a token; with
  checkpointing its input alone, and one layer's while it is recomputed. SMART (any K) holds the activations of two
  passes, FreeLB those of K, NEFTune those of one.
- Logits: copies of (tokens, vocabulary) in single precision, as many as `experiments.bench.decoders` measured.
- Noise: h, δ, its gradient, the step and the sum, (tokens, hidden) in single precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_utils.errors import OneLineParser, at_least, run_command_line
from experiments.sift.reporting.tables import markdown_table

SINGLE, HALF, STATES = 4, 2, 16  # bytes: a number in float32, in bfloat16, and all that AdamW trains one parameter with
RANK = 16
NOISES = 5  # tensors of the search, each as large as h
GPU = 80  # GB


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder with Llama's layers; the defaults are those of 7 billion parameters."""

    vocabulary: int = 32_000
    layers: int = 32
    hidden: int = 4096
    intermediate: int = 11_008

    @property
    def layer(self) -> int:
        """Parameters of a layer: four projections of the attention, three of the MLP, two norms."""
        return 4 * self.hidden**2 + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def tables(self) -> int:
        """Parameters of the word table and of the head, which are not tied, and of the last norm."""
        return 2 * self.vocabulary * self.hidden + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.tables

    @property
    def adapters(self) -> int:
        """Parameters of LoRA at all linear layers."""
        sides = 4 * (self.hidden + self.hidden) + 3 * (self.hidden + self.intermediate)
        return self.layers * RANK * sides

    @property
    def stored(self) -> int:
        """Bytes that a layer stores of each token for its backward."""
        return 24 * self.hidden + 8 * self.intermediate


@dataclass(frozen=True)
class Method:
    """What a method adds to a plain step.

    passes: whose activations are held at once; copies: of the logits; noise: whether it searches δ.
    """

    passes: int
    copies: float
    noise: bool


# Copies: `python -m experiments.bench.decoders`, vocabulary of 150,000, 4 texts of 64 tokens.
METHODS = {
    "plain": Method(1, 4.3, False),
    "NEFTune": Method(1, 4.3, False),
    "SMART, K = 1": Method(2, 8.4, True),
    "FreeLB, K = 3": Method(3, 5.2, True),
}


def states(decoder: Decoder, lora: bool, gpus: int = 1) -> float:
    """Bytes that a GPU holds between two updates: parameters, gradients, AdamW's moments."""
    trained = decoder.adapters if lora else decoder.parameters
    frozen = HALF * decoder.parameters if lora else 0
    return (STATES * trained + frozen) / gpus


def gathered(decoder: Decoder, lora: bool, gpus: int = 1) -> float:
    """Bytes of the parameters that a pass computes with, where they are others than those between two updates."""
    if gpus == 1:
        return 0 if lora else HALF * decoder.parameters
    units = HALF * (2 * decoder.layer + decoder.tables)
    return units if lora else 2 * units


def activations(decoder: Decoder, tokens: int, checkpointing: bool, passes: int = 1) -> float:
    """Bytes that so many passes store for their backwards."""
    if not checkpointing:
        return passes * tokens * decoder.layers * decoder.stored
    return tokens * (passes * decoder.layers * HALF * decoder.hidden + decoder.stored)


def logits(decoder: Decoder, tokens: int, copies: float) -> float:
    return copies * SINGLE * tokens * decoder.vocabulary


def total(name: str, decoder: Decoder, tokens: int, *, lora: bool, gpus: int, checkpointing: bool) -> float:
    """Bytes on each GPU at the peak of an update.

    Args:
        name: a method of `METHODS`.
        tokens: on each GPU.
    """
    method = METHODS[name]
    noise = NOISES * SINGLE * tokens * decoder.hidden if method.noise else 0
    stored = activations(decoder, tokens, checkpointing, method.passes)
    parts = (states(decoder, lora, gpus), gathered(decoder, lora, gpus), stored, noise)
    return sum(parts) + logits(decoder, tokens, method.copies)


def parts_table(decoder: Decoder, tokens: int) -> str:
    """The parts of the memory, with a small and a large vocabulary."""
    columns = [decoder, replace(decoder, vocabulary=150_000)]
    rows = [
        ["parameters", *(f"{own.parameters / 1e9:.2f} billion" for own in columns)],
        ["full: parameters, gradients, AdamW", *(gb(states(own, False)) for own in columns)],
        ["LoRA: the same", *(gb(states(own, True)) for own in columns)],
        ["activations of a pass", *(gb(activations(own, tokens, False)) for own in columns)],
        ["… with checkpointing", *(gb(activations(own, tokens, True)) for own in columns)],
        ["one copy of the logits", *(gb(logits(own, tokens, 1)) for own in columns)],
        *([f"logits, {name}", *(gb(logits(own, tokens, METHODS[name].copies)) for own in columns)] for name in METHODS),
    ]
    return markdown_table(("GB", *(f"vocabulary {own.vocabulary:,}" for own in columns)), rows)


def totals_table(decoder: Decoder, tokens: int, gpus: int, checkpointing: bool) -> str:
    """The peak of each method; a number above `GPU` is marked."""
    kinds = [(lora, count) for lora in (False, True) for count in (1, gpus)]
    rows = []
    for name in METHODS:
        found = [
            total(name, decoder, tokens, lora=lora, gpus=count, checkpointing=checkpointing) for lora, count in kinds
        ]
        rows.append([name, *(gb(value) + (" (too much)" if value > GPU * 1e9 else "") for value in found)])
    heads = [f"{'LoRA' if lora else 'full'}, {count} GPU{'s' if count > 1 else ''}" for lora, count in kinds]
    return markdown_table(("GB on each GPU", *heads), rows)


def gb(count: float) -> str:
    return f"{count / 1e9:.1f}"


def report(decoder: Decoder, tokens: int, gpus: int) -> str:
    """All tables, with what each shows."""
    large = replace(decoder, vocabulary=150_000)
    blocks = [
        f"{decoder.layers} layers, hidden size {decoder.hidden:,}, MLP {decoder.intermediate:,}; {tokens:,} tokens on "
        "each GPU:",
        parts_table(decoder, tokens),
        f"With checkpointing, vocabulary {decoder.vocabulary:,}:",
        totals_table(decoder, tokens, gpus, True),
        f"With checkpointing, vocabulary {large.vocabulary:,}:",
        totals_table(large, tokens, gpus, True),
        f"Without checkpointing, vocabulary {decoder.vocabulary:,}:",
        totals_table(decoder, tokens, gpus, False),
    ]
    return "\n\n".join(block.strip() for block in blocks)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=at_least(10), default=32_000, help="(default: %(default)s)")
    parser.add_argument("--batch_size", type=at_least(1), default=4, help="texts on each GPU (default: %(default)s)")
    parser.add_argument("--tokens", type=at_least(1), default=1024, help="of each text (default: %(default)s)")
    parser.add_argument("--gpus", type=at_least(2), default=8, help="that shards lie on (default: %(default)s)")
    arguments = parser.parse_args(argv)
    tokens = arguments.batch_size * arguments.tokens
    print(report(Decoder(vocabulary=arguments.vocabulary), tokens, arguments.gpus))


if __name__ == "__main__":
    run_command_line(main)
