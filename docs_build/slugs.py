"""Anchors of headings as GitHub makes them, so that a link holds there and on the site."""

from __future__ import annotations

import re


def slug(title: str, separator: str = "-") -> str:
    """`The term: \\`--bregman_mu\\`` → `the-term---bregman_mu`."""
    kept = re.sub(r"[^\w\- ]", "", title.strip().lower())
    return kept.replace(" ", separator)
