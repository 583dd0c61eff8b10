"""ANLI's public files → canonical TSV, `ROOT/canonical_data/anli_ROUND_SPLIT.tsv`, ROUND being r1, r2 or r3.

    python experiments/anli/anli_prepro.py --data_dir DIR

DIR holds the folder of the public release, `anli_v1.0`, with `R1`, `R2` and `R3`; each holds `train.jsonl`, `dev.jsonl`
and `test.jsonl`. Labels are those of the files: c, n and e.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import run_command_line
from experiments.canonical import (
    NO_LABEL,
    Example,
    Reading,
    Row,
    convert_tasks,
    first_file,
    first_of,
    prepro_args,
    prepro_parser,
    read_examples,
    write_canonical,
)

FOLDERS = ("anli_v1.0", "ANLI", ".")
ROUNDS = ("r1", "r2", "r3")


def pair(row: Row, split: str) -> Iterator[Example]:
    label = row.get("label", NO_LABEL) if split == "test" else row["label"]
    yield row["uid"], label, first_of(row, "context", "premise"), row["hypothesis"]


def convert(name: str, data_dir: Path, target_dir: Path) -> bool:
    """Convert a round's files; returns whether there are any."""
    there = False
    for split in ("train", "dev", "test"):
        path = first_file(data_dir, [f"{folder}/{name.upper()}/{split}.jsonl" for folder in FOLDERS])
        if path is not None:
            there = True
            examples = read_examples(path, partial(pair, split=split))
            write_canonical(target_dir / f"anli_{name}_{split}.tsv", Reading(examples))
    return there


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the rounds named by --tasks, or all that have files."""
    args = prepro_args(prepro_parser("ANLI → canonical TSV", ROUNDS), argv, ROUNDS)
    folders = {name: [f"{folder}/{name.upper()}" for folder in FOLDERS] for name in ROUNDS}
    convert_tasks(args, folders, partial(convert, data_dir=args.data_dir, target_dir=args.target_dir))


if __name__ == "__main__":
    run_command_line(main)
