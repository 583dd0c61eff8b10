"""GLUE's public files → canonical TSV, `ROOT/canonical_data/TASK_SPLIT.tsv`.

Read from folders in GLUE's own layout below the data folder (`CoLA`, `MNLI`, `SST-2`, …; SNLI and SciTail in their
public layouts), or from the hub. CoLA is also read from its public raw folder (`in_domain_train.tsv`,
`in_domain_dev.tsv`, `out_of_domain_dev.tsv`): `cola_dev` is then both development sets, which is GLUE's, and the data
sets `cola_indomain` and `cola_outofdomain` hold one each. An example without a gold label, as in GLUE's test files, has
an empty label field.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import DataError, FlagError, first_line, run_command_line
from experiments.canonical import (
    NO_LABEL,
    Example,
    Reading,
    convert_tasks,
    prepro_args,
    prepro_parser,
    read_table,
    write_canonical,
)
from experiments.glue.glue_layouts import HUB_SOURCES, LAYOUTS, HubSource, Layout, Part

UNDECIDED = "-"


def read_part(folder: Path, layout: Layout, part: Part) -> Reading:
    """The examples of one split in local files, read when they are iterated over.

    Raises:
        DataError: while reading: a line or a header has the wrong columns.
    """
    reading = Reading()
    reading.examples = _read_part(folder, layout, part, reading)
    return reading


def _read_part(folder: Path, layout: Layout, part: Part, reading: Reading) -> Iterator[Example]:
    count = 0
    expected = layout.texts if part.split.endswith("test") else (*layout.texts, layout.label)
    malformed = partial(reading.leave_out, "with the wrong number of columns") if layout.skip_malformed else None
    for name in part.files:
        for number, fields in read_table(folder / name, part.columns, expected, malformed):
            label = fields.get(layout.label, NO_LABEL)
            if layout.skip_undecided and label == UNDECIDED:
                reading.leave_out("without an agreed label")
                continue
            if not label and layout.label in fields and not part.split.endswith("test"):
                raise DataError(f"the {layout.label} is empty; only a test set may lack labels", folder / name, number)
            yield fields.get("index", str(count)), label, *(fields[column] for column in layout.texts)
            count += 1


def find_layout(task: str, data_dir: Path) -> tuple[Path, Layout] | None:
    """The folder and layout of a task's files; None if there are none."""
    for layout in LAYOUTS[task]:
        for name in layout.folders:
            folder = data_dir / name
            if any((folder / file).is_file() for part in layout.parts for file in part.files):
                return folder, layout
    return None


def convert_local(task: str, data_dir: Path, target_dir: Path) -> bool:
    """Convert a task's local files; returns whether there are any."""
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
        DataError: it cannot be downloaded.
    """
    source = HUB_SOURCES[task]
    try:
        dataset = load_dataset(source.path, source.config)
    except Exception as error:  # the library raises many kinds if the hub cannot be reached
        reason = first_line(error)
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


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the tasks named by --tasks, or all that have files."""
    parser = prepro_parser("GLUE → canonical TSV", LAYOUTS)
    parser.add_argument(
        "--old_glue", action="store_true", help="an error: QNLI as ranking, of GLUE's first release, is not supported"
    )
    parser.add_argument("--from_hub", action="store_true", help="download the tasks from the Hugging Face hub")
    args = prepro_args(parser, argv, LAYOUTS)
    if args.old_glue:
        raise FlagError("--old_glue: QNLI as ranking, of GLUE's first release, is not made here; leave it out")
    if args.from_hub:
        load_dataset = import_load_dataset()
        for task in args.tasks or LAYOUTS:
            convert_hub(task, load_dataset, args.target_dir)
        return
    folders = {task: _folders(task) for task in LAYOUTS}
    convert = partial(convert_local, data_dir=args.data_dir, target_dir=args.target_dir)
    convert_tasks(args, folders, convert, advice=", or fetch them with --from_hub")


def _folders(task: str) -> list[str]:
    return list(dict.fromkeys(folder for layout in LAYOUTS[task] for folder in layout.folders if folder != "."))


if __name__ == "__main__":
    run_command_line(main)
