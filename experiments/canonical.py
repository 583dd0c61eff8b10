"""What the prepro commands share: from files as their publishers hand them out to `ROOT/canonical_data/TASK_SPLIT.tsv`.

An example without a gold label, as in many test files, has an empty label field.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_utils.errors import DataError, FlagError, OneLineParser, at_least, nearest
from data_utils.readers import SEPARATORS, split_columns
from data_utils.storage.files import atomic_write
from data_utils.storage.text_files import MARK, read_json_lines, read_lines

NO_LABEL = ""

Example = tuple[str, ...]  # the fields of a canonical TSV's line
Row = Mapping[str, Any]  # what a publisher's file holds of an example, by name


@dataclass
class Reading:
    """Examples on their way from a source, and how many were left out or changed so far, by reason."""

    examples: Iterator[Example] = field(default_factory=lambda: iter(()))
    left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def note(self, what: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1


def write_canonical(path: Path, reading: Reading) -> None:
    """Write the examples, and print in a line how many there were and what was left out.

    Raises:
        DataError: there was none, or the source is malformed.
    """
    count = 0
    with atomic_write(path) as file:
        for example in reading.examples:
            # a tab or a line break inside a text would be one of the format's own
            line = "\t".join(text.translate(SEPARATORS) for text in example)
            file.write((line if count else line.lstrip(MARK)) + "\n")
            count += 1
        if not count:
            raise DataError("found no examples; at least one is needed", path)
    notes = "".join(f"; {number} left out, {reason}" for reason, number in reading.left_out.items())
    notes += "".join(f"; {number} {what}" for what, number in reading.notes.items())
    print(f"{path}: {count} examples{notes}")


def list_field(texts: Iterable[str]) -> str:
    """A list of texts as one field, which `prepro_std.py` reads as data."""
    return json.dumps(list(texts), ensure_ascii=False)


def first_of(row: Row, *names: str) -> Any:
    """What a row holds under the first of these names that it has.

    Raises:
        KeyError: it has none.
    """
    for name in names:
        if name in row:
            return row[name]
    raise KeyError(names[0])


# files


def read_table(
    path: Path,
    columns: Sequence[str] | None = None,
    expected: Sequence[str] = (),
    malformed: Callable[[], None] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a tab-separated file with their line numbers.

    Args:
        columns: their names where the file has no header line; None where the first line names them.
        expected: names that a header has to have.
        malformed: called for a line with another number of columns, which is then left out; None makes it an error.

    Raises:
        DataError: a line or a header with the wrong columns.
    """
    for number, line in read_lines(path):
        if columns is None:
            columns = tuple(line.split("\t"))
            twice = [column for column in columns if columns.count(column) > 1]
            if twice:
                raise DataError(f"found the column {twice[0]!r} {len(twice)} times; accepted: once", path, number)
            missing = [column for column in expected if column not in columns]
            if missing:
                message = f"expected a header with {', '.join(missing)}, found {', '.join(columns)}"
                raise DataError(message, path, number)
        elif malformed is not None and line.count("\t") + 1 != len(columns):
            malformed()
        else:
            yield number, split_columns(line, columns, path, number)


def read_examples(path: Path, examples_of: Callable[[Row], Iterable[Example]]) -> Iterator[Example]:
    """The examples in a file of JSON lines (`.jsonl`) or in a table with a header.

    Args:
        examples_of: those of one row.

    Raises:
        DataError: a row that is not as its publisher's are; names file and line.
    """
    for number, row in read_json_lines(path) if path.suffix == ".jsonl" else read_table(path):
        try:
            for example in examples_of(row):
                yield checked_example(example)
        except KeyError as error:
            raise DataError(f"found no {error}; the row has {', '.join(row)}", path, number) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"cannot be read as it is published: {error}", path, number) from error


def checked_example(example: Example) -> Example:
    """The example, its fields being texts.

    Raises:
        TypeError: a field is none.
    """
    if not all(isinstance(part, str) for part in example):
        raise TypeError(f"found {example} where texts are expected")
    return example


def first_file(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these files that is there."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


# command line


UNUSED_SEED = "no use: nothing is drawn here"


def prepro_parser(description: str, tasks: Iterable[str] = (), seed: str = UNUSED_SEED) -> argparse.ArgumentParser:
    """A parser with the flags of every prepro command; `--tasks` where there are several; `seed`: what it is of."""
    parser = OneLineParser(description=description)
    parser.add_argument("--seed", type=at_least(0), default=13, help=seed)
    parser.add_argument("--root_dir", type=Path, default=Path("data"), help="TSVs go to its folder canonical_data")
    parser.add_argument("--data_dir", type=Path, help="folder of the published folders; default: --root_dir")
    if tasks:
        parser.add_argument("--tasks", default="", help=f"some of {','.join(tasks)}; default: all that are there")
    return parser


def prepro_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, known: Iterable[str] = ()
) -> argparse.Namespace:
    """The flags; `tasks` is a tuple of names, empty where none was named; `target_dir` the folder of the TSVs.

    Raises:
        FlagError: an unknown task.
    """
    args = parser.parse_args(argv)
    args.data_dir = args.data_dir or args.root_dir
    args.target_dir = args.root_dir / "canonical_data"
    args.tasks = tuple(task for task in getattr(args, "tasks", "").split(",") if task)
    accepted = list(known)
    for task in args.tasks:
        if task not in accepted:
            raise FlagError(f"--tasks: found {task!r}{nearest(task, accepted)}, accepted: {', '.join(accepted)}")
    return args


def convert_tasks(
    args: argparse.Namespace, folders: Mapping[str, Sequence[str]], convert: Callable[[str], bool], advice: str = ""
) -> None:
    """Convert the tasks that are named, or all that are there.

    Args:
        folders: where each task is looked for, for the message.
        convert: converts a task; false where its files are not there.
        advice: what else may be done about a task that is not there.

    Raises:
        DataError: a task that is named is not there, or none is.
    """
    absent = [task for task in args.tasks or folders if not convert(task)]
    places = "; ".join(f"{task}: {' or '.join(folders[task])}" for task in absent)
    if absent and (args.tasks or len(absent) == len(folders)):
        raise DataError(
            f"found no files of {places}; put them there or name their folder with --data_dir{advice}", args.data_dir
        )
    if absent:
        print(f"skipped, not in {args.data_dir}: {places}")
