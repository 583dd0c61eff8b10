"""All examples of a file of token JSON lines in flat arrays, memory-mapped from a cache beside the file.

`mnli_train.json` is read line by line once and kept as `.mnli_train.cache`. The cache is taken where it was made from
this very file (its size and time of change), for a task of the same kind, and is whole; else it is made anew. Where it
cannot be written, the arrays stay in memory.
"""

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_utils.array_file import map_arrays, write_arrays
from data_utils.errors import DataError
from data_utils.readers import read_token_json
from data_utils.task_def import TaskType

if TYPE_CHECKING:
    from experiments.exp_def import TaskDef

logger = logging.getLogger(__name__)

READER_VERSION = 1  # to be raised when what is read from a line, or what is checked in it, changes
SETTLED_NS = 2_000_000_000  # a file changed later than that ago may change again within the same time stamp
LARGEST_LABEL = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class TokenArrays:
    """N examples of T tokens together.

    Attributes:
        tokens: token ids of all examples one after the other, (T,) uint32; padding that the file has is left out.
        types: token type ids likewise, (T,) uint8.
        offsets: example i is `tokens[offsets[i]:offsets[i + 1]]`, (N + 1,) int64.
        labels: (N,), int64 for classification and float32 for regression; (0,) where the file has none.
        uid_bytes: the examples' ids one after the other in UTF-8, uint8.
        uid_offsets: likewise, (N + 1,) int64.
        largest_token: (1,) uint32, so that a check of all tokens need not read them.
        cache: the file that the arrays are mapped from, and what it was made from; None where they are in memory.
    """

    tokens: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    uid_bytes: np.ndarray
    uid_offsets: np.ndarray
    largest_token: np.ndarray
    cache: tuple[Path, Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def uid(self, index: int) -> str:
        text = self.uid_bytes[self.uid_offsets[index] : self.uid_offsets[index + 1]].tobytes()
        return text.decode("utf-8", "surrogatepass")  # JSON may hold half a surrogate pair

    def __reduce__(self) -> tuple[Any, ...]:
        """Mapped arrays go to another process by the name of their file, not by their values."""
        if self.cache is not None:
            return _mapped_again, self.cache
        return TokenArrays, tuple(getattr(self, name) for name in ARRAYS)


ARRAYS = tuple(name for name in TokenArrays.__dataclass_fields__ if name != "cache")


def open_token_arrays(path: Path, task_def: TaskDef, labeled: bool = True, needs_labels: bool = False) -> TokenArrays:
    """The examples of a file of token JSON lines, from its cache where that holds them.

    Args:
        path: the file.
        task_def: its type and number of classes say what a label may be.
        labeled: false where labels that the file has are not to be read.
        needs_labels: every example needs one; else all or none may have one.

    Raises:
        DataError: a line that cannot be used, with its number; a file without an example.
    """
    made_from = _made_from(path, task_def, labeled)
    cache = path.with_name(f".{path.stem}.cache")
    arrays = map_arrays(cache, made_from)
    if arrays is None:
        started = time.time_ns()
        found = read_token_arrays(path, task_def, labeled, needs_labels)
        if made_from != _made_from(path, task_def, labeled) or started - made_from["mtime_ns"] < SETTLED_NS:
            return found
        try:
            write_arrays(cache, made_from, {name: getattr(found, name) for name in ARRAYS})
        except DataError as error:
            logger.info("%s; read anew by every run", error)
            return found
        arrays = map_arrays(cache, made_from)
        if arrays is None:
            return found
    if needs_labels and not len(arrays["labels"]):
        raise DataError("found no label; a training example needs one", path, 1)
    return TokenArrays(**arrays, cache=(cache, made_from))


def _made_from(path: Path, task_def: TaskDef, labeled: bool) -> dict[str, Any]:
    """What the arrays depend on."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error
    return {
        "reader": READER_VERSION,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "task_type": task_def.task_type.name,
        "n_class": task_def.n_class,
        "labeled": labeled,
    }


def _mapped_again(path: Path, made_from: Mapping[str, Any]) -> TokenArrays:
    arrays = map_arrays(path, made_from)
    if arrays is None:
        raise DataError("was removed or replaced while it was in use", path)
    return TokenArrays(**arrays, cache=(path, made_from))


def read_token_arrays(path: Path, task_def: TaskDef, labeled: bool = True, needs_labels: bool = False) -> TokenArrays:
    """The examples of a file, read and checked line by line; arguments and errors of `open_token_arrays`."""
    tokens, types, offsets = array("I"), array("B"), array("q", [0])
    labels: array[Any] = array("q") if task_def.task_type == TaskType.Classification else array("f")
    uid_bytes, uid_offsets = bytearray(), array("q", [0])
    unlabelled = 0  # number of the first line without a label
    for line, sample in read_token_json(path):
        token_ids, type_ids = _real_tokens(sample, path, line)
        label = _label(sample, task_def, path, line) if labeled else None
        if label is None:
            if needs_labels:
                raise DataError("found no label; a training example needs one", path, line)
            unlabelled = unlabelled or line
        else:
            labels.append(label)
        try:
            tokens.fromlist(token_ids)
            types.fromlist(type_ids)
        except OverflowError as error:
            found = f"token_id or type_id is out of range ({error})"
            raise DataError(f"{found}; accepted are 0 to {2**32 - 1} and 0 to 255", path, line) from error
        offsets.append(len(tokens))
        uid_bytes += str(sample["uid"]).encode("utf-8", "surrogatepass")
        uid_offsets.append(len(uid_bytes))
    if len(offsets) == 1:
        raise DataError("found no examples; at least one is needed", path)
    if unlabelled and labels:
        raise DataError("found no label, but other lines have one; all or none may", path, unlabelled)
    all_tokens = np.frombuffer(tokens, np.uint32)
    return TokenArrays(
        tokens=all_tokens,
        types=np.frombuffer(types, np.uint8),
        offsets=np.frombuffer(offsets, np.int64),
        labels=np.frombuffer(labels, np.int64 if labels.typecode == "q" else np.float32),
        uid_bytes=np.frombuffer(uid_bytes, np.uint8),
        uid_offsets=np.frombuffer(uid_offsets, np.int64),
        largest_token=all_tokens.max(keepdims=True),
    )


def _real_tokens(sample: dict[str, Any], path: Path, line: int) -> tuple[list[int], list[int]]:
    """Token and type ids without the padding that `prepro_std.py --do_padding` leaves in a file."""
    if "uid" not in sample:
        raise DataError("found no uid; every example needs one", path, line)
    tokens = sample["token_id"]
    types = sample.get("type_id") or [0] * len(tokens)
    mask = sample.get("attention_mask")
    if mask is not None:
        length = mask.count(1)
        if length == 0 or 0 in mask[:length] or length + mask.count(0) != len(mask):
            raise DataError("attention_mask must be ones, then zeros where there is padding", path, line)
        tokens, types = tokens[:length], types[:length]
    return tokens, types


def _label(sample: dict[str, Any], task_def: TaskDef, path: Path, line: int) -> int | float | None:
    """The label, checked against the task's definition; None where there is none."""
    label = sample.get("label")
    if label is None:
        return None
    if task_def.task_type == TaskType.Classification:
        accepted = f"the integers 0 to {task_def.n_class - 1}"
        usable = type(label) is int and 0 <= label < task_def.n_class
    else:
        accepted = "finite numbers"
        usable = type(label) in (int, float) and abs(label) <= LARGEST_LABEL  # false for NaN too
    if not usable:
        raise DataError(f"label is {label!r}; accepted are {accepted}", path, line)
    return label
