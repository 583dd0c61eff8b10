"""The answer to a question as a span of a text; long texts are read in windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data_utils.errors import DataError, FlagError, UserError
from data_utils.metrics import Metric
from data_utils.prepro import Line, Split, Tokenization, TokenizerSpec
from data_utils.spans import Offsets, Span, best_spans, text_of, tokens_of
from data_utils.squad_metrics import squad_v1, squad_v2
from data_utils.task_def import DataFormat, TaskType
from mt_dnn.loss import LossCriterion
from tasks.base import Evaluation, ModelInputs, Task, Values, register_task
from tasks.sequence_labeling import parse_list

if TYPE_CHECKING:
    from mt_dnn.batcher import Batch
    from mt_dnn.dataset import SingleTaskDataset
    from mt_dnn.matcher import SANBertNetwork

NULL_ANSWER = 0  # the token that windows without an answer point at
N_BEST = 20  # spans of a window that compete with those of the question's other windows


class Answers(NamedTuple):
    """The right answers of a question and the characters at which they start; none where it has no answer."""

    texts: list[str]
    starts: list[int]


class Chosen(NamedTuple):
    """Of each question the prediction.

    predictions: texts, empty for no answer; scores: (questions, columns), as a score file holds them; texts: what the
    answer would be if there was one; null_scores: what the threshold is applied to, none where all have an answer.
    """

    predictions: list[str]
    scores: np.ndarray
    texts: list[str]
    null_scores: Sequence[float] | np.ndarray = ()


class Window(NamedTuple):
    """A question with a part of its context.

    number: of the line; answers: of the question, None without labels; spans: of each answer its first and last token,
    counted in the whole context; first: the context's token with which the window begins; places: where the window has
    its tokens of the context; example: as a token file holds it, without answers and labels.
    """

    number: int
    answers: Answers | None
    spans: list[tuple[int, int]]
    first: int
    places: list[int]
    example: dict[str, Any]


@dataclass
class Question:
    """What the windows of a question say together.

    Attributes:
        context: the text.
        golds: the right answers, where the file has them.
        spans: the best of each window.
        null_score: of having no answer: the lowest of the windows, for one with an answer is enough.
    """

    context: str
    golds: Sequence[str]
    spans: list[Span] = field(default_factory=list)
    null_score: float = np.inf

    def best(self) -> tuple[str, float]:
        """The best span that holds more than blanks, as the context has it, and its score."""
        ranked = sorted(self.spans, key=lambda span: -span.score)
        texts = [text_of(self.context, span) for span in ranked]
        chosen = next((place for place, text in enumerate(texts) if text), 0)
        return texts[chosen], ranked[chosen].score


@register_task("SpanClassification")
class SpanClassificationTask(Task):
    """A start and an end, each one of the tokens; every question has an answer (SQuAD 1.1)."""

    default_loss = LossCriterion.SpanCeCriterion
    data_formats = (DataFormat.CLUE_SPAN,)
    many_labels = True
    view = TaskType.SpanClassification
    outputs: tuple[int, ...] = (2,)
    metrics: tuple[Metric, ...] = (Metric.EmF1, Metric.EmF12)
    accepted_labels = "the answer's first and last token, such as [14, 16]"

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        found, n_class, loss = [], entry.get("n_class"), entry.get("loss")
        if type(n_class) is int and n_class not in cls.outputs:
            found.append(f"key 'n_class': found {n_class}, accepted: {' or '.join(map(str, cls.outputs))} for spans")
        if loss in LossCriterion.__members__ and loss != cls.default_loss.name:
            found.append(f"key 'loss': found {loss}, accepted: {cls.default_loss.name} for spans")
        known = [metric.name for metric in cls.metrics]
        named = entry.get("metric_meta")
        for metric in named if isinstance(named, list) else []:
            if metric in Metric.__members__ and metric not in known:
                found.append(f"key 'metric_meta': found {metric}, accepted: {', '.join(known)} for this task_type")
        return found

    def check_text(self, where: str, do_padding: bool) -> None:
        super().check_text(where, do_padding)
        if do_padding:
            raise UserError(f"{where}: --do_padding is not there for spans; leave it out, train.py pads batches")

    def tokenize(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        for window in read_windows(split, lines, text):
            example, answers = window.example, window.answers
            if answers is not None:
                self._check_answers(answers.texts, split, window.number)
                first, last = window.spans[0] if window.spans else (-1, -1)  # the first answer is the one to learn
                inside = window.first <= first and last < window.first + len(window.places)
                ends = [window.places[token - window.first] if inside else NULL_ANSWER for token in (first, last)]
                example |= {"answer": self._answer_field(answers), "label": self._label(ends, inside)}
            yield example

    def _check_answers(self, texts: Sequence[str], split: Split, number: int) -> None:
        if not texts:
            raise DataError("found no answer; SpanClassificationYN is for questions without", split.path, number)

    def _answer_field(self, answers: Answers) -> dict[str, Any]:
        return {"text": answers.texts, "answer_start": answers.starts}

    def _label(self, ends: list[int], inside: bool) -> list[int]:
        return ends

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        return isinstance(label, list) and len(label) == 2 and _is_span(label, lengths[0])

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """(examples, 2): first and last token."""
        return torch.from_numpy(np.stack(labels))

    def build_head(self, hidden_size: int, dropout_p: float) -> nn.Module:
        """A projection of each token; its keys in a checkpoint are MT-DNN's, `1.*`, or with no dropout without `1.`."""
        own = self.task_def.dropout_p
        dropout_p = dropout_p if own is None else own
        projection = nn.Linear(hidden_size, self.task_def.n_class)
        return nn.Sequential(nn.Dropout(dropout_p), projection) if dropout_p > 0 else projection

    def forward(self, network: SANBertNetwork, head: nn.Module, inputs: ModelInputs) -> tuple[Tensor, ...]:
        """Logits of start and end, (rows, tokens) each, the lowest number at padding; further ones are (rows,)."""
        logits = head(network.encode(inputs.input_ids, inputs.token_type_ids, inputs.attention_mask))
        ends = logits[..., :2]
        if inputs.attention_mask is not None:
            padding = inputs.attention_mask.unsqueeze(-1) == 0
            ends = ends.masked_fill(padding, torch.finfo(ends.dtype).min)
        return *ends.unbind(-1), *logits[:, 0, 2:].unbind(-1)

    def predict(self, logits: Sequence[Tensor], batch: Batch) -> tuple[Values, Values]:
        """Of each window the logits (2, tokens) of start and end without padding, and the best token for each, (2,).

        Where the head has a third output, the log-odds of an answer, they are taken from what says that there is none.
        """
        ends = torch.stack(tuple(logits[:2]), 1).float()
        for log_odds in logits[2:]:
            ends[:, 0, NULL_ANSWER] -= log_odds.float()
        scores = ends.cpu().numpy()
        lengths = batch.attention_mask.sum(1).tolist()
        kept = [row[:, :length] for row, length in zip(scores, lengths, strict=True)]
        return kept, [row.argmax(-1) for row in kept]

    def evaluate(
        self,
        dataset: SingleTaskDataset,
        metrics: Sequence[Metric],
        scores: Values,
        predictions: Values,
        with_label: bool = True,
    ) -> Evaluation:
        """One answer a question, out of all its windows."""
        refused = [metric.name for metric in metrics if metric not in self.metrics]
        if refused:
            accepted = ", ".join(metric.name for metric in self.metrics)
            raise UserError(f"metric {refused[0]} is not one of {self.task_def.task_type.name}'s; accepted: {accepted}")
        questions = self._questions(dataset, scores)
        chosen = self._choose(list(questions.values()))
        golds = None
        found: dict[str, float] = {}
        if with_label and dataset.labels is not None:
            golds = [question.golds for question in questions.values()]
            for metric in metrics:
                if metric == Metric.EmF1:
                    found |= squad_v1(golds, chosen.predictions)
                else:
                    found |= squad_v2(golds, chosen.predictions, chosen.texts, chosen.null_scores)
        return Evaluation(found, chosen.predictions, chosen.scores, golds, list(questions))

    def _questions(self, dataset: SingleTaskDataset, scores: Values) -> dict[str, Question]:
        """By id, in the order of the file."""
        questions: dict[str, Question] = {}
        longest = int(self.opt.get("max_answer_len", 10))
        for sample, (start, end) in zip(dataset.samples(), scores, strict=True):
            uid, context, offsets = read_window(sample, len(start), dataset.path)
            question = questions.setdefault(uid, Question(context, read_golds(sample, dataset.path)))
            if question.context != context:
                raise DataError(f"{uid}: two questions have this uid; accepted: one", dataset.path)
            null = sample.get("null_ans_index", NULL_ANSWER)
            if type(null) is not int or not 0 <= null < len(start):
                raise DataError(f"{uid}: null_ans_index has to be the number of a token", dataset.path)
            if offsets[null] is not None:
                # MT-DNN's own files count the question's characters too, which cannot be told from the context's
                raise DataError(f"{uid}: offset_mapping has to be null outside the context", dataset.path)
            question.spans += best_spans(start, end, offsets[: len(start)], longest, N_BEST)
            question.null_score = min(question.null_score, float(start[null]) + float(end[null]))
        for uid, question in questions.items():
            if not question.spans:
                raise DataError(f"{uid}: no token of the context has a finite score", dataset.path)
        return questions

    def _choose(self, questions: Sequence[Question]) -> Chosen:
        """The best answer of each; the only column is its score."""
        best = [question.best() for question in questions]
        texts = [text for text, _ in best]
        return Chosen(texts, np.array([[score] for _, score in best]), texts)

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        return list(predictions)


@register_task("SpanClassificationYN")
class SpanClassificationYNTask(SpanClassificationTask):
    """The same with questions that have no answer (SQuAD 2.0).

    With `n_class` 2, MT-DNN's, the first token's start and end logits say whether there is an answer; with 3 the first
    token also has the log-odds that the window holds one, and its loss is added.
    """

    view = TaskType.SpanClassificationYN
    outputs = (2, 3)
    metrics = (Metric.EmF12,)
    accepted_labels = "the answer's first and last token and 1, such as [14, 16, 1], or [0, 0, 0] for none"

    def _check_answers(self, texts: Sequence[str], split: Split, number: int) -> None:
        """A question may have none."""

    def _answer_field(self, answers: Answers) -> dict[str, Any]:
        return super()._answer_field(answers) | {"is_impossible": not answers.texts}

    def _label(self, ends: list[int], inside: bool) -> list[int]:
        return [*ends, int(inside)]

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        if not isinstance(label, list) or len(label) != 3 or type(label[2]) is not int:
            return False
        return label[2] in (0, 1) and _is_span(label[:2], lengths[0])

    def _choose(self, questions: Sequence[Question]) -> Chosen:
        """No answer where its score exceeds the best answer's by more than the threshold; columns: both scores."""
        answered = super()._choose(questions)
        scores = np.hstack([answered.scores, [[question.null_score] for question in questions]])
        null_scores = scores[:, 1] - scores[:, 0]
        is_none = null_scores > float(self.opt.get("null_score_diff_threshold", 0.0))
        predictions = ["" if none else text for none, text in zip(is_none, answered.texts, strict=True)]
        return Chosen(predictions, scores, answered.texts, null_scores)


def read_windows(split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[Window]:
    """Each question of a TSV's lines with each window of its context, the question first.

    Raises:
        DataError: answers that cannot be used, or no text; names file and line.
        FlagError: a window has no room for a token of its own.
    """
    spec, special = text.spec, text.tokenizer.num_special_tokens_to_add(pair=True)
    _check_room(spec, special)
    questions = text.pieces([fields["question"] for _, fields in lines])
    contexts = text.pieces([fields["context"] for _, fields in lines])
    for (number, fields), question, context in zip(lines, questions, contexts, strict=True):
        answers = parse_answers(split, number, fields)
        question.truncate(spec.max_query_len)
        offsets = context.offsets
        if not offsets:
            raise DataError("found no token in the context; a question needs a text", split.path, number)
        spans = [] if answers is None else _token_spans(offsets, answers, split, number)
        room = spec.max_seq_len - len(question) - special
        context.truncate(room, stride=spec.doc_stride)
        for window, part in enumerate((context, *context.overflowing)):
            encoded = text.pair(question, part)
            size, first = len(encoded["token_id"]), window * (room - spec.doc_stride)
            places = [place for place, own in enumerate(encoded["is_special"]) if not own][len(question) :]
            mapping: list[tuple[int, int] | None] = [None] * size
            for place, own in zip(places, offsets[first : first + len(places)], strict=True):
                mapping[place] = own
            example = {
                "uid": fields["uid"],
                "token_id": encoded["token_id"],
                "mask": [1] * size,
                "type_id": encoded["type_id"],
                "offset_mapping": mapping,
                "null_ans_index": NULL_ANSWER,
                "context": fields["context"],
            }
            yield Window(number, answers, spans, first, places, example)


def read_window(sample: Mapping[str, Any], tokens: int, path: Path) -> tuple[str, str, list[tuple[int, int] | None]]:
    """What an example of a token file has beside its tokens: id, context, and the characters of each token.

    Raises:
        DataError: it has no context, or an offset that is none in it.
    """
    uid, context, offsets = str(sample["uid"]), sample.get("context"), sample.get("offset_mapping")
    if not isinstance(context, str) or not isinstance(offsets, list) or len(offsets) < tokens:
        raise DataError(f"{uid}: found no context or no offset_mapping of its tokens", path)
    for own in offsets:
        pair = isinstance(own, list) and len(own) == 2 and all(type(character) is int for character in own)
        if own is not None and not (pair and 0 <= own[0] <= own[1] <= len(context)):
            raise DataError(f"{uid}: offset_mapping holds {own!r}; accepted: null, or from and to in the context", path)
    return uid, context, offsets


def read_golds(sample: Mapping[str, Any], path: Path) -> list[str]:
    """The right answers of an example of a token file, none where it has none.

    Raises:
        DataError: they are no texts.
    """
    answer = sample.get("answer") or {}
    texts = answer.get("text", []) if isinstance(answer, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{sample['uid']}: answer has to be an object with a text, a list of texts", path)
    return texts


def parse_answers(split: Split, number: int, fields: Mapping[str, str]) -> Answers | None:
    """The columns `answers` and `starts`; None for an example without labels.

    Raises:
        DataError: no lists, or an answer that does not stand where it is said to; names file and line.
    """
    if not fields["answers"] and not split.is_train:
        return None
    texts = parse_list(split, number, "answers", fields["answers"])
    starts = parse_list(split, number, "starts", fields["starts"], int)
    if len(texts) != len(starts):
        found = f"{len(texts)} answers and {len(starts)} starts"
        raise DataError(f"expected the character at which each answer starts, found {found}", split.path, number)
    for answer, start in zip(texts, starts, strict=True):
        if not answer or start < 0 or fields["context"][start : start + len(answer)] != answer:
            found = f"the answer {answer!r} is not at character {start} of the context, counted from 0"
            raise DataError(found, split.path, number)
    return Answers(texts, starts)


def _token_spans(offsets: Offsets, answers: Answers, split: Split, number: int) -> list[tuple[int, int]]:
    spans = []
    for answer, start in zip(answers.texts, answers.starts, strict=True):
        span = tokens_of(offsets, start, start + len(answer))
        if span is None:
            raise DataError(f"the answer {answer!r} is in no token of the context", split.path, number)
        spans.append(span)
    return spans


def _check_room(spec: TokenizerSpec, special: int) -> None:
    needed = spec.max_query_len + special + spec.doc_stride + 1
    if spec.max_seq_len < needed:
        raise FlagError(
            f"--max_seq_len: found {spec.max_seq_len}, accepted: at least {needed}: --max_query_len "
            f"{spec.max_query_len}, {special} special tokens, --doc_stride {spec.doc_stride}, and one more"
        )


def _is_span(label: Sequence[Any], length: int) -> bool:
    return all(type(token) is int for token in label) and 0 <= label[0] <= label[1] < length
