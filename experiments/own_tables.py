"""Tables of one's own as tasks: canonical TSVs, and the task definition that goes with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_utils.errors import DataError, FlagError, TaskDefError, UserError, nearest
from data_utils.files import atomic_write
from data_utils.tables import UNLABELED_CLASS, Table, cell, find_tables
from experiments.canonical import NO_LABEL, SEPARATORS, Example, Reading, write_canonical
from experiments.exp_def import TaskDefs

DEFINITION = "task_def.yml"  # in the folder of the TSVs
SEED = 2018  # of the share that is held out
SHOWN_LABELS = 10
NOT_FINITE = ("nan", "inf", "infinity")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        text: one, or two of a pair of texts.
        label: of the label.
        id: of the example's id; None numbers the rows.
    """

    text: tuple[str, ...]
    label: str
    id: str | None = None


class OwnTask:
    """A task made of tables.

    Args:
        source: as in `find_tables`.
        columns: which hold what, in all splits.
        name: the task's; None takes the source's, with `-` for what a task's name cannot have.
        regression: the labels are numbers to predict. None: they are where each is a number and one is not whole.
        dev_share: of a source without a development set, so much of the training set is held out as one.
        cache_dir: where downloads are kept.

    Attributes:
        name: the task's.
        splits: examples (id, label, text or texts) by split.
        regression: whether labels are numbers.
        labels: of a classification, in the order of the classes.

    Raises:
        UserError: no such source or column, no label in a row to train on, labels that are none.
    """

    def __init__(
        self,
        source: str,
        columns: Columns,
        name: str | None = None,
        regression: bool | None = None,
        dev_share: float = 0.1,
        cache_dir: str | None = None,
    ):
        found, tables = find_tables(source, cache_dir)
        self.columns = columns
        self.name = re.sub(r"[_/\s]+", "-", found) if name is None else name
        self._left_out = dict.fromkeys(tables, 0)
        placed = {split: list(self._read(table, split)) for split, table in tables.items()}
        train = [label for _, (_, label, *_) in placed["train"]]
        if not train:
            raise DataError("found no examples; at least one is needed", tables["train"].place)
        if regression is None:
            _check_numbers(placed["train"])
        self.regression = _are_measures(train) if regression is None else regression
        names = tables["train"].label_names.get(columns.label)
        self.labels = [] if self.regression else list(names or _classes(train, tables["train"].place, columns.label))
        for examples in placed.values():
            self._check_labels(examples)
        self.splits = {split: [example for _, example in examples] for split, examples in placed.items()}
        if "dev" not in self.splits:
            self.splits["train"], self.splits["dev"] = hold_out(self.splits["train"], dev_share)
            if not self.splits["dev"] or not self.splits["train"]:
                raise FlagError(
                    f"--dev_share: {dev_share:g} of {len(train)} examples leaves none for a set; accepted: more rows"
                )

    def _read(self, table: Table, split: str) -> Iterator[tuple[str, Example]]:
        """The examples of a table with their places. Those with an empty text are left out, and counted."""
        columns, names = self.columns, table.label_names.get(self.columns.label)
        for index, (number, row) in enumerate(table.rows()):
            where = f"{table.place}, line {number}"
            texts = [_as_text(cell(row, column, where, "text"), where) for column in columns.text]
            # a test set may lack the column
            value = row.get(columns.label) if split == "test" else cell(row, columns.label, where, "label")
            label = _as_text(value, where)
            if names is not None and label:
                label = NO_LABEL if int(label) == UNLABELED_CLASS else names[int(label)]
            if not all(texts):
                self._left_out[split] += 1
                continue
            if label == NO_LABEL and split == "train":
                raise UserError(
                    f"{where}: found no label in column {columns.label!r}, accepted: one in every row of training"
                )
            uid = str(index) if columns.id is None else _as_text(cell(row, columns.id, where, "id"), where)
            yield where, (uid, label, *texts)

    def _check_labels(self, placed: Sequence[tuple[str, Example]]) -> None:
        """See that each label is a number, or one of the training set's."""
        for where, (_, label, *_) in placed:
            if label == NO_LABEL or (_is_number(label) if self.regression else label in self.labels):
                continue
            hint = nearest(label, self.labels)
            shown = ", ".join(self.labels[:SHOWN_LABELS]) + (", …" if len(self.labels) > SHOWN_LABELS else "")
            raise UserError(f"{where}: found the label {label!r}{hint}, accepted: {shown or 'a finite number'}")

    def definition(self, actf: str | None = None) -> dict[str, Any]:
        """The task as the YAML gives it.

        Args:
            actf: activation of the head.
        """
        pair = len(self.columns.text) == 2
        entry: dict[str, Any] = {
            "data_format": "PremiseAndOneHypothesis" if pair else "PremiseOnly",
            "task_type": "Regression" if self.regression else "Classification",
            "n_class": 1 if self.regression else len(self.labels),
            "metric_meta": ["Pearson", "Spearman"] if self.regression else ["ACC", "F1MAC"],
            "loss": "MseCriterion" if self.regression else "CeCriterion",
            "adv_loss": "MseCriterion" if self.regression else "SymKlCriterion",
            "split_names": list(self.splits),
        }
        if self.labels:
            entry["labels"] = self.labels
        if actf is not None:
            entry["actf"] = actf
        return entry

    def write(self, root: Path) -> dict[str, Path]:
        """Write `ROOT/TASK_SPLIT.tsv` of every split, and say in a line what it holds. Returns the files by split."""
        paths = {split: root / f"{self.name}_{split}.tsv" for split in self.splits}
        for split, path in paths.items():
            count = self._left_out.get(split, 0)
            write_canonical(path, Reading(iter(self.splits[split]), {"a text being empty": count} if count else {}))
        return paths


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Divide examples in two, the second a share of them that has each label as often as the first.

    Examples of the same texts stay together, so that none is learned and then asked for.

    Args:
        examples: id, label, texts.
        share: above 0, below 1.

    Returns:
        The rest and the share, each in the order given.
    """
    of_texts: dict[tuple[str, ...], list[int]] = {}
    for place, (_, _, *texts) in enumerate(examples):
        of_texts.setdefault(tuple(texts), []).append(place)
    same = list(of_texts.values())
    groups = [same[number] for number in np.random.default_rng(SEED).permutation(len(same))]
    groups.sort(key=lambda places: examples[places[0]][1])  # keeps the shuffled order within a label
    chosen = {place for number, places in enumerate(groups) if _passes(number, share) for place in places}
    return (
        [example for place, example in enumerate(examples) if place not in chosen],
        [example for place, example in enumerate(examples) if place in chosen],
    )


def _passes(number: int, share: float) -> bool:
    """Whether a group is taken: of any stretch of neighbours `share`, to the nearest whole number."""
    return math.floor((number + 1) * share + 0.5) > math.floor(number * share + 0.5)


def _classes(labels: Sequence[str], place: str, column: str) -> list[str]:
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


def _check_numbers(placed: Sequence[tuple[str, Example]]) -> None:
    """See that labels are no numbers but for some that are not finite, which would become classes.

    Raises:
        UserError: they are; names the first that is not finite.
    """
    finite = [_is_number(label) for _, (_, label, *_) in placed]
    others = [(where, label) for (where, (_, label, *_)), own in zip(placed, finite, strict=True) if not own]
    if any(finite) and others and all(label.lower().lstrip("+-") in NOT_FINITE for _, label in others):
        where, label = others[0]
        raise UserError(f"{where}: found the label {label!r}, accepted: a finite number, as the others are")


def _are_measures(labels: Sequence[str]) -> bool:
    """Whether labels are numbers to predict: all are numbers, and one is not whole."""
    return all(map(_is_number, labels)) and not all(float(label).is_integer() for label in labels)


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def _as_text(value: Any, where: str) -> str:
    """A cell as text on one line, as the canonical files hold it: an empty text where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        raise UserError(f"{where}: found {str(value)[:40]!r}, accepted: a text or a number")
    return str(value).translate(SEPARATORS).strip()


def _as_yaml(entries: dict[str, Any]) -> str:
    """Characters as they are, or escaped where a label has one that YAML takes for a line's end."""
    shown = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, default_flow_style=None)
    if yaml.safe_load(shown) == entries:
        return shown
    return yaml.safe_dump(entries, sort_keys=False, default_flow_style=None)


def write_definition(path: Path, tasks: Sequence[OwnTask], actf: str | None = None) -> None:
    """Put tasks into a task definition, whose other tasks and comments stay; print what is added.

    Args:
        path: the YAML, new or not.
        actf: activation of new tasks' heads.

    Raises:
        UserError: it defines one of them otherwise, or cannot be read or written.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() and TaskDefs(path).names else ""
    defined = yaml.safe_load(text) or {}
    new = {}
    for task in tasks:
        entry = task.definition(actf)
        if task.name not in defined:
            new[task.name] = entry
        elif defined[task.name] | {"actf": actf} != entry | {"actf": actf}:
            raise TaskDefError(f"{path}: defines task {task.name!r} otherwise; take it out there, or give --task_name")
    if new:
        added = _as_yaml(new)
        with atomic_write(path) as file:
            file.write(text + ("\n" if text and not text.endswith("\n") else "") + added)
        print(f"{path}:\n{added}", end="")
