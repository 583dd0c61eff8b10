"""What the label columns of a table say: classes, numbers, or several labels with a yes or no each."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_utils.errors import UserError
from data_utils.tables.table import TRUTHS

NOT_FINITE = ("nan", "inf", "infinity")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
DIVIDERS = (";", "|", ",", "/", "+")  # of several labels in a cell
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
# What a definition says of a task whose labels are such.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "Classification": {"metric_meta": ["ACC", "F1MAC"], "loss": "CeCriterion", "adv_loss": "SymKlCriterion"},
    "Regression": {"metric_meta": ["Pearson", "Spearman"], "loss": "MseCriterion", "adv_loss": "MseCriterion"},
    "MultiLabel": {"metric_meta": ["F1MIC", "F1MAC", "ACC"], "loss": "BceCriterion", "adv_loss": "SymKlCriterion"},
    "SeqenceLabeling": {"metric_meta": ["SeqEval", "ACC"], "loss": "SeqCeCriterion", "adv_loss": "SymKlCriterion"},
}


def truths(values: Mapping[str, str], where: str) -> str:
    """Several labels of a row as one field, such as `[0, 1, 0]`.

    Args:
        values: text by column.
        where: file and line, for messages.

    Raises:
        UserError: a column that is neither 0 nor 1, or has no value.
    """
    accepted = "0 or 1 (or false, true) in every label column"
    for column, value in values.items():
        if value.lower() not in TRUTHS:
            found = f"found {value!r} in" if value else "found no value in"
            raise UserError(f"{where}: {found} column {column!r}, accepted: {accepted}")
    return str([TRUTHS[value.lower()] for value in values.values()])


def classes(labels: Sequence[str], place: str, column: str) -> list[str]:
    """The distinct labels, in order: by number where all are whole numbers.

    Raises:
        UserError: there is one alone, or so many that the column can hold no classes.
    """
    found = sorted(set(labels))
    if all(re.fullmatch(r"[+-]?\d{1,100}", label) for label in found):  # Python refuses thousands of digits
        found.sort(key=int)
    if len(found) < 2:
        raise UserError(f"{place}: every label in column {column!r} is {found[0]!r}; accepted: two or more")
    if len(found) > max(2, len(labels) // 2):
        raise UserError(
            f"{place}: column {column!r} holds {len(found)} different labels in {len(labels)} rows, which are no "
            "classes; --label names the column, --task_type Regression is for numbers"
        )
    return found


def check_numbers(placed: Sequence[tuple[str, str]]) -> None:
    """See that labels are no numbers but for some that are not finite, or have a decimal comma, which would become
    classes.

    Args:
        placed: place and label of each row.

    Raises:
        UserError: they are; names the first that is.
    """
    comma = next((own for own in placed if DECIMAL_COMMA.fullmatch(own[1])), None)
    if comma is not None and all(is_number(label.replace(",", ".", 1)) for _, label in placed):
        raise UserError(
            f"{comma[0]}: found the label {comma[1]!r}, a number with a decimal comma; accepted: a decimal point, or "
            "--task_type Classification, which takes such labels as classes"
        )
    finite = [is_number(label) for _, label in placed]
    others = [own for own, is_finite in zip(placed, finite, strict=True) if not is_finite]
    if any(finite) and others and all(label.lower().lstrip("+-") in NOT_FINITE for _, label in others):
        where, label = others[0]
        raise UserError(f"{where}: found the label {label!r}, accepted: a finite number, as the others are")


def with_points(labels: Sequence[str]) -> list[str] | None:
    """Numbers with decimal points in the place of decimal commas; None where a label is no number, or none has a comma.

    Numbers that are all whole may be classes: they stay as they are.
    """
    found = [own.replace(",", ".", 1) if DECIMAL_COMMA.fullmatch(own) else own for own in labels]
    return found if found != list(labels) and are_measures(found) else None


def joined(labels: Iterable[str]) -> tuple[str, str] | None:
    """A label that seems to be several, such as `a;b` where `a` and `b` are labels too, and what divides it."""
    known = set(labels)
    for label in sorted(known):
        for divider in DIVIDERS:
            parts = [own.strip() for own in label.split(divider)]
            if len(parts) > 1 and set(parts) <= known:
                return label, divider
    return None


def are_measures(labels: Sequence[str]) -> bool:
    """Whether labels are numbers to predict: all are numbers, and one is not whole."""
    return all(map(is_number, labels)) and not all(float(label).is_integer() for label in labels)


def is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def similar(labels: Iterable[str]) -> list[list[str]]:
    """Groups of labels that differ in case, blanks or the form of a number alone, such as `1`, `1.0` and `true`.

    Args:
        labels: all, in the order in which a group names them; those that stand alone are in no group.
    """
    groups: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        groups.setdefault(_form(label), []).append(label)
    return [own for own in groups.values() if len(own) > 1]


def _form(label: str) -> str:
    """What similar labels have in common."""
    folded = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    folded = {"true": "1", "false": "0"}.get(folded, folded)
    return str(float(folded) + 0.0) if NUMBER.fullmatch(folded) else folded  # -0.0 + 0.0 is 0.0
