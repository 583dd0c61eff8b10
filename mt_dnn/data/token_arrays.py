"""All examples of a file of token JSON lines in flat arrays, memory-mapped from a cache next to the file.

`mnli_train.json` is read line by line once and cached as `.mnli_train.cache`. The cache is used if it is complete and
was made from this file (same size and time of change) for a task of the same kind; otherwise it is made again. If it
cannot be written, the arrays stay in memory.
"""

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_utils.errors import DataError
from data_utils.readers import MASK, SHORT_MASK, read_token_json
from data_utils.storage.array_file import map_arrays, write_arrays
from data_utils.storage.files import one_at_a_time

if TYPE_CHECKING:
    from tasks import Task

logger = logging.getLogger(__name__)

READER_VERSION = 5  # to be raised when what is read from a line, or what is checked in it, changes
LARGEST = float(np.finfo(np.float32).max)
SHOWN = 60  # characters of a label in a message
SETTLED_NS = 2_000_000_000  # a file changed later than that ago may change again within the same time stamp


@dataclass(frozen=True, eq=False)
class TokenArrays:
    """N examples, R sequences and T tokens together; most task types have one sequence an example.

    Attributes:
        tokens: token ids of all sequences one after the other, (T,) uint32; padding that the file has is left out.
        types: token type ids in the same order, (T,) uint8.
        offsets: sequence r is `tokens[offsets[r]:offsets[r + 1]]`, (R + 1,) int64.
        rows: example i has the sequences `rows[i]` to `rows[i + 1]`, (N + 1,) int64.
        labels: of all examples one after the other, of the task's type; (0,) where the file has none.
        label_offsets: example i has `labels[label_offsets[i]:label_offsets[i + 1]]`, (N + 1,) int64; (0,) where
            each has one.
        soft_labels: a teacher's scores of all examples one after the other, float32; (0,) where the file has none.
        soft_offsets: example i has `soft_labels[soft_offsets[i]:soft_offsets[i + 1]]`, (N + 1,) int64; else (0,).
        uid_bytes: the examples' ids one after the other in UTF-8, uint8.
        uid_offsets: example i has `uid_bytes[uid_offsets[i]:uid_offsets[i + 1]]`, (N + 1,) int64.
        largest_token: (1,) uint32, so that a check of all tokens need not read them.
        cache: the file that the arrays are mapped from, and what it was made from; None if they are in memory.
    """

    tokens: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    label_offsets: np.ndarray
    soft_labels: np.ndarray
    soft_offsets: np.ndarray
    uid_bytes: np.ndarray
    uid_offsets: np.ndarray
    largest_token: np.ndarray
    cache: tuple[Path, Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.rows) - 1

    def uid(self, index: int) -> str:
        text = self.uid_bytes[self.uid_offsets[index] : self.uid_offsets[index + 1]].tobytes()
        return text.decode("utf-8")

    def label(self, index: int) -> Any:
        """A number, or an array where the task's examples have several labels."""
        if not len(self.label_offsets):
            return self.labels[index]
        return self.labels[self.label_offsets[index] : self.label_offsets[index + 1]]

    def soft_label(self, index: int) -> np.ndarray | None:
        """A teacher's scores; None where the file has none."""
        if not len(self.soft_labels):
            return None
        return self.soft_labels[self.soft_offsets[index] : self.soft_offsets[index + 1]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Mapped arrays go to another process by the name of their file, not by their values."""
        if self.cache is not None:
            return _mapped_again, self.cache
        return TokenArrays, tuple(getattr(self, name) for name in ARRAYS)


ARRAYS = tuple(name for name in TokenArrays.__dataclass_fields__ if name != "cache")


def open_token_arrays(path: Path, task: Task, labeled: bool = True, needs_labels: bool = False) -> TokenArrays:
    """The examples of a file of token JSON lines, from its cache where that holds them.

    Args:
        path: the file.
        task: says what a label may be, and how many sequences an example has.
        labeled: false where labels that the file has are not to be read.
        needs_labels: every example needs one; else all or none may have one.

    Raises:
        DataError: a line that cannot be used, with its number; a file without an example.
    """
    made_from = _made_from(path, task, labeled)
    cache = path.with_name(f".{path.stem}.cache")
    arrays = _kept(cache, made_from, task)
    if arrays is None:
        # Of several processes one reads the file, the others wait and map what it wrote.
        with one_at_a_time(path):
            arrays = _kept(cache, made_from, task)
            if arrays is None:
                return _read_and_keep(path, cache, made_from, task, labeled, needs_labels)
    if needs_labels and not len(arrays["labels"]):
        raise DataError("found no label; a training example needs one", path, 1)
    return TokenArrays(**arrays, cache=(cache, made_from))


def _kept(cache: Path, made_from: Mapping[str, Any], task: Task) -> dict[str, np.ndarray] | None:
    """What `map_arrays` gives, where the arrays are such as `read_token_arrays` makes; a checksum is easily forged."""
    found = map_arrays(cache, made_from)
    if found is None:
        return None
    types: dict[str, Any] = dict.fromkeys(ARRAYS, np.int64)
    types |= {"tokens": np.uint32, "types": np.uint8, "labels": task.label_type, "soft_labels": np.float32}
    types |= {"uid_bytes": np.uint8, "largest_token": np.uint32}
    if {name: values.dtype for name, values in found.items()} != {name: np.dtype(own) for name, own in types.items()}:
        return None
    rows, offsets, counts = found["rows"], found["offsets"], found["label_offsets"]
    whole = (
        _divide(offsets, len(found["tokens"]))
        and _divide(rows, len(offsets) - 1)
        and len(rows) > 1
        and len(found["types"]) == len(found["tokens"]) > 0
        and _divide(found["uid_offsets"], len(found["uid_bytes"]), len(rows))
        and (_divide(counts, len(found["labels"]), len(rows)) if task.many_labels else not len(counts))
        and (task.many_labels or len(found["labels"]) in (0, len(rows) - 1))
        and _are_soft(found, task)
        and found["largest_token"].tolist() == [found["tokens"].max()]
    )
    return found if whole else None


def _are_soft(found: Mapping[str, np.ndarray], task: Task) -> bool:
    """Whether each example has as many of a teacher's scores as its sequences ask for, or none has one."""
    bounds, count = found["soft_offsets"], len(found["soft_labels"])
    if not count:
        return not len(bounds)
    rows, lengths = found["rows"].tolist(), np.diff(found["offsets"]).tolist()
    if not _divide(bounds, count, len(rows)):
        return False
    parts = zip(rows[:-1], rows[1:], np.diff(bounds).tolist(), strict=True)
    return all(first < last and task.soft_count(lengths[first:last]) == own for first, last, own in parts)


def _divide(bounds: np.ndarray, count: int, expected: int | None = None) -> bool:
    """Whether these are the bounds of parts of `count` things one after the other, as many as expected."""
    if not len(bounds) or (expected is not None and len(bounds) != expected):
        return False
    return bool(bounds[0] == 0 and bounds[-1] == count and (np.diff(bounds) >= 0).all())


def _read_and_keep(
    path: Path, cache: Path, made_from: dict[str, Any], task: Task, labeled: bool, needs_labels: bool
) -> TokenArrays:
    """The file read, and mapped from the cache that this writes where it can."""
    started = time.time_ns()
    found = read_token_arrays(path, task, labeled, needs_labels)
    if made_from != _made_from(path, task, labeled) or started - made_from["mtime_ns"] < SETTLED_NS:
        return found
    try:
        write_arrays(cache, made_from, {name: getattr(found, name) for name in ARRAYS})
    except DataError as error:
        logger.info("%s; every run reads it again", error)
        return found
    arrays = map_arrays(cache, made_from)
    return found if arrays is None else TokenArrays(**arrays, cache=(cache, made_from))


def _made_from(path: Path, task: Task, labeled: bool) -> dict[str, Any]:
    """What the arrays depend on."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error
    return {
        "reader": READER_VERSION,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "task_type": task.task_def.task_type.name,
        "n_class": task.task_def.n_class,
        "labeled": labeled,
    }


def _mapped_again(path: Path, made_from: Mapping[str, Any]) -> TokenArrays:
    arrays = map_arrays(path, made_from)
    if arrays is None:
        raise DataError("was removed or replaced while it was in use", path)
    return TokenArrays(**arrays, cache=(path, made_from))


def read_token_arrays(path: Path, task: Task, labeled: bool = True, needs_labels: bool = False) -> TokenArrays:
    """The examples of a file, read and checked line by line; arguments and errors of `open_token_arrays`."""
    tokens, types, offsets, rows = array("I"), array("B"), array("q", [0]), array("q", [0])
    labels: array[Any] = array("q" if task.label_type is np.int64 else "f")
    label_offsets, soft_labels, soft_offsets = array("q", [0]), array("f"), array("q", [0])
    uid_bytes, uid_offsets = bytearray(), array("q", [0])
    unlabelled = softless = 0  # number of the first line without
    for line, sample in read_token_json(path, task.many_rows):
        sequences = _sequences(sample, task.many_rows, path, line)
        lengths = [len(token_ids) for token_ids, _ in sequences]
        label = _label(sample, task, lengths, path, line) if labeled else None
        if label is None:
            if needs_labels:
                raise DataError("found no label; a training example needs one", path, line)
            unlabelled = unlabelled or line
        elif task.many_labels:
            labels.extend(label)
        else:
            labels.append(label)
        label_offsets.append(len(labels))
        soft = _soft_label(sample, task, lengths, path, line) if "softlabel" in sample else []
        soft_labels.extend(soft)
        soft_offsets.append(len(soft_labels))
        softless = softless or (0 if soft else line)
        try:
            for token_ids, type_ids in sequences:
                tokens.fromlist(token_ids)
                types.fromlist(type_ids)
                offsets.append(len(tokens))
        except OverflowError as error:
            found = f"token_id or type_id is out of range ({error})"
            raise DataError(f"{found}; accepted are 0 to {2**32 - 1} and 0 to 255", path, line) from error
        rows.append(len(offsets) - 1)
        uid_bytes += str(sample["uid"]).encode("utf-8")
        uid_offsets.append(len(uid_bytes))
    if len(rows) == 1:
        raise DataError("found no examples; at least one is needed", path)
    for first, some, name in ((unlabelled, labels, "label"), (softless, soft_labels, "softlabel")):
        if first and some:
            raise DataError(f"found no {name}, but other lines have one; all or none may", path, first)
    all_tokens = np.frombuffer(tokens, np.uint32)
    return TokenArrays(
        tokens=all_tokens,
        types=np.frombuffer(types, np.uint8),
        offsets=np.frombuffer(offsets, np.int64),
        rows=np.frombuffer(rows, np.int64),
        labels=np.frombuffer(labels, task.label_type),
        label_offsets=np.frombuffer(label_offsets, np.int64) if task.many_labels else np.zeros(0, np.int64),
        soft_labels=np.frombuffer(soft_labels, np.float32),
        soft_offsets=np.frombuffer(soft_offsets, np.int64) if soft_labels else np.zeros(0, np.int64),
        uid_bytes=np.frombuffer(uid_bytes, np.uint8),
        uid_offsets=np.frombuffer(uid_offsets, np.int64),
        largest_token=all_tokens.max(keepdims=True),
    )


def _sequences(sample: dict[str, Any], many: bool, path: Path, line: int) -> list[tuple[list[int], list[int]]]:
    """Token and type ids of each sequence, without the padding that `prepro_std.py --do_padding` leaves in a file."""
    if "uid" not in sample or isinstance(sample["uid"], list | dict):
        raise DataError("found no uid; every example needs one, a text or a number", path, line)
    tokens, types = sample["token_id"], sample.get("type_id")
    mask = sample.get(MASK if MASK in sample else SHORT_MASK)
    if not many:
        return [_without_padding(tokens, types, mask, path, line)]
    absent = [None] * len(tokens)
    return [_without_padding(*row, path, line) for row in zip(tokens, types or absent, mask or absent, strict=True)]


def _without_padding(
    tokens: list[int], types: list[int] | None, mask: list[int] | None, path: Path, line: int
) -> tuple[list[int], list[int]]:
    """Token and type ids of a sequence up to its padding; types that the file leaves out are 0."""
    types = types or [0] * len(tokens)
    if mask is None or (length := mask.count(1)) == len(mask):
        return tokens, types
    if length == 0 or 0 in mask[:length] or length + mask.count(0) != len(mask):
        raise DataError("attention_mask must be ones, then zeros where there is padding", path, line)
    return tokens[:length], types[:length]


def _label(sample: dict[str, Any], task: Task, lengths: Sequence[int], path: Path, line: int) -> Any:
    """The label, checked by the task; None if there is none."""
    label = sample.get("label")
    if label is not None and not task.accepts_label(label, lengths):
        shown = str(label) if len(str(label)) <= SHOWN else f"{str(label)[:SHOWN]}…"
        shown = repr(label) if isinstance(label, str) else shown
        raise DataError(f"label is {shown}; accepted are {task.accepted_labels}", path, line)
    try:
        return None if label is None else task.read_label(sample)
    except ValueError as error:
        raise DataError(str(error), path, line) from error


def _soft_label(sample: dict[str, Any], task: Task, lengths: Sequence[int], path: Path, line: int) -> list[float]:
    """A teacher's scores; none where the line has none."""
    soft = sample.get("softlabel")
    if soft is None:
        return []
    count = task.soft_count(lengths)
    numbers = isinstance(soft, list) and all(type(value) in (int, float) and abs(value) <= LARGEST for value in soft)
    if not numbers or len(soft) != count:
        raise DataError(f"softlabel must be a list of {count} finite numbers of single precision", path, line)
    return soft
