"""The files that commands pass to one another: canonical TSV, token JSON lines, score files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from data_utils.errors import DataError, NotFiniteError
from data_utils.storage.files import atomic_write
from data_utils.storage.text_files import (
    decode_line,
    parse_json_object,
    plain_object,
    read_byte_lines,
    read_json,
    read_lines,
    with_null,
)
from data_utils.task_def import DataFormat

MASK, SHORT_MASK = "attention_mask", "mask"  # the short name is in MT-DNN's files of span tasks
TOKEN_KEYS = ("token_id", "type_id", MASK, SHORT_MASK)

HYPOTHESES = "hypotheses"  # a last column of that name stands for one or more fields, a hypothesis each
SEPARATORS = str.maketrans("\t\n\r\0", "    ")  # characters that no field can hold, and what takes their place
GAP = "@placeholder"  # in a query: where a choice stands, as in ReCoRD
LONGEST_DOCUMENT = 1000  # sentences; a longer document is split

CANONICAL_COLUMNS = {
    DataFormat.PremiseOnly: ("uid", "label", "premise"),
    DataFormat.PremiseAndOneHypothesis: ("uid", "label", "premise", "hypothesis"),
    DataFormat.PremiseAndMultiHypothesis: ("uid", "ruid", "label", "premise", HYPOTHESES),
    DataFormat.Seqence: ("uid", "label", "premise"),
    DataFormat.ClozeChoice: ("uid", "choice", "answer", "label", "premise", HYPOTHESES),
    DataFormat.CLUE_SPAN: ("uid", "answers", "starts", "context", "question"),
    DataFormat.CLUE_GEN: ("uid", "answers", "context", "question"),
}


LARGEST_SCORE = float(np.finfo(np.float32).max)


class Scores(TypedDict):
    """A score file of N examples; `scores` is flattened row by row."""

    metrics: dict[str, float]
    predictions: list[Any]
    uids: list[str]
    scores: list[float]


def split_columns(line: str, columns: Sequence[str], path: Path | str, number: int) -> dict[str, Any]:
    """The tab-separated fields of a line by column name; quotes have no meaning.

    A last column `hypotheses` takes all remaining fields, at least one, as a list.

    Raises:
        DataError: the line has another number of columns; the message names `path` and `number`.
    """
    fields: list[Any] = line.split("\t")
    found, single, least = len(fields), len(columns) - 1, ""
    if columns[-1] == HYPOTHESES and found >= len(columns):
        fields = [*fields[:single], fields[single:]]
    elif columns[-1] == HYPOTHESES:
        least = "at least "
    if len(fields) != len(columns):
        expected = f"{least}{len(columns)} tab-separated columns ({', '.join(columns)})"
        raise DataError(f"expected {expected}, found {found}", path, number)
    return dict(zip(columns, fields, strict=True))


def canonical_suffix(data_format: DataFormat) -> str:
    """The suffix of a canonical file."""
    return ".txt" if data_format == DataFormat.MLM else ".tsv"


def read_documents(path: Path | str) -> Iterator[dict[str, Any]]:
    """The documents of a text file: `uid`, their number from 0, and `sentences`, a list of texts.

    A line is a sentence, an empty line ends a document. A document of more than `LONGEST_DOCUMENT` sentences becomes
    several documents, so that memory stays small for any text.
    """
    number, sentences = 0, []
    for _, line in read_lines(path):
        if line.strip():
            sentences.append(line.strip())
        if sentences and (not line.strip() or len(sentences) == LONGEST_DOCUMENT):
            yield {"uid": str(number), "sentences": sentences}
            number, sentences = number + 1, []
    if sentences:
        yield {"uid": str(number), "sentences": sentences}


def read_canonical_tsv(path: Path | str, data_format: DataFormat) -> Iterator[dict[str, Any]]:
    """The examples of a canonical TSV, one dictionary a line with a text for each column; `hypotheses` is a list.

    A file for masked language modeling has documents instead, see `read_documents`.

    Raises:
        DataError: the file cannot be read, a line has the wrong number of columns, or nothing reads the format.
    """
    if data_format == DataFormat.MLM:
        yield from read_documents(path)
        return
    if data_format not in CANONICAL_COLUMNS:
        accepted = ", ".join(known.name for known in CANONICAL_COLUMNS)
        raise DataError(f"data_format {data_format.name} is a name without a reader; accepted: {accepted}", path)
    columns = CANONICAL_COLUMNS[data_format]
    for number, line in read_lines(path):
        yield split_columns(line, columns, path, number)


def read_token_json(path: Path | str, many_rows: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The examples of a token JSON-lines file with their line numbers.

    Args:
        many_rows: an example has several sequences; `token_id`, `type_id` and `attention_mask` are lists of lists.

    Raises:
        DataError: a line that is no JSON object, or whose `token_id` is not a non-empty list of integers, or whose
            `type_id` or `attention_mask` is no such list of the same length.
    """
    for number, line in read_byte_lines(path):
        sample = plain_object(line)
        if sample is None or many_rows or not _has_plain_tokens(sample):
            sample = parse_json_object(decode_line(line, path, number), path, number)
            if many_rows:
                _check_rows(sample, path, number)
            else:
                _check_tokens(sample, path, number)
        yield number, sample


def _has_plain_tokens(sample: Mapping[str, Any]) -> bool:
    """Whether a line that `plain_object` has read passes `_check_tokens`; false where it is not sure.

    Such a line holds no true and no false, so that a list of numbers is one of integers where its sum is an integer.
    """
    tokens = sample.get("token_id")
    if not tokens or not isinstance(tokens, list) or isinstance(sample.get("uid"), float):
        return False
    count = len(tokens)
    try:
        for key in TOKEN_KEYS:
            values = sample.get(key)
            if values is not None and (type(sum(values)) is not int or len(values) != count):
                return False
    except TypeError:
        return False
    return True


def _check_rows(sample: Mapping[str, Any], path: Path | str, number: int) -> None:
    """Check each of an example's sequences."""
    keys = [key for key in TOKEN_KEYS if sample.get(key) is not None]
    count = len(sample["token_id"]) if isinstance(sample.get("token_id"), list) else 0
    if not count:
        raise DataError("token_id must be a list of at least one sequence", path, number)
    for key in keys:
        if not isinstance(sample[key], list) or len(sample[key]) != count:
            raise DataError(f"{key} must be a list of as many sequences as token_id has ({count})", path, number)
    for row in range(count):
        _check_tokens({key: sample[key][row] for key in keys}, path, number)


def _check_tokens(sample: Mapping[str, Any], path: Path | str, number: int) -> None:
    tokens = sample.get("token_id")
    if not tokens or not _is_integers(tokens):
        raise DataError("token_id must be a list of at least one integer", path, number)
    for key in TOKEN_KEYS[1:]:
        values = sample.get(key)
        if values is None:
            continue
        if not _is_integers(values) or len(values) != len(tokens):
            raise DataError(f"{key} must be a list of as many integers as token_id has ({len(tokens)})", path, number)


def _is_integers(values: object) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= {int}


def write_score_file(
    path: Path | str,
    metrics: Mapping[str, float],
    predictions: Sequence[Any] | np.ndarray,
    uids: Sequence[str],
    scores: Sequence[Any] | np.ndarray,
) -> None:
    """Write a score file of N examples in MT-DNN's format.

    Args:
        path: `DATASET_SPLIT_scores_epoch_N.json`.
        metrics: percentages by name.
        predictions: N numbers, texts, or lists of them.
        uids: the N examples' ids.
        scores: one or more numbers for each example, flattened row by row.
    """
    content = {
        "metrics": with_null(metrics),
        "predictions": _plain(predictions),
        "uids": list(uids),
        "scores": _flat(_plain(scores)),
    }
    with atomic_write(path) as file:
        json.dump(content, file)


def _plain(values: Any) -> Any:
    """The values as Python lists, numbers and strings."""
    if isinstance(values, np.ndarray | np.generic):
        return values.tolist()
    return [_plain(value) for value in values] if isinstance(values, list | tuple) else values


def _flat(values: Any) -> list[float]:
    return [number for value in values for number in (_flat(value) if isinstance(value, list) else [value])]


def write_glue_submission(path: Path | str, uids: Sequence[str], answers: Sequence[str | int | float]) -> None:
    """Write a table for GLUE's test server: a header, then index and prediction of each example."""
    with atomic_write(path) as file:
        file.write("index\tprediction\n")
        file.writelines(f"{uid}\t{answer}\n" for uid, answer in zip(uids, answers, strict=True))


def read_score_file(path: Path | str) -> Scores:
    """The content of a score file that `write_score_file` or MT-DNN wrote.

    Raises:
        DataError: the file is missing or no JSON object, a key is missing, or `predictions`, `uids` and `scores` do not
            fit together.
        NotFiniteError: a score is infinite or NaN.
    """
    content = read_json(path)
    expected = list(Scores.__annotations__)
    if not isinstance(content, dict) or not set(expected) <= content.keys():
        raise DataError(f"is no score file; expected a JSON object with the keys {', '.join(expected)}", path)
    for key in expected:
        if not isinstance(content[key], dict if key == "metrics" else list):
            raise DataError(f"{key} must be {'an object' if key == 'metrics' else 'a list'}", path)
    uids, predictions, scores = content["uids"], content["predictions"], content["scores"]
    if not all(isinstance(uid, str) for uid in uids):
        raise DataError("uids must be a list of texts", path)
    if any(type(score) is float and not math.isfinite(score) for score in scores):
        raise NotFiniteError("scores must be finite; those of a model whose training diverged are not", path)
    if not all(type(score) in (int, float) and abs(score) <= LARGEST_SCORE for score in scores):
        raise DataError(f"scores must be a list of numbers from -{LARGEST_SCORE} to {LARGEST_SCORE}", path)
    if not all(_is_prediction(prediction) for prediction in predictions):
        raise DataError("predictions must be a list of whole numbers, of texts, or of lists of one of them", path)
    # sequences have a score a token, chosen texts a score a choice: their numbers differ
    own_counts = any(isinstance(prediction, list | str) for prediction in predictions)
    uneven = not own_counts and len(scores) % max(len(uids), 1) != 0
    if len(predictions) != len(uids) or uneven or len(scores) < len(uids):
        raise DataError(
            f"found {len(uids)} uids, {len(predictions)} predictions and {len(scores)} scores; "
            "expected one prediction and equally many scores for each uid",
            path,
        )
    metrics = {name: math.nan if value is None else value for name, value in content["metrics"].items()}
    return Scores(metrics=metrics, predictions=predictions, uids=uids, scores=scores)


def _is_prediction(found: Any) -> bool:
    if isinstance(found, list):
        return _is_integers(found) or all(isinstance(text, str) for text in found)
    return isinstance(found, str) or type(found) is int


def read_scores(
    path: Path | str, uids: Sequence[str], shapes_of: Callable[[list[Any]], Sequence[tuple[int, ...]]]
) -> tuple[list[Any], list[np.ndarray]]:
    """Predictions and scores of a score file, in the order of `uids`.

    Args:
        uids: the ids that the file must have.
        shapes_of: predictions in that order → the shape of each one's scores; raises ValueError for a wrong prediction.

    Returns:
        the predictions, and the scores of each in its shape.

    Raises:
        DataError: as `read_score_file`; or the file has other ids, another number of scores, or a wrong prediction.
    """
    found = read_score_file(path)
    places = {uid: place for place, uid in enumerate(found["uids"])}
    lacking = [uid for uid in uids if uid not in places]
    if lacking or len(found["uids"]) != len(uids):
        what = f"; it has none for the id {lacking[0]!r}" if lacking else ""
        count = len(found["uids"])
        raise DataError(f"is of {count} examples, not of the {len(uids)} of the dataset{what}", path)
    # With repeated ids, both must be in the same order.
    order = list(range(len(uids))) if list(uids) == found["uids"] else [places[uid] for uid in uids]
    predictions = [found["predictions"][place] for place in order]
    try:
        shapes = shapes_of(predictions)
    except ValueError as error:
        raise DataError(str(error), path) from error
    values = np.asarray(found["scores"], dtype=np.float64)
    sizes = np.zeros(len(uids), np.int64)
    sizes[order] = [math.prod(own) for own in shapes]  # in the file's order
    if len(values) != sizes.sum():
        raise DataError(f"holds {len(values)} scores; {sizes.sum()} were expected. Is it of another task?", path)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return predictions, [parts[place].reshape(own) for place, own in zip(order, shapes, strict=True)]
