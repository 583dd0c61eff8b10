"""Finished runs of a study, compressed, in the repository, so that anyone can recompute every table.

    python -m experiments.sift.archive save study_results/glue-embedded-mpnet
    python -m experiments.sift.archive restore glue-embedded-mpnet --results study_results
    python -m experiments.sift.report experiments/sift/runs --output DIR

`save` copies finished trials and runs to `experiments/sift/runs/STUDY` and rewrites `experiments/sift/runs/runs.csv`:
every measure of every run, recomputed from the probabilities. You can repeat it while a study runs. `restore` copies
the files back to where `experiments.sift.matrix` looks for finished runs, so that another machine continues the study.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_utils.errors import DataError, OneLineParser, run_command_line
from data_utils.storage.files import atomic_write, writable_folder
from experiments.sift.reporting.results import STUDY_FILE, TUNED_FILE, read_studies, read_study
from experiments.sift.reporting.run_table import run_table
from experiments.sift.running.run_files import PACKED, PLAIN, read_run_file, run_files, run_name, write_packed

ARCHIVE = Path(__file__).with_name("runs")
KINDS = ("tuning", "runs")
TABLE = "runs.csv"


def save(study: Path, archive: Path = ARCHIVE) -> list[str]:
    """Copy the finished runs of a study's folder to `archive/STUDY`, and rewrite the archive's table.

    Returns:
        the names of new and changed files.

    Raises:
        DataError: `study` is no study's folder, or a file in it cannot be used.
        WriteError: the archive cannot be written.
    """
    read_study(study)
    target, changed = archive / study.resolve().name, []
    for name in (STUDY_FILE, TUNED_FILE):
        if (study / name).is_file():
            _copy(study / name, target / name)
    for kind in KINDS:
        for path in run_files(study / kind):
            name = f"{kind}/{run_name(path)}{PACKED}"
            if write_packed(target / name, read_run_file(path)):
                changed.append(name)
    with atomic_write(archive / TABLE) as file:
        file.write(run_table(read_studies(archive)))
    return changed


def restore(name: str, results: Path, archive: Path = ARCHIVE) -> list[str]:
    """Copy a study's files from the archive to `results/NAME`; files that are there stay unchanged.

    Returns:
        the names of the copied files.

    Raises:
        DataError: the archive has no such study.
        WriteError: `results` cannot be written.
    """
    source, target = archive / name, writable_folder(results) / name
    if not (source / STUDY_FILE).is_file():
        known = ", ".join(sorted(path.parent.name for path in archive.glob(f"*/{STUDY_FILE}"))) or "none"
        raise DataError(f"found no study {name!r}, accepted: {known}", archive)
    copied = []
    for definition in (STUDY_FILE, TUNED_FILE):
        if (source / definition).is_file() and not (target / definition).exists():
            _copy(source / definition, target / definition)
    for kind in KINDS:
        for path in run_files(source / kind):
            path_there = target / kind / f"{run_name(path)}{PLAIN}"
            if not path_there.exists():
                with atomic_write(path_there) as file:
                    json.dump(read_run_file(path), file)
                copied.append(f"{kind}/{path_there.name}")
    return copied


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content, atomic_write(target, "wb") as file:
        shutil.copyfileobj(content, file)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    saving = commands.add_parser("save", help="copy finished runs to the archive")
    saving.add_argument("study", type=Path, help="a study's folder of results")
    restoring = commands.add_parser("restore", help="copy them back, to continue the study")
    restoring.add_argument("study", help="the name of a study's folder in the archive")
    restoring.add_argument("--results", type=Path, default=Path("study_results"), help="(default: %(default)s)")
    for command in (saving, restoring):
        command.add_argument("--archive", type=Path, default=ARCHIVE, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.command == "save":
        names = save(arguments.study, arguments.archive)
    else:
        names = restore(arguments.study, arguments.results, arguments.archive)
    print("\n".join([*names, f"{len(names)} files"]))


if __name__ == "__main__":
    run_command_line(main)
