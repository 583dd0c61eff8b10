"""Run a notebook's code as a script and write its figures for the docs.

python -m docs_build.notebook
"""

from __future__ import annotations

import argparse
import json
import runpy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from data_utils.errors import OneLineParser, run_command_line
from data_utils.storage.files import atomic_write
from experiments.sift.reporting.figures import SETTINGS

NOTEBOOK = Path("examples/scale_invariance.ipynb")
FIGURES = Path("docs/images")
PARAMETERS = "parameters"  # tag of the cell whose values a caller may set


def script(notebook: Path, settings: Mapping[str, object]) -> str:
    """The code cells in order as a script; after the cell with the tag `parameters`, settings override its values."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            parts.append("".join(cell["source"]))
            if PARAMETERS in cell["metadata"].get("tags", ()):
                parts += [f"{name} = {value!r}" for name, value in settings.items()]
    return "\n\n".join(parts) + "\n"


def run(notebook: Path, settings: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Run a notebook's code in this process; returns its variables. Figures stay open (`pyplot.get_figlabels`)."""
    matplotlib.use("Agg")
    pyplot.close("all")
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(SETTINGS):
        path = Path(folder) / f"{notebook.stem}.py"
        path.write_text(script(notebook, settings or {}), encoding="utf-8")
        return runpy.run_path(str(path))


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebook", type=Path, default=NOTEBOOK, help="notebook to run (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=FIGURES, help="folder of the figures (default: %(default)s)")
    arguments = parser.parse_args(argv)
    run(arguments.notebook)
    with matplotlib.rc_context(SETTINGS):
        for label in pyplot.get_figlabels():
            with atomic_write(arguments.folder / f"{label}.svg") as file:
                pyplot.figure(label).savefig(file, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    run_command_line(main)
