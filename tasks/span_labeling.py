"""All answers to a question in a text, by a label for each of its tokens; long texts are read in windows."""

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
    """A token of a text, in the window that shows most of the text around it.

    Attributes:
        around: tokens on its shorter side in that window.
        offset: its characters, from and to.
        scores: probabilities of the labels, (3,).
    """

    around: int
    offset: tuple[int, int]
    scores: np.ndarray


@dataclass
class Text:
    """A question's whole text: `tokens` by their number, and the tokens at which its windows begin."""

    context: str
    tokens: dict[int, Token] = field(default_factory=dict)
    begins: set[int] = field(default_factory=set)

    def in_order(self) -> list[Token]:
        return [self.tokens[number] for number in sorted(self.tokens)]

    def offsets(self) -> list[tuple[int, int]]:
        return [token.offset for token in self.in_order()]


@register_task("SpanSeqenceLabeling")
class SpanSequenceLabelingTask(SequenceLabelingTask):
    """Labels 0, 1 and 2 for each token: outside an answer, first token of one, inside one.

    MT-DNN has only the name. All answers of a line are right at the same time; a text may have none.
    """

    data_formats = (DataFormat.CLUE_SPAN,)
    in_windows = True
    answer_parts = ()

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
        """Of overlapping answers only the first counts."""
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
        """One for each question."""
        return list(dict.fromkeys(dataset.uids))

    def entries(self, dataset: Examples, scores: Values, predictions: Values) -> Entries:
        """For each question the list of answers, as they are in the text, and the scores of its text's tokens."""
        texts = self._texts(dataset, scores)
        by_token = [np.stack([token.scores for token in text.in_order()]) for text in texts.values()]
        answers = [
            [text_of(text.context, span) for span in spans_of(own.argmax(-1), text.offsets())]
            for text, own in zip(texts.values(), by_token, strict=True)
        ]
        return Entries(list(texts), answers, by_token)

    def golds(self, dataset: Examples) -> Any:
        """For each question the labels of its text's tokens."""
        one_hot = [np.eye(self.task_def.n_class)[labels] for labels in dataset.labels]
        return [own.argmax(-1) for own in self.entries(dataset, one_hot, ()).scores]

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """Metrics over the tokens of whole texts."""
        labels = [own.argmax(-1) for own in entries.scores]
        return super().measure(metrics, golds, replace(entries, predictions=labels))

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        return [(len(own), self.task_def.n_class) for own in golds]

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """For each question the list, as JSON."""
        return [json.dumps(own, ensure_ascii=False) for own in predictions]

    def tokenize_texts(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        return self.tokenize(split, lines, text)

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """The answers as a list, or SQuAD's object with `text` and `answer_start`."""
        return answer_fields(fields["context"], label)

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """For each question the list of its answers."""
        return [Answer(list(own)) for own in self.entries(dataset, scores, predictions).predictions]

    def _texts(self, dataset: Examples, scores: Values) -> dict[str, Text]:
        """The texts by id, in the order of the file."""
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
    """The answers that the tokens' labels mark; as in CoNLL, label 2 after label 0 begins an answer."""
    spans: list[Span] = []
    previous = OUTSIDE
    for label, (begin, end) in zip(labels.tolist(), offsets, strict=True):
        if label == BEGINS or (label == GOES_ON and previous == OUTSIDE):
            spans.append(Span(0.0, begin, end))
        elif label == GOES_ON:
            spans[-1] = spans[-1]._replace(end=end)
        previous = label
    return spans
