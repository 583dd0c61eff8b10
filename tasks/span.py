"""The answer to a question as a part of a text; long texts are read in overlapping windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_utils.errors import DataError, UserError
from data_utils.metrics import Metric
from data_utils.prepro import Line, Split, Tokenization
from data_utils.spans import Span, best_spans, text_of
from data_utils.squad_metrics import squad_v1, squad_v2
from data_utils.task_def import DataFormat, LossCriterion
from tasks.base import Task
from tasks.interfaces import Batch, Examples, Network
from tasks.registry import register_task
from tasks.values import Answer, Entries, ModelInputs, Values, check_texts
from tasks.windows import NULL_ANSWER, Answers, answer_fields, check_room, read_golds, read_window, read_windows

N_BEST = 20  # spans of each window that are compared with those of the question's other windows


@dataclass(frozen=True)
class Chosen(Entries):
    """The prediction for each question, an empty text for no answer; scores are (questions, columns).

    Attributes:
        texts: the best answers, also for questions that are predicted to have none.
        null_scores: scores that are compared with the threshold; empty if every question has an answer.
    """

    texts: Sequence[str] = ()
    null_scores: Sequence[float] | np.ndarray = ()


@dataclass
class Question:
    """A question with the results of all its windows.

    Attributes:
        context: the text.
        spans: the best spans of each window.
        null_score: score of having no answer: the lowest of the windows, because one window with an answer is enough.
        begins: the characters at which the windows begin.
    """

    context: str
    spans: list[Span] = field(default_factory=list)
    null_score: float = np.inf
    begins: set[int] = field(default_factory=set)

    def best(self) -> tuple[str, float]:
        """The text of the best span that is more than blanks, and its score."""
        ranked = sorted(self.spans, key=lambda span: -span.score)
        texts = [text_of(self.context, span) for span in ranked]
        chosen = next((place for place, text in enumerate(texts) if text), 0)
        return texts[chosen], ranked[chosen].score


@register_task("SpanClassification")
class SpanClassificationTask(Task):
    """A start and an end, each one of the tokens; every question has an answer (SQuAD 1.1)."""

    default_loss = LossCriterion.SpanCeCriterion
    losses = (LossCriterion.SpanCeCriterion,)
    data_formats = (DataFormat.CLUE_SPAN,)
    many_labels = True
    pads = False
    in_windows = True
    distils = True
    answer_parts = ("probability",)
    view = "spans"
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

    def check_tokenization(self, text: Tokenization) -> None:
        check_room(text)

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

    def soft_count(self, lengths: Sequence[int]) -> int:
        """A start and an end for each token."""
        return 2 * lengths[0]

    def soft_label(self, scores: np.ndarray) -> np.ndarray:
        """The scores themselves, which are logits."""
        return scores

    def taught_label(self, scores: np.ndarray) -> list[int]:
        """The likeliest span; a span that begins at the token for no answer also ends there."""
        start, end = scores.reshape(2, -1)
        joint = np.triu(start[:, None] + end[None, :])
        allowed = np.triu(np.ones(joint.shape, bool))
        allowed[NULL_ANSWER, NULL_ANSWER + 1 :] = False
        first, last = np.unravel_index(np.where(allowed, joint, -np.inf).argmax(), joint.shape)
        return self._label([int(first), int(last)], inside=bool(first != NULL_ANSWER))

    def collate_soft_labels(self, soft: Sequence[np.ndarray], width: int) -> Tensor:
        """(examples, 2, width), start and end; 0 at padding."""
        padded = torch.zeros(len(soft), 2, width)
        for row, own in enumerate(soft):
            padded[row, :, : len(own) // 2] = torch.from_numpy(own.copy()).view(2, -1)
        return padded

    def build_head(self, hidden_size: int, dropout_p: float) -> nn.Module:
        """A projection of each token; its keys in a checkpoint are `1.*` as in MT-DNN, without `1.` if dropout is 0."""
        own = self.task_def.dropout_p
        dropout_p = dropout_p if own is None else own
        projection = nn.Linear(hidden_size, self.task_def.n_class)
        return nn.Sequential(nn.Dropout(dropout_p), projection) if dropout_p > 0 else projection

    def forward(self, network: Network, head: nn.Module, inputs: ModelInputs) -> tuple[Tensor, ...]:
        """Logits of start and end, (rows, tokens) each, the lowest number at padding; further ones are (rows,)."""
        logits = head(network.encode(inputs.input_ids, inputs.token_type_ids, inputs.attention_mask))
        ends = logits[..., :2]
        if inputs.attention_mask is not None:
            padding = inputs.attention_mask.unsqueeze(-1) == 0
            ends = ends.masked_fill(padding, torch.finfo(ends.dtype).min)
        return *ends.unbind(-1), *logits[:, 0, 2:].unbind(-1)

    def taught(self, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of start and end, (rows, tokens) each.

        If the head has a third output, the log-odds of an answer, it is subtracted from the start logit of no answer.
        """
        start, end, *further = (part.float() for part in logits)
        for log_odds in further:
            start = torch.cat([start[:, :1] - log_odds.unsqueeze(1), start[:, 1:]], 1)
        return start, end

    def teacher(self, batch: Batch) -> tuple[Tensor, ...]:
        assert batch.soft_labels is not None
        return batch.soft_labels.unbind(1)

    def predict(self, logits: Sequence[Tensor], batch: Batch) -> tuple[Values, Values]:
        """For each window the logits (2, tokens) of `taught` without padding, and the best token for each, (2,)."""
        scores = torch.stack(self.taught(logits), 1).cpu().numpy()
        lengths = batch.attention_mask.sum(1).tolist()
        kept = [row[:, :length] for row, length in zip(scores, lengths, strict=True)]
        return kept, [row.argmax(-1) for row in kept]

    def uids(self, dataset: Examples) -> Sequence[str]:
        """One for each question."""
        return list(dict.fromkeys(dataset.uids))

    def entries(self, dataset: Examples, scores: Values, predictions: Values) -> Chosen:
        """One answer for each question, from all its windows."""
        return self._choose(self._questions(dataset, scores))

    def golds(self, dataset: Examples) -> Any:
        """The right answers of each question."""
        found: dict[str, list[str]] = {}
        for sample in dataset.samples():
            found.setdefault(str(sample["uid"]), read_golds(sample, dataset.path))
        return list(found.values())

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """Metrics as in SQuAD's evaluation; the search for the best threshold uses the answers of all questions."""
        refused = [metric.name for metric in metrics if metric not in self.metrics]
        if refused:
            accepted = ", ".join(metric.name for metric in self.metrics)
            raise UserError(f"metric {refused[0]} is not one of {self.task_def.task_type.name}'s; accepted: {accepted}")
        found: dict[str, float] = {}
        withheld = (entries.texts, entries.null_scores) if isinstance(entries, Chosen) else ()
        predictions = list(entries.predictions)
        for metric in metrics:
            found |= squad_v1(golds, predictions) if metric == Metric.EmF1 else squad_v2(golds, predictions, *withheld)
        return found

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        check_texts(predictions)
        return [(1,)] * len(predictions)

    def _questions(self, dataset: Examples, scores: Values) -> dict[str, Question]:
        """The questions by id, in the order of the file."""
        questions: dict[str, Question] = {}
        longest = int(self.opt.get("max_answer_len", 10))
        for sample, (start, end) in zip(dataset.samples(), scores, strict=True):
            uid, context, offsets = read_window(sample, len(start), dataset.path)
            question = questions.setdefault(uid, Question(context))
            null = sample.get("null_ans_index", NULL_ANSWER)
            if type(null) is not int or not 0 <= null < len(start):
                raise DataError(f"{uid}: null_ans_index has to be the number of a token", dataset.path)
            if offsets[null] is not None:
                # MT-DNN's own files count the question's characters too, which cannot be told from the context's
                raise DataError(f"{uid}: offset_mapping has to be null outside the context", dataset.path)
            begin = next((own[0] for own in offsets if own is not None), -1)
            if question.context != context or begin in question.begins:
                raise DataError(f"{uid}: two questions have this uid; accepted: one", dataset.path)
            question.begins.add(begin)
            question.spans += best_spans(start, end, offsets[: len(start)], longest, N_BEST)
            question.null_score = min(question.null_score, float(start[null]) + float(end[null]))
        for uid, question in questions.items():
            if not question.spans:
                raise DataError(f"{uid}: no token of the context has a finite score", dataset.path)
        return questions

    def _choose(self, questions: Mapping[str, Question]) -> Chosen:
        """The best answer to each question; the only column is its score."""
        best = [question.best() for question in questions.values()]
        texts = [text for text, _ in best]
        return Chosen(list(questions), texts, np.array([[score] for _, score in best]), texts)

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        return list(predictions)

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """The answer, several of them as a list, or SQuAD's object with `text` and `answer_start`."""
        return answer_fields(fields["context"], label)

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """The answer to each question, with its probability among the best spans of all windows, and no answer."""
        questions = self._questions(dataset, scores)
        chosen = self._choose(questions)
        found = []
        for text, row, question in zip(chosen.predictions, np.asarray(chosen.scores), questions.values(), strict=True):
            rivals = np.array([*(span.score for span in question.spans), *row[1:]])
            own = row[-1] if not text else row[0]
            found.append(Answer(text, float(np.exp(own - rivals.max()) / np.exp(rivals - rivals.max()).sum())))
        return found


@register_task("SpanClassificationYN")
class SpanClassificationYNTask(SpanClassificationTask):
    """Like `SpanClassification`, for data with questions that have no answer (SQuAD 2.0).

    With `n_class: 2`, as in MT-DNN, the first token's start and end logits say whether there is an answer. With
    `n_class: 3` the first token also has the log-odds that the window has one, and their loss is added.
    """

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

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        check_texts(predictions)
        return [(2,)] * len(predictions)

    def _choose(self, questions: Mapping[str, Question]) -> Chosen:
        """No answer if its score exceeds the best answer's by more than the threshold; the columns are both scores."""
        answered = super()._choose(questions)
        scores = np.hstack([answered.scores, [[question.null_score] for question in questions.values()]])
        null_scores = scores[:, 1] - scores[:, 0]
        is_none = null_scores > float(self.opt.get("null_score_diff_threshold", 0.0))
        predictions = ["" if none else text for none, text in zip(is_none, answered.texts, strict=True)]
        return Chosen(answered.uids, predictions, scores, answered.texts, null_scores)


def _is_span(label: Sequence[Any], length: int) -> bool:
    return all(type(token) is int for token in label) and 0 <= label[0] <= label[1] < length
