"""Run a notebook, store its outputs in it and write its figures for the docs.

python -m docs_build.notebook
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import runpy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import pyplot

from data_utils.errors import OneLineParser, run_command_line
from data_utils.storage.files import atomic_write
from experiments.sift.reporting.figures import SETTINGS, save_pictures

NOTEBOOK = Path("examples/scale_invariance.ipynb")
FIGURES = Path("docs/images")
PARAMETERS = "parameters"  # tag of the cell whose values a caller may set
END_OF_CELL = "_end_of_cell"  # what the script calls after each cell
DOTS = 100  # an inch of a stored picture


class Run(NamedTuple):
    """What a notebook has done.

    Attributes:
        names: its variables.
        outputs: of each code cell, as the notebook's file holds them: printed text, then new figures.
    """

    names: dict[str, Any]
    outputs: list[list[dict[str, Any]]]


def run(notebook: Path, settings: Mapping[str, object] | None = None) -> Run:
    """Run a notebook's code cells in this process. Its figures stay open (`pyplot.get_figlabels`).

    Args:
        notebook: its file.
        settings: values that replace those of the cell with the tag `parameters`.
    """
    matplotlib.use("Agg")
    pyplot.close("all")
    printed = io.StringIO()
    outputs: list[list[dict[str, Any]]] = []
    seen: list[str] = []

    def end_of_cell() -> None:
        figures = [label for label in pyplot.get_figlabels() if label not in seen]
        seen.extend(figures)
        outputs.append([*_text(printed.getvalue()), *map(_picture, figures)])
        printed.seek(0)
        printed.truncate()

    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(SETTINGS), redirect_stdout(printed):
        path = Path(folder) / f"{notebook.stem}.py"
        path.write_text(_script(notebook, settings or {}), encoding="utf-8")
        names = runpy.run_path(str(path), {END_OF_CELL: end_of_cell})
    return Run(names, outputs)


def _script(notebook: Path, settings: Mapping[str, object]) -> str:
    """The code cells in their order, each with a call at its end; the settings follow the cell of parameters."""
    parts = []
    for cell in code_cells(notebook):
        parts.append("".join(cell["source"]))
        if PARAMETERS in cell["metadata"].get("tags", ()):
            parts += [f"{name} = {value!r}" for name, value in settings.items()]
        parts.append(f"{END_OF_CELL}()")
    return "\n\n".join(parts) + "\n"


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def store(notebook: Path, outputs: Sequence[list[dict[str, Any]]]) -> None:
    """Write the outputs of the code cells into the notebook's file."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, (cell, found) in enumerate(zip(code, outputs, strict=True), start=1):
        cell |= {"execution_count": number, "outputs": found}
    with atomic_write(notebook) as file:
        file.write(f"{json.dumps(content, ensure_ascii=False, indent=1)}\n")


def _text(printed: str) -> list[dict[str, Any]]:
    lines = printed.splitlines(keepends=True)
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []


def _picture(label: str) -> dict[str, Any]:
    file = io.BytesIO()
    pyplot.figure(label).savefig(file, format="png", dpi=DOTS, metadata={"Software": None})
    picture = base64.b64encode(file.getvalue()).decode()
    return {"data": {"image/png": picture}, "metadata": {}, "output_type": "display_data"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebook", type=Path, default=NOTEBOOK, help="notebook to run (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=FIGURES, help="folder of the figures (default: %(default)s)")
    arguments = parser.parse_args(argv)
    store(arguments.notebook, run(arguments.notebook).outputs)
    for label in pyplot.get_figlabels():
        save_pictures(pyplot.figure(label), arguments.folder, label)


if __name__ == "__main__":
    run_command_line(main)
