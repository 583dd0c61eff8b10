"""GLUE as its publishers hand it out → canonical TSV, `ROOT/canonical_data/TASK_SPLIT.tsv`.

Read from folders in GLUE's own layout below the data folder (`CoLA`, `MNLI`, `SST-2`, …; SNLI and SciTail in their
public layouts), or from the hub. CoLA is also read from its public raw folder (`in_domain_train.tsv`,
`in_domain_dev.tsv`, `out_of_domain_dev.tsv`): `cola_dev` is then both development sets, which is GLUE's, and the data
sets `cola_indomain` and `cola_outofdomain` hold one each. An example without a gold label, as in GLUE's test files, has
an empty label field.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import DataError, FlagError, nearest, run_command_line
from data_utils.files import atomic_write
from data_utils.readers import read_lines, split_columns
from experiments.glue.glue_layouts import HUB_SOURCES, LAYOUTS, HubSource, Layout, Part

UNDECIDED = "-"
NO_LABEL = ""

Example = tuple[str, ...]  # uid, label, premise and, in a pair task, hypothesis


@dataclass
class Reading:
    """Examples on their way from a source, and how many were left out so far, by reason."""

    examples: Iterator[Example] = field(default_factory=lambda: iter(()))
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def read_part(folder: Path, layout: Layout, part: Part) -> Reading:
    """The examples of one split in local files.

    Raises:
        DataError: while they are read: a line or a header with the wrong columns.
    """
    reading = Reading()
    reading.examples = _read_part(folder, layout, part, reading)
    return reading


def _read_part(folder: Path, layout: Layout, part: Part, reading: Reading) -> Iterator[Example]:
    count = 0
    for name in part.files:
        for number, fields in _read_table(folder / name, layout, part, reading):
            label = fields.get(layout.label, NO_LABEL)
            if layout.skip_undecided and label == UNDECIDED:
                reading.leave_out("without an agreed label")
                continue
            if not label and layout.label in fields and not part.split.endswith("test"):
                raise DataError(f"the {layout.label} is empty; only a test set may lack labels", folder / name, number)
            yield fields.get("index", str(count)), label, *(fields[column] for column in layout.texts)
            count += 1


def _read_table(path: Path, layout: Layout, part: Part, reading: Reading) -> Iterator[tuple[int, dict[str, str]]]:
    columns = part.columns
    for number, line in read_lines(path):
        if columns is None:
            columns = tuple(line.split("\t"))
            expected = layout.texts if part.split.endswith("test") else (*layout.texts, layout.label)
            missing = [column for column in expected if column not in columns]
            if missing:
                message = f"expected a header with {', '.join(missing)}, found {', '.join(columns)}"
                raise DataError(message, path, number)
            continue
        if layout.skip_malformed and line.count("\t") + 1 != len(columns):
            reading.leave_out("with the wrong number of columns")
            continue
        yield number, split_columns(line, columns, path, number)


def find_layout(task: str, data_dir: Path) -> tuple[Path, Layout] | None:
    """The folder and the layout in which a task is there; None where it is not."""
    for layout in LAYOUTS[task]:
        for name in layout.folders:
            folder = data_dir / name
            if any((folder / file).is_file() for part in layout.parts for file in part.files):
                return folder, layout
    return None


def write_canonical(path: Path, reading: Reading) -> None:
    """Write the examples, and print in a line how many there were and what was left out.

    Raises:
        DataError: there was none, or the source is malformed.
    """
    count = 0
    with atomic_write(path) as file:
        for example in reading.examples:
            # a tab or a line break inside a text would be one of the format's own
            file.write("\t".join(text.translate(SEPARATORS) for text in example) + "\n")
            count += 1
        if not count:
            raise DataError("found no examples; at least one is needed", path)
    notes = "".join(f"; {number} left out, {reason}" for reason, number in reading.left_out.items())
    print(f"{path}: {count} examples{notes}")


SEPARATORS = str.maketrans("\t\n\r", "   ")


def convert_local(task: str, data_dir: Path, target_dir: Path) -> bool:
    """Convert a task's local files; False where there are none."""
    found = find_layout(task, data_dir)
    if found is None:
        return False
    folder, layout = found
    for part in layout.parts:
        missing = [name for name in part.files if not (folder / name).is_file()]
        if missing:
            print(f"skipped {task}_{part.split}: {folder} has no {', '.join(missing)}")
            continue
        write_canonical(target_dir / f"{task}_{part.split}.tsv", read_part(folder, layout, part))
    return True


def convert_hub(task: str, load_dataset: Callable[..., Any], target_dir: Path) -> None:
    """Convert a task from the hub.

    Raises:
        DataError: it cannot be fetched.
    """
    source = HUB_SOURCES[task]
    try:
        dataset = load_dataset(source.path, source.config)
    except Exception as error:  # the library raises many kinds for a hub that is not reached
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{task}: {source.path} cannot be fetched from the hub ({reason})") from error
    for split, hub_split in source.splits.items():
        reading = Reading()
        reading.examples = _read_hub(dataset[hub_split], source, split, reading)
        write_canonical(target_dir / f"{task}_{split}.tsv", reading)


def _read_hub(rows: Any, source: HubSource, split: str, reading: Reading) -> Iterator[Example]:
    names = getattr(rows.features["label"], "names", None)
    for count, row in enumerate(rows):
        label = row["label"]
        if label == -1:
            if not split.endswith("test"):
                reading.leave_out("without an agreed label")
                continue
            label = NO_LABEL
        elif source.text_labels and names is not None:
            label = names[label]
        yield str(row.get("idx", count)), str(label), *(row[column] for column in source.texts)


def import_load_dataset() -> Callable[..., Any]:
    """`datasets.load_dataset`.

    Raises:
        FlagError: the library is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise FlagError("--from_hub needs the library datasets; get it with: pip install datasets") from error
    return load_dataset


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; `tasks` is a tuple of names, empty where none was named."""
    parser = argparse.ArgumentParser(description="GLUE → canonical TSV")
    parser.add_argument("--root_dir", type=Path, default=Path("data"), help="TSVs go to its folder canonical_data")
    parser.add_argument("--data_dir", type=Path, help="folder of GLUE's folders; default: --root_dir")
    parser.add_argument("--tasks", default="", help=f"some of {','.join(LAYOUTS)}; default: all that are there")
    parser.add_argument("--from_hub", action="store_true", help="fetch the tasks from the Hugging Face hub")
    args = parser.parse_args(argv)
    args.data_dir = args.data_dir or args.root_dir
    args.tasks = tuple(task for task in args.tasks.split(",") if task)
    for task in args.tasks:
        if task not in LAYOUTS:
            raise FlagError(f"--tasks: found {task!r}{nearest(task, LAYOUTS)}, accepted: {', '.join(LAYOUTS)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the tasks that are named, or all that are there."""
    args = parse_args(argv)
    target_dir = args.root_dir / "canonical_data"
    tasks: Iterable[str] = args.tasks or LAYOUTS
    if args.from_hub:
        load_dataset = import_load_dataset()
        for task in tasks:
            convert_hub(task, load_dataset, target_dir)
        return
    absent = [task for task in tasks if not convert_local(task, args.data_dir, target_dir)]
    folders = "; ".join(f"{task}: {' or '.join(_folders(task))}" for task in absent)
    if absent and (args.tasks or len(absent) == len(LAYOUTS)):
        raise DataError(
            f"found no files of {folders} (GLUE's own folders); put them there, name their folder with --data_dir, "
            "or fetch them with --from_hub",
            args.data_dir,
        )
    if absent:
        print(f"skipped, not in {args.data_dir}: {folders}")


def _folders(task: str) -> list[str]:
    return list(dict.fromkeys(folder for layout in LAYOUTS[task] for folder in layout.folders if folder != "."))


if __name__ == "__main__":
    run_command_line(main)
