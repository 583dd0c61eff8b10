"""The text formats between the commands: canonical TSV, token JSON lines, score files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np

from data_utils.errors import DataError
from data_utils.files import atomic_write
from data_utils.task_def import DataFormat

MARK = "\ufeff"  # at the start of a file it says how that is encoded, and is none of its text
BYTE_ORDER_MARK = MARK.encode()

# What is larger is refused; far above what any of the formats holds.
LONGEST_LINE = 1 << 24  # bytes, of files that are read line by line
LARGEST_FILE = 1 << 36  # bytes, likewise
LARGEST_DOCUMENT = 1 << 30  # bytes, of files that are read as a whole, such as score files and SQuAD's
DEEPEST = 64  # lists and objects in one another in a JSON text

HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of half a surrogate pair, or of one half of a whole one

MASK, SHORT_MASK = "attention_mask", "mask"  # MT-DNN's files of spans have the short name

HYPOTHESES = "hypotheses"  # a last column of that name is one hypothesis or several, a field each
LONGEST_DOCUMENT = 1000  # sentences that are tokenized together

CANONICAL_COLUMNS = {
    DataFormat.PremiseOnly: ("uid", "label", "premise"),
    DataFormat.PremiseAndOneHypothesis: ("uid", "label", "premise", "hypothesis"),
    DataFormat.PremiseAndMultiHypothesis: ("uid", "ruid", "label", "premise", HYPOTHESES),
    DataFormat.Seqence: ("uid", "label", "premise"),
    DataFormat.ClozeChoice: ("uid", "choice", "answer", "label", "premise", HYPOTHESES),
    DataFormat.CLUE_SPAN: ("uid", "answers", "starts", "context", "question"),
    DataFormat.CLUE_GEN: ("uid", "answers", "context", "question"),
}


LARGEST_SCORE = 3e38  # a number of single precision


class Scores(TypedDict):
    """What a score file holds: of N examples, `scores` is flattened row by row."""

    metrics: dict[str, float]
    predictions: list[Any]
    uids: list[str]
    scores: list[float]


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    r"""The lines of a UTF-8 file with their numbers from 1.

    A line ends at "\n" alone (or "\r\n"), so that the rarer separators of Unicode stay inside it; a byte order mark
    at the start of the file is dropped.

    Raises:
        DataError: the file is missing, unreadable or too large, or a line is too long, not UTF-8 or holds NUL.
    """
    try:
        with open(path, "rb") as file:
            _check_size(file, LARGEST_FILE, path)
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(f"is longer than {LONGEST_LINE} bytes, the most that a line may have", path, number)
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                yield number, decoded(line.removesuffix(b"\n").removesuffix(b"\r"), path, number)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error


def decoded(line: bytes, path: Path | str, number: int) -> str:
    """A line as text.

    Raises:
        DataError: it is not UTF-8, or holds NUL.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"found the byte {line[error.start]:#04x} at byte {error.start + 1}"
        raise DataError(f"{found}; accepted is UTF-8", path, number) from error
    if "\0" in text:
        raise DataError(f"found NUL at byte {line.index(0) + 1}; accepted is text", path, number)
    return text


def _check_size(file: IO[bytes], largest: int, path: Path | str) -> None:
    size = os.fstat(file.fileno()).st_size
    if size > largest:
        raise DataError(f"holds {size} bytes; accepted: at most {largest}", path)


def read_text(path: Path | str, largest: int = LARGEST_DOCUMENT, fallback: str | None = None) -> str:
    r"""A UTF-8 file as a whole, its lines ended by "\n"; a byte order mark at its start is dropped.

    Args:
        largest: bytes that it may have.
        fallback: another encoding, of a file that is not UTF-8.

    Raises:
        DataError: as `read_lines`.
    """
    try:
        with open(path, "rb") as file:
            _check_size(file, largest, path)
            content = file.read(largest + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error
    if len(content) > largest:
        raise DataError(f"holds more than {largest} bytes, the most that it may have", path)
    if fallback is not None:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            content = content.decode(fallback).encode("utf-8")
    lines = content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    return "\n".join(decoded(line.removesuffix(b"\r"), path, number) for number, line in enumerate(lines, start=1))


def read_json(path: Path | str) -> Any:
    """What a file of one JSON text holds.

    Raises:
        DataError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), path)


def parse_json(text: str, path: Path | str, number: int | None = None) -> Any:
    """What a JSON text holds.

    Args:
        text: of the file `path`, the whole or its line `number`.

    Raises:
        DataError: it is no JSON, an object has a key twice, values are nested too deeply, an integer has too many
            digits, or an escape is half a surrogate pair, which is no character.
    """
    try:
        found = DECODER.decode(text)
        # what brackets tell is fast; those inside texts count too, so that it may be a false alarm
        if _depth(text) > DEEPEST and _is_deep(found):
            raise RecursionError
        if "\\u" in text and HALF_PAIR.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = number or error.lineno
        raise DataError(f"found no whole JSON object ({error.msg} at column {error.colno})", path, place) from error
    except RecursionError as error:
        raise DataError(f"holds values nested too deeply; accepted: {DEEPEST} in one another", path, number) from error
    except UnicodeEncodeError as error:
        found = f"found {error.object[error.start]!r}, half a surrogate pair"
        raise DataError(f"{found}; accepted are whole characters", path, number) from error
    except _KeyTwice as error:
        raise DataError(f"found the key {error.args[0]!r} twice in an object; accepted: once", path, number) from error
    except ValueError as error:  # Python's own limit
        raise DataError("holds an integer of too many digits", path, number) from error
    return found


class _KeyTwice(Exception):
    """An object of JSON has this key twice."""


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwice(next(key for key in keys if keys.count(key) > 1))
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_once_each)


DECODER = json.JSONDecoder(object_pairs_hook=_once_each)
STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
OTHER_BYTES = bytes(set(range(256)) - STEPS.keys())


def _depth(text: str) -> int:
    brackets = text.encode("utf-8", "surrogatepass").translate(None, OTHER_BYTES)
    return max(accumulate(map(STEPS.__getitem__, brackets)), default=0)


def _is_deep(found: Any) -> bool:
    level: list[Any] = [[found]]
    for _ in range(DEEPEST + 1):
        inside: list[Any] = []
        for outer in level:
            values = outer.values() if isinstance(outer, dict) else outer
            inside += [value for value in values if isinstance(value, list | dict)]
        if not inside:
            return False
        level = inside
    return True


def split_columns(line: str, columns: Sequence[str], path: Path | str, number: int) -> dict[str, Any]:
    """The tab-separated fields of a line by their columns' names; quotes have no meaning.

    A last column `hypotheses` takes all fields that are left, at least one, as a list.

    Raises:
        DataError: the line has another number of columns; names `path` and `number`.
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
    """The ending of a canonical file's name."""
    return ".txt" if data_format == DataFormat.MLM else ".tsv"


def read_documents(path: Path | str) -> Iterator[dict[str, Any]]:
    """The documents of a text file: `uid`, their number from 0, and `sentences`, a list of texts.

    A line is a sentence, an empty line ends a document. A document of more than `LONGEST_DOCUMENT` sentences is given
    in parts, each with a number of its own, so that any text can be read.
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
    """The examples of a canonical TSV, one dictionary a line, keyed by column.

    Every value is the text as it stands, `hypotheses` a list of texts.

    Text for masked language modeling is no table; an example is one of `read_documents`.

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
        many_rows: an example has several sequences: `token_id`, `type_id` and `attention_mask` are lists of them.

    Raises:
        DataError: a line that is no JSON object, or whose `token_id` is not a non-empty list of integers, or whose
            `type_id` or `attention_mask` is no such list of the same length.
    """
    for number, sample in read_json_lines(path):
        if many_rows:
            _check_rows(sample, path, number)
        else:
            _check_tokens(sample, path, number)
        yield number, sample


def read_json_lines(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers.

    Raises:
        DataError: a line that is no JSON object; as `parse_json`.
    """
    for number, line in read_lines(path):
        found = parse_json(line, path, number)
        if not isinstance(found, dict):
            raise DataError(f"expected a JSON object, found {line[:40]!r}", path, number)
        yield number, found


def _check_rows(sample: Mapping[str, Any], path: Path | str, number: int) -> None:
    """Each of an example's sequences, as `_check_tokens` does."""
    keys = [key for key in ("token_id", "type_id", MASK, SHORT_MASK) if sample.get(key) is not None]
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
    for key in ("type_id", MASK, SHORT_MASK):
        values = sample.get(key)
        if values is None:
            continue
        if not _is_integers(values) or len(values) != len(tokens):
            raise DataError(f"{key} must be a list of as many integers as token_id has ({len(tokens)})", path, number)


def _is_integers(values: object) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= {int}


def write_lines(path: Path | str, lines: Iterable[str]) -> int:
    """Write lines, given without their ends; the file appears when all is written. Returns how many there were."""
    count = 0
    with atomic_write(path) as file:
        for line in lines:
            file.write((line if count else line.lstrip(MARK)) + "\n")
            count += 1
    return count


def write_score_file(
    path: Path | str,
    metrics: Mapping[str, float],
    predictions: Sequence[Any] | np.ndarray,
    uids: Sequence[str],
    scores: Sequence[Any] | np.ndarray,
) -> None:
    """Write the predictions for a dataset of N examples as MT-DNN does.

    Args:
        path: `DATASET_SPLIT_scores_epoch_N.json`.
        metrics: percentages by name.
        predictions: N numbers, texts, or lists of them.
        uids: the N examples' ids.
        scores: of each example a number or several, flattened row by row.
    """
    content = {
        "metrics": dict(metrics),
        "predictions": _plain(predictions),
        "uids": list(uids),
        "scores": _flat(_plain(scores)),
    }
    with atomic_write(path) as file:
        json.dump(content, file)


def _plain(values: Any) -> Any:
    """The same in Python's lists, numbers and texts."""
    if isinstance(values, np.ndarray | np.generic):
        return values.tolist()
    return [_plain(value) for value in values] if isinstance(values, list | tuple) else values


def _flat(values: Any) -> list[float]:
    return [number for value in values for number in (_flat(value) if isinstance(value, list) else [value])]


def write_glue_submission(path: Path | str, uids: Sequence[str], answers: Sequence[str | int | float]) -> None:
    """Write GLUE's submission table: a header, then `index` and `prediction` of each example."""
    with atomic_write(path) as file:
        file.write("index\tprediction\n")
        file.writelines(f"{uid}\t{answer}\n" for uid, answer in zip(uids, answers, strict=True))


def read_score_file(path: Path | str) -> Scores:
    """Read what `write_score_file` or MT-DNN wrote.

    Raises:
        DataError: missing, no JSON object, a key is missing, or `predictions`, `uids` and `scores` do not fit.
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
    if not all(type(score) in (int, float) and abs(score) <= LARGEST_SCORE for score in scores):
        raise DataError(f"scores must be a list of numbers from -{LARGEST_SCORE} to {LARGEST_SCORE}", path)
    if not all(_is_prediction(prediction) for prediction in predictions):
        raise DataError("predictions must be a list of whole numbers, of texts, or of lists of one of them", path)
    # a sequence has scores by token, a chosen text those of its choices
    own_counts = any(isinstance(prediction, list | str) for prediction in predictions)
    uneven = not own_counts and len(scores) % max(len(uids), 1) != 0
    if len(predictions) != len(uids) or uneven or len(scores) < len(uids):
        raise DataError(
            f"found {len(uids)} uids, {len(predictions)} predictions and {len(scores)} scores; "
            "expected one prediction and equally many scores for each uid",
            path,
        )
    return Scores(metrics=content["metrics"], predictions=predictions, uids=uids, scores=scores)


def _is_prediction(found: Any) -> bool:
    if isinstance(found, list):
        return _is_integers(found) or all(isinstance(text, str) for text in found)
    return isinstance(found, str) or type(found) is int


def read_scores(path: Path | str, uids: Sequence[str], n_class: int) -> tuple[list[Any], list[np.ndarray]]:
    """Predictions and scores of a score file, in the order of `uids`.

    Args:
        uids: ids of a dataset's examples; the file has to hold the same.
        n_class: scores of an example, or of each of its labels where its prediction is a list.

    Returns:
        Of each example its prediction, and its scores: (n_class,), or (labels, n_class).

    Raises:
        DataError: as `read_score_file`; of other examples, with another number of scores, or with a prediction that is
            neither a class nor a list of classes.
    """
    found = read_score_file(path)
    places = {uid: place for place, uid in enumerate(found["uids"])}
    lacking = [uid for uid in uids if uid not in places]
    if lacking or len(found["uids"]) != len(uids):
        what = f"; it has none for the id {lacking[0]!r}" if lacking else ""
        count = len(found["uids"])
        raise DataError(f"is of {count} examples, not of the {len(uids)} of the dataset{what}", path)
    for uid, own in zip(found["uids"], found["predictions"], strict=True):
        if not all(type(index) is int and 0 <= index < n_class for index in (own if isinstance(own, list) else [own])):
            raise DataError(f"the prediction for {uid!r} is {own!r}; accepted: classes from 0 to {n_class - 1}", path)
    shapes = [(len(own), n_class) if isinstance(own, list) else (n_class,) for own in found["predictions"]]
    sizes = [int(np.prod(shape)) for shape in shapes]
    values = np.asarray(found["scores"], dtype=np.float64)
    if len(values) != sum(sizes):
        raise DataError(f"holds {len(values)} scores; of {n_class} classes {sum(sizes)} were expected", path)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    # Where ids repeat, the order of both files tells which is which.
    order = list(range(len(uids))) if list(uids) == found["uids"] else [places[uid] for uid in uids]
    return [found["predictions"][place] for place in order], [parts[place].reshape(shapes[place]) for place in order]
