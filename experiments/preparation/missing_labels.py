"""Rows without a label: those with an empty cell, and those with a text that stands for no label, such as `-`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from data_utils.errors import UserError
from data_utils.tables.no_label import MINUS_ONE, MISSING, NOTHING, SIGNS, means_no_label
from experiments.preparation.own_labels import is_number
from experiments.preparation.own_rows import Findings, OwnRow

SHOWN_PLACES = 5
WHOLE_NUMBER = re.compile(r"\+?\d{1,100}(\.0)?")
FEWEST = 2  # other labels: of yes and "-" the latter may be no
FEWEST_NUMBERS = 3  # of 0, 1 and -1 the last may be a class, as in negative, neutral and positive


def no_label_marks(labels: Iterable[str]) -> tuple[set[str], set[str]]:
    """The training labels that stand for no label, and those that may.

    Sure are: `nan` and its like; any mark among numbers; `-` or `?` among two or more words; -1 among words, or among
    three or more whole numbers that are not negative. Others, such as `none`, may be a class.
    """
    found = set(labels)
    marks = {own for own in found if means_no_label(own)}
    others = found - marks
    if not others:
        return set(), set()
    all_numbers = all(map(is_number, others))
    all_words = all(any(map(str.isalnum, own)) for own in others)
    all_whole = all(map(WHOLE_NUMBER.fullmatch, others))
    sure, perhaps = set(), set()
    for own in marks:
        folded = own.strip().casefold()
        if folded in MINUS_ONE:
            is_sure = all_whole and len(others) >= FEWEST_NUMBERS if all_numbers else len(others) >= FEWEST
            may_be = all_whole and len(others) == FEWEST_NUMBERS - 1
        elif folded in SIGNS:
            is_sure, may_be = (all_words and len(others) >= FEWEST) or all_numbers, all_words
        else:
            is_sure, may_be = folded in MISSING or (all_numbers and folded in NOTHING), True
        if is_sure:
            sure.add(own)
        elif may_be:
            perhaps.add(own)
    return sure, perhaps


def without_training_marks(rows: dict[str, list[OwnRow]], choice: str, findings: Findings) -> None:
    """Look for training labels that stand for no label.

    Args:
        rows: by split; those of training are changed in place.
        choice: stop, drop (the rows have no label) or keep (each is a class).

    Raises:
        UserError: there are some, and the choice is `stop`; names the first row that has one.
    """
    train = rows["train"]
    sure, perhaps = no_label_marks(label for row in train for label in row.labels or ())
    for row in train:
        for label in row.labels or ():
            if label in sure and choice == "stop":
                count = sum(label in (own.labels or ()) for own in train)
                raise UserError(
                    f"{row.place}: found the label {label!r} in {count} of {len(train)} rows of train, which usually "
                    "means no label; accepted: --missing_labels drop leaves such rows out, keep makes it a class"
                )
            if label in perhaps or (label in sure and choice == "keep"):
                findings.add(
                    f"labels {label!r}, a class like others; if it means no label, empty these cells", row.place
                )
    if choice == "drop":
        rows["train"] = _without(train, sure, "train", findings)


def without_other_marks(
    rows: dict[str, list[OwnRow]], labels: Sequence[str], is_measure: bool, findings: Findings
) -> None:
    """Take a text that stands for no label as none, outside the training set, where no training row has it.

    Args:
        rows: by split; changed in place.
        labels: of the training rows.
        is_measure: labels are numbers to predict, of which -1 may be one: it means no label if all rows have it.
    """
    for split, found in rows.items():
        if split == "train":
            continue
        if not any(row.labels for row in found):  # cells of several labels that are all empty
            rows[split] = [row._replace(labels=None) for row in found]
            continue
        marks = {label for row in found for label in row.labels or () if means_no_label(label)} - set(labels)
        if is_measure:
            only_minus_one = all(row.labels and MINUS_ONE.issuperset(row.labels) for row in found)
            marks = marks | MINUS_ONE if only_minus_one else marks - MINUS_ONE
        rows[split] = _without(found, marks, split, findings)


def _without(found: Sequence[OwnRow], marks: Collection[str], split: str, findings: Findings) -> list[OwnRow]:
    """The rows, those without a label whose labels are all marks."""
    left = []
    for row in found:
        if row.labels and set(row.labels) <= set(marks):
            findings.add(f"labels {row.labels[0]!r} of {split}, which mean no label", row.place)
            row = row._replace(labels=None)
        left.append(row)
    return left


def with_labels(rows: dict[str, list[OwnRow]], column: str, choice: str, findings: Findings) -> None:
    """See that all rows of a split have labels, or none of development and test rows has one.

    Args:
        rows: by split; changed in place.
        column: of the label, for messages.
        choice: drop leaves out rows without a label; others refuse them.

    Raises:
        UserError: rows lack labels, and are not to be left out; names how many and the first of them.
    """
    for split, found in rows.items():
        missing = [row.place for row in found if row.labels is None]
        if not missing or (split != "train" and len(missing) == len(found)):
            continue
        if choice != "drop":
            shown = ", ".join(own.rsplit(", ", 1)[-1] for own in missing[1:SHOWN_PLACES])
            others = f"; {len(missing)} of {len(found)} rows of {split} have none ({shown}, …)" if shown else ""
            raise UserError(
                f"{missing[0]}: found no label in column {column!r}{others}; accepted: a label in every row, "
                "or --missing_labels drop"
            )
        for place in missing:
            findings.add(f"rows of {split} left out, having no label", place)
        rows[split] = [row for row in found if row.labels is not None]
        if not rows[split]:
            raise UserError(f"{missing[0]}: no row of {split} has a label in column {column!r}; accepted: some that do")
