"""Anchors of headings as on GitHub, so that links work there and on the site."""

from __future__ import annotations

import re


def slug(title: str, separator: str = "-") -> str:
    """The anchor of a heading: `The term: \\`--bregman_mu\\`` → `the-term---bregman_mu`."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", separator)
