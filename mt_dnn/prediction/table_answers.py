"""Answers as columns of a table, and the metrics of a table with labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.errors import DataError, FlagError, UserError
from data_utils.metrics import Metric
from data_utils.storage.files import atomic_write
from data_utils.storage.text_files import read_json, with_null
from data_utils.tables import Row, Table, write_table
from data_utils.tables.content import suffix_of
from data_utils.tables.sentences import sentences_of
from data_utils.tables.sources import WORD_SUFFIXES
from mt_dnn.prediction.text_model import Scored, TaskModel, TextModel
from mt_dnn.prediction.word_rows import answers_of_words
from tasks import Task
from tasks.values import Answer

logger = logging.getLogger(__name__)

PREDICTION, PROBABILITY, PROBABILITIES = "prediction", "probability", "probabilities"
OTHERWISE = "model_"  # before the names of new columns, where the table has one of them


@dataclass(frozen=True)
class Request:
    """A table, and what to do with it.

    Attributes:
        table: the table with the texts.
        text: columns with the texts, in the order that the task needs.
        label: column with the right answer; for several labels a text, a column for each label; empty for none.
        all_scores: add the probability of every class.
        metrics: None for those of the task's definition.
        batch_size: rows in a batch; None for a full batch of tokens.
        separator: between several labels in one column; None where a cell is one label or a list.
        sentence: in a table with a word a row, the column that says to which sentence it belongs.
    """

    table: Table
    text: tuple[str, ...]
    label: tuple[str, ...] = ()
    all_scores: bool = False
    metrics: tuple[Metric, ...] | None = None
    batch_size: int | None = None
    separator: str | None = None
    sentence: str | None = None


def answer_table(model: TextModel, request: Request, output: Path, metrics_file: Path) -> None:
    """Write the table with the answers of every task of a model, and the metrics if it has labels.

    Args:
        output: its ending says the format, as in `write_table`.
        metrics_file: JSON with the metrics by name, in percent; written only with labels.

    Raises:
        UserError: columns that a task does not take, cells that it cannot read, a file that cannot be written.
    """
    check_texts(model, request.text)
    tasks = list(model.tasks.values())
    if request.label and len(tasks) > 1:
        raise FlagError(f"--label: goes with one task; --task names it, accepted: {', '.join(model.tasks)}")
    columns: dict[str, list[Any]] = {}
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        scored = _scored(task, request)
        for note in scored.notes:
            logger.warning("%s", note)
        prefix = f"{task.name}_" if len(tasks) > 1 else ""
        columns |= {
            prefix + name: own for name, own in answer_columns(scored.answers, request.all_scores, task.task).items()
        }
        found[task.name] = scored.metrics
    if suffix_of(output) in WORD_SUFFIXES:  # a column a task; metrics' programs read the last one as the prediction
        columns = {name: values for name, values in columns.items() if name.endswith(PREDICTION)}
    columns = free_names(columns, request.table.columns)
    if not request.label:
        _remove_old_metrics(metrics_file, replaced=output.exists())
    write_table(output, request.table, columns)
    logger.info("%s: %d rows, new columns %s", output, len(request.table.rows), ", ".join(columns))
    if request.label:
        (values,) = found.values()
        with atomic_write(metrics_file) as file:
            json.dump(with_null(values), file, indent=1)
        for name, value in values.items():
            logger.info("%s: %.2f", name, value)
        logger.info("%s: the metrics", metrics_file)


def _remove_old_metrics(path: Path, replaced: bool) -> None:
    """Remove the metrics of earlier answers that are replaced: they would seem to be those of the new answers.

    Args:
        replaced: there are earlier answers in the file that is written; else metrics there are of another file.
    """
    if not path.exists():
        return
    try:
        found = read_json(path)
    except DataError:
        found = None
    own = (
        isinstance(found, dict)
        and bool(found)
        and all(name in Metric.__members__ or isinstance(value, float) for name, value in found.items())
    )
    if own and replaced:
        path.unlink()
        logger.warning("%s: removed, the metrics of an earlier run; without --label this run has none", path)
    else:
        logger.warning("%s: stays as it is, and is not of this run", path)


def check_texts(model: TextModel, text: Sequence[str]) -> None:
    """Check that every task takes this number of texts.

    Raises:
        FlagError: a task does not; names those that do.
    """
    refused: dict[str, FlagError] = {}
    for name, task in model.tasks.items():
        try:
            task.format_of(len(text))
        except FlagError as error:
            refused[name] = error
    if not refused:
        return
    fitting = [name for name in model.tasks if name not in refused]
    hint = f"; --task takes the one that is meant, accepted: {', '.join(fitting)}" if fitting else ""
    raise FlagError(f"--text: {next(iter(refused.values()))}{hint}")


def answer_columns(answers: Sequence[Answer], all_scores: bool, task: Task) -> dict[str, list[Any]]:
    """The answers as columns. A table has the columns of its task, also if no row has an answer.

    Args:
        all_scores: add the probability of every class as `probability_NAME`. If rows have different classes, such as
            candidates, add one column `probabilities` with lists.
    """
    parts = task.answer_parts
    columns = {PREDICTION: [_short(answer.label) for answer in answers]}
    if "probability" in parts or any(answer.probability is not None for answer in answers):
        columns[PROBABILITY] = [_short(answer.probability) for answer in answers]
    known: Any = next((answer.probabilities for answer in answers if answer.probabilities is not None), None)
    if known is None and "classes" in parts:
        known = dict.fromkeys(task.task_def.class_names())
    if all_scores and isinstance(known, dict):
        for name in known:
            columns[f"{PROBABILITY}_{name}"] = [_short((answer.probabilities or {}).get(name)) for answer in answers]
    elif all_scores and (known is not None or "items" in parts):
        columns[PROBABILITIES] = [_short(answer.probabilities) for answer in answers]
    return columns


def free_names(columns: Mapping[str, list[Any]], taken: Sequence[str]) -> dict[str, list[Any]]:
    """The columns with names that the table does not have; the log says if they had to change."""
    found = dict(columns)
    while twice := [name for name in found if name in taken]:
        logger.warning("the table has a column %s; the new columns begin with %s", twice[0], OTHERWISE)
        found = {OTHERWISE + name: values for name, values in found.items()}
    return found


def _scored(task: TaskModel, request: Request) -> Scored:
    """The answers to the rows of a table, and what a person should know of them."""
    if request.sentence is None:
        return _scored_rows(task, request, request.table)
    if not task.labels_words or request.separator is not None:
        raise FlagError("--sentence: found it, accepted: for tasks with a label a word, without --label_separator")
    sentences = sentences_of(request.table, request.sentence, request.text[0])
    scored = _scored_rows(task, request, sentences.table)
    answers = answers_of_words(scored.answers, sentences.places, len(request.table.rows))
    new = [note for note in sentences.table.notes if note not in request.table.notes]
    return Scored(answers, scored.metrics, [*new, *scored.notes])


def _scored_rows(task: TaskModel, request: Request, table: Table) -> Scored:
    rows = [tuple(_cell(row, column) for column in request.text) for row in table.rows]
    labels = None
    if request.label:
        order = _label_columns(task, request.label)
        if request.separator is not None and (len(order) > 1 or not task.takes_several_labels):
            raise FlagError(
                "--label_separator: found it, accepted: one label column of a task with several labels a text"
            )
        labels = [_label(row, order, request.separator) for row in table.rows]
        if task.task.task_def.task_type.name == "Regression" and table.layout.delimiter == ";":
            points = [own.replace(",", ".", 1) if isinstance(own, str) else own for own in labels]
            if points != labels:
                logger.info("%s: labels with a decimal comma are read as numbers", table.source)
            labels = points
    return task.score(
        rows,
        labels,
        request.metrics,
        request.batch_size,
        where=table.source,
        numbers=[row.number for row in table.rows],
        unit=table.unit,
    )


def _label_columns(task: TaskModel, given: Sequence[str]) -> Sequence[str]:
    """The columns of labels; several columns in the order of the definition's labels.

    Raises:
        FlagError: several columns for a task with one label, or columns that are not the task's labels.
    """
    if len(given) == 1:
        return given
    names = task.task.task_def.class_names()
    if not task.takes_several_labels:
        raise FlagError(f"--label: found {len(given)} columns, accepted: one for task {task.name}")
    if sorted(names) != sorted(given):
        raise FlagError(
            f"--label: found {', '.join(given)}, accepted: the task's labels {', '.join(names)}, or one column"
        )
    return names


def _cell(row: Row, column: str) -> Any:
    """A cell: a list or an object as it is in the file, everything else as text."""
    value = row.values.get(column)
    return value if isinstance(value, list | dict) else row.cells[column]


def _label(row: Row, columns: Sequence[str], separator: str | None) -> Any:
    """The label of a row: a cell, several cells, or the list that a separator makes of a cell."""
    if len(columns) > 1:
        return tuple(_cell(row, column) for column in columns)
    value = _cell(row, columns[0])
    if separator is None or not isinstance(value, str):
        return value
    return [own.strip() for own in value.split(separator) if own.strip()]


def _short(value: Any) -> Any:
    """A value with numbers in as few digits as single precision needs: 0.1 and not 0.10000000149011612.

    Raises:
        UserError: a number that is not finite.
    """
    if isinstance(value, list):
        return [_short(own) for own in value]
    if isinstance(value, dict):
        return {name: _short(own) for name, own in value.items()}
    if isinstance(value, float):
        if not np.isfinite(value):
            raise UserError("found an answer that is not a finite number; the model's training diverged")
        return float(str(np.float32(value)))
    return value
