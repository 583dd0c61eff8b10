"""Canonical TSV → token JSON lines: labels to numbers, text to token ids."""

from __future__ import annotations

import ast
import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_utils.errors import DataError, FlagError, UserError, nearest
from data_utils.readers import read_canonical_tsv
from data_utils.task_def import DataFormat, TaskType
from data_utils.tokenizer import load_tokenizer
from data_utils.vocab import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNLABELED = "unlabeled"  # the split of examples that are regularized without labels, of any task
CHUNK = 1000  # examples that are tokenized together

SEQUENCE_LABELS = ("X", "CLS", "SEP")  # of a word's later pieces, and of the two special tokens

Line = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class TokenizerSpec:
    """How every process loads and calls the tokenizer.

    Attributes:
        name: the encoder's.
        do_lower_case: as in `load_tokenizer`.
        cache_dir: as in `load_tokenizer`.
        max_seq_len: longer examples are cut to so many tokens, the longer text of a pair first.
        do_padding: pad every example to `max_seq_len`.
    """

    name: str
    do_lower_case: bool | None = None
    cache_dir: str | None = None
    max_seq_len: int = 512
    do_padding: bool = False


@dataclass(frozen=True)
class SplitSpec:
    """One canonical TSV and what its labels mean.

    Attributes:
        path: the file.
        data_format: its columns.
        task_type: what a label is.
        n_class: class indices are below it.
        labels: label text ↔ class index; None where the file holds indices.
        is_train: every example needs a label; elsewhere an empty field is an example without one.
    """

    path: Path
    data_format: DataFormat
    task_type: TaskType
    n_class: int
    labels: Vocabulary | None
    is_train: bool


class Converter:
    """Turns lines of a canonical TSV into token JSON lines.

    Args:
        spec: of the tokenizer, which is loaded here.
    """

    def __init__(self, spec: TokenizerSpec):
        self.spec = spec
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(spec.name, spec.do_lower_case, spec.cache_dir)
        shortest = self.tokenizer.num_special_tokens_to_add(pair=True) + 2  # one token of each text
        if spec.max_seq_len < shortest:
            raise FlagError(f"--max_seq_len: found {spec.max_seq_len}, accepted: at least {shortest}")
        if spec.do_padding and self.tokenizer.pad_token_id is None:
            raise FlagError(f"--do_padding: the tokenizer of {spec.name} has no padding token; leave it out")

    def __call__(self, job: tuple[SplitSpec, Sequence[Line]]) -> list[str]:
        """Token ids and labels of some lines of one split, each as a line of JSON.

        Raises:
            DataError: a label is not accepted, or a list is no list; names file and line.
        """
        split, lines = job
        label = self._label_words if split.task_type == TaskType.SeqenceLabeling else self._label_texts
        return [json.dumps(example) for example in label(split, lines)]

    def _label_texts(self, split: SplitSpec, lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
        """Examples of one text or two with one label."""
        texts: list[Any] = [fields["premise"] for _, fields in lines]
        if "hypothesis" in lines[0][1]:
            texts = [(text, fields["hypothesis"]) for text, (_, fields) in zip(texts, lines, strict=True)]
        has_types = "token_type_ids" in self.tokenizer.model_input_names
        for (number, fields), encoded in zip(lines, self._backend().encode_batch_fast(texts), strict=True):
            tokens = encoded.ids
            yield {
                "uid": fields["uid"],
                **_label_entry(split, number, fields["label"]),
                "token_id": tokens,
                "type_id": encoded.type_ids if has_types else [0] * len(tokens),
                "attention_mask": encoded.attention_mask,
            }

    def _backend(self) -> Any:
        """The tokenizer below transformers' own, set to cut and to pad: a call of it counts no characters."""
        tokenizer, backend = self.tokenizer, self.tokenizer.backend_tokenizer
        longest = self.spec.max_seq_len
        backend.encode_special_tokens = tokenizer.split_special_tokens
        backend.enable_truncation(longest, strategy="longest_first", direction=tokenizer.truncation_side)
        if self.spec.do_padding:
            backend.enable_padding(
                direction=tokenizer.padding_side,
                pad_id=tokenizer.pad_token_id,
                pad_type_id=tokenizer.pad_token_type_id,
                pad_token=tokenizer.pad_token,
                length=longest,
            )
        else:
            backend.no_padding()
        return backend

    def _label_words(self, split: SplitSpec, lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
        """Examples of labelled words: a word's first piece has its label, its other pieces X."""
        assert split.labels is not None  # `check_task` has seen to it
        pieces, first, last = split.labels["X"], split.labels["CLS"], split.labels["SEP"]
        for number, fields in lines:
            words, labels = (_parse_list(split, number, column, fields[column]) for column in ("premise", "label"))
            if len(words) != len(labels):
                found = f"{len(words)} words and {len(labels)} labels"
                raise DataError(f"expected one label a word, found {found}", split.path, number)
            ids = self.tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
            token_id, label = [], []
            for word, text in zip(ids, labels, strict=True):
                token_id += word
                label += [_class_index(split, number, text), *[pieces] * (len(word) - 1)][: len(word)]
            room = self.spec.max_seq_len - 2
            token_id = [self.tokenizer.cls_token_id, *token_id[:room], self.tokenizer.sep_token_id]
            label = [first, *label[:room], last]
            yield {"uid": fields["uid"], "label": label, "token_id": token_id, "type_id": [0] * len(token_id)}


def check_task(
    where: str, task_type: TaskType, data_format: DataFormat, labels: Vocabulary | None, do_padding: bool
) -> None:
    """See that `Converter` knows tasks of this kind.

    Args:
        where: file and task, for the message.

    Raises:
        UserError: it does not.
    """
    formats = {
        TaskType.Classification: (DataFormat.PremiseOnly, DataFormat.PremiseAndOneHypothesis),
        TaskType.Regression: (DataFormat.PremiseOnly, DataFormat.PremiseAndOneHypothesis),
        TaskType.SeqenceLabeling: (DataFormat.Seqence,),
    }
    if task_type not in formats:
        accepted = ", ".join(known.name for known in formats)
        raise UserError(f"{where}: task_type {task_type.name} is not there yet; accepted: {accepted}")
    if data_format not in formats[task_type]:
        accepted = ", ".join(known.name for known in formats[task_type])
        found = f"data_format {data_format.name} does not go with {task_type.name}"
        raise UserError(f"{where}: {found}; accepted: {accepted}")
    if task_type == TaskType.SeqenceLabeling:
        missing = [label for label in SEQUENCE_LABELS if labels is None or label not in labels]
        if missing:
            raise UserError(f"{where}: labels lack {', '.join(missing)}; a SeqenceLabeling task needs X, CLS and SEP")
        if do_padding:
            raise UserError(f"{where}: --do_padding is not there yet for SeqenceLabeling; leave it out")


def find_splits(root: Path, task_name: str, split_names: Sequence[str]) -> list[str]:
    """The splits that a folder holds of a task, sorted.

    `TASK_SPLIT.tsv` is a split where SPLIT is in `split_names` or `unlabeled`; `TASK_SUBSET_SPLIT.tsv`, a data set of
    its own of the same task (`cola_outofdomain_dev.tsv`), where its last part is one of them or train, dev or test.
    """
    own = {*split_names, UNLABELED}
    known = own | {"train", "dev", "test"}
    prefix = f"{task_name}_"
    suffixes = [path.stem.removeprefix(prefix) for path in root.glob("*.tsv") if path.name.startswith(prefix)]
    return sorted(suffix for suffix in suffixes if suffix in own or any(suffix.endswith(f"_{name}") for name in known))


def is_train_split(name: str) -> bool:
    """Whether a split such as `train` or `001_train` is one to train on."""
    return name == "train" or name.endswith("_train")


def _label_entry(split: SplitSpec, number: int, text: str) -> dict[str, int | float]:
    """The `label` key of an example, or nothing where it has no label."""
    if not text and not split.is_train:
        return {}
    if split.task_type == TaskType.Classification:
        return {"label": _class_index(split, number, text)}
    try:
        label = float(text)
    except ValueError:
        label = math.nan
    if not math.isfinite(label):
        raise DataError(f"found the label {text!r}; accepted: a finite number", split.path, number)
    return {"label": label}


def _class_index(split: SplitSpec, number: int, text: object) -> int:
    if split.labels is not None:
        if text in split.labels:
            return split.labels[str(text)]
        known = list(split.labels.tok2ind)
        hint = nearest(str(text), known)
        raise DataError(f"found the label {text!r}{hint}; accepted: {', '.join(known)}", split.path, number)
    try:
        index = int(str(text))
    except ValueError:
        index = -1
    if not 0 <= index < split.n_class:
        accepted = f"a whole number from 0 to {split.n_class - 1}"
        raise DataError(f"found the label {text!r}; accepted: {accepted}", split.path, number)
    return index


def _parse_list(split: SplitSpec, number: int, column: str, text: str) -> list[str]:
    """A list of texts written in Python's or JSON's way, read as data."""
    for parse in (ast.literal_eval, json.loads):
        try:
            parsed = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
            return parsed
    raise DataError(f"{column}: found {text[:60]!r}; accepted: a list of texts such as ['a', 'b']", split.path, number)


def convert_split(split: SplitSpec, chunk_map: Callable[..., Iterator[list[str]]]) -> Iterator[str]:
    """The token JSON lines of a split, in the file's order.

    Args:
        split: the file.
        chunk_map: what `chunk_mapper` gives.

    Raises:
        DataError: with file and line.
    """
    lines = enumerate(read_canonical_tsv(split.path, split.data_format), start=1)
    jobs = ((split, chunk) for chunk in iter(lambda: list(itertools.islice(lines, CHUNK)), []))
    empty = True
    for converted in chunk_map(jobs):
        empty = False
        yield from converted
    if empty:
        raise DataError("found no examples; at least one is needed", split.path)


@contextmanager
def chunk_mapper(spec: TokenizerSpec, workers: int) -> Iterator[Callable[..., Iterator[list[str]]]]:
    """A function that maps jobs to their lines of JSON in order, in this process or in `workers` others."""
    if workers == 1:
        converter = Converter(spec)
        yield lambda jobs: map(converter, jobs)
        return
    Converter(spec)  # a tokenizer that cannot be loaded is told once, not by every process
    # each process is one thread; the tokenizer's own threads would only fight over the same cores
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker, (spec,)) as pool:
        yield lambda jobs: pool.imap(_work, jobs)


_converter: Converter | None = None  # of a worker process


def _start_worker(spec: TokenizerSpec) -> None:
    global _converter
    _converter = Converter(spec)


def _work(job: tuple[SplitSpec, Sequence[Line]]) -> list[str]:
    assert _converter is not None
    return _converter(job)
