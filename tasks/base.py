"""What a task type has to say, from its text to its metrics; a type is one file that overrides what differs.

    @register_task("Classification")
    class ClassificationTask(Task): ...

The methods stand in the order in which they are used: definition, text, token file, batch, network, loss, evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from data_utils.errors import DataError, FlagError, UserError, nearest
from data_utils.metrics import Metric, calc_metrics
from data_utils.prepro import Line, Split, Tokenization
from data_utils.task_def import OF_CLASSES, DataFormat, LossCriterion
from data_utils.tokenizer import load_tokenizer
from module.pooler import Pooler
from module.san import AnswerOptions, SANClassifier
from tasks.interfaces import Batch, Criterion, Definition, Examples, Network
from tasks.table_rows import as_text
from tasks.values import Answer, Entries, Evaluation, ModelInputs, Values, check_classes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


logger = logging.getLogger("mt_dnn.tasks")  # in the run's log

SMALLEST = 1e-6  # a probability of 0 has no logarithm


class Task:
    """A task type over a pooled sequence; this base is a classifier's in all but its predictions.

    Args:
        task_def: the task's definition.
        opt: the run's flags by name, as a checkpoint's `config` has them, the encoder's configuration included; None
            where only data is read.

    Attributes:
        default_loss: criterion of the gold labels where the definition names none.
        losses: those that the definition may name.
        metrics: those that evaluation has, whatever the task's classes are (`metrics_of`).
        default_adv_loss: the divergence, likewise.
        data_formats: the canonical TSVs that the type can be read from.
        label_type: of a label in a token file, as numpy names it.
        many_labels: an example has a list of labels: one a token, or a start and an end.
        many_rows: an example has several sequences, such as a question with each of its answers.
        in_windows: an example is a part of what a score file's entry is of, such as a window of a long text.
        distils: logits can be held against a teacher's scores.
        pads: `prepro_std.py --do_padding` pads the examples.
        own_labels: the labels are made of the tokens themselves; token files hold none.
        generates: the encoder's decoder is needed.
        uses_word_table: the head computes with the encoder's table of words too.
        view: how logits are compared as distributions: a name in `mt_dnn.perturbation.outputs.VIEWS`.
    """

    default_loss: LossCriterion = LossCriterion.CeCriterion
    losses: tuple[LossCriterion, ...] = OF_CLASSES
    metrics: tuple[Metric, ...] = tuple(Metric)
    default_adv_loss: LossCriterion = LossCriterion.SymKlCriterion
    data_formats: tuple[DataFormat, ...] = (DataFormat.PremiseOnly, DataFormat.PremiseAndOneHypothesis)
    label_type: type[np.generic] = np.int64
    many_labels = False
    many_rows = False
    pads = True
    in_windows = False
    distils = False
    own_labels = False
    generates = False
    uses_word_table = False
    view: str = "classes"

    def __init__(self, task_def: Definition, opt: Mapping[str, Any] | None = None):
        self.task_def = task_def
        self.opt: Mapping[str, Any] = opt or {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the run's encoder, for types that need its vocabulary in training or evaluation.

        Raises:
            FlagError: there is none of that name.
            DataError: the command has no encoder, and so needs data that tells what a tokenizer would.
        """
        if "tokenizer" not in self.opt:
            raise DataError(f"{self.task_def.task_type.name}: found no answer in an example; this command needs one")
        try:
            return load_tokenizer(self.opt["tokenizer"], cache_dir=self.opt.get("transformer_cache"))
        except DataError as error:
            raise FlagError(f"{self.task_def.task_type.name}: {error}; --tokenizer names another") from error

    # definition

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        """What does not fit this type in the YAML's mapping, a line each: key, what was found, what is accepted."""
        return []

    @classmethod
    def metrics_of(cls, n_class: int, named: bool) -> tuple[Metric, ...]:
        """The metrics that evaluation has of a task with so many classes; MT-DNN's files may name others.

        Args:
            named: the classes have names.
        """
        return cls.metrics

    # text

    def check_text(self, where: str) -> None:
        """See that text of this task can be tokenized.

        Args:
            where: file and task, for the message.

        Raises:
            UserError: it cannot.
        """
        found = self.task_def.data_type
        if found not in self.data_formats:
            accepted = ", ".join(known.name for known in self.data_formats)
            kind = self.task_def.task_type.name
            raise UserError(f"{where}: data_format {found.name} does not go with {kind}; accepted: {accepted}")

    def check_tokenization(self, text: Tokenization) -> None:
        """See that text of this task can be tokenized so, before anything is written.

        Raises:
            FlagError: it cannot.
        """

    def tokenize(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        """Lines of a canonical TSV → examples of a token file, one or several a line.

        Raises:
            DataError: a label that is not accepted; names file and line.
        """
        texts: list[Any] = [fields["premise"] for _, fields in lines]
        if "hypothesis" in lines[0][1]:
            texts = [(premise, fields["hypothesis"]) for premise, (_, fields) in zip(texts, lines, strict=True)]
        for (number, fields), encoded in zip(lines, text.encode(texts), strict=True):
            label = {} if _unlabeled(split, fields) else {"label": self.parse_label(split, number, fields["label"])}
            yield {"uid": fields["uid"], **label, **encoded}

    def parse_label(self, split: Split, number: int, text: str) -> Any:
        """The label of a line, as a token file holds it: here a class's index.

        Raises:
            DataError: it is not accepted.
        """
        return class_index(self.task_def, split, number, text)

    # token file

    @property
    def accepted_labels(self) -> str:
        """In words."""
        return f"the integers 0 to {self.task_def.n_class - 1}"

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        """Whether an example may have this label.

        Args:
            label: as the token file holds it.
            lengths: tokens of each of the example's sequences.
        """
        return type(label) is int and 0 <= label < self.task_def.n_class

    def soft_count(self, lengths: Sequence[int]) -> int:
        """How many numbers an example's `softlabel` has; `lengths` as above."""
        return self.task_def.n_class * len(lengths)

    def soft_label(self, scores: np.ndarray) -> np.ndarray:
        """A teacher's scores of an example, as `predict` gives them, as logits; here logarithms of probabilities."""
        return np.log(scores.clip(min=SMALLEST))

    def taught_label(self, scores: np.ndarray) -> Any:
        """The label that stands in the gold one's place where a teacher's scores do."""
        return int(scores.argmax())

    # batch

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """Labels of a batch's examples as one tensor, here (examples,).

        Args:
            labels: numbers, or arrays where an example has several.
            width: tokens of the batch, padding included.
        """
        return torch.from_numpy(np.array(labels))

    def collate_soft_labels(self, soft: Sequence[np.ndarray], width: int) -> Tensor:
        """A teacher's logits of a batch's examples as one tensor, here (rows, n_class); arguments as above."""
        return torch.from_numpy(np.concatenate(soft)).view(-1, self.task_def.n_class)

    def prepare(self, batch: Batch, seeds: Sequence[int]) -> Batch:
        """The batch that the network meets in this update, for types that draw something anew, such as masks.

        Args:
            seeds: one a row.
        """
        return batch

    def y_input_ids(self, batch: Batch) -> Tensor | None:
        """The tokens that are to be generated, (examples, tokens), for types that have such."""
        return None

    # network

    def build_head(self, hidden_size: int, dropout_p: float) -> nn.Module:
        """The head of this task; its keys in a checkpoint are `0.dense.*` (pooler) and `1.*` (projection)."""
        task_def = self.task_def
        dropout_p = dropout_p if task_def.dropout_p is None else task_def.dropout_p
        return nn.Sequential(Pooler(hidden_size, dropout_p, task_def.actf), nn.Linear(hidden_size, task_def.n_class))

    @classmethod
    def pools(cls) -> bool:
        """Whether the head is this base's, in whose place the stochastic answer network can stand (`enable_san`)."""
        return cls.build_head is Task.build_head

    @property
    def has_answer_network(self) -> bool:
        """Whether the head is that network, which takes premise and hypothesis apart."""
        return self.task_def.enable_san and self.pools() and self.opt.get("answer_opt", 1) == 1

    def build_answer_network(self, hidden_size: int, options: AnswerOptions) -> nn.Module:
        """The head of a task with `enable_san`; the definition's `dropout_p` wins over the flags'."""
        own = self.task_def.dropout_p
        options = options if own is None else replace(options, dropout_p=own)
        return SANClassifier(hidden_size, self.task_def.n_class, options)

    def take_over_head(self, head: nn.Module, encoder: str) -> None:
        """Let the head begin with what comes with a pre-trained encoder, for types whose heads are pre-trained.

        Args:
            encoder: its name.
        """

    def forward(self, network: Network, head: nn.Module, inputs: ModelInputs) -> Any:
        """Logits of a batch: here the head on the encoder's output, (rows, tokens, hidden) → (rows, n_class)."""
        states = network.encode(inputs.input_ids, inputs.token_type_ids, inputs.attention_mask)
        return head(states, *inputs.sentences()) if self.has_answer_network else head(states)

    # loss

    def loss(self, criterion: Criterion, logits: Any, batch: Batch) -> Tensor:
        """The task loss, a mean over `units`."""
        assert batch.labels is not None
        return criterion(logits, batch.labels)

    def taught(self, logits: Any) -> Any:
        """The logits that are held against a teacher's."""
        return logits

    def teacher(self, batch: Batch) -> Any:
        """A teacher's logits of a batch, as `taught` has them."""
        return batch.soft_labels

    def counted(self, batch: Batch) -> Tensor | None:
        """(rows, tokens): the tokens whose distributions are compared, where each has one; None: an example has one."""
        return None

    def units(self, batch: Batch) -> int:
        """How many losses and divergences of a batch are means over: tokens that count, where some do, or examples."""
        counted = self.counted(batch)
        return len(batch) if counted is None else int(counted.sum())

    # evaluation

    def infer(self, network: Network, batch: Batch) -> tuple[Values, Values]:
        """Scores and predictions of a batch's examples by the network, which is in evaluation mode."""
        return self.predict(network.run(batch), batch)

    def predict(self, logits: Any, batch: Batch) -> tuple[Values, Values]:
        """Scores and predictions of each example: here (examples, n_class) and (examples,)."""
        raise TypeError(f"{type(self).__name__} gives no predictions")

    def evaluate(
        self,
        dataset: Examples,
        metrics: Sequence[Metric],
        scores: Values,
        predictions: Values,
        with_label: bool = True,
    ) -> Evaluation:
        """What a dataset's predictions, in its order, come to.

        Args:
            metrics: those to compute where the dataset has labels and `with_label` is set.
        """
        found = self.entries(dataset, scores, predictions)
        golds = self.golds(dataset) if with_label and dataset.has_labels else None
        values = {}
        if golds is not None:
            values = self.measure(metrics, golds, found)
            for note in self.notes(metrics, golds):
                logger.info("%s: %s", dataset.name, note)
        return Evaluation(values, found.predictions, found.scores, golds, found.uids)

    def uids(self, dataset: Examples) -> Sequence[str]:
        """The ids of a score file's entries, here one an example."""
        return dataset.uids

    def entries(self, dataset: Examples, scores: Values, predictions: Values) -> Entries:
        """What a score file holds of the scores and predictions of a dataset's examples."""
        return Entries(self.uids(dataset), predictions, scores)

    def golds(self, dataset: Examples) -> Any:
        """What a dataset's labels say of each entry."""
        return dataset.labels

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """Metrics of entries by name, in percent."""
        return calc_metrics(metrics, golds, entries.predictions, entries.scores)

    def notes(self, metrics: Sequence[Metric], golds: Any) -> list[str]:
        """What a reader of these metrics has to know, such as what is in no mean, a line each."""
        return []

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        """Of each entry's scores, which a score file holds without their shapes.

        Raises:
            ValueError: a prediction that is none of this type's.
        """
        for own in predictions:
            check_classes([own], self.task_def.n_class)
        return [(self.task_def.n_class,)] * len(predictions)

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """What GLUE's submission table holds for each example: the predicted class, as text where it has a name."""
        labels = self.task_def.label_vocab
        return [int(index) if labels is None else labels.ind2tok[int(index)] for index in predictions]

    # texts of a table

    def tokenize_texts(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        """As `tokenize`, for texts whose answers are to be read: with what `readable` needs in addition."""
        return self.tokenize(split, lines, text)

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """A table's label of a row as the fields that `tokenize` reads.

        Args:
            fields: those of the row's texts.
            label: a cell that is not empty.

        Raises:
            ValueError: it cannot be a label; `tokenize` finds out what is none of this task's.
        """
        return {"label": as_text(label)}

    def infer_texts(self, network: Network, batch: Batch) -> tuple[Values, Values]:
        """As `infer`, for texts whose answers are to be read."""
        return self.infer(network, batch)

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """The answer to each text, in the dataset's order, of what `infer_texts` gave for its examples."""
        return [Answer(label) for label in self.answers(scores, predictions)]


def _unlabeled(split: Split, fields: Mapping[str, Any]) -> bool:
    """An empty field is an example without a label, but in a training file, where it is a mistake."""
    return not fields["label"] and not split.is_train


def class_index(task_def: Definition, split: Split, number: int, text: object) -> int:
    """The index of a class that a TSV names, or gives as a number where the definition has no names.

    Raises:
        DataError: no such class.
    """
    labels = task_def.label_vocab
    if labels is not None:
        if text in labels:
            return labels[str(text)]
        known = list(labels.tok2ind)
        hint = nearest(str(text), known)
        raise DataError(f"found the label {text!r}{hint}; accepted: {', '.join(known)}", split.path, number)
    try:
        index = int(str(text))
    except ValueError:
        index = -1
    if not 0 <= index < task_def.n_class:
        accepted = f"a whole number from 0 to {task_def.n_class - 1}"
        raise DataError(f"found the label {text!r}; accepted: {accepted}", split.path, number)
    return index
