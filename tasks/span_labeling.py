"""All the answers to a question in a text, as a label for each of its tokens; long texts are read in windows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from data_utils.errors import DataError
from data_utils.metrics import Metric
from data_utils.prepro import Line, Split, Tokenization
from data_utils.spans import Span, text_of
from data_utils.task_def import DataFormat
from tasks.base import Task
from tasks.interfaces import Examples
from tasks.registry import register_task
from tasks.sequence_labeling import SequenceLabelingTask
from tasks.values import Answer, Entries, Values
from tasks.windows import answer_fields, check_room, read_window, read_windows

OUTSIDE, BEGINS, GOES_ON = range(3)  # labels of a token


class Token(NamedTuple):
    """A token of a text in the window that shows most around it.

    around: tokens on its shorter side there; offset: its characters; scores: probabilities (3,).
    """

    around: int
    offset: tuple[int, int]
    scores: np.ndarray


@dataclass
class Text:
    """A question's whole text: `tokens` by their number, `begins` of its windows likewise."""

    context: str
    tokens: dict[int, Token] = field(default_factory=dict)
    begins: set[int] = field(default_factory=set)

    def in_order(self) -> list[Token]:
        return [self.tokens[number] for number in sorted(self.tokens)]

    def offsets(self) -> list[tuple[int, int]]:
        return [token.offset for token in self.in_order()]


@register_task("SpanSeqenceLabeling")
class SpanSequenceLabelingTask(SequenceLabelingTask):
    """Outside an answer, its first token, or inside one: labels 0, 1 and 2 over question and text.

    MT-DNN has the name alone. All answers of a line are right together, none is a text without.
    """

    data_formats = (DataFormat.CLUE_SPAN,)
    in_windows = True

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        labels, n_class = entry.get("labels"), entry.get("n_class")
        found = []
        if type(n_class) is int and n_class != 3:
            found.append(f"key 'n_class': found {n_class}, accepted: 3 for SpanSeqenceLabeling")
        if isinstance(labels, list) and [str(label)[:2] for label in labels] != ["O", "B-", "I-"]:
            found.append(
                f"key 'labels': found {labels}, accepted: outside, begin and inside, such as [O, B-ANS, I-ANS]"
            )
        return found

    def check_text(self, where: str) -> None:
        Task.check_text(self, where)

    def check_tokenization(self, text: Tokenization) -> None:
        check_room(text)

    def tokenize(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        """Of answers that overlap the first counts."""
        for window in read_windows(split, lines, text):
            example = window.example | {"window_start": window.first}
            if window.answers is not None:
                labels: dict[int, int] = {}
                for first, last in window.spans:
                    if not any(token in labels for token in range(first, last + 1)):
                        labels |= {first: BEGINS} | dict.fromkeys(range(first + 1, last + 1), GOES_ON)
                by_token = [OUTSIDE] * len(example["token_id"])
                for token, place in enumerate(window.places, start=window.first):
                    by_token[place] = labels.get(token, OUTSIDE)
                answer = {"text": window.answers.texts, "answer_start": window.answers.starts}
                example |= {"answer": answer, "label": by_token}
            yield example

    def uids(self, dataset: Examples) -> Sequence[str]:
        """One a question."""
        return list(dict.fromkeys(dataset.uids))

    def entries(self, dataset: Examples, scores: Values, predictions: Values) -> Entries:
        """Of each question a list of answers, as they stand in the text, and the scores of its text's tokens."""
        texts = self._texts(dataset, scores)
        by_token = [np.stack([token.scores for token in text.in_order()]) for text in texts.values()]
        answers = [
            [text_of(text.context, span) for span in spans_of(own.argmax(-1), text.offsets())]
            for text, own in zip(texts.values(), by_token, strict=True)
        ]
        return Entries(list(texts), answers, by_token)

    def golds(self, dataset: Examples) -> Any:
        """Of each question the labels of its text's tokens."""
        one_hot = [np.eye(self.task_def.n_class)[labels] for labels in dataset.labels]
        return [own.argmax(-1) for own in self.entries(dataset, one_hot, ()).scores]

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """Over the tokens of whole texts."""
        labels = [own.argmax(-1) for own in entries.scores]
        return super().measure(metrics, golds, replace(entries, predictions=labels))

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        return [(len(own), self.task_def.n_class) for own in golds]

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """Of each question the list, as JSON."""
        return [json.dumps(own, ensure_ascii=False) for own in predictions]

    def tokenize_texts(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        return self.tokenize(split, lines, text)

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """The answers as a list, or SQuAD's object with `text` and `answer_start`."""
        return answer_fields(fields["context"], label)

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """Of each question the list of its answers."""
        return [Answer(list(own)) for own in self.entries(dataset, scores, predictions).predictions]

    def _texts(self, dataset: Examples, scores: Values) -> dict[str, Text]:
        """By id, in the order of the file."""
        texts: dict[str, Text] = {}
        for sample, own in zip(dataset.samples(), scores, strict=True):
            uid, context, offsets = read_window(sample, len(own), dataset.path)
            start = sample.get("window_start")
            if type(start) is not int:
                raise DataError(f"{uid}: found no window_start, a whole number", dataset.path)
            text = texts.setdefault(uid, Text(context))
            if text.context != context or start in text.begins:
                raise DataError(f"{uid}: two questions have this uid; accepted: one", dataset.path)
            text.begins.add(start)
            places = [(place, offset) for place, offset in enumerate(offsets[: len(own)]) if offset is not None]
            for token, (place, offset) in enumerate(places):
                seen = Token(min(token, len(places) - 1 - token), offset, own[place])
                best = text.tokens.get(start + token)
                if best is None or seen.around > best.around:
                    text.tokens[start + token] = seen
        return texts


def spans_of(labels: np.ndarray, offsets: Sequence[tuple[int, int]]) -> list[Span]:
    """The answers that tokens' labels tell; one that goes on without having begun begins there, as CoNLL reads it."""
    spans: list[Span] = []
    previous = OUTSIDE
    for label, (begin, end) in zip(labels.tolist(), offsets, strict=True):
        if label == BEGINS or (label == GOES_ON and previous == OUTSIDE):
            spans.append(Span(0.0, begin, end))
        elif label == GOES_ON:
            spans[-1] = spans[-1]._replace(end=end)
        previous = label
    return spans
