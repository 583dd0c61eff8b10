"""Tokenize canonical files: `ROOT/TASK_SPLIT.tsv` (of data_format MLM `.txt`) → `ROOT/MODEL/TASK_SPLIT.json`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data_utils.errors import DataError, FlagError, run_command_line
from data_utils.prepro import (
    Split,
    TokenizerSpec,
    chunk_mapper,
    convert_split,
    find_splits,
    is_train_split,
    prepro_command,
)
from data_utils.pretrained import folder_name
from data_utils.readers import canonical_suffix, write_lines
from experiments.exp_def import TaskDefs
from tasks import get_task


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; names and defaults are MT-DNN's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bert-base-uncased", help="encoder: hub name, local folder, embedded-minilm")
    parser.add_argument("--do_padding", action="store_true", help="pad every example to --max_seq_len")
    parser.add_argument("--root_dir", type=Path, default=Path("data/canonical_data"), help="folder of the TSVs")
    parser.add_argument("--task_def", type=Path, default=Path("experiments/glue/glue_task_def.yml"), help="the YAML")
    parser.add_argument("--do_lower", action="store_true", help="lower-case, where the tokenizer leaves the choice")
    parser.add_argument("--transformer_cache", default=".cache", help="folder for downloads")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--max_seq_len", type=int, default=512, help="longer examples are cut to so many tokens")
    parser.add_argument("--doc_stride", type=int, default=128, help="spans: tokens that neighbouring windows share")
    parser.add_argument("--max_query_len", type=int, default=64, help="spans: questions are cut to so many tokens")
    args = parser.parse_args(argv)
    for name, least in (("doc_stride", 0), ("max_query_len", 1)):
        if getattr(args, name) < least:
            raise FlagError(f"--{name}: found {getattr(args, name)}, accepted: a whole number from {least}")
    if args.workers < 1:
        raise FlagError(f"--workers: found {args.workers}, accepted: a whole number from 1")
    return args


def find_files(args: argparse.Namespace) -> list[Split]:
    """The TSVs to convert; says in a line what the YAML names and the folder lacks.

    Raises:
        UserError: there is none, or a task is of a kind that is not there yet.
    """
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
        task.check_text(where, args.do_padding)
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
    files = find_files(args)
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
    with chunk_mapper(tokenizer, args.workers) as chunk_map:
        for split in files:
            target = folder / f"{split.path.stem}.json"
            lines = convert_split(split, chunk_map)
            # no bar where nobody watches, as in a log file
            shown = tqdm(lines, desc=target.name, unit=" examples", disable=None, leave=False)
            count = write_lines(target, shown)
            print(f"{target}: {count} examples")


if __name__ == "__main__":
    run_command_line(main)
