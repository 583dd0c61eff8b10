"""Questions with a long text, read in overlapping windows: from a canonical TSV, and from a token file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_utils.errors import DataError, FlagError
from data_utils.prepro import Line, Split, Tokenization, parse_list
from data_utils.readers import SEPARATORS
from data_utils.spans import Offsets, tokens_of
from tasks.table_rows import SHOWN, as_list, as_text

NOWHERE = -1  # the start of an answer that is not in the context
NULL_ANSWER = 0  # the token that windows without an answer point at


class Answers(NamedTuple):
    """The right answers to a question and the characters at which they start; both empty if it has none."""

    texts: list[str]
    starts: list[int]


class Window(NamedTuple):
    """A question with a part of its context.

    Attributes:
        number: of the line.
        answers: of the question; None without labels.
        spans: first and last token of each answer, counted in the whole context.
        first: the number of the context's token with which the window begins.
        places: where in the window the context's tokens are.
        example: as in a token file, without answers and labels.
    """

    number: int
    answers: Answers | None
    spans: list[tuple[int, int]]
    first: int
    places: list[int]
    example: dict[str, Any]


def read_windows(split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[Window]:
    """The windows of each question of a TSV's lines; a window is the question followed by a part of its context.

    Raises:
        DataError: answers that cannot be used, or an empty text; names file and line.
    """
    spec, special = text.spec, text.tokenizer.num_special_tokens_to_add(pair=True)
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
    """The id, the context and the characters of each token, of an example of a token file.

    Raises:
        DataError: there is no context, or an offset outside it.
    """
    uid, context, offsets = str(sample["uid"]), sample.get("context"), sample.get("offset_mapping")
    if not isinstance(context, str) or not isinstance(offsets, list) or len(offsets) < tokens:
        raise DataError(f"{uid}: found no context or no offset_mapping of its tokens", path)
    for own in offsets:
        pair = isinstance(own, list | tuple) and len(own) == 2 and all(type(character) is int for character in own)
        if own is not None and not (pair and 0 <= own[0] <= own[1] <= len(context)):
            raise DataError(f"{uid}: offset_mapping holds {own!r}; accepted: null, or from and to in the context", path)
    return uid, context, offsets


def read_golds(sample: Mapping[str, Any], path: Path) -> list[str]:
    """The right answers of an example of a token file; empty if it has none.

    Raises:
        DataError: they are not texts.
    """
    answer = sample.get("answer") or {}
    texts = answer.get("text", []) if isinstance(answer, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{sample['uid']}: answer has to be an object with a text, a list of texts", path)
    return texts


def parse_answers(split: Split, number: int, fields: Mapping[str, str]) -> Answers | None:
    """The columns `answers` and `starts`; None for an example without labels.

    Outside training the start -1 is of an answer that is not in the context, which counts in the metrics all the same.

    Raises:
        DataError: they are not lists, or an answer is not at its start; names file and line.
    """
    if not fields["answers"] and not split.is_train:
        return None
    texts = parse_list(split, number, "answers", fields["answers"])
    starts = parse_list(split, number, "starts", fields["starts"], int)
    if len(texts) != len(starts):
        found = f"{len(texts)} answers and {len(starts)} starts"
        raise DataError(f"expected the character at which each answer starts, found {found}", split.path, number)
    for answer, start in zip(texts, starts, strict=True):
        if start == NOWHERE and not split.is_train and answer:
            continue
        if not answer or start < 0 or fields["context"][start : start + len(answer)] != answer:
            found = f"the answer {answer!r} is not at character {start} of the context, counted from 0"
            raise DataError(found, split.path, number)
    return Answers(texts, starts)


def answer_fields(context: str, label: Any) -> dict[str, Any]:
    """A table's answers to a question, as the columns `answers` and `starts`.

    Args:
        label: a part of the context, a list of parts, or SQuAD's object with `text` and `answer_start`. An empty list
            means that the question has no answer.

    Raises:
        ValueError: an answer is not in the context.
    """
    if isinstance(label, Mapping) and isinstance(label.get("text"), list):
        parts = [own.translate(SEPARATORS) if isinstance(own, str) else own for own in label["text"]]
        return {"answers": json.dumps(parts), "starts": json.dumps(label.get("answer_start"))}
    found = as_list(label)
    texts = [as_text(own) for own in ([label] if found is None else found)]
    for text in texts:
        if text not in context:
            raise ValueError(f"found the answer {text[:SHOWN]!r}, which is not in the row's context")
    return {"answers": json.dumps(texts), "starts": json.dumps([context.find(text) for text in texts])}


def _token_spans(offsets: Offsets, answers: Answers, split: Split, number: int) -> list[tuple[int, int]]:
    spans = []
    for answer, start in zip(answers.texts, answers.starts, strict=True):
        span = (NOWHERE, NOWHERE) if start == NOWHERE else tokens_of(offsets, start, start + len(answer))
        if span is None:
            raise DataError(f"the answer {answer!r} is in no token of the context", split.path, number)
        spans.append(span)
    return spans


def check_room(text: Tokenization) -> None:
    """Check that a window has room for at least one new token.

    Raises:
        FlagError: it does not.
    """
    spec, special = text.spec, text.tokenizer.num_special_tokens_to_add(pair=True)
    needed = spec.max_query_len + special + spec.doc_stride + 1
    if spec.max_seq_len < needed:
        raise FlagError(
            f"--max_seq_len: found {spec.max_seq_len}, accepted: at least {needed}: --max_query_len "
            f"{spec.max_query_len}, {special} special tokens, --doc_stride {spec.doc_stride}, and one more"
        )
