"""Texts in a label column that people and programs write where a row has no label."""

from __future__ import annotations

MINUS_ONE = frozenset({"-1", "-1.0"})  # of GLUE's test sets, of `datasets`, of SNLI there
SIGNS = frozenset({"-", "--", "–", "—", "?", "??", ".", "_"})  # SNLI's own files have "-"
MISSING = frozenset({"nan", "<na>", "#n/a", "nat"})  # of pandas and Excel; no name of a class
NOTHING = frozenset({"na", "n/a", "none", "null", "nil"})  # may be the name of a class too


def means_no_label(text: str) -> bool:
    """Whether a text may stand for no label, where a task has no label of that name."""
    folded = text.strip().casefold()
    return any(folded in own for own in (MINUS_ONE, SIGNS, MISSING, NOTHING))
