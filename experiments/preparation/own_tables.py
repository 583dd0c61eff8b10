"""Your own tables as tasks: canonical TSVs, and their task definition."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.errors import DataError, FlagError, TaskDefError, UserError, nearest
from data_utils.prepro import UNLABELED
from data_utils.tables import Table, find_tables, read_table
from data_utils.tables.content import stem_of
from experiments.canonical import NO_LABEL, Example, Reading, list_field, write_canonical
from experiments.preparation.missing_labels import with_labels, without_other_marks, without_training_marks
from experiments.preparation.own_labels import SETTINGS, are_measures, check_numbers, classes, is_number, joined, truths
from experiments.preparation.own_rows import (
    ColumnFlags,
    Columns,
    Findings,
    OwnRow,
    merge_similar,
    read_decimal_commas,
    read_rows,
    report_split_columns,
    text_key,
    without_shared,
)
from experiments.preparation.own_words import (
    SPECIAL,
    have_words,
    read_word_rows,
    with_word_lists,
    word_labels,
    word_metrics,
)

DEFINITION = "task_def.yml"  # in the folder of the TSVs
SEED = 2018  # of the share that is held out
SHOWN_LABELS = 10
SPLITS = ("train", "dev", "test")
LABELED = ("train", "dev")  # splits whose tables have label columns


@dataclass(frozen=True)
class Choices:
    """What is done about rows that would make training or its scores wrong: `stop` refuses them in a line.

    Attributes:
        missing_labels: of rows without a label, or with a text that stands for none, such as `-`; drop leaves them out,
            keep makes such a text a class.
        similar_labels: of labels that differ in case, blanks or the form of a number alone; merge takes the most
            frequent one for all, keep makes each a class.
        shared_texts: of texts in the training set that a development or test set has too; drop leaves them out of the
            training set, keep lets them be.
    """

    missing_labels: str = "stop"
    similar_labels: str = "stop"
    shared_texts: str = "stop"


CHOICES = {
    "missing_labels": ("stop", "drop", "keep"),
    "similar_labels": ("stop", "merge", "keep"),
    "shared_texts": ("stop", "drop", "keep"),
}


class OwnTask:
    """A task made of tables.

    Args:
        source: as in `find_tables`; or the files of a task's splits by their names.
        columns: which hold what, in all splits; flags are read with the columns that there are.
        name: the task's; None takes the source's, with `-` for what a task's name cannot have.
        task_type: Classification, Regression, MultiLabel or SeqenceLabeling. None: SeqenceLabeling for lists of words
            with lists of labels, MultiLabel for several labels a text, Regression where each label of one column is a
            number and one is not whole, else Classification.
        dev_share: of a source without a development set, so much of the training set is held out as one.
        cache_dir: where downloads are kept.
        choices: what is done about rows that cannot be used as they are.
        encoding, header: of text files, as `encoding` and `columns` in `read_table`.
        split: which split a single table is; None: train.
        task_def: the YAML of the tasks that there are; a source without a training table needs its task's definition.

    Attributes:
        name: the task's.
        splits: examples (id, label, text or texts) by split.
        task_type: as above, of these labels.
        labels: of a classification, in the order of the classes; of several labels their names.
        findings: what a person should know of the tables.
        is_new: there is a training table, from which the task's definition is made.

    Raises:
        UserError: no such source or column, rows that cannot be used as they are, labels that are none.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        columns: Columns | ColumnFlags,
        name: str | None = None,
        task_type: str | None = None,
        dev_share: float = 0.1,
        cache_dir: str | None = None,
        choices: Choices | None = None,
        encoding: str | None = None,
        header: Sequence[str] | None = None,
        split: str | None = None,
        task_def: Path | None = None,
    ):
        if isinstance(source, str):
            found, tables = find_tables(source, cache_dir, encoding, header)
        else:
            found, tables = (
                _name_of(source),
                {own: read_table(path, encoding=encoding, columns=header) for own, path in source.items()},
            )
            source = ", ".join(source.values())
        if split is not None:
            if set(tables) != {"train"}:
                raise FlagError(f"--split: found {source} with {', '.join(tables)}, accepted: a single table")
            tables = {split: tables["train"]}
        tables = {own: tables[own] for own in (*SPLITS, UNLABELED) if own in tables}
        if isinstance(columns, ColumnFlags):
            columns = columns.read(next(iter(tables.values())).columns, task_type)
        tables = with_word_lists(tables, columns)
        for note in [note for table in tables.values() for note in table.notes]:
            print(note)
        self.columns, self.choices = columns, choices or Choices()
        self.name = re.sub(r"[_/\s]+", "-", found) if name is None else name
        self.is_new = "train" in tables
        self.findings = Findings()
        if split is None and set(tables) == {"train"}:
            report_split_columns(tables["train"], self.findings)
        read = read_word_rows if _are_words(columns, task_type, tables) else read_rows
        rows = {own: read(table, columns, own in LABELED, self.findings) for own, table in tables.items()}
        if self.is_new and not rows["train"]:
            raise DataError("found no examples; at least one is needed", tables["train"].source)
        if split == UNLABELED:
            rows = {split: [row._replace(labels=None) for row in rows[split]]}
        self._form = "words" if read is read_word_rows else _form_of(columns, task_type, tables)
        if self._form == "one" and task_type in (None, "Regression"):
            read_decimal_commas(rows, tables, self.findings)
        if self.is_new:
            self._learn(rows, tables["train"], task_type)
        else:
            self._take_over(rows, task_def, source)
        rows = without_shared(rows, self.choices.shared_texts, self.findings)
        self.splits = {own: [self._example(row) for row in found] for own, found in rows.items()}
        self.held_out = self.is_new and "dev" not in self.splits
        if self.held_out:
            count = len(self.splits["train"])
            self.splits["train"], self.splits["dev"] = hold_out(self.splits["train"], dev_share)
            if not self.splits["dev"] or not self.splits["train"]:
                raise FlagError(
                    f"--dev_share: {dev_share:g} of {count} examples leaves none for a set; accepted: more rows"
                )

    def _learn(self, rows: dict[str, list[OwnRow]], table: Table, task_type: str | None) -> None:
        """Find the task type and the labels in the training rows, and hold the other rows against them."""
        column = self.columns.label[0]
        if self._form == "one":
            without_training_marks(rows, self.choices.missing_labels, self.findings)
        train = [label for row in rows["train"] for label in row.labels or ()]
        is_measure = self._form == "one" and (
            task_type == "Regression" or (task_type is None and are_measures(train) and bool(train))
        )
        if self._form != "words":  # of which - and ? may be labels
            without_other_marks(rows, train, is_measure, self.findings)
        with_labels(rows, column, self.choices.missing_labels, self.findings)
        if self._form != "columns" and not is_measure:
            merge_similar(rows, self.choices.similar_labels, self.findings)
        placed = [(row.place, label) for row in rows["train"] for label in row.labels or ()]
        if self._form == "columns":
            self.task_type, self.labels = "MultiLabel", list(self.columns.label)
            return
        if self._form == "words":
            found = table.class_names.get(column) or classes([label for _, label in placed], table.source, column)
            self.task_type, self.labels = "SeqenceLabeling", word_labels(found, table.source)
        elif self._form == "several":
            self.task_type = "MultiLabel"
            self.labels = list(table.class_names.get(column) or sorted({label for _, label in placed}))
            if not self.labels:
                raise UserError(f"{table.source}: found no label in column {column!r}, accepted: one at least")
        else:
            if task_type is None:
                check_numbers(placed)
            self.task_type = "Regression" if is_measure else "Classification"
            labels = [label for _, label in placed]
            several = None if is_measure else joined(labels)
            if several is not None:
                where = next(place for place, label in placed if label == several[0])
                self.findings.add(
                    f"labels such as {several[0]!r}, which seem to be several; --label_separator {several[1]!r} "
                    "divides them",
                    where,
                )
            self.labels = (
                [] if is_measure else list(table.class_names.get(column) or classes(labels, table.source, column))
            )
        self._check_labels(rows)

    def _take_over(self, rows: dict[str, list[OwnRow]], path: Path | None, source: str) -> None:
        """Take the task's type and labels from the definition that there is, and hold the rows against them.

        Raises:
            UserError: there is none, or it is of other texts.
        """
        from tasks.definition import TaskDefs  # whose import takes seconds; a mistake in a table is reported before

        known = TaskDefs(path) if path is not None and path.is_file() else None
        if known is None or self.name not in known.names:
            names = "" if known is None else f"; --task_name names one of {', '.join(known.names)}"
            raise DataError(f"found no train table, and no definition of a task {self.name!r}{names}", source)
        task_def = known.get_task_def(self.name)
        self.task_type = task_def.task_type.name
        self.labels = [] if task_def.label_vocab is None else list(task_def.label_vocab.tok2ind)
        expected = self.data_format
        if self.task_type not in SETTINGS or task_def.data_type.name != expected:
            raise TaskDefError(
                f"--text: {len(self.columns.text)} columns make {expected}, but task {self.name!r} is "
                f"{self.task_type} of {task_def.data_type.name}"
            )
        if self._form == "columns" and set(self.labels) != set(self.columns.label):
            raise TaskDefError(f"--label: task {self.name!r} has the labels {', '.join(self.labels)}, accepted: those")
        if self._form != "words":
            without_other_marks(rows, self.labels, self.task_type == "Regression", self.findings)
        with_labels(rows, self.columns.label[0], self.choices.missing_labels, self.findings)
        if self._form != "columns" and (self.labels or self.task_type == "Regression"):
            self._check_labels(rows)

    def _check_labels(self, rows: Mapping[str, Sequence[OwnRow]]) -> None:
        """See that each label is a number, or one of the task's."""
        for row in [row for found in rows.values() for row in found]:
            for label in row.labels or ():
                if is_number(label) if self.task_type == "Regression" else label in self.labels:
                    continue
                hint = nearest(label, self.labels)
                shown = ", ".join(self.labels[:SHOWN_LABELS]) + (", …" if len(self.labels) > SHOWN_LABELS else "")
                raise UserError(f"{row.place}: found the label {label!r}{hint}, accepted: {shown or 'a finite number'}")

    def _example(self, row: OwnRow) -> Example:
        """A row as the fields of a canonical TSV."""
        if self._form == "words":
            return row.uid, NO_LABEL if row.labels is None else list_field(row.labels), list_field(row.texts)
        if row.labels is None:
            label = NO_LABEL
        elif self._form == "columns":
            values = dict(zip(self.columns.label, row.labels, strict=True))
            label = truths({name: values[name] for name in self.labels}, row.place)
        elif self._form == "several":
            label = str([int(name in row.labels) for name in self.labels])
        else:
            label = row.labels[0]
        return row.uid, label, *row.texts

    @property
    def data_format(self) -> str:
        """Of the canonical TSVs."""
        if self._form == "words":
            return "Seqence"
        return "PremiseAndOneHypothesis" if len(self.columns.text) == 2 else "PremiseOnly"

    def definition(self, actf: str | None = None) -> dict[str, Any]:
        """The task as the YAML gives it.

        Args:
            actf: activation of the head.
        """
        labels = [*self.labels, *SPECIAL] if self._form == "words" else self.labels
        entry: dict[str, Any] = {
            "data_format": self.data_format,
            "task_type": self.task_type,
            "n_class": len(labels) or 1,
            **SETTINGS[self.task_type],
            "split_names": list(self.splits),
        }
        if self._form == "words":
            entry["metric_meta"] = word_metrics(self.labels)
        if labels:
            entry["labels"] = labels
        if actf is not None and self._form != "words":
            entry["actf"] = actf
        return entry

    def write(self, root: Path) -> dict[str, Path]:
        """Write `ROOT/TASK_SPLIT.tsv` of every split, and say in a line what it holds. Returns the files by split."""
        paths = {split: root / f"{self.name}_{split}.tsv" for split in self.splits}
        for split, path in paths.items():
            write_canonical(path, Reading(iter(self.splits[split])))
        never = self._never() if self.is_new and self.task_type == "MultiLabel" else []
        if never:
            print(f"{paths['train']}: no example has {', '.join(never)}; a label without examples cannot be learned")
        return paths

    def _never(self) -> list[str]:
        """The labels, of several, that no training example has."""
        counts = np.array([json.loads(label) for _, label, *_ in self.splits["train"]]).sum(0)
        return [name for name, count in zip(self.labels, counts, strict=True) if not count]


def _form_of(columns: Columns, task_type: str | None, tables: Mapping[str, Table]) -> str:
    """How a row's labels stand: `columns`, one with 0 or 1 for each; `several` in one column; `one`.

    Raises:
        FlagError: another task type for several labels.
    """
    first = columns.label[0]
    has_lists = any(isinstance(row.values.get(first), list) for table in tables.values() for row in table.rows)
    if len(columns.label) > 1 or (task_type == "MultiLabel" and columns.separator is None and not has_lists):
        return "columns"
    if columns.separator is None and not has_lists:
        return "one"
    if task_type not in (None, "MultiLabel"):
        raise FlagError(f"--task_type: found {task_type} for several labels a text, accepted: MultiLabel")
    return "several"


def _name_of(splits: Mapping[str, str]) -> str:
    """What the names of files have in common before `_train`, or the name of their folder."""
    path = Path(splits["train"])
    return re.sub(r"[-_.]*train(-00000-of-00001)?$", "", stem_of(path)) or path.resolve().parent.name


def _are_words(columns: Columns, task_type: str | None, tables: Mapping[str, Table]) -> bool:
    """Whether the rows are sentences with a label a word.

    Raises:
        FlagError: another task type for them, or this one for other texts.
    """
    found = have_words(tables, columns)
    if found != (task_type == "SeqenceLabeling") and task_type is not None:
        what, accepted = "lists of words and labels", "SeqenceLabeling"
        if not found:
            what = "other texts than lists of words with lists of labels"
            accepted = "a table with such lists, or --sentence for a table with a word a row"
        raise FlagError(f"--task_type: found {task_type} for {what}, accepted: {accepted}")
    return found


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Divide examples in two, the second a share of them that has each label as often as the first.

    Examples of the same texts stay together, so that no text is in both.

    Args:
        examples: id, label, texts.
        share: above 0, below 1.

    Returns:
        The rest and the share, each in the order given.
    """
    of_texts: dict[tuple[str, ...], list[int]] = {}
    for place, (_, _, *texts) in enumerate(examples):
        of_texts.setdefault(text_key(texts), []).append(place)
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
