"""The base class of all task types: what differs between them, from text to metrics. A type overrides what it needs.

    @register_task("Classification")
    class ClassificationTask(Task): ...

The methods are in the order of their use: definition, text, token file, batch, network, loss, evaluation, answers.
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

from data_utils.errors import DataError, FlagError, UserError
from data_utils.metrics import Metric, calc_metrics, undefined
from data_utils.prepro import Line, Split, Tokenization
from data_utils.task_def import OF_CLASSES, DataFormat, LossCriterion
from data_utils.tokenizer import load_tokenizer
from module.pooler import Pooler
from module.san import AnswerOptions, SANClassifier
from tasks.interfaces import Batch, Criterion, Definition, Examples, Network
from tasks.table_rows import as_text
from tasks.values import Answer, Entries, Evaluation, ModelInputs, Values, check_classes, class_index

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


logger = logging.getLogger("mt_dnn.tasks")  # in the run's log

SMALLEST = 1e-6  # a probability of 0 has no logarithm


class Task:
    """A task on a pooled sequence. The defaults are those of a classifier, except that it makes no predictions.

    Args:
        task_def: the task's definition.
        opt: the run's flags and the encoder's configuration by name, as in a checkpoint's `config`; None if only data
            is read.

    Attributes:
        default_loss: criterion of the gold labels if the definition names none.
        losses: criteria that the definition may name.
        metrics: what evaluation can compute; `metrics_of` narrows it by the number of classes.
        default_adv_loss: divergence of the regularizer if the definition names none.
        data_formats: canonical TSVs that the type can read.
        label_type: numpy type of a label in a token file.
        many_labels: an example has a list of labels: one for each token, or a start and an end.
        many_rows: an example has several sequences, such as a question with each of its answers.
        in_windows: an example is one window of a long text; a score file has one entry for the whole text.
        distils: the logits can be compared with a teacher's scores.
        pads: `prepro_std.py --do_padding` pads the examples.
        own_labels: the labels are the tokens themselves; token files have none.
        generates: the type needs the encoder's decoder.
        uses_word_table: the head also uses the encoder's word embeddings.
        answer_parts: what an answer has besides of its label: "probability"; "classes", a probability of each class by
            its name; "items", a probability of each item of a row, such as a candidate.
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
    answer_parts: tuple[str, ...] = ()
    view: str = "classes"

    def __init__(self, task_def: Definition, opt: Mapping[str, Any] | None = None):
        self.task_def = task_def
        self.opt: Mapping[str, Any] = opt or {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the run's encoder, for types that need its vocabulary in training or evaluation.

        Raises:
            FlagError: no tokenizer has that name.
            DataError: the command has no encoder, so the data itself must have the texts.
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
        """Mistakes in a task's mapping in the YAML, one line each: key, what was found, what is accepted."""
        return []

    @classmethod
    def metrics_of(cls, n_class: int, named: bool) -> tuple[Metric, ...]:
        """The metrics of a task with `n_class` classes; MT-DNN's files may name others.

        Args:
            named: whether the classes have names.
        """
        return cls.metrics

    # text

    def check_text(self, where: str) -> None:
        """Check that the task's text can be tokenized.

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
        """Check that this tokenizer and its settings fit the task, before anything is written.

        Raises:
            FlagError: they do not.
        """

    def tokenize(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        """Turn lines of a canonical TSV into examples of a token file, one or several for each line.

        Raises:
            DataError: a label is not accepted; names file and line.
        """
        texts: list[Any] = [fields["premise"] for _, fields in lines]
        if "hypothesis" in lines[0][1]:
            texts = [(premise, fields["hypothesis"]) for premise, (_, fields) in zip(texts, lines, strict=True)]
        encoded_texts = text.encode(texts, [number for number, _ in lines])
        for (number, fields), encoded in zip(lines, encoded_texts, strict=True):
            label = {} if _unlabeled(split, fields) else {"label": self.parse_label(split, number, fields["label"])}
            yield {"uid": fields["uid"], **label, **encoded}

    def parse_label(self, split: Split, number: int, text: str) -> Any:
        """A line's label in the form of a token file: here the index of a class.

        Raises:
            DataError: the label is not accepted.
        """
        return class_index(self.task_def, split, number, text)

    # token file

    @property
    def accepted_labels(self) -> str:
        """The labels that are accepted, in words, for messages."""
        return f"the integers 0 to {self.task_def.n_class - 1}"

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        """Whether an example may have this label.

        Args:
            label: as in the token file.
            lengths: number of tokens of each of the example's sequences.
        """
        return type(label) is int and 0 <= label < self.task_def.n_class

    def read_label(self, sample: Mapping[str, Any]) -> Any:
        """The label of a token file's line, which `accepts_label` accepts, as a dataset holds it.

        Raises:
            ValueError: what the line says besides of its label is not accepted.
        """
        return sample["label"]

    def soft_count(self, lengths: Sequence[int]) -> int:
        """How many numbers an example's `softlabel` has; `lengths` as in `accepts_label`."""
        return self.task_def.n_class * len(lengths)

    def soft_label(self, scores: np.ndarray) -> np.ndarray:
        """A teacher's scores of an example, in the form of `predict`, as logits; here logarithms of probabilities."""
        return np.log(scores.clip(min=SMALLEST))

    def taught_label(self, scores: np.ndarray) -> Any:
        """The label that replaces the gold label if only a teacher's scores are used."""
        return int(scores.argmax())

    # batch

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """Labels of a batch as one tensor, here (examples,).

        Args:
            labels: numbers, or arrays if an example has several labels.
            width: tokens of the batch, including padding.
        """
        return torch.from_numpy(np.array(labels))

    def collate_soft_labels(self, soft: Sequence[np.ndarray], width: int) -> Tensor:
        """A teacher's logits of a batch as one tensor, here (rows, n_class); `width` as in `collate_labels`."""
        return torch.from_numpy(np.concatenate(soft)).view(-1, self.task_def.n_class)

    def prepare(self, batch: Batch, seeds: Sequence[int]) -> Batch:
        """The batch as the network sees it in this update, for types that draw something random, such as masks.

        Args:
            seeds: one for each row.
        """
        return batch

    def y_input_ids(self, batch: Batch) -> Tensor | None:
        """The tokens to generate, (examples, tokens), for types that generate."""
        return None

    # network

    def build_head(self, hidden_size: int, dropout_p: float) -> nn.Module:
        """The head of this task; its keys in a checkpoint are `0.dense.*` (pooler) and `1.*` (projection)."""
        task_def = self.task_def
        dropout_p = dropout_p if task_def.dropout_p is None else task_def.dropout_p
        return nn.Sequential(Pooler(hidden_size, dropout_p, task_def.actf), nn.Linear(hidden_size, task_def.n_class))

    @classmethod
    def pools(cls) -> bool:
        """Whether the head is this base's, which the stochastic answer network can replace (`enable_san`)."""
        return cls.build_head is Task.build_head

    @property
    def has_answer_network(self) -> bool:
        """Whether the head is the stochastic answer network, which reads premise and hypothesis separately."""
        return self.task_def.enable_san and self.pools() and self.opt.get("answer_opt", 1) == 1

    def build_answer_network(self, hidden_size: int, options: AnswerOptions) -> nn.Module:
        """The head of a task with `enable_san`; the definition's `dropout_p` overrides the flags'."""
        own = self.task_def.dropout_p
        options = options if own is None else replace(options, dropout_p=own)
        return SANClassifier(hidden_size, self.task_def.n_class, options)

    def take_over_head(self, head: nn.Module, encoder: str) -> None:
        """Load a pre-trained head that comes with the encoder, for types that have one.

        Args:
            encoder: the encoder's name.
        """

    def forward(self, network: Network, head: nn.Module, inputs: ModelInputs) -> Any:
        """Logits of a batch: here the head's output on the encoder's, (rows, tokens, hidden) → (rows, n_class)."""
        states = network.encode(inputs.input_ids, inputs.token_type_ids, inputs.attention_mask)
        return head(states, *inputs.sentences()) if self.has_answer_network else head(states)

    # loss

    def loss(self, criterion: Criterion, logits: Any, batch: Batch) -> Tensor:
        """The task loss: a mean over `units`."""
        assert batch.labels is not None
        return criterion(logits, batch.labels)

    def taught(self, logits: Any) -> Any:
        """The logits that are compared with a teacher's."""
        return logits

    def teacher(self, batch: Batch) -> Any:
        """A teacher's logits of a batch, in the form of `taught`."""
        return batch.soft_labels

    def counted(self, batch: Batch) -> Tensor | None:
        """Which tokens' distributions are compared, (rows, tokens); None if an example has one distribution."""
        return None

    def units(self, batch: Batch) -> int:
        """How many units the batch's losses and divergences are means over: counted tokens, or examples."""
        counted = self.counted(batch)
        return len(batch) if counted is None else int(counted.sum())

    # evaluation

    def infer(self, network: Network, batch: Batch) -> tuple[Values, Values]:
        """Scores and predictions of a batch's examples; the network is in evaluation mode."""
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
        """Evaluate a dataset's predictions.

        Args:
            metrics: computed if the dataset has labels and `with_label` is set.
            scores, predictions: in the dataset's order.
        """
        found = self.entries(dataset, scores, predictions)
        golds = self.golds(dataset) if with_label and dataset.has_labels else None
        values = {}
        if golds is not None:
            values = self.measure(metrics, golds, found)
            for note in [*self.notes(metrics, golds), *undefined(values)]:
                logger.info("%s: %s", dataset.name, note)
        return Evaluation(values, found.predictions, found.scores, golds, found.uids)

    def uids(self, dataset: Examples) -> Sequence[str]:
        """The ids of a score file's entries, here one for each example."""
        return dataset.uids

    def entries(self, dataset: Examples, scores: Values, predictions: Values) -> Entries:
        """The entries of a score file, made of the scores and predictions of a dataset's examples."""
        return Entries(self.uids(dataset), predictions, scores)

    def golds(self, dataset: Examples) -> Any:
        """The gold label of each entry."""
        return dataset.labels

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """The metrics of the entries by name, in percent."""
        return calc_metrics(metrics, golds, entries.predictions, entries.scores)

    def notes(self, metrics: Sequence[Metric], golds: Any) -> list[str]:
        """Lines that a reader of these metrics needs, such as which labels a mean leaves out."""
        return []

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        """The shape of each entry's scores, which a score file does not store.

        Raises:
            ValueError: a prediction is not one of this type.
        """
        for own in predictions:
            check_classes([own], self.task_def.n_class)
        return [(self.task_def.n_class,)] * len(predictions)

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """The cells of GLUE's submission table: the predicted class of each example, by name if it has one."""
        labels = self.task_def.label_vocab
        return [int(index) if labels is None else labels.ind2tok[int(index)] for index in predictions]

    # texts of a table

    def tokenize_texts(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        """Like `tokenize`; the examples also have what `readable` needs."""
        return self.tokenize(split, lines, text)

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """A row's label in a table, as the fields that `tokenize` reads.

        Args:
            fields: the fields of the row's texts.
            label: a cell that is not empty.

        Raises:
            ValueError: the cell has the wrong form. Whether the task has this label is checked by `tokenize`.
        """
        return {"label": as_text(label)}

    def infer_texts(self, network: Network, batch: Batch) -> tuple[Values, Values]:
        """Like `infer`, for `readable`."""
        return self.infer(network, batch)

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """The answer to each text, in the dataset's order, made of what `infer_texts` returned."""
        return [Answer(label) for label in self.answers(scores, predictions)]


def _unlabeled(split: Split, fields: Mapping[str, Any]) -> bool:
    """An empty field is an example without a label; in a training file it is a mistake."""
    return not fields["label"] and not split.is_train
