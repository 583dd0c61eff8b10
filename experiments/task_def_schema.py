"""The schema of one task in the YAML, and the words for what does not fit it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from transformers.activations import ACT2FN

from data_utils.errors import nearest
from data_utils.metrics import Metric
from data_utils.task_def import DataFormat, EncoderModelType, TaskType
from mt_dnn.loss import LossCriterion

DEFAULT_LOSSES = {
    TaskType.Classification: LossCriterion.CeCriterion,
    TaskType.Regression: LossCriterion.MseCriterion,
    TaskType.Ranking: LossCriterion.RankCeCriterion,
    TaskType.SpanClassification: LossCriterion.SpanCeCriterion,
    TaskType.SpanClassificationYN: LossCriterion.SpanCeCriterion,
    TaskType.SeqenceLabeling: LossCriterion.SeqCeCriterion,
    TaskType.MaskLM: LossCriterion.MlmCriterion,
}

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
    if value is not None and value not in ACT2FN:
        raise ValueError("no activation")
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
    loss: LossName = Field(default_factory=lambda entry: DEFAULT_LOSSES[entry["task_type"]])
    kd_loss: LossName = LossCriterion.MseCriterion
    adv_loss: LossName = Field(
        default_factory=lambda entry: LossCriterion.MseCriterion
        if entry["task_type"] == TaskType.Regression
        else LossCriterion.SymKlCriterion
    )
    actf: Annotated[StrictStr | None, BeforeValidator(_activation)] = None
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


def find_mistakes(entries: Mapping[Any, Any]) -> list[str]:
    """Every mistake of a file's tasks, a line each: task, key, what was found, what is accepted."""
    mistakes = []
    for name, entry in entries.items():
        task = f"task {str(name)!r}"
        if not isinstance(name, str) or not name or "_" in name or "/" in name:
            mistakes.append(f"{task}: found the name {name!r}, accepted: a text without '_' and '/' (quoted if a number)")
        if not isinstance(entry, dict):
            mistakes.append(f"{task}: found {entry!r}, accepted: a mapping of the keys {', '.join(TaskEntry.model_fields)}")
            continue
        mistakes += [f"{task}, {mistake}" for mistake in _entry_mistakes(entry)]
    return mistakes


def _entry_mistakes(entry: dict[Any, Any]) -> list[str]:
    # Keys of other types would confuse the schema; they are unknown keys like any other.
    unknown = [f"key {key!r}: found {value!r}, accepted: no such key" for key, value in entry.items() if type(key) is not str]
    entry = {key: value for key, value in entry.items() if type(key) is str}
    if entry.get("task_type") in _types_without_default() and "loss" not in entry:
        return [*unknown, f"key 'loss': missing, accepted: {', '.join(LossCriterion.__members__)}", *_schema_mistakes({**entry, "loss": "CeCriterion"})]
    return [*unknown, *_schema_mistakes(entry)]


def _types_without_default() -> list[str]:
    return [member.name for member in TaskType if member not in DEFAULT_LOSSES]


def _schema_mistakes(entry: dict[str, Any]) -> list[str]:
    try:
        task = TaskEntry.model_validate(entry)
    except ValidationError as error:
        # A list's items and a union's branches report one by one; one line for a key and a wrong value says it all.
        lines = (_describe(str(detail["loc"][0]), detail["type"], detail["input"], entry) for detail in error.errors())
        return list(dict.fromkeys(lines))
    return _contradictions(task)
