"""Tables of one's own as tasks: canonical TSVs, and the task definition that goes with them."""

from __future__ import annotations

import json
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
from data_utils.tables import Table, column_of, find_tables
from experiments.canonical import NO_LABEL, SEPARATORS, Example, Reading, write_canonical
from experiments.own_labels import SETTINGS, are_measures, check_numbers, classes, is_number, truths
from tasks.definition import TaskDefs

DEFINITION = "task_def.yml"  # in the folder of the TSVs
SEED = 2018  # of the share that is held out
SHOWN_LABELS = 10


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        text: one, or two of a pair of texts.
        label: of the label, or several, a label each, with 0 or 1 in every row.
        id: of the example's id; None numbers the rows.
    """

    text: tuple[str, ...]
    label: tuple[str, ...]
    id: str | None = None


class OwnTask:
    """A task made of tables.

    Args:
        source: as in `find_tables`.
        columns: which hold what, in all splits.
        name: the task's; None takes the source's, with `-` for what a task's name cannot have.
        task_type: Classification, Regression or MultiLabel. None: MultiLabel for several columns, Regression where each
            label of one is a number and one is not whole, else Classification.
        dev_share: of a source without a development set, so much of the training set is held out as one.
        cache_dir: where downloads are kept.

    Attributes:
        name: the task's.
        splits: examples (id, label, text or texts) by split.
        task_type: as above, of these labels.
        labels: of a classification, in the order of the classes; of several labels the columns.

    Raises:
        UserError: no such source or column, no label in a row to train on, labels that are none.
    """

    def __init__(
        self,
        source: str,
        columns: Columns,
        name: str | None = None,
        task_type: str | None = None,
        dev_share: float = 0.1,
        cache_dir: str | None = None,
    ):
        found, tables = find_tables(source, cache_dir)
        if "train" not in tables:
            raise DataError("found no train table; accepted: train.csv and the like", source)
        self.columns = columns
        self.name = re.sub(r"[_/\s]+", "-", found) if name is None else name
        several = task_type == "MultiLabel" or len(columns.label) > 1
        self._left_out = dict.fromkeys(tables, 0)
        placed = {split: list(self._read(table, split, several)) for split, table in tables.items()}
        train = [label for _, (_, label, *_) in placed["train"]]
        if not train:
            raise DataError("found no examples; at least one is needed", tables["train"].source)
        if several:
            self.task_type, self.labels = "MultiLabel", list(columns.label)
        else:
            self.task_type, self.labels = self._one_label(placed["train"], tables["train"], task_type)
            for examples in placed.values():
                self._check_labels(examples)
        self.splits = {split: [example for _, example in examples] for split, examples in placed.items()}
        if "dev" not in self.splits:
            self.splits["train"], self.splits["dev"] = hold_out(self.splits["train"], dev_share)
            if not self.splits["dev"] or not self.splits["train"]:
                raise FlagError(
                    f"--dev_share: {dev_share:g} of {len(train)} examples leaves none for a set; accepted: more rows"
                )

    def _one_label(
        self, train: Sequence[tuple[str, Example]], table: Table, task_type: str | None
    ) -> tuple[str, list[str]]:
        """The task type and the classes where one column holds the label."""
        labels, column = [label for _, (_, label, *_) in train], self.columns.label[0]
        if task_type is None:
            check_numbers(train)
            task_type = "Regression" if are_measures(labels) else "Classification"
        if task_type == "Regression":
            return task_type, []
        return task_type, list(table.class_names.get(column) or classes(labels, table.source, column))

    def _read(self, table: Table, split: str, several: bool) -> Iterator[tuple[str, Example]]:
        """The examples of a table with their places. Those with an empty text are left out, and counted."""
        columns = self.columns
        for flag, names in (("text", columns.text), ("label", columns.label), ("id", (columns.id,))):
            for column in names:
                if column is not None and (flag != "label" or split != "test"):  # a test set may lack the column
                    column_of(table, column, flag)
        for index, row in enumerate(table.rows):
            where = table.place(row)
            for column in columns.text:
                if isinstance(row.values.get(column), list | dict):
                    raise UserError(f"{where}: found {str(row.values[column])[:40]!r}, accepted: a text or a number")
            texts = [_one_line(row.cells[column]) for column in columns.text]
            found = {column: _one_line(row.cells.get(column, "")) for column in columns.label}
            label = truths(found, where, split == "train") if several else found[columns.label[0]]
            if not all(texts):
                self._left_out[split] += 1
                continue
            if label == NO_LABEL and split == "train":
                raise UserError(
                    f"{where}: found no label in column {columns.label[0]!r}, accepted: one in every row of training"
                )
            uid = str(index) if columns.id is None else _one_line(row.cells[columns.id])
            yield where, (uid, label, *texts)

    def _check_labels(self, placed: Sequence[tuple[str, Example]]) -> None:
        """See that each label is a number, or one of the training set's."""
        for where, (_, label, *_) in placed:
            if label == NO_LABEL or (is_number(label) if self.task_type == "Regression" else label in self.labels):
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
            "task_type": self.task_type,
            "n_class": len(self.labels) or 1,
            **SETTINGS[self.task_type],
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
        never = self._never() if self.task_type == "MultiLabel" else []
        if never:
            print(f"{paths['train']}: no example has {', '.join(never)}; a label without examples cannot be learned")
        return paths

    def _never(self) -> list[str]:
        """The labels, of several, that no training example has."""
        counts = np.array([json.loads(label) for _, label, *_ in self.splits["train"]]).sum(0)
        return [name for name, count in zip(self.labels, counts, strict=True) if not count]


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


def _one_line(text: str) -> str:
    """A cell on one line, as the canonical files hold it."""
    return text.translate(SEPARATORS).strip()


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
