"""The schema of one task in the YAML, and the words for what does not fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from transformers.activations import ACT2FN

from data_utils.errors import nearest
from data_utils.metrics import Metric
from data_utils.task_def import INTERNAL_ENCODERS, DataFormat, EncoderModelType, LossCriterion, TaskType
from tasks.base import Task
from tasks.registry import TASK_REGISTRY

Member = TypeVar("Member", bound=IntEnum)


def _named(enumeration: type[Member]) -> BeforeValidator:
    """A member is written as its name in the YAML."""

    def by_name(value: Any) -> Any:
        if isinstance(value, enumeration):
            return value
        if not isinstance(value, str) or value not in enumeration.__members__:
            raise ValueError(f"no member of {enumeration.__name__}")
        return enumeration[value]

    return BeforeValidator(by_name)


def _label_text(value: Any) -> Any:
    """A label may be a whole number; true and false come of unquoted `yes`, `no`, `on`, `off` and are no labels."""
    return str(value) if type(value) is int else value


def _activation(value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or value not in ACT2FN):
        raise ValueError("no activation of that name")
    return value


FormatName = Annotated[DataFormat, _named(DataFormat)]
TypeName = Annotated[TaskType, _named(TaskType)]
MetricName = Annotated[Metric, _named(Metric)]
LossName = Annotated[LossCriterion, _named(LossCriterion)]
EncoderName = Annotated[EncoderModelType, _named(EncoderModelType)]
Label = Annotated[StrictStr, Field(min_length=1), BeforeValidator(_label_text)]
SplitName = Annotated[StrictStr, Field(pattern=r"^[^/\s]+$")]


class TaskEntry(BaseModel):
    """One task as the YAML gives it; the keys are MT-DNN's. `encoder_type` is of its older files and has no use."""

    model_config = ConfigDict(extra="forbid")

    data_format: FormatName
    task_type: TypeName
    n_class: Annotated[StrictInt, Field(ge=1)]
    metric_meta: Annotated[tuple[MetricName, ...], Field(min_length=1)]
    labels: Annotated[list[Label] | None, Field(min_length=1)] = None
    split_names: Annotated[list[SplitName], Field(min_length=1)] = ["train", "dev", "test"]
    enable_san: StrictBool = False
    dropout_p: Annotated[float | None, Field(ge=0, lt=1)] = None
    loss: LossName | None = None
    kd_loss: LossName | None = None
    adv_loss: LossName | None = None
    actf: Annotated[str | None, BeforeValidator(_activation)] = None
    encoder_type: EncoderName | None = None


ENUMERATIONS: dict[str, type[IntEnum]] = {
    "data_format": DataFormat,
    "task_type": TaskType,
    "metric_meta": Metric,
    "loss": LossCriterion,
    "kd_loss": LossCriterion,
    "adv_loss": LossCriterion,
    "encoder_type": EncoderModelType,
}

PUBLIC_ENCODERS = ", ".join(member.name for member in EncoderModelType if member not in INTERNAL_ENCODERS)

ACCEPTED = {
    "n_class": "a whole number from 1",
    "labels": "a list of texts or whole numbers (quote words such as 'yes' and 'no')",
    "split_names": "a list of names such as [train, dev, test]",
    "enable_san": "true or false",
    "dropout_p": "a number from 0 to below 1",
    "actf": "a name of transformers' activations, such as tanh, relu or gelu",
}


def parse_task(entry: Mapping[str, Any]) -> TaskEntry:
    """The entry with its defaults filled in; `find_mistakes` has found none in it."""
    return TaskEntry.model_validate(dict(entry))


def find_mistakes(entries: Sequence[tuple[Any, Any]]) -> list[str]:
    """Every mistake of a file's (name, task) pairs, a line each: task, key, what was found, what is accepted."""
    mistakes = []
    for name, entry in entries:
        task = f"task {str(name)!r}"
        if not isinstance(name, str) or not name or "_" in name or "/" in name:
            accepted = "a text without '_' and '/' (in quotes if it is a number)"
            mistakes.append(f"{task}: found the name {name!r}, accepted: {accepted}")
        if not isinstance(entry, dict):
            accepted = f"a mapping of the keys {', '.join(TaskEntry.model_fields)}"
            mistakes.append(f"{task}: found {entry!r}, accepted: {accepted}")
            continue
        mistakes += [f"{task}, {mistake}" for mistake in _entry_mistakes(entry)]
    return mistakes


def _entry_mistakes(entry: dict[Any, Any]) -> list[str]:
    try:
        # a key that is no text (`on:` is read as true) is reported as the unknown key that it is
        TaskEntry.model_validate({str(key): value for key, value in entry.items()})
    except ValidationError as error:
        details = error.errors(include_url=False)
        # a list whose members are wrong counts as too short as well
        told = {detail["loc"][0] for detail in details if detail["type"] != "too_short"}
        mistakes = [
            _describe(str(detail["loc"][0]), detail["type"], detail["input"])
            for detail in details
            if detail["type"] != "too_short" or detail["loc"][0] not in told
        ]
    else:
        mistakes = []
    # the branches of a union report one by one what is one mistake
    return list(dict.fromkeys(mistakes + _contradictions(entry)))


def _describe(key: str, kind: str, found: object) -> str:
    if kind == "extra_forbidden":
        keys = TaskEntry.model_fields
        return f"key {key!r}: found an unknown key{nearest(key, keys)}, accepted: {', '.join(keys)}"
    if key in ENUMERATIONS:
        members = TASK_REGISTRY if key == "task_type" else ENUMERATIONS[key].__members__
        accepted = ("a list of " if key == "metric_meta" else "") + ", ".join(members)
        hint = nearest(found, members) if isinstance(found, str) and found not in members else ""
    else:
        accepted, hint = ACCEPTED[key], ""
    return f"key {key!r}: {'missing' if kind == 'missing' else f'found {found!r}'}{hint}, accepted: {accepted}"


def _san_mistakes(entry: Mapping[Any, Any], kind: type[Task]) -> list[str]:
    """The stochastic answer network needs pairs of sentences and stands in the place of a pooled head."""
    if entry.get("enable_san") is not True:
        return []
    if not kind.pools():
        return [f"key 'enable_san': found true, accepted: false for {entry['task_type']}"]
    if entry.get("data_format") in ("PremiseOnly", "Seqence", "MLM"):
        return [f"key 'enable_san': found true, accepted: false for {entry['data_format']}, which has no hypothesis"]
    return []


def _contradictions(entry: Mapping[Any, Any]) -> list[str]:
    """Values that do not fit each other; looked for in the raw entry, whatever else is wrong with it."""
    mistakes = []
    task_type, labels = entry.get("task_type"), entry.get("labels")
    kind = TASK_REGISTRY.get(str(task_type))
    if kind is not None:
        mistakes += kind.mistakes(entry)
        mistakes += _san_mistakes(entry, kind)
    elif task_type in TaskType.__members__:
        found = f"found {task_type}, a name without a model in MT-DNN too"
        mistakes.append(f"key 'task_type': {found}, accepted: {', '.join(TASK_REGISTRY)}")
    encoder = entry.get("encoder_type")
    if encoder in [internal.name for internal in INTERNAL_ENCODERS]:
        mistakes.append(f"key 'encoder_type': found {encoder}, a model that is not public, accepted: {PUBLIC_ENCODERS}")
    if isinstance(labels, list):
        texts = [str(label) for label in labels]
        twice = [text for text in dict.fromkeys(texts) if texts.count(text) > 1]
        mistakes += [f"key 'labels': found {text!r} {texts.count(text)} times, accepted: once" for text in twice]
    return mistakes
