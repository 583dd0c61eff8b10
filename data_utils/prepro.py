"""Canonical TSV → token JSON lines: what is the same for all task types; `tasks/` says how each reads its lines."""

from __future__ import annotations

import ast
import itertools
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from data_utils.errors import DataError, FlagError
from data_utils.readers import read_canonical_tsv
from data_utils.tokenizer import load_tokenizer, tokenizer_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNLABELED = "unlabeled"  # the split of examples that are regularized without labels, of any task
LONGEST_LITERAL = 1 << 18  # characters of a list in Python's way
CHUNK = 1000  # examples that are tokenized together
# What `Losses` counts.
TOKENS, CUT, CUT_TOKENS = "tokens", "examples cut", "tokens cut"
WORDS, CUT_WORDS, CUT_ENTITIES, EMPTY_WORDS = "words", "words cut", "entities cut", "words without a token"

Line = tuple[int, dict[str, Any]]


class TextTask(Protocol):
    """What a task type says of its text: `tasks.Task`."""

    @property
    def task_def(self) -> Any: ...

    def tokenize(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]: ...

    def check_tokenization(self, text: Tokenization) -> None: ...


@dataclass(frozen=True)
class TokenizerSpec:
    """How every process loads and calls the tokenizer.

    Attributes:
        name: the encoder's.
        do_lower_case: as in `load_tokenizer`.
        cache_dir: as in `load_tokenizer`.
        max_seq_len: longer examples are cut to so many tokens, the longer text of a pair first.
        do_padding: pad every example to `max_seq_len`.
        doc_stride: tokens that neighbouring windows of a long document share.
        max_query_len: a longer question is cut to so many tokens.
    """

    name: str
    do_lower_case: bool | None = None
    cache_dir: str | None = None
    max_seq_len: int = 512
    do_padding: bool = False
    doc_stride: int = 128
    max_query_len: int = 64


@dataclass(frozen=True)
class Split:
    """One canonical TSV.

    Attributes:
        path: the file.
        task: the task whose examples it holds.
        is_train: every example needs a label; elsewhere an empty field is an example without one.
    """

    path: Path
    task: TextTask
    is_train: bool


class Losses:
    """What examples lack of their texts, because those are too long or have words without a token.

    Attributes:
        counts: how many, by what it is.
        first: the line where the first of each is; those whose line is not known are not in it.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, int] = {}

    def add(self, what: str, count: int = 1, line: int | None = None) -> None:
        if count:
            self.counts[what] += count
            if line is not None:
                self.first.setdefault(what, line)

    def update(self, other: Losses) -> None:
        """Add those of later lines."""
        self.counts.update(other.counts)
        self.first = other.first | self.first


def parse_list(split: Split, number: int, column: str, text: str, kind: type[Any] = str) -> list[Any]:
    """A list of texts (or of another kind) written in JSON's or Python's way, read as data.

    Raises:
        DataError: it is none; names file and line.
    """
    # Python's syntax tree of a text takes a hundred times its memory
    parsers = (json.loads, ast.literal_eval) if len(text) <= LONGEST_LITERAL else (json.loads,)
    for parse in parsers:  # JSON first: Python reads its escapes of rarer characters otherwise
        try:
            parsed = parse(text)
            "".join(parsed if kind is str else ()).encode()  # half a surrogate pair is no text
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, list) and all(type(item) is kind for item in parsed):
            return parsed
    accepted = "texts such as ['a', 'b']" if kind is str else "whole numbers such as [3, 14]"
    raise DataError(f"{column}: found {text[:60]!r}; accepted: a list of {accepted}", split.path, number)


class Tokenization:
    """A tokenizer as a run of prepro_std.py uses it.

    Attributes:
        spec: as given.
        tokenizer: loaded; what a task type cannot have from `encode`, it asks this.
        losses: of all that was tokenized so far.
    """

    def __init__(self, spec: TokenizerSpec):
        self.spec = spec
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(spec.name, spec.do_lower_case, spec.cache_dir)
        shortest = self.tokenizer.num_special_tokens_to_add(pair=True) + 2  # one token of each text
        if spec.max_seq_len < shortest:
            raise FlagError(
                f"--max_seq_len: found {spec.max_seq_len}, accepted: at least {shortest} (tokenizer {spec.name!r})"
            )
        if spec.do_padding and self.tokenizer.pad_token_id is None:
            raise FlagError(f"--do_padding: the tokenizer of {spec.name} has no padding token; leave it out")
        self.losses = Losses()
        self._has_types = "token_type_ids" in self.tokenizer.model_input_names

    def encode(
        self, texts: Sequence[str | tuple[str, str]], lines: Sequence[int] = ()
    ) -> Iterator[dict[str, list[int]]]:
        """Texts, or pairs of texts, as a token file's `token_id`, `type_id` and `attention_mask`, cut and padded.

        Args:
            lines: the line of each text in its file, for `losses`.
        """
        with tokenizer_errors(self.spec.name):
            found = self._backend().encode_batch_fast(list(texts))
        self._count_losses(texts, lines, [sum(encoded.attention_mask) for encoded in found])
        yield from map(self._example, found)

    def _example(self, encoded: Any) -> dict[str, list[int]]:
        return {
            "token_id": encoded.ids,
            "type_id": encoded.type_ids if self._has_types else [0] * len(encoded.ids),
            "attention_mask": encoded.attention_mask,
        }

    def _count_losses(self, texts: Sequence[Any], lines: Sequence[int], lengths: Sequence[int]) -> None:
        """Tokenize those that are as long as they may be once more, not cut, and count what they have lost."""
        longest = self.spec.max_seq_len
        full = [at for at, length in enumerate(lengths) if length >= longest]
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        whole = backend.encode_batch_fast([texts[at] for at in full]) if full else []
        for at, encoded in zip(full, whole, strict=True):
            if len(encoded.ids) > longest:
                line = lines[at] if lines else None
                self.losses.add(CUT, 1, line)
                self.losses.add(CUT_TOKENS, len(encoded.ids) - longest, line)
        self.losses.add(TOKENS, sum(lengths))

    def pieces(self, texts: Sequence[str]) -> list[Any]:
        """Texts as encodings of the tokenizers library, neither cut nor padded, without special tokens."""
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        backend.no_truncation()
        backend.no_padding()
        with tokenizer_errors(self.spec.name):
            found = backend.encode_batch(list(texts), add_special_tokens=False)
        return list(found)

    def pair(self, first: Any, second: Any) -> dict[str, list[int]]:
        """Two of `pieces` with the special tokens of a pair: `token_id`, `type_id`, and `is_special`, 1 at those."""
        with tokenizer_errors(self.spec.name):
            joined = self.tokenizer.backend_tokenizer.post_process(first, second)
        return {
            "token_id": joined.ids,
            "type_id": joined.type_ids if self._has_types else [0] * len(joined.ids),
            "is_special": joined.special_tokens_mask,
        }

    def ends(self) -> tuple[int, int]:
        """The ids of the CLS and SEP tokens, for task types that put them around their tokens themselves.

        Raises:
            FlagError: the tokenizer has none.
        """
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        if first is None or last is None:
            raise FlagError(f"--model: the tokenizer of {self.spec.name} has no CLS and SEP tokens, which a task needs")
        return first, last

    def _backend(self) -> Any:
        """The tokenizer below transformers' own, set to cut and to pad: a call of it counts no characters."""
        tokenizer, backend = self.tokenizer, self.tokenizer.backend_tokenizer
        longest = self.spec.max_seq_len
        backend.encode_special_tokens = tokenizer.split_special_tokens
        backend.enable_truncation(longest, strategy="longest_first", direction=tokenizer.truncation_side)
        if self.spec.do_padding:
            backend.enable_padding(
                direction="right",  # also where a tokenizer pads on the left: token files and batches have it there
                pad_id=tokenizer.pad_token_id,
                pad_type_id=tokenizer.pad_token_type_id,
                pad_token=tokenizer.pad_token,
                length=longest,
            )
        else:
            backend.no_padding()
        return backend


class Converted(NamedTuple):
    """Examples, each as a line of JSON, and what they lack of their texts."""

    examples: list[str]
    losses: Losses


class Converter:
    """Turns lines of a canonical TSV into token JSON lines.

    Args:
        spec: of the tokenizer, which is loaded here.
    """

    def __init__(self, spec: TokenizerSpec):
        self.text = Tokenization(spec)

    def __call__(self, job: tuple[Split, Sequence[Line]]) -> Converted:
        """The examples of some lines of one split.

        Raises:
            DataError: a label is not accepted, or a list is no list; names file and line.
        """
        split, lines = job
        self.text.losses = Losses()
        examples = [json.dumps(example) for example in split.task.tokenize(split, lines, self.text)]
        return Converted(examples, self.text.losses)


def find_splits(root: Path, task_name: str, split_names: Sequence[str], suffix: str = ".tsv") -> list[str]:
    """The splits that a folder holds of a task, sorted.

    `TASK_SPLIT.tsv` (or another suffix) is a split where SPLIT is in `split_names` or `unlabeled`;
    `TASK_SUBSET_SPLIT.tsv`, a data set of its own of the same task (`cola_outofdomain_dev.tsv`), where its last part is
    one of them or train, dev or test.
    """
    own = {*split_names, UNLABELED}
    known = own | {"train", "dev", "test"}
    prefix = f"{task_name}_"
    suffixes = [path.stem.removeprefix(prefix) for path in root.glob(f"*{suffix}") if path.name.startswith(prefix)]
    return sorted(suffix for suffix in suffixes if suffix in own or any(suffix.endswith(f"_{name}") for name in known))


def prepro_command(task_def: Path | str) -> str | None:
    """The prepro command in the folder of a YAML, which makes the TSVs of its tasks; None if there is none."""
    commands = sorted(Path(task_def).parent.glob("*prepro.py"))
    return f"python {commands[0]}" if commands else None


def is_train_split(name: str) -> bool:
    """Whether a split such as `train` or `001_train` is one to train on."""
    return name == "train" or name.endswith("_train")


def convert_split(
    split: Split,
    chunk_map: Callable[..., Iterator[Converted]],
    done: Callable[[int], object] = lambda lines: None,
    losses: Losses | None = None,
) -> Iterator[str]:
    """The token JSON lines of a split, in the file's order.

    Args:
        split: the file.
        chunk_map: what `chunk_mapper` gives.
        done: called with how many of the file's lines were converted since the last call.
        losses: gets what the examples lack of their texts.

    Raises:
        DataError: with file and line.
    """
    lines = enumerate(read_canonical_tsv(split.path, split.task.task_def.data_type), start=1)
    sizes: deque[int] = deque()

    def jobs() -> Iterator[tuple[Split, list[Line]]]:
        while chunk := list(itertools.islice(lines, CHUNK)):
            sizes.append(len(chunk))
            yield split, chunk

    empty = True
    for converted in chunk_map(jobs()):
        empty = False
        yield from converted.examples
        if losses is not None:
            losses.update(converted.losses)
        done(sizes.popleft())
    if empty:
        raise DataError("found no examples; at least one is needed", split.path)


@contextmanager
def chunk_mapper(
    spec: TokenizerSpec, workers: int, tasks: Iterable[TextTask]
) -> Iterator[Callable[..., Iterator[Converted]]]:
    """A function that maps jobs to their lines of JSON in order, in this process or in `workers` others.

    Raises:
        UserError: the tokenizer cannot be loaded, or one of the tasks cannot be tokenized with it.
    """
    converter = Converter(spec)  # here too where others convert: what is wrong is told once, not by every process
    for task in tasks:
        task.check_tokenization(converter.text)
    if workers == 1:
        yield lambda jobs: map(converter, jobs)
        return
    # each process is one thread; the tokenizer's own threads would only fight over the same cores
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker, (spec,)) as pool:
        yield lambda jobs: pool.imap(_work, jobs)


_converter: Converter | None = None  # of a worker process


def _start_worker(spec: TokenizerSpec) -> None:
    global _converter
    _converter = Converter(spec)


def _work(job: tuple[Split, Sequence[Line]]) -> Converted:
    assert _converter is not None
    return _converter(job)
