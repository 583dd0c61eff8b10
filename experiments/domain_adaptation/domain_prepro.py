"""SciTail's and SNLI's public files → canonical TSV, with shares of their training sets.

    python experiments/domain_adaptation/domain_prepro.py --data_dir DIR

DIR holds SciTail's release (`SciTailV1.1/tsv_format` or `SciTail/tsv_format`), SNLI's (`snli_1.0/snli_1.0_*.txt`) or
SNLI in GLUE's layout (`SNLI/*.tsv`); one of the two tasks is enough. They become `ROOT/canonical_data/TASK_SPLIT.tsv`,
together with the training sets of MT-DNN's study of domain adaptation [Liu et al. 2019],
`TASK_{001,01,1}_train.tsv`: 0.1, 1 and 10 %, rounded down (23, 235 and 2,359 of SciTail's 23,596), each a part of
the next.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import OneLineParser, at_least, run_command_line
from data_utils.storage.text_files import read_lines, write_lines
from experiments.glue import glue_prepro

TASKS = ("scitail", "snli")
SHARES = {"001": 1000, "01": 100, "1": 10}  # percent without the decimal point -> divisor of the number of examples
SEED = 13


def shares(count: int, seed: int) -> dict[str, list[int]]:
    """Indices of the examples in each share, at least one, in order; a smaller share is a part of a larger one."""
    order = random.Random(seed).sample(range(count), count)
    return {name: sorted(order[: max(1, count // divisor)]) for name, divisor in SHARES.items()}


def write_shares(task: str, root: Path, seed: int) -> None:
    """Write `ROOT/TASK_SHARE_train.tsv` from `ROOT/TASK_train.tsv`, and print their sizes."""
    lines = [line for _, line in read_lines(root / f"{task}_train.tsv")]
    for name, chosen in shares(len(lines), seed).items():
        path = root / f"{task}_{name}_train.tsv"
        print(f"{path}: {write_lines(path, (lines[number] for number in chosen))} examples")


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the tasks that have files, then write the shares."""
    parser = OneLineParser(description="SciTail and SNLI → canonical TSV, with shares of their training sets")
    parser.add_argument("--root_dir", type=Path, default=Path("data"), help="TSVs go to its folder canonical_data")
    parser.add_argument("--data_dir", type=Path, help="folder of the tasks' folders; default: --root_dir")
    parser.add_argument("--seed", type=at_least(0), default=SEED, help="seed of the random choice of the shares")
    parser.add_argument("--from_hub", action="store_true", help="download the tasks from the Hugging Face hub")
    args = parser.parse_args(argv)
    data_dir = args.data_dir or args.root_dir
    there = [task for task in TASKS if args.from_hub or glue_prepro.find_layout(task, data_dir)]
    flags = ["--root_dir", str(args.root_dir), "--data_dir", str(data_dir), "--tasks", ",".join(there or TASKS)]
    glue_prepro.main([*flags, *["--from_hub"] * args.from_hub])
    for task in there:
        write_shares(task, args.root_dir / "canonical_data", args.seed)


if __name__ == "__main__":
    run_command_line(main)
