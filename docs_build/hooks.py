"""MkDocs' hooks (mkdocs.yml, `hooks`): GitHub's anchors, the page of flags, formulas as MathML, narrow pictures.

The build ends with an error at a formula that cannot be rendered, and at a page that loads from another host.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

from docs_build.commands import flags_page
from docs_build.slugs import slug
from experiments.sift.reporting.figures import NARROW

FLAGS_MARK = "<!-- the flags of all commands -->"
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
PICTURE = re.compile(r'<img [^>]*src="([^"]+)\.svg"[^>]*>')
NARROW_SCREEN = "(max-width: 44.9375em)"
FROM_ELSEWHERE = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//[^"]*"|<link\b[^>]*>')


def on_config(config: Any) -> Any:
    """Give headings GitHub's anchors."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark by the flags of all commands."""
    return markdown.replace(FLAGS_MARK, flags_page()) if FLAGS_MARK in markdown else markdown


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Replace TeX, which pymdownx.arithmatex marked, by MathML, which browsers draw without scripts.

    Narrow screens get the pictures that were drawn for them.
    """

    def render(found: re.Match[str]) -> str:
        kind, text = found[1], html.unescape(found[2]).strip()
        tex = text[2:-2].strip()  # without \( \) or \[ \]
        return mathml(tex, block=kind == "div", where=page.file.src_uri)

    return PICTURE.sub(_with_narrow_one, FORMULA.sub(render, content))


def _with_narrow_one(found: re.Match[str]) -> str:
    source = f'<source media="{NARROW_SCREEN}" srcset="{found[1]}{NARROW}.svg">'
    return f"<picture>{source}{found[0]}</picture>"


def mathml(tex: str, block: bool, where: str) -> str:
    """A formula as MathML.

    Raises:
        PluginError: the formula has an unknown command.
    """
    try:
        drawn = convert(tex, display="block" if block else "inline")
    except Exception as error:  # of many kinds, without a common class
        raise PluginError(f"{where}: no formula: {tex} ({error})") from error
    if "\\" in drawn:
        raise PluginError(f"{where}: a command without meaning in the formula {tex}")
    return f'<div class="formula">{drawn}</div>' if block else drawn


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Check that the page loads nothing from another host.

    Raises:
        PluginError: it does.
    """
    for tag in FROM_ELSEWHERE.findall(output):
        loads = not tag.startswith("<link") or 'rel="stylesheet"' in tag or 'rel="preconnect"' in tag
        if loads and "//" in tag:
            raise PluginError(f"{page.file.src_uri}: loads from another host: {tag}")
    return output
