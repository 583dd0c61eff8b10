"""Studies on a machine that you have for some minutes: run what fits, then pack all finished runs into one small file.

    python -m experiments.sift.time_limited --data_root DIR --output OUT --pieces DIR --minutes 9 --jobs 6

runs the five studies with MPNet one after the other, CoLA first, with the comparison's three methods, and writes
OUT/runs.tar.gz, compressed as `experiments.sift.archive` saves them. At home, unpack it and add each study in it to the
repository with `python -m experiments.sift.archive save STUDY`. `--pieces` first joins the encoder from pieces that
`python -m data_utils.mpnet --split DIR` wrote. Repeated on the same machine, the command continues where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from data_utils import mpnet
from data_utils.errors import OneLineParser, UserError, at_least, run_command_line
from data_utils.progress import print_line
from data_utils.storage.files import atomic_write, writable_folder
from experiments.sift.archive import save
from experiments.sift.reporting.results import STUDY_FILE
from experiments.sift.running.layout import BF16, FULL, TF32

NAMES = ("glue", "glue-rte", "glue-stsb", "hate-mpnet", "sentiment-mpnet")
STUDIES = tuple(Path(__file__).with_name("studies") / f"{name}.yml" for name in NAMES)
METHODS = "plain,smart,sift"
PACKED = "runs.tar.gz"
STOP_SECONDS = 30  # from SIGTERM to SIGKILL


def run_until(command: Sequence[str], end: float) -> bool:
    """Run a command, and stop it when time is up.

    Args:
        end: as `time.monotonic` gives it, in seconds.

    Returns:
        whether the command ended by itself.

    Raises:
        UserError: it ended by itself with an error.
    """
    process = subprocess.Popen(command)
    try:
        code = process.wait(timeout=max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return False
    if code:
        raise UserError(f"{' '.join(command)}: ended with {code}")
    return True


def pack(results: Path, output: Path) -> Path:
    """Write the finished runs of all studies in `results` to `OUTPUT/runs.tar.gz`; returns its path."""
    archive = results / "archive"
    for study in sorted(results.glob(f"*/{STUDY_FILE}")):
        save(study.parent, archive)
    path = output / PACKED
    with atomic_write(path, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
        for content in sorted(archive.glob("*/**/*")):
            if content.is_file():
                tar.add(content, content.relative_to(archive))
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path, default=STUDIES, help=f"(default: {', '.join(NAMES)})")
    parser.add_argument("--data_root", required=True, help="folder of public data")
    parser.add_argument("--output", type=Path, required=True, help=f"folder that gets {PACKED}")
    parser.add_argument("--results", type=Path, default=Path("borrowed_results"), help="(default: %(default)s)")
    parser.add_argument("--pieces", type=Path, help="folder with the pieces of embedded-mpnet, to join first")
    parser.add_argument("--minutes", type=at_least(1), default=9, help="time limit (default: %(default)s)")
    parser.add_argument("--methods", default=METHODS, help="comma-separated (default: %(default)s)")
    parser.add_argument("--precision", choices=(FULL, TF32, BF16), default=TF32, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=at_least(1), default=6, help="runs at a time (default: %(default)s)")
    arguments = parser.parse_args(argv)
    end = time.monotonic() + 60 * arguments.minutes
    results, output = writable_folder(arguments.results), writable_folder(arguments.output)
    try:
        if arguments.pieces is not None:
            mpnet.main(["--pieces", str(arguments.pieces)])
        for study in arguments.studies:
            options = {
                "data_root": arguments.data_root,
                "canonical_root": results / "data",
                "results": results,
                "methods": arguments.methods,
                "precision": arguments.precision,
                "jobs": arguments.jobs,
            }
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            if not run_until([sys.executable, "-m", "experiments.sift.matrix", str(study), *words], end):
                print_line(f"{study.name}: time is up")
                break
    finally:
        if any(results.glob(f"*/{STUDY_FILE}")):
            print(pack(results, output))


if __name__ == "__main__":
    run_command_line(main)
