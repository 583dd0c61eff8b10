"""Text classifiers of transformers, such as those of `--save_hf`, as networks with one task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from data_utils.errors import DataError, first_line
from data_utils.metrics import Metric
from data_utils.task_def import DataFormat, TaskType
from data_utils.vocab import Vocabulary
from module.encoder import check_configuration, quiet_loading, takes_types
from mt_dnn.export.export import DEFINITION_KEY, PROBLEM_TYPES
from tasks import Task, get_task, task_class
from tasks.definition import TaskDef
from tasks.interfaces import Batch

CONFIG_FILE = "config.json"
ACCEPTED = "accepted: a folder of --save_hf, or another text classifier of transformers"
ONE_OR_TWO = (DataFormat.PremiseOnly, DataFormat.PremiseAndOneHypothesis)
# For folders that do not name their metrics.
METRICS = {
    "Classification": (Metric.ACC, Metric.F1MAC),
    "MultiLabel": (Metric.F1MIC, Metric.F1MAC, Metric.ACC),
    "Regression": (Metric.Pearson, Metric.Spearman),
}


class HfClassifier(nn.Module):
    """A classifier of transformers that can be used like a network with one task."""

    def __init__(self, model: PreTrainedModel, task: Task):
        super().__init__()
        self.model, self.tasks = model, [task]
        self._takes_types = takes_types(model)

    @property
    def bert(self) -> Any:
        """The encoder."""
        return self.model.base_model

    def run(self, batch: Batch) -> Any:
        """Logits of a batch, (examples, n_class)."""
        types = {"token_type_ids": batch.token_type_ids} if self._takes_types else {}
        return self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **types).logits

    def encode(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        raise TypeError("a classifier of transformers gives logits alone")


class LoadedClassifier(NamedTuple):
    """A classifier with the formats and metrics of its task."""

    network: HfClassifier
    formats: Sequence[DataFormat]
    metrics: Sequence[Metric]


def load_classifier(folder: Path) -> LoadedClassifier:
    """The classifier of a folder, in single precision.

    Raises:
        DataError: there is none that can be used.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_configuration(config)
        with quiet_loading():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, config=config, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
        task_def, formats, metrics = _definition(config)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of damaged files transformers, safetensors and torch raise errors of any kind
        raise DataError(f"holds no classifier that can be loaded ({first_line(error)}); {ACCEPTED}", folder) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise DataError(f"its weights have no parameter {missing[0]!r}; {ACCEPTED}", folder)
    return LoadedClassifier(HfClassifier(model, get_task(task_def)), formats, metrics)


def _definition(config: PretrainedConfig) -> tuple[TaskDef, Sequence[DataFormat], Sequence[Metric]]:
    """The task of a classifier, as `--save_hf` wrote it, or derived from transformers' configuration."""
    by_problem: dict[Any, str] = {problem: kind for kind, problem in PROBLEM_TYPES.items()}
    default = "Regression" if len(config.id2label or ()) == 1 else "Classification"
    kind = by_problem.get(config.problem_type, default)
    labels: Any = config.id2label
    names = [str(labels[index]) for index in range(len(labels))]
    if kind == "Regression" and len(names) != 1:
        raise DataError(f"is a regression with {len(names)} outputs, accepted: one")
    known = getattr(config, DEFINITION_KEY, None)
    known = known if isinstance(known, dict) else {}
    formats: Sequence[DataFormat] = [own for own in ONE_OR_TWO if own.name == known.get("data_format")] or ONE_OR_TWO
    named = known.get("metric_meta")
    accepted = task_class(TaskType[kind]).metrics_of(len(names), True)
    own = [Metric[name] for name in named if name in Metric.__members__] if isinstance(named, list) else []
    metrics = [metric for metric in own if metric in accepted] or METRICS[kind]
    unique = kind != "Regression" and len(set(names)) == len(names)
    task_def = TaskDef(
        Vocabulary.from_labels(names) if unique else None, len(names), formats[0], TaskType[kind], metrics,
        ["train", "dev", "test"], False, None, None, None, None, None,
    )  # fmt: skip
    return task_def, formats, metrics
