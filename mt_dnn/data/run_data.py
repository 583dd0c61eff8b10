"""The datasets of a run: found by name, read, and checked against the task definitions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from data_utils.errors import DataError, FlagError, UserError, nearest
from data_utils.prepro import prepro_command
from module.encoder import positions_of, takes_types
from mt_dnn.batcher import SingleTaskDataset
from mt_dnn.configuration.config import Config
from mt_dnn.configuration.flag_groups import CANONICAL_DATA, DataConfig
from mt_dnn.configuration.flags import plain_text
from tasks import check_metrics, not_distilled, task_class
from tasks.definition import TaskDef, TaskDefs

EVALUATION_SPLITS = ("dev", "test")

logger = logging.getLogger(__name__)


class RunData:
    """Training and evaluation sets of a run.

    Args:
        config: names the datasets; the part of a name before the first `_` is its task.

    Attributes:
        tasks: names of the tasks, in the order of their ids: as `--train_datasets` first names them.
        task_defs: their definitions, in the same order.
        train: a dataset for each of `--train_datasets`.
        evaluation: by (dataset, split), for each of `--test_datasets` and each split that has a file.
        unlabeled: a dataset for each of `--unlabeled_datasets`.

    Raises:
        UserError: a task is unknown, a file is missing (with the command that makes it), a line cannot be used, or a
            task does not have a metric.
    """

    def __init__(self, config: Config):
        self.config = config
        definitions = TaskDefs(config.data.task_def)
        names = [_task_of(definitions, config, "train_datasets", dataset) for dataset in config.data.train_datasets]
        self.tasks = list(dict.fromkeys(names))
        self.task_defs = [definitions.get_task_def(task) for task in self.tasks]
        unlabeled = config.adversarial.unlabeled_datasets or ()
        for flag, datasets in (("test_datasets", config.data.test_datasets), ("unlabeled_datasets", unlabeled)):
            for dataset in datasets:
                task = _task_of(definitions, config, flag, dataset)
                if task not in self.tasks:
                    raise FlagError(
                        f"--{flag}: {dataset} is of task {task}, which is not trained; accepted tasks: "
                        f"{', '.join(self.tasks)}{nearest(task, self.tasks)}"
                    )
        for dataset in unlabeled:
            kind = definitions.get_task_def(definitions.task_of(dataset)).task_type
            if task_class(kind).generates:
                raise FlagError(
                    f"--unlabeled_datasets: {dataset} is of type {kind.name}, whose decoder reads the text that is the "
                    "label; accepted: datasets of other types"
                )
        self.train = [
            self._read(dataset, "train", task, is_train=True)
            for dataset, task in zip(config.data.train_datasets, names, strict=True)
        ]
        self.unlabeled = [
            self._read(dataset, "unlabeled", definitions.task_of(dataset), is_train=True, labeled=False)
            for dataset in unlabeled
        ]
        if config.data.mkd_opt > 0:
            self._check_soft_labels()
        self.evaluation: dict[tuple[str, str], SingleTaskDataset] = {}
        for dataset in config.data.test_datasets:
            splits = [split for split in EVALUATION_SPLITS if self._path(dataset, split).is_file()]
            for split in splits or EVALUATION_SPLITS[:1]:
                task = definitions.task_of(dataset)
                found = self._read(dataset, split, task, is_train=False)
                if found.has_labels:
                    where = f"{config.data.task_def}: task {task!r}, key 'metric_meta'"
                    check_metrics(found.task_def, found.task_def.metric_meta, where)
                self.evaluation[dataset, split] = found

    def keep_activations(self, trained: Sequence[TaskDef]) -> None:
        """For a resume: keep the activation that each head was trained with, whatever `actf` says now.

        Args:
            trained: of `trained_definitions`, in the order of the tasks' ids.
        """
        for task_id, (own, before) in enumerate(zip(self.task_defs, trained, strict=False)):
            if own.actf != before.actf:
                logger.info(
                    "--resume: the head of task %s was trained with the activation %s and keeps it; `actf: %s` in %s "
                    "is for new runs",
                    self.tasks[task_id],
                    plain_text(before.actf),
                    plain_text(own.actf),
                    self.config.data.task_def,
                )
                self.task_defs[task_id] = own.replaced(actf=before.actf)

    def check_fits_encoder(self, encoder: PreTrainedModel) -> None:
        """`check_fits_encoder` of every dataset, with the width that batches are padded to."""
        width = self.config.model.max_seq_len if self.config.data.do_padding else 0
        for dataset in [*self.train, *self.unlabeled, *self.evaluation.values()]:
            check_fits_encoder(dataset, encoder, width)

    def _check_soft_labels(self) -> None:
        """Check that there are soft labels, and that their tasks can be distilled.

        Raises:
            FlagError: there are none, or a task cannot.
        """
        with_soft = [dataset for dataset in self.train if dataset.has_soft_labels]
        if not with_soft:
            raise FlagError("--mkd_opt: no training set has a softlabel; prepare_distillation_data.py writes them")
        for dataset in with_soft:
            if not dataset.task.distils:
                raise FlagError(f"--mkd_opt: {dataset.name}: {not_distilled(dataset.task)}")
        for dataset in self.train:
            if not dataset.has_soft_labels:
                logger.info("--mkd_opt: %s has no softlabel; its labels alone are learned", dataset.name)

    def _path(self, dataset: str, split: str) -> Path:
        return Path(self.config.data_dir) / f"{dataset}_{split}.json"

    def _read(self, dataset: str, split: str, task: str, is_train: bool, labeled: bool = True) -> SingleTaskDataset:
        path = self._path(dataset, split)
        if not path.is_file():
            there = [file.name.removesuffix(f"_{split}.json") for file in path.parent.glob(f"*_{split}.json")]
            raise DataError(f"missing{nearest(dataset, there)}; make it with: {self._command(path)}", path)
        task_id = self.tasks.index(task)
        max_seq_len = self.config.model.max_seq_len
        return SingleTaskDataset(
            path,
            is_train,
            task_id,
            self.task_defs[task_id],
            max_seq_len,
            name=f"{dataset}_{split}",
            labeled=labeled,
        )

    def _command(self, path: Path) -> str:
        """The command that makes a missing token file, after the one that makes its TSV if that is missing too."""
        root = Path(self.config.data_dir).parent
        command = f"python prepro_std.py --model {self.config.encoder} --task_def {self.config.data.task_def}"
        if str(root) != CANONICAL_DATA:
            command += f" --root_dir {root}"
        before = prepro_command(self.config.data.task_def)
        if before is not None and not (root / f"{path.stem}.tsv").is_file():
            command = f"{before}, then {command}"
        return command


def _task_of(definitions: TaskDefs, config: Config, flag: str, dataset: str) -> str:
    """A dataset's task.

    Raises:
        FlagError: there is none; the message says whether the flag was left out.
    """
    try:
        return definitions.task_of(dataset)
    except UserError as error:
        at_default = getattr(config.data, flag, None) == getattr(DataConfig, flag, ...)
        raise FlagError(f"--{flag}{' (left out)' if at_default else ''}: {dataset}: {error}") from error


class Tokens(Protocol):
    """What is known of a dataset's tokens; attributes of `SingleTaskDataset`."""

    path: Path
    lengths: np.ndarray

    @property
    def largest_token(self) -> int: ...

    @property
    def largest_type(self) -> int: ...


def check_fits_encoder(dataset: Tokens, encoder: PreTrainedModel, width: int = 0) -> None:
    """Check that an encoder can embed a dataset's tokens; another encoder's tokenizer may have made them.

    Args:
        width: number of tokens that batches are padded to; 0: to the longest example.

    Raises:
        FlagError: the encoder has fewer positions than that.
        DataError: a token id or token type is unknown to the encoder, or an example has more tokens than it has
            positions.
    """
    largest, vocabulary = dataset.largest_token, encoder.config.vocab_size
    if largest >= vocabulary:
        raise DataError(
            f"holds the token id {largest}; the encoder's vocabulary has {vocabulary}. Was it made for this encoder?",
            dataset.path,
        )
    types = getattr(encoder.config, "type_vocab_size", 0)
    if 0 < types <= dataset.largest_type and takes_types(encoder):
        raise DataError(
            f"holds the token type {dataset.largest_type}; the encoder knows {types}, counted from 0. "
            "Was it made for this encoder?",
            dataset.path,
        )
    longest, positions = int(dataset.lengths.max()), positions_of(encoder)
    if positions is None:
        return
    if longest > positions:
        raise DataError(
            f"holds an example of {longest} tokens; the encoder has {positions} positions. "
            f"Make it with: python prepro_std.py --max_seq_len {positions}",
            dataset.path,
        )
    if width > positions:
        raise FlagError(
            f"--do_padding: pads to --max_seq_len, {width}; the encoder has {positions} positions, accepted: "
            f"--max_seq_len {positions}"
        )
