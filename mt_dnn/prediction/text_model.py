"""Trained models that take texts and give answers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from data_utils.errors import DataError, FlagError, NotFiniteError, UserError, nearest
from data_utils.metrics import Metric
from data_utils.progress import progress
from data_utils.task_def import DataFormat
from module.linear import choose_linears
from mt_dnn.batcher import Collater
from mt_dnn.data.run_data import check_fits_encoder
from mt_dnn.data.sampler import EVALUATION_TOKENS, batches_by_length
from mt_dnn.inference import in_order
from mt_dnn.prediction.table_labels import is_unlabeled, without_marks
from mt_dnn.prediction.text_examples import CUT, TextExamples, TextTokenization, tokenize_rows
from tasks import Task, Values, check_metrics
from tasks.interfaces import Batch
from tasks.table_rows import TEXT_COLUMNS, fields_of_row, is_missing, takes, takes_in_words
from tasks.values import NO_ANSWER, Answer

logger = logging.getLogger(__name__)

GPU_TOKENS = 16 * EVALUATION_TOKENS  # of a batch on a GPU, padding included
SHOWN_ROWS = 5  # numbers of rows in a line

Cells = Sequence[Any]  # the texts of a row, such as a premise and a hypothesis


class TaskNetwork(Protocol):
    """A network with its tasks: `mt_dnn.matcher.SANBertNetwork`, or a classifier of transformers in its place."""

    tasks: list[Task]
    bert: Any

    def run(self, batch: Batch) -> Any: ...

    def encode(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Scored:
    """Answers to some rows, and their metrics.

    Attributes:
        answers: one for each row, in order; `NO_ANSWER` for a row without text.
        metrics: of the rows with a label, by name, in percent; empty without labels.
        notes: lines for the user, such as how many texts were cut.
    """

    answers: list[Answer]
    metrics: dict[str, float]
    notes: list[str]


class TaskModel:
    """One task of a trained model.

    Args:
        name: the task's.
        network: with its parameters, in evaluation mode, on its device.
        task_id: the number of the task's head.
        text: the tokenizer that the network was trained with.
        formats: those of the rows; the task's own by default.
        metrics: by default the definition's.
    """

    def __init__(
        self,
        name: str,
        network: TaskNetwork,
        task_id: int,
        text: TextTokenization,
        formats: Sequence[DataFormat] = (),
        metrics: Sequence[Metric] = (),
    ):
        self.name, self.network, self.task_id, self.text = name, network, task_id, text
        self.task = network.tasks[task_id]
        self.formats = tuple(formats) or (self.task.task_def.data_type,)
        self.metrics = tuple(metrics) or self.task.task_def.metric_meta
        self.task.tokenizer = text.tokenizer
        config = network.bert.config
        self.collater = Collater(getattr(config, "pad_token_id", None) or 0)

    @property
    def device(self) -> torch.device:
        return next(self.network.bert.parameters()).device

    @property
    def takes_several_labels(self) -> bool:
        """Whether a text may have any number of labels."""
        return self.task.task_def.task_type.name == "MultiLabel"

    @property
    def labels_words(self) -> bool:
        """Whether a text gets a label for each of its words."""
        return self.task.task_def.data_type == DataFormat.Seqence

    def format_of(self, count: int) -> DataFormat:
        """The format of rows with so many texts.

        Raises:
            FlagError: the task takes another number of texts.
        """
        found = next((own for own in self.formats if takes(own, count)), None)
        if found is None:
            accepted = " or ".join(map(takes_in_words, self.formats))
            raise FlagError(f"task {self.name} takes {accepted}, found {count}")
        return found

    def score(
        self,
        rows: Sequence[Cells],
        labels: Sequence[Any] | None = None,
        metrics: Sequence[Metric] | None = None,
        batch_size: int | None = None,
        where: str = "texts",
        numbers: Sequence[int] | None = None,
        unit: str = "row",
    ) -> Scored:
        """Answers to rows, and metrics where they have labels.

        Args:
            rows: the texts of each, all of the same number.
            labels: the label of each row, in the form of a table; rows with a missing label are in no metric.
            metrics: by default the definition's.
            batch_size: rows in a batch; by default as many as fill a batch of `EVALUATION_TOKENS` tokens.
            where: source of the rows, for messages.
            numbers: of the rows, for messages; by default from 1.
            unit: what `numbers` count, `line` or `row`.

        Raises:
            UserError: a row, a label or a metric that is not accepted.
        """
        metrics = self.metrics if metrics is None else metrics
        self.task.check_tokenization(self.text)
        if labels is not None:
            check_metrics(self.task.task_def, metrics, "--metric")
            self.task.check_text(where)
        numbers = range(1, len(rows) + 1) if numbers is None else numbers
        labels, marks = (None, {}) if labels is None else without_marks(self.task, labels)
        found = [NO_ANSWER] * len(rows)
        try:
            lines, unlabeled = self._lines(rows, labels, where, numbers)
            samples = list(tokenize_rows(where, self.task, lines, self.text))
        except DataError as error:
            raise UserError(str(error).replace(f"{where}, line ", f"{where}, {unit} ", 1)) from error
        if labels is not None and not any("label" in sample for sample in samples):
            raise FlagError("--label: no row has a text and a label; accepted: a column with labels")
        if not samples:
            return Scored(found, {}, self._notes([], found, 0, {}, numbers, unit))
        examples = TextExamples(where, self.task, self.task_id, samples)
        check_fits_encoder(examples, self.network.bert)
        scores, predictions = self._run(examples, batch_size)
        answers = self.task.readable(examples, scores, predictions)
        for uid, answer in zip(dict.fromkeys(examples.uids), answers, strict=True):
            found[int(uid)] = answer
        values: dict[str, float] = {}
        if labels is not None:
            values = self._measure(samples, scores, predictions, metrics, where)
        return Scored(found, values, self._notes(samples, found, unlabeled, marks, numbers, unit))

    def _lines(
        self, rows: Sequence[Cells], labels: Sequence[Any] | None, where: str, numbers: Sequence[int]
    ) -> tuple[list[tuple[int, dict[str, Any]]], int]:
        """The rows that have a text, as lines of a canonical TSV with the row's place as uid; how many lack a label."""
        lines, unlabeled, known = [], 0, None
        for place, row in enumerate(rows):
            data_format = self.format_of(len(row))
            try:
                fields = fields_of_row(data_format, row)
                if fields is None or not self._has_tokens(fields):
                    continue
                known = known or data_format
                if data_format != known:
                    raise ValueError(
                        f"found {takes_in_words(data_format)}, accepted: {takes_in_words(known)}, as in the rows before"
                    )
                label = None if labels is None else labels[place]
                given = {} if is_unlabeled(label) else self.task.label_fields(fields, label)
            except ValueError as error:
                raise DataError(str(error), where, numbers[place]) from error
            unlabeled += labels is not None and not given
            unknown = {"answers": "", "starts": ""} if "context" in fields else {}
            lines.append((numbers[place], {"uid": str(place), "label": "", **unknown, **fields, **given}))
        return lines, unlabeled

    def _has_tokens(self, fields: Mapping[str, Any]) -> bool:
        """Whether the tokenizer leaves something of a context, as it does not of invisible characters alone."""
        context = fields.get("context", "") if self.task.in_windows else "a"
        return any(map(str.isalnum, context)) or bool(self.text.pieces([context])[0].offsets)

    def _run(self, examples: TextExamples, batch_size: int | None) -> tuple[Values, Values]:
        """Scores and predictions of each example, in order; batches are of similar length."""
        size = GPU_TOKENS if self.device.type == "cuda" else EVALUATION_TOKENS
        batches = batches_by_length(examples.tokens, batch_size, size)
        results = []
        with progress(total=len(examples), name=self.name, unit="text") as bar, torch.inference_mode():
            for indices in batches:
                batch = self.collater([examples[index] for index in indices]).to(self.device)
                results.append(self.task.infer_texts(self.network, batch))
                bar.update(len(indices))
        order = np.concatenate(batches).argsort()
        scores, predictions = (in_order(list(parts), order) for parts in zip(*results, strict=True))
        if not all(np.isfinite(own).all() for own in ([scores] if isinstance(scores, np.ndarray) else scores)):
            raise NotFiniteError(f"task {self.name}: the model's scores are not finite; its training diverged")
        return scores, predictions

    def _measure(
        self,
        samples: Sequence[Mapping[str, Any]],
        scores: Values,
        predictions: Values,
        metrics: Sequence[Metric],
        where: str,
    ) -> dict[str, float]:
        """Metrics of the examples that have a label."""
        places = [place for place, sample in enumerate(samples) if "label" in sample]
        labeled = TextExamples(where, self.task, self.task_id, [samples[place] for place in places])
        return self.task.evaluate(labeled, metrics, _at(places, scores), _at(places, predictions)).metrics

    def _notes(
        self,
        samples: Sequence[Mapping[str, Any]],
        answers: Sequence[Answer],
        unlabeled: int,
        marks: Mapping[str, int],
        numbers: Sequence[int],
        unit: str,
    ) -> list[str]:
        notes = []
        empty = [number for number, answer in zip(numbers, answers, strict=True) if answer is NO_ANSWER]
        if empty:
            shown = ", ".join(map(str, empty[:SHOWN_ROWS])) + (", …" if len(empty) > SHOWN_ROWS else "")
            notes.append(f"{len(empty)} of {len(answers)} rows have no text and get no answer: {unit} {shown}")
        cut = {str(sample["uid"]) for sample in samples if np.any(sample.get(CUT, False))}
        if cut:
            longest = self.text.spec.max_seq_len
            notes.append(f"{len(cut)} of {len(answers)} texts are longer than {longest} tokens and were cut")
        if unlabeled:
            shown = ", ".join(f"{own!r} in {count}" for own, count in marks.items())
            written = f" (written as {shown})" if marks else ""
            notes.append(f"{unlabeled} of {len(answers)} rows have no label{written} and are in no metric")
        return notes


class TextModel:
    """A trained model: texts go in, answers come out.

    Made by `load_model`; its `tasks` are those of the model, by name.
    """

    def __init__(self, tasks: Mapping[str, TaskModel]):
        self.tasks = dict(tasks)

    def predict(self, texts: Iterable[Any], task: str | None = None, batch_size: int | None = None) -> list[Answer]:
        """The answers to texts, in their order.

        Args:
            texts: a list of texts. If the task needs several texts, a list of tuples: a premise and a hypothesis, a
                question and its context, a premise and a list of candidates. For labels of words, each text may be a
                list of words.
            task: name of the task; not needed if the model has only one.
            batch_size: texts in a batch; by default as many as fill a batch of tokens.

        Returns:
            An `Answer` for each text, with `label`, `probability` and `probabilities`. All three are None if the text
            is empty.

        Raises:
            UserError: an unknown task, or a text that the task does not take.
        """
        model = self.task(task)
        return self._log_notes(model.score(_rows(texts, model.formats), batch_size=batch_size)).answers

    def evaluate(
        self,
        texts: Iterable[Any],
        labels: Iterable[Any],
        task: str | None = None,
        metrics: Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> dict[str, float]:
        """The metrics of the answers to texts, by name, in percent.

        Args:
            texts, task, batch_size: as in `predict`.
            labels: the right answer to each text; texts whose label is None or empty are in no metric.
            metrics: names such as `["ACC", "F1MAC"]`; by default those of the task's definition.

        Raises:
            UserError: as `predict`; a label or a metric that the task does not have.
        """
        model, given = self.task(task), list(labels)
        rows = _rows(texts, model.formats)
        if len(rows) != len(given):
            raise UserError(f"found {len(rows)} texts and {len(given)} labels; accepted: a label for each text")
        named = None if metrics is None else named_metrics(metrics)
        return self._log_notes(model.score(rows, given, named, batch_size)).metrics

    def task(self, name: str | None = None) -> TaskModel:
        """The model of one task.

        Raises:
            FlagError: no such task, or several and none is named.
        """
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        if name not in self.tasks:
            found = "nothing" if name is None else repr(name)
            raise FlagError(
                f"--task: found {found}{nearest(name or '', self.tasks)}, accepted: {', '.join(self.tasks)}"
            )
        return self.tasks[name]

    @staticmethod
    def _log_notes(scored: Scored) -> Scored:
        for note in scored.notes:
            logger.warning("%s", note)
        return scored


def _at(places: Sequence[int], values: Values) -> Values:
    return values[list(places)] if isinstance(values, np.ndarray) else [values[place] for place in places]


def named_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics with these names.

    Raises:
        FlagError: a name is unknown.
    """
    given = list(names)
    for name in given:
        if name not in Metric.__members__:
            accepted = ", ".join(Metric.__members__)
            raise FlagError(f"--metric: found {name!r}{nearest(name, Metric.__members__)}, accepted: {accepted}")
    return tuple(Metric[name] for name in given)


def ready(network: Any, device: torch.device) -> Any:
    """Put a network into evaluation mode and single precision, on a device, with the faster linear layers."""
    assert isinstance(network, nn.Module)
    network.float().to(device).eval()
    choose_linears(network, "auto")
    return network


def chosen_device(cuda: bool | None) -> torch.device:
    """The device of a model: a GPU if there is one, unless `cuda` is false.

    Raises:
        FlagError: `cuda` is true and there is no GPU.
    """
    if cuda and not torch.cuda.is_available():
        raise FlagError("--cuda: found no GPU that torch can use; accepted: --cuda false")
    return torch.device("cuda" if cuda is not False and torch.cuda.is_available() else "cpu")


def _rows(texts: Iterable[Any], formats: Sequence[DataFormat]) -> list[Cells]:
    """The argument of `predict` as rows."""
    if isinstance(texts, str):
        raise UserError(f"found the text {texts[:40]!r}; accepted: a list of texts")
    has_words = DataFormat.Seqence in formats  # a list is the words of one text
    nothing = (None,) * len(TEXT_COLUMNS.get(formats[0], ()))
    found: list[Cells] = []
    for own in texts:
        if is_missing(own):
            found.append(nothing)
        else:
            is_row = isinstance(own, list | tuple) and not has_words
            found.append(tuple(own) if is_row else (own,))
    return found
