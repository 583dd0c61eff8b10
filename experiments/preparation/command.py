"""Tokenize canonical files: `ROOT/TASK_SPLIT.tsv` (of data_format MLM `.txt`) → `ROOT/MODEL/TASK_SPLIT.json`.

With --from, the files are first made of tables of your own, and the task definition is written for you:

    python prepro_std.py --from reviews.csv --text review --label stars --model bert-base-uncased
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_utils.errors import DataError, OneLineParser, at_least
from data_utils.prepro import (
    Losses,
    Split,
    TokenizerSpec,
    chunk_mapper,
    convert_split,
    find_splits,
    is_train_split,
    prepro_command,
)
from data_utils.pretrained import folder_name
from data_utils.progress import progress
from data_utils.readers import canonical_suffix, read_canonical_tsv
from data_utils.storage.text_files import write_lines
from experiments.preparation.own_summary import loss_lines
from experiments.preparation.own_tables import DEFINITION
from experiments.preparation.table_flags import OwnTables, add_table_flags, check_table_flags

GLUE = Path("experiments/glue/glue_task_def.yml")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; names and defaults are MT-DNN's."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="bert-base-uncased", help="encoder: hub name, folder, embedded-minilm or -mpnet"
    )
    parser.add_argument("--do_padding", action="store_true", help="pad every example to --max_seq_len")
    parser.add_argument("--root_dir", type=Path, default=Path("data/canonical_data"), help="folder of the TSVs")
    parser.add_argument(
        "--task_def", type=Path, help=f"the YAML (default: {GLUE}; with --from: {DEFINITION} in --root_dir)"
    )
    parser.add_argument("--do_lower", action="store_true", help="lower-case, where the tokenizer leaves the choice")
    parser.add_argument("--transformer_cache", default=".cache", help="folder for downloads")
    parser.add_argument("--workers", type=at_least(1), default=1, help="processes")
    parser.add_argument("--max_seq_len", type=at_least(1), default=512, help="longer ones are cut to so many tokens")
    parser.add_argument(
        "--doc_stride", type=at_least(0), default=128, help="spans: tokens that neighbouring windows share"
    )
    parser.add_argument(
        "--max_query_len", type=at_least(1), default=64, help="spans: questions are cut to so many tokens"
    )
    add_table_flags(parser)
    args = parser.parse_args(argv)
    if args.task_def is None:
        args.task_def = args.root_dir / DEFINITION if args.sources else GLUE
    check_table_flags(args)
    return args


def find_files(args: argparse.Namespace) -> list[Split]:
    """The TSVs to convert; says in a line what the YAML names and the folder lacks.

    Raises:
        UserError: there is none, or a task is of a kind that is not there yet.
    """
    from tasks import get_task  # which takes seconds; --help and a mistake in a table do not wait for it
    from tasks.definition import TaskDefs

    task_defs = TaskDefs(args.task_def)
    files, absent = [], []
    for task_name in task_defs.names:
        task_def = task_defs.get_task_def(task_name)
        suffix = canonical_suffix(task_def.data_type)
        splits = find_splits(args.root_dir, task_name, task_def.split_names, suffix)
        if not splits:
            absent.append(task_name)
            continue
        where = f"{args.task_def}: task {task_name!r}"
        task = get_task(task_def)
        task.check_text(where)
        if args.do_padding and not task.pads:
            kind = task_def.task_type.name
            print(f"{where}: not padded, as {kind} is in MT-DNN neither; train.py --do_padding pads batches")
        lacking = [f"{task_name}_{split}{suffix}" for split in task_def.split_names if split not in splits]
        if lacking:
            print(f"skipped, not in {args.root_dir}: {', '.join(lacking)}")
        files += [
            Split(args.root_dir / f"{task_name}_{split}{suffix}", task, is_train_split(split)) for split in splits
        ]
    unused = sorted({path.name for path in args.root_dir.glob("*.tsv")} - {split.path.name for split in files})
    if unused:
        print(f"ignored, no such task and split in {args.task_def}: {', '.join(unused)}")
    if not files:
        command = prepro_command(args.task_def) or "python experiments/glue/glue_prepro.py"
        raise DataError(
            f"found no TASK_SPLIT.tsv of the tasks {', '.join(absent)} (of data_format MLM: TASK_SPLIT.txt); make them "
            f"with: {command}",
            args.root_dir,
        )
    if absent:
        print(f"skipped, no text in {args.root_dir}: {', '.join(absent)}")
    return files


def main(argv: Sequence[str] | None = None) -> None:
    """Convert every split that is there."""
    args = parse_args(argv)
    tables = OwnTables(args) if args.sources else None
    files = find_files(args) if tables is None else tables.splits
    tokenizer = TokenizerSpec(
        name=args.model,
        do_lower_case=True if args.do_lower else None,
        cache_dir=args.transformer_cache,
        max_seq_len=args.max_seq_len,
        do_padding=args.do_padding,
        doc_stride=args.doc_stride,
        max_query_len=args.max_query_len,
    )
    folder = args.root_dir / folder_name(args.model)
    lost: list[str] = []
    with chunk_mapper(tokenizer, args.workers, [split.task for split in files]) as chunk_map:
        for split in files:
            target = folder / f"{split.path.stem}.json"
            losses = Losses()
            with progress(name=target.name, unit="line") as bar:
                if not bar.disable:
                    bar.total = sum(1 for _ in read_canonical_tsv(split.path, split.task.task_def.data_type))
                count = write_lines(target, convert_split(split, chunk_map, bar.update, losses))
            print(f"{target}: {count} examples")
            lost += loss_lines(split.path, losses, args.max_seq_len)
    for line in [*(tables.summary() if tables else []), *lost]:
        print(line)
    if tables is not None:
        print(tables.next_command(folder))
