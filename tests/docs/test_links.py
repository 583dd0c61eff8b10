"""Links within the README, the docs and the pages beside them lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from docs_build.slugs import slug
from tests.docs.pages import OTHERS, PAGES, ROOT, headings, links

DOCS = ROOT / "docs"
ELSEWHERE = re.compile(r"https?://|mailto:")


def broken(page: Path, target: str) -> str | None:
    """What is wrong with a link; None where nothing is, or where it leads to another host."""
    if ELSEWHERE.match(target):
        return None
    path, _, anchor = unquote(target).partition("#")
    goal = (page.parent / path).resolve() if path else page
    if not goal.exists():
        return f"{target}: no such file"
    if page.parent == DOCS and not goal.is_relative_to(DOCS):
        return f"{target}: the site holds docs/ alone"
    if anchor and anchor not in [slug(heading) for heading in headings(goal)]:
        return f"{target}: no such heading"
    return None


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES + OTHERS])
def test_links_lead_somewhere(page: Path) -> None:
    assert [wrong for target in links(page) if (wrong := broken(page, target))] == []


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_an_anchor_stands_for_one_heading(page: Path) -> None:
    """Of two equal ones GitHub and the site number the second in different ways."""
    found = [slug(heading) for heading in headings(page)]
    assert len(found) == len(set(found))


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `--flag`\n\n[a](page.md#one---flag) [b](#two) [c](none.md) [d](https://example.org/none)\n")
    assert [broken(page, target) for target in links(page)] == [
        None, "#two: no such heading", "none.md: no such file", None,
    ]  # fmt: skip
    assert broken(DOCS / "tools.md", "../README.md") == "../README.md: the site holds docs/ alone"


def test_every_page_has_its_place_in_the_navigation() -> None:
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        assert isinstance(entry, dict | list)
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(nav)) == sorted(path.name for path in DOCS.glob("*.md"))
