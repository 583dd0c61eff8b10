"""A document of headings, text, tables and figures, as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.sift.reporting.tables import markdown_table

FIGURES_FOLDER = "figures"
LONG = 40  # characters; a column of text with a longer cell wraps its lines


@dataclass(frozen=True)
class Heading:
    """level: 1 for the document's title; anchor: unique id for links."""

    level: int
    text: str
    anchor: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Items:
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """left: how many columns at the left hold text; folded: the HTML page shows the table on a click."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    folded: bool = False


@dataclass(frozen=True)
class Panel:
    """name: unique file name without suffix; alt: alternative text; svg: the drawing."""

    name: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Figure:
    """Panels, side by side on a wide page."""

    caption: str
    panels: Sequence[Panel]


Block = Heading | Paragraph | Items | Table | Figure


def to_markdown(blocks: Sequence[Block]) -> str:
    """The document as Markdown; figures are links to `figures/NAME.svg`."""
    return "\n".join(_markdown(block) for block in blocks)


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_escaped(block.text)}\n"
        case Paragraph():
            return f"{_escaped(block.text)}\n"
        case Items():
            return "".join(f"- {_escaped(line)}\n" for line in block.lines)
        case Table():
            header, *rows = [[_escaped(cell) for cell in row] for row in (block.header, *block.rows)]
            return f"{_escaped(block.caption)}\n\n{markdown_table(header, rows, block.left)}"
        case Figure():
            images = "".join(f"![{_escaped(panel.alt)}]({FIGURES_FOLDER}/{panel.name}.svg)\n" for panel in block.panels)
            return f"{_escaped(block.caption)}\n\n{images}"


def _escaped(text: str) -> str:
    """The text escaped for Markdown; an underscore inside a word needs no escape."""
    text = re.sub(r"([\\`*\[\]|]|<(?=\S))", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1b1b1b; font: 1rem/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 78rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.75rem; line-height: 1.2; }
h2 { font-size: 1.4rem; margin: 3rem 0 .5rem; padding-top: .75rem; border-top: 2px solid #1b1b1b; }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, li { max-width: 50rem; overflow-wrap: anywhere; }
a { color: #0b4f8a; }
nav ul { padding-left: 1.2rem; }
nav li a { margin-right: .6rem; display: inline-block; }
.scroll { container-type: inline-size; overflow-x: auto; margin: 1rem 0; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid #0b4f8a; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; line-height: 1.35; }
caption, figcaption, summary { text-align: left; font-size: .9rem; color: #333; padding-bottom: .4rem; }
caption span { display: block; position: sticky; left: 0; width: max-content;
  max-width: min(50rem, 100cqw); }
summary { cursor: pointer; }
details caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top;
  white-space: nowrap; }
thead th { border-bottom: 1px solid #1b1b1b; vertical-align: bottom; white-space: normal; }
tbody tr:hover { background: #f3f6f9; }
th { font-weight: 600; }
tbody th { font-weight: normal; }
.text { text-align: left; }
tbody .long { white-space: normal; min-width: 14rem; max-width: 34rem; overflow-wrap: break-word; }
figure { margin: 1.5rem 0; }
.panels { display: flex; flex-wrap: wrap; gap: 1rem; }
.panels img { flex: 0 1 24rem; width: 24rem; min-width: 0; max-width: 100%; height: auto; }
"""


def to_html(blocks: Sequence[Block], title: str) -> str:
    """The document as an HTML page with style and figures inside; links lead only to its headings.

    Contents follow the first block: headings of level 2, and of level 3 under them.
    """
    first, *others = [_html(block) for block in blocks]
    body = "\n".join([first, _navigation(blocks), *others])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _navigation(blocks: Sequence[Block]) -> str:
    items = ""
    for heading in (block for block in blocks if isinstance(block, Heading) and block.level > 1):
        link = f'<a href="#{html.escape(heading.anchor)}">{html.escape(heading.text)}</a>'
        items += f"</li>\n<li><strong>{link}</strong>" if heading.level == 2 else f"\n{link}"
    return f'<nav aria-label="Contents">\n<ul>{items.removeprefix("</li>")}</li>\n</ul>\n</nav>' if items else ""


def _html(block: Block) -> str:
    match block:
        case Heading():
            name = f"h{block.level}"
            return f'<{name} id="{html.escape(block.anchor)}">{html.escape(block.text)}</{name}>'
        case Paragraph():
            return f"<p>{html.escape(block.text)}</p>"
        case Items():
            return "<ul>\n" + "".join(f"<li>{html.escape(line)}</li>\n" for line in block.lines) + "</ul>"
        case Table():
            return _html_table(block)
        case Figure():
            images = "\n".join(_image(panel) for panel in block.panels)
            caption = html.escape(block.caption)
            return f'<figure>\n<figcaption>{caption}</figcaption>\n<div class="panels">\n{images}\n</div>\n</figure>'


def _html_table(table: Table) -> str:
    long = [max(map(len, column)) > LONG for column in zip(table.header, *table.rows, strict=True)]

    def cell(column: int, text: str, tag: str, scope: str = "") -> str:
        style = "" if column >= table.left else ' class="text long"' if long[column] else ' class="text"'
        return f"<{tag}{scope}{style}>{html.escape(text)}</{tag}>"

    head = "".join(cell(column, text, "th", ' scope="col"') for column, text in enumerate(table.header))
    head = head.replace("_", "_<wbr>")  # long names may break there
    rows = []
    for row in table.rows:
        first, *others = row
        cells = [cell(0, first, "th", ' scope="row"'), *(cell(n, text, "td") for n, text in enumerate(others, 1))]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = html.escape(table.caption)
    text = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n'
        f"<table>\n<caption><span>{caption}</span></caption>\n<thead><tr>{head}</tr></thead>\n"
        "<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>\n</div>"
    )
    return f"<details>\n<summary>{caption}</summary>\n{text}\n</details>" if table.folded else text


def _image(panel: Panel) -> str:
    data = base64.b64encode(panel.svg.encode()).decode()
    return f'<img alt="{html.escape(panel.alt)}" src="data:image/svg+xml;base64,{data}">'
