"""Datasets in flat arrays, the order of an epoch's batches, and padding.

Training and evaluation read their batches so:

    datasets = [SingleTaskDataset("mnli_train.json", is_train=True, task_id=0, task_def=task_def)]
    sampler = MultiTaskBatchSampler(datasets, batch_size=8, seed=2018)
    collater = Collater(tokenizer.pad_token_id)
    loader = DataLoader(MultiTaskDataset(datasets), sampler=sampler, batch_size=None, collate_fn=collater)

    dev = SingleTaskDataset("mnli_matched_dev.json", is_train=False, task_id=0, task_def=task_def)
    loader = DataLoader(dev, batch_sampler=evaluation_batches(dev, 8), collate_fn=collater)
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data_utils.errors import DataError, FlagError
from data_utils.readers import read_token_json
from data_utils.task_def import TaskType

if TYPE_CHECKING:
    from experiments.exp_def import TaskDef

logger = logging.getLogger(__name__)

POOL_BATCHES = 50  # batches whose examples are sorted by length together
LARGEST_LABEL = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples of one task, padded on the right to T tokens.

    Attributes:
        input_ids: token ids, (B, T) int64.
        attention_mask: 1 at real tokens and 0 at padding, (B, T) int64.
        token_type_ids: 0 at the first sentence and 1 at the second, (B, T) int64.
        labels: (B,), int64 for classification and float32 for regression; None where the file has no labels.
        task_id: the number of the task's head.
        uids: the examples' ids, B of them.
        stands_in: the batch is there to keep a process in step that has no share of it, and counts nothing.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    labels: Tensor | None
    task_id: int
    uids: tuple[str, ...]
    stands_in: bool = False

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def counted(self) -> int:
        """Examples that count in a mean over all processes."""
        return 0 if self.stands_in else len(self)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory: what `DataLoader(pin_memory=True)` calls."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            input_ids=function(self.input_ids),
            attention_mask=function(self.attention_mask),
            token_type_ids=function(self.token_type_ids),
            labels=None if self.labels is None else function(self.labels),
        )


class _StandIn(TypedDict, total=False):
    stands_in: bool


class Example(_StandIn):
    """One example: `token_id` and `type_id` are views (tokens,) into the dataset's arrays."""

    uid: str
    label: np.generic | None
    token_id: np.ndarray
    type_id: np.ndarray
    task_id: int


class SingleTaskDataset(Dataset[Example]):
    """One file of token JSON lines, such as `mnli_matched_dev.json`, of a classification or regression task.

    Args:
        path: the file.
        is_train: a training file must have labels, and its examples longer than `max_seq_len` are left out, as in
            MT-DNN; a file for evaluation keeps every example and may have no labels.
        task_id: the number of the task's head.
        task_def: the task's definition; its type and number of classes say what a label may be.
        max_seq_len: in tokens.
        name: the dataset's name, such as `mnli_matched`; by default the file's.
        labeled: false for a training file of unlabeled examples; labels that it has are not read.

    Attributes:
        tokens: token ids of all examples one after the other, uint32; padding that the file has is left out.
        types: token type ids likewise, uint8.
        offsets: example i is `tokens[offsets[i]:offsets[i + 1]]`, (examples + 1,) int64.
        lengths: tokens of each example, (examples,) int64.
        labels: (examples,), int64 for classification and float32 for regression; None where the file has none.
        uids: the examples' ids.

    Raises:
        DataError: a line that cannot be used, with its number; a file that leaves no example.
    """

    def __init__(
        self,
        path: Path | str,
        is_train: bool,
        task_id: int,
        task_def: TaskDef,
        max_seq_len: int = 512,
        name: str = "",
        labeled: bool = True,
    ):
        self.path = Path(path)
        self.name = name or self.path.stem
        self.task_id = task_id
        self.task_def = task_def
        tokens, types, offsets = array("I"), array("B"), array("q", [0])
        labels: array[Any] = array("q") if task_def.task_type == TaskType.Classification else array("f")
        self.uids: list[str] = []
        unlabelled = 0  # number of the first line without a label
        read = 0
        for line, sample in read_token_json(self.path):
            read += 1
            token_ids, type_ids = _real_tokens(sample, self.path, line)
            label = _label(sample, task_def, self.path, line) if labeled else None
            if label is None:
                if is_train and labeled:
                    raise DataError("found no label; a training example needs one", self.path, line)
                unlabelled = unlabelled or line
            if is_train and len(token_ids) > max_seq_len:
                continue
            try:
                tokens.fromlist(token_ids)
                types.fromlist(type_ids)
            except OverflowError as error:
                found = f"token_id or type_id is out of range ({error})"
                raise DataError(f"{found}; accepted are 0 to {2**32 - 1} and 0 to 255", self.path, line) from error
            offsets.append(len(tokens))
            self.uids.append(str(sample["uid"]))
            if label is not None:
                labels.append(label)
        if not self.uids:
            found = f"all {read} examples are longer than {max_seq_len} tokens" if read else "found no examples"
            raise DataError(f"{found}; at least one is needed", self.path)
        if unlabelled and labels:
            raise DataError("found no label, but other lines have one; all or none may", self.path, unlabelled)
        self.tokens = np.frombuffer(tokens, dtype=np.uint32)
        self.types = np.frombuffer(types, dtype=np.uint8)
        self.offsets = np.frombuffer(offsets, dtype=np.int64)
        self.lengths = np.diff(self.offsets)
        label_type = np.int64 if labels.typecode == "q" else np.float32
        self.labels = np.frombuffer(labels, dtype=label_type) if labels else None
        logger.info(
            "%s: %d examples; %d longer than %d tokens left out", self.path, len(self), read - len(self), max_seq_len
        )

    def __len__(self) -> int:
        return len(self.uids)

    def __getitem__(self, index: int) -> Example:
        part = slice(self.offsets[index], self.offsets[index + 1])
        return Example(
            uid=self.uids[index],
            label=None if self.labels is None else self.labels[index],
            token_id=self.tokens[part],
            type_id=self.types[part],
            task_id=self.task_id,
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


class MultiTaskDataset(Dataset[list[Example]]):
    """Several datasets; an item is a batch: the examples that a `MultiTaskBatchSampler` names.

    A process without a share of a batch gets one of its task's examples that counts nothing: all processes have to run
    a backward for one of them to have its gradient.
    """

    def __init__(self, datasets: Sequence[SingleTaskDataset]):
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def __getitem__(self, batch: tuple[int, Sequence[int]]) -> list[Example]:
        dataset_index, examples = batch
        dataset = self.datasets[dataset_index]
        if not len(examples):
            return [Example(**dataset[0], stands_in=True)]
        return [dataset[index] for index in examples]


class Collater:
    """Pads a batch's examples on the right and stacks them.

    Args:
        pad_token_id: the tokenizer's.
        type_pad: token type id at padding.
        do_padding: pad to `max_seq_len` (or further, where an example is longer), not to the longest example.
        max_seq_len: in tokens.
    """

    def __init__(self, pad_token_id: int, type_pad: int = 0, do_padding: bool = False, max_seq_len: int = 512):
        self.pad_token_id = pad_token_id
        self.type_pad = type_pad
        self.shortest = max_seq_len if do_padding else 0

    def __call__(self, examples: Sequence[Example]) -> Batch:
        width = max(self.shortest, *(len(example["token_id"]) for example in examples))
        shape = (len(examples), width)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        token_type_ids = np.full(shape, self.type_pad, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        for row, example in enumerate(examples):
            length = len(example["token_id"])
            input_ids[row, :length] = example["token_id"]
            token_type_ids[row, :length] = example["type_id"]
            attention_mask[row, :length] = 1
        labels = [example["label"] for example in examples]
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask),
            token_type_ids=torch.from_numpy(token_type_ids),
            labels=None if labels[0] is None else torch.from_numpy(np.array(labels)),
            task_id=examples[0]["task_id"],
            uids=tuple(example["uid"] for example in examples),
            stands_in=examples[0].get("stands_in", False),
        )


class MultiTaskBatchSampler(Sampler[tuple[int, list[int]]]):
    """The batches of an epoch: pairs of a dataset's index and the indices of its examples in the batch.

    Every dataset is shuffled and cut into batches. With `group_by_length`, the shuffled examples of 50 batches at a
    time are sorted by length before they are cut, so that a batch has little padding; which batch is the one that is
    not full is drawn at random, so that it favours no length. Then the batches are mixed: where a batch stands in an
    epoch says nothing about its lengths.

    The order depends on `seed` and the epoch alone. With several processes each batch is dealt out among them (process
    p takes examples p, p + N, p + 2N, ... of it), so the batches are those of one process; of a rest that has fewer
    examples than there are processes, some have none.

    Args:
        datasets: those to train on; the task of the first is the main task.
        batch_size: examples of a batch, over all processes.
        mix_opt: 0 puts all batches in one random order, 1 the other tasks' batches first, then the main task's.
        ratio: 0 takes all batches; r > 0 takes r times the main task's number of batches from the other tasks (at most
            all of them), drawn anew each epoch.
        seed: not negative.
        group_by_length: make batches of examples of similar length.
        num_processes: N, how many processes share each batch.
        process_index: which of them this one is.
        drop_last: leave out a dataset's last batch where it is not full (other examples each epoch).

    Raises:
        FlagError: a batch size smaller than the number of processes.
        DataError: a dataset too small for one full batch, with `drop_last`.
    """

    def __init__(
        self,
        datasets: Sequence[SingleTaskDataset],
        batch_size: int,
        *,
        mix_opt: int = 0,
        ratio: float = 0.0,
        seed: int,
        group_by_length: bool = True,
        num_processes: int = 1,
        process_index: int = 0,
        drop_last: bool = False,
    ):
        if batch_size < num_processes:
            raise FlagError(f"--batch_size is {batch_size}; accepted are at least {num_processes}, one a process")
        self.datasets = datasets
        self.mix_opt = mix_opt
        self.seed = seed
        self.group_by_length = group_by_length
        self.num_processes = num_processes
        self.process_index = process_index
        self.epoch = 0
        self.position = 0
        self._sizes = [_batch_sizes(dataset, batch_size, drop_last) for dataset in datasets]
        self._is_main = [dataset.task_id == datasets[0].task_id for dataset in datasets]
        main = sum(len(sizes) for sizes, is_main in zip(self._sizes, self._is_main, strict=True) if is_main)
        others = sum(len(sizes) for sizes in self._sizes) - main
        self._n_others = min(int(ratio * main), others) if ratio > 0 else others
        self._length = main + self._n_others

    def __len__(self) -> int:
        """Batches of a whole epoch, the same in every epoch."""
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of epoch number `epoch`, counted from 0."""
        self.epoch = epoch
        self.position = 0

    def set_position(self, batches_done: int) -> None:
        """Start iterations after the epoch's first `batches_done` batches, where a resumed run goes on."""
        if not 0 <= batches_done <= len(self):
            raise ValueError(f"position {batches_done} is not in an epoch of {len(self)} batches")
        self.position = batches_done

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        rest = self._epoch_batches()[self.position :]
        return ((dataset, batch[self.process_index :: self.num_processes].tolist()) for dataset, batch in rest)

    def _epoch_batches(self) -> list[tuple[int, np.ndarray]]:
        """All batches of the epoch in their order, each with its dataset's index, for all processes together."""
        generator = np.random.default_rng([self.seed, self.epoch])
        main: list[tuple[int, np.ndarray]] = []
        others: list[tuple[int, np.ndarray]] = []
        for index, dataset in enumerate(self.datasets):
            part = main if self._is_main[index] else others
            part += [(index, batch) for batch in self._cut(dataset.lengths, self._sizes[index], generator)]
        main = _shuffled(main, generator)
        others = _shuffled(others, generator)[: self._n_others]
        return others + main if self.mix_opt > 0 else _shuffled(others + main, generator)

    def _cut(self, lengths: np.ndarray, sizes: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Indices of a dataset's examples in batches of the given sizes."""
        order = generator.permutation(len(lengths))[: sizes.sum()]
        ends = generator.permutation(sizes).cumsum()
        if self.group_by_length:
            for pool in np.split(order, ends[POOL_BATCHES - 1 : -1 : POOL_BATCHES]):
                pool[:] = pool[np.argsort(lengths[pool], kind="stable")]  # views: sorts `order`
        return np.split(order, ends[:-1])


def _batch_sizes(dataset: SingleTaskDataset, batch_size: int, drop_last: bool) -> np.ndarray:
    """Sizes of a dataset's batches: full ones and the rest, unless that is dropped."""
    if drop_last and len(dataset) < batch_size:
        raise DataError(f"holds {len(dataset)} examples; a batch needs at least {batch_size}", dataset.path)
    full, rest = divmod(len(dataset), batch_size)
    sizes = np.full(full, batch_size)
    return np.append(sizes, rest) if rest and not drop_last else sizes


def _shuffled(batches: list[tuple[int, np.ndarray]], generator: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_batches(dataset: SingleTaskDataset, batch_size: int) -> list[list[int]]:
    """All examples once, in batches of similar length, longest first; the caller restores the file's order."""
    order = np.argsort(-dataset.lengths, kind="stable")
    return [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
