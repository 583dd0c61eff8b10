"""Task definitions: MT-DNN's YAML, read and checked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_utils.errors import DataError, TaskDefError, UserError, nearest
from data_utils.metrics import Metric
from data_utils.storage.yaml_file import compose_yaml, construct_yaml
from data_utils.task_def import DataFormat, EncoderModelType, LossCriterion, TaskType
from data_utils.vocab import Vocabulary
from tasks.definition_schema import find_mistakes, parse_task
from tasks.registry import task_class

ATTRIBUTES: dict[str, Any] = {
    "label_vocab": (Vocabulary, type(None)),
    "n_class": int,
    "data_type": DataFormat,
    "task_type": TaskType,
    "metric_meta": (tuple, list),
    "split_names": (tuple, list),
    "enable_san": (bool, int),  # MT-DNN takes the YAML's 0 and 1 too
    "dropout_p": (float, int, type(None)),
    "loss": (LossCriterion, type(None)),
    "kd_loss": (LossCriterion, type(None)),
    "adv_loss": (LossCriterion, type(None)),
    "actf": (str, type(None)),
}


class TaskDef(dict):
    """The definition of a task; its attributes have the values.

    Checkpoints of MT-DNN contain objects of this class. So its name, its attributes, and that it is a dictionary with
    the attributes' `repr` as items, are a file format.

    Args:
        label_vocab: label text ↔ class index; None if the data has indices or numbers.
        n_class: size of the head's output.
        data_type: format of the canonical TSV.
        task_type: names the class in `tasks/`.
        metric_meta: metrics of evaluation.
        split_names: the splits of the data, `TASK_SPLIT.tsv`.
        enable_san: the head is a stochastic answer network.
        dropout_p: dropout before the head; None uses `--dropout_p`.
        loss: criterion of the gold labels; None uses the task type's default.
        kd_loss: criterion of soft labels; None uses the squared error.
        adv_loss: divergence between perturbed and clean logits; None uses the task type's default.
        actf: activation of the pooler; None for none.
    """

    def __init__(
        self,
        label_vocab: Vocabulary | None,
        n_class: int,
        data_type: DataFormat,
        task_type: TaskType,
        metric_meta: Sequence[Metric],
        split_names: Sequence[str],
        enable_san: bool,
        dropout_p: float | None,
        loss: LossCriterion | None,
        kd_loss: LossCriterion | None,
        adv_loss: LossCriterion | None,
        actf: str | None,
    ):
        kind = task_class(task_type)
        self.label_vocab = label_vocab
        self.n_class = n_class
        self.data_type = data_type
        self.task_type = task_type
        self.metric_meta = tuple(metric_meta)
        self.split_names = list(split_names)
        self.enable_san = enable_san
        self.dropout_p = dropout_p
        self.loss = kind.default_loss if loss is None else loss
        self.kd_loss = LossCriterion.MseCriterion if kd_loss is None else kd_loss
        self.adv_loss = kind.default_adv_loss if adv_loss is None else adv_loss
        self.actf = actf
        # MT-DNN's items are the `repr` of the constructor's local names, the first and the last included
        items = {"self": "{}"} | {name: repr(value) for name, value in vars(self).items()}
        super().__init__(items | {"__class__": "<class 'experiments.exp_def.TaskDef'>"})

    @classmethod
    def from_yaml(cls, entry: Mapping[str, Any]) -> TaskDef:
        """The definition in a mapping of the YAML that was checked."""
        task = parse_task(entry)
        return cls(
            label_vocab=None if task.labels is None else Vocabulary.from_labels(task.labels),
            n_class=task.n_class,
            data_type=task.data_format,
            task_type=task.task_type,
            metric_meta=task.metric_meta,
            split_names=task.split_names,
            enable_san=task.enable_san,
            dropout_p=task.dropout_p,
            loss=task.loss,
            kd_loss=task.kd_loss,
            adv_loss=task.adv_loss,
            actf=task.actf,
        )

    def class_names(self, unnamed: str = "") -> list[str]:
        """The names of the classes in order; a class without a name is `unnamed` and its number."""
        names = {} if self.label_vocab is None else self.label_vocab.ind2tok
        return [str(names.get(index, f"{unnamed}{index}")) for index in range(self.n_class)]

    @classmethod
    def from_attributes(cls, loaded: object) -> TaskDef:
        """The definition from an object of torch's weights-only loader, which is a dictionary with attributes.

        Raises:
            TaskDefError: an attribute is missing or of another type.
        """
        if isinstance(loaded, cls):
            return loaded
        values = vars(loaded) if hasattr(loaded, "__dict__") else {}
        for name, accepted in ATTRIBUTES.items():
            if name not in values:
                raise TaskDefError(f"task definition in a checkpoint: {name} is missing")
            if not isinstance(values[name], accepted):
                raise TaskDefError(f"task definition in a checkpoint: {name} is a {type(values[name]).__name__}")
        if not all(isinstance(metric, Metric) for metric in values["metric_meta"]) or values["n_class"] < 1:
            raise TaskDefError("task definition in a checkpoint: metric_meta or n_class cannot be used")
        labels = values["label_vocab"]
        if labels is not None and not {"neat", "tok2ind", "ind2tok"} <= vars(labels).keys():
            raise TaskDefError("task definition in a checkpoint: label_vocab is none")
        return cls(**{name: values[name] for name in ATTRIBUTES} | {"enable_san": bool(values["enable_san"])})

    def replaced(self, **changes: Any) -> TaskDef:
        """A copy of the definition with some other values."""
        return TaskDef(**{**vars(self), **changes})


TaskDef.__module__ = "experiments.exp_def"  # as MT-DNN's checkpoints know it


def checkpoint_globals() -> list[Any]:
    """The classes that torch's weights-only loader must allow, for task definitions and MT-DNN's flags in checkpoints.

    The loader refuses subclasses of `dict`, even when they are allowed. So a `TaskDef` is read as an `OrderedDict` with
    attributes; `TaskDef.from_attributes` converts it.
    """
    return [
        (OrderedDict, "experiments.exp_def.TaskDef"),
        OrderedDict,
        DataFormat,
        EncoderModelType,
        TaskType,
        Metric,
        LossCriterion,
        Vocabulary,
    ]


class TaskDefs:
    """The tasks of a YAML file.

    Args:
        path: the file, with one mapping for each task.

    Raises:
        TaskDefError: all mistakes of the file, one line each: task, key, what was found, what is accepted.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        entries, mistakes = _read_yaml(self.path)
        mistakes += find_mistakes(entries)
        if mistakes:
            raise TaskDefError("\n".join(f"{self.path}: {mistake}" for mistake in mistakes))
        self._task_defs = {name: TaskDef.from_yaml(entry) for name, entry in entries}

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names in the file's order."""
        return tuple(self._task_defs)

    def get_task_names(self) -> list[str]:
        """The tasks' names as a list, under MT-DNN's name."""
        return list(self._task_defs)

    def __contains__(self, task_name: object) -> bool:
        return task_name in self._task_defs

    def get_task_def(self, task_name: str) -> TaskDef:
        """The definition of a task.

        Raises:
            UserError: the file has no task with this name.
        """
        if task_name not in self._task_defs:
            accepted = ", ".join(self._task_defs)
            hint = nearest(task_name, self._task_defs)
            raise UserError(f"{self.path}: found no task {task_name!r}{hint}; accepted: {accepted}")
        return self._task_defs[task_name]

    def task_of(self, dataset: str) -> str:
        """The task of a dataset such as `mnli_matched`: the part before the first `_`.

        Raises:
            UserError: the file has no such task.
        """
        task_name = dataset.split("_", 1)[0]
        self.get_task_def(task_name)
        return task_name


def _read_yaml(path: Path) -> tuple[list[tuple[Any, Any]], list[str]]:
    """The (name, task) pairs in the file, and mistakes about keys that are in it twice."""
    if not path.exists():
        raise TaskDefError(f"{path}: missing; accepted: a YAML file with one mapping a task")
    try:
        node = compose_yaml(path)
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise DataError("found no mapping, accepted: one mapping a task, at least one", path)
        mistakes = _duplicate_keys(node, "task")
        for name, entry in node.value:
            if isinstance(entry, yaml.MappingNode):
                mistakes += _duplicate_keys(entry, f"task {name.value!r}, key")
        # after the search for duplicates, because this adds the keys of `<<` to a mapping
        pairs = [(construct_yaml(name, path), construct_yaml(entry, path)) for name, entry in node.value]
    except DataError as error:
        raise TaskDefError(str(error)) from error
    return pairs, mistakes


def _duplicate_keys(node: yaml.MappingNode, what: str) -> list[str]:
    """Mistakes about equal keys. The plain loader silently keeps the last one, so the parsed tree is searched."""
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    return [f"{what} {key!r}: found {keys.count(key)} times, accepted: once" for key in twice]
