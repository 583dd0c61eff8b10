"""The pages as a reader has them: their code blocks, links and headings.

A comment before a block, which readers do not see, says how the block is tested:

    <!-- parse: WHY -->     its commands are parsed, not run: they need a hub, a GPU, hours, data of others
    <!-- file: NAME -->     it is written to that file, for the blocks that follow
    <!-- output -->         it is what the block before prints
    <!-- by: TEST FILE -->  that test runs it

Without one, shell and Python are run in the order of the page, in one folder, and `text` is no code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "experiments").rglob("*.md"))]
MARK = re.compile(r"<!-- (?:(parse|file|by): (.+?)|(output)) -->")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        place: page and line.
        language: behind the fence; of an indented block None.
        text: what stands in it.
        kind: how it is tested: `run`, `parse`, `file`, `output`, `by` or `text`; None: nothing says how.
        detail: what its mark says.
    """

    place: str
    language: str | None
    text: str
    kind: str | None
    detail: str = ""


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a page in order."""
    before = None
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            place = f"{page.relative_to(ROOT)}:{token.map[0] + 1}"
            language = token.info if token.type == "fence" else None
            comment = before.content.strip() if before is not None and before.type == "html_block" else ""
            yield Block(place, language, token.content, *_tested(language, comment))
        before = token


def _tested(language: str | None, comment: str) -> tuple[str | None, str]:
    """How a block is tested, and what its mark says beside that."""
    if comment.startswith("<!--"):
        found = MARK.fullmatch(comment)
        return (found[1] or found[3], found[2] or "") if found else (None, comment)
    kinds = {"bash": "run", "python": "run", "text": "text"}
    return kinds.get(language or ""), ""


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links and pictures."""
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") if child.type == "link_open" else child.attrGet("src")
            if target is not None:
                yield str(target)


def headings(page: Path) -> Iterator[str]:
    """The texts of a page's headings."""
    found = tokens(page)
    for token, inline in pairwise(found):
        if token.type == "heading_open":
            yield "".join(child.content for child in inline.children or ())
