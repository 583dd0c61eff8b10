"""`prepro_std.py --from`: its flags, and what it does before and after the texts are tokenized."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

from data_utils.errors import FlagError
from data_utils.prepro import UNLABELED, Split, is_train_split
from data_utils.tables.sources import find_splits
from data_utils.tables.table import named_columns
from experiments.preparation.own_definition import write_definition
from experiments.preparation.own_labels import SETTINGS
from experiments.preparation.own_rows import ColumnFlags
from experiments.preparation.own_summary import task_summary, write_config
from experiments.preparation.own_tables import CHOICES, Choices, OwnTask


def add_table_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `--from`, as a group of their own."""
    own = parser.add_argument_group("tables of your own")
    own.add_argument(
        "--from", dest="sources", nargs="+", default=[], metavar="TABLE",
        help="a .csv, .tsv, .jsonl, .json or .conll file (also .gz), .parquet or .xlsx with named columns, a folder "
        "with train.csv, perhaps dev.csv and test.csv, a folder of datasets' save_to_disk, or a data set's name (NAME "
        "or NAME:CONFIGURATION); each is a task, but files such as own_train.csv and own_dev.csv are splits of one",
    )  # fmt: skip
    own.add_argument(
        "--text",
        default="text",
        help="its column, or two of a pair of texts with a comma between them; quotes hold a name with a comma",
    )
    own.add_argument(
        "--label",
        default="label",
        help="its column, or several with commas between them: a label each, 1 in rows that have it, else 0",
    )
    own.add_argument(
        "--sentence",
        help="of a table with a word a row: its column that says to which sentence a word belongs; --text is that of "
        "the words, --label that of their labels",
    )
    own.add_argument("--label_separator", help="what divides several labels in the one label column, such as ';'")
    own.add_argument(
        "--columns", help="names for a .csv, .tsv or .txt whose first line is a row already, with commas between them"
    )
    own.add_argument("--id", help="its column (default: rows are numbered)")
    own.add_argument("--encoding", help="of text files without a mark of it (default: utf-8), such as windows-1252")
    own.add_argument("--task_name", help="of the task (default: the file's, folder's or data set's name)")
    own.add_argument(
        "--task_type", choices=list(SETTINGS),
        help="(default: SeqenceLabeling for lists of words, MultiLabel for several labels, Regression for numbers that "
        "are not all whole)",
    )  # fmt: skip
    own.add_argument(
        "--split", choices=["train", "dev", "test", UNLABELED],
        help="what a single table is (default: train); others than train need the task's definition",
    )  # fmt: skip
    own.add_argument(
        "--dev_share", type=float, default=0.1, help="held out for development where there is no such table"
    )
    own.add_argument(
        "--missing_labels",
        choices=CHOICES["missing_labels"],
        default="stop",
        help="rows without a label, or with a text that stands for none, such as - or nan: leave them out, or keep "
        "such a text as a class",
    )
    own.add_argument(
        "--similar_labels", choices=CHOICES["similar_labels"], default="stop",
        help="labels such as Bad and bad, 1 and 1.0: take the most frequent one for all, or keep each as a class",
    )  # fmt: skip
    own.add_argument(
        "--shared_texts", choices=CHOICES["shared_texts"], default="stop",
        help="training texts that the development or test set has too: leave them out of training, or keep them",
    )  # fmt: skip


def check_table_flags(args: argparse.Namespace) -> None:
    """See that the flags of `--from` can be used.

    Raises:
        FlagError: they do not.
    """
    if not 0 < args.dev_share < 1:
        raise FlagError(f"--dev_share: found {args.dev_share:g}, accepted: a number above 0 and below 1")
    tables = 1 if find_splits(args.sources) is not None else len(args.sources)
    if args.task_name is not None and (tables != 1 or re.search(r"[_/\s]", args.task_name)):
        raise FlagError(
            f"--task_name: found {args.task_name!r}, accepted: one table's name, without '_', '/' and spaces"
        )


class OwnTables:
    """The tasks of `--from`, their canonical TSVs and definition written.

    Args:
        args: of the command line, checked.

    Attributes:
        splits: the TSVs to tokenize.

    Raises:
        UserError: a table that cannot be used; nothing is written before all are read.
    """

    def __init__(self, args: argparse.Namespace):
        self._args = args
        columns = ColumnFlags(args.text, args.label, args.id, args.label_separator, args.sentence)
        choices = Choices(args.missing_labels, args.similar_labels, args.shared_texts)
        header = None if args.columns is None else named_columns(args.columns, (), "columns")
        splits = find_splits(args.sources)
        sources: list[Any] = args.sources if splits is None else [splits]
        if splits is not None:
            print("one task of several files: " + ", ".join(f"{own} is {file}" for own, file in splits.items()))
        self._tasks = [
            OwnTask(
                source, columns, args.task_name, args.task_type, args.dev_share, args.transformer_cache, choices,
                args.encoding, header, args.split, args.task_def,
            )
            for source in sources
        ]  # fmt: skip
        names = [task.name for task in self._tasks]
        if len(set(names)) < len(names):
            raise FlagError(
                f"--from: found tables of one name ({', '.join(names)}), accepted: a name each, or --task_name"
            )
        # What these import takes seconds: a mistake in a table is reported before.
        from mt_dnn.export.export import head_activation
        from tasks import get_task
        from tasks.definition import TaskDefs

        self._actf = head_activation(args.model, args.transformer_cache)
        write_definition(args.task_def, [task for task in self._tasks if task.is_new], self._actf)
        task_defs = TaskDefs(args.task_def)
        self.splits = [
            Split(path, get_task(task_defs.get_task_def(task.name)), is_train_split(split))
            for task in self._tasks
            for split, path in task.write(args.root_dir).items()
        ]

    def summary(self) -> list[str]:
        """What was read, a line each."""
        return [line for task in self._tasks for line in task_summary(task)]

    def next_command(self, folder: Path) -> str:
        """Write the configuration of a training, and say how it is begun; without a training set, how texts are scored.

        Args:
            folder: of the token files.
        """
        args, new = self._args, [task for task in self._tasks if task.is_new]
        if not new:
            task = self._tasks[0]
            (split,) = task.splits
            scoring = (
                f"next: python predict.py --task_def {args.task_def} --task {task.name} --checkpoint CHECKPOINT "
                f"--prep_input {folder / f'{task.name}_{split}.json'} --score SCORES.json"
            )
            if not Path(args.sources[0]).is_file():  # predict.py takes no folders and names
                return scoring
            as_table = ["--from", args.sources[0], "--text", args.text]
            if args.columns is not None:
                as_table += ["--columns", args.columns]
            if args.sentence is not None:
                as_table += ["--sentence", args.sentence]
            if args.encoding is not None:
                as_table += ["--encoding", args.encoding]
            return (
                "for answers as a table, without this step: "
                f"python predict.py --model MODEL {shlex.join(as_table)} --output answers.csv\n{scoring}"
            )
        options: dict[str, object] = {"max_seq_len": args.max_seq_len, "transformer_cache": args.transformer_cache}
        if args.do_lower:
            options["do_lower_case"] = True
        from mt_dnn.export.export import PROBLEM_TYPES

        can_be_saved = self._actf is not None and all(task.task_type in PROBLEM_TYPES for task in new)
        path = write_config(folder, new, args.task_def, args.model, options, can_be_saved)
        return f"next: python train.py --config {path} --adv_train --adv_norm_level post_ln"
