"""The model card of `--save_hf`: README.md with the metadata that the Hub shows on a model's page.

Names from files and flags (labels, datasets, tasks) are escaped, so that Markdown shows them as they are.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from data_utils.errors import in_one_line
from data_utils.pretrained import HUB_NAMES
from data_utils.task_def import DataFormat
from mt_dnn.configuration.adversarial_config import AdversarialConfig, adversarial_without_effect
from mt_dnn.configuration.config import RESUME_FLAGS, Config
from mt_dnn.configuration.flags import flags_of, plain_text
from mt_dnn.data.run_data import RunData
from mt_dnn.reporting.run_result import RunResult
from tasks.interfaces import Definition

CARD_FILE = "README.md"
PIPELINE = "text-classification"  # also of regressions
TITLES = {
    "random": "random noise", "at": "adversarial training", "vat": "VAT", "smart": "SMART", "alum": "ALUM",
    "freelb": "FreeLB", "r3f": "R3F", "neftune": "NEFTune",
}  # fmt: skip
# The Hub's names of metrics.
HUB_METRICS = {
    "ACC": "accuracy", "F1": "f1", "F1MAC": "f1", "F1MIC": "f1", "MCC": "matthews_correlation", "Pearson": "pearsonr",
    "Spearman": "spearmanr", "AUC": "roc_auc",
}  # fmt: skip
HYPERPARAMETERS = (
    "epochs", "batch_size", "max_tokens_per_batch", "grad_accumulation_step", "optimizer", "learning_rate",
    "weight_decay", "scheduler_type", "warmup", "grad_clipping", "global_grad_clipping", "dropout_p", "bert_dropout_p",
    "dropout_w", "max_seq_len", "class_weights", "mkd_opt", "update_bert_opt", "early_stop", "fp16", "bf16", "seed",
)  # fmt: skip
# Shown only if they are switched on.
OPTIONAL = {
    "max_tokens_per_batch", "grad_clipping", "dropout_w", "class_weights", "mkd_opt", "update_bert_opt", "early_stop",
    "fp16", "bf16",
}  # fmt: skip
AT_REST = {"adv_start_ratio": 0.0, "adv_every": 1, "bregman_mu": 0.0}  # values that do nothing
MARKDOWN = re.compile(r"[\\`*_{}\[\]<>()#|~$&!]")


@dataclass(frozen=True)
class TrainedModel:
    """What a card describes.

    Attributes:
        place: the argument of `from_pretrained`: a repository of the Hub, or the folder.
        config: of the run.
        tasks: the definitions of the heads that were written, by task.
        examples: how many each file has, by its name without `.json`; empty if not known.
        epoch: whose parameters these are, counted from 0; None if not known.
        metrics: of that epoch, by `DATASET_SPLIT` and metric name, in percent.
        processes: how many trained together; None if not known.
        command: the command that wrote the model, as words.
    """

    place: str
    config: Config
    tasks: Mapping[str, Definition]
    examples: Mapping[str, int] = field(default_factory=dict)
    epoch: int | None = None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    processes: int | None = None
    command: Sequence[str] = ()


def train_command(config: Config, processes: int) -> list[str]:
    """The command line of this configuration, as words, without the flags of a resume."""
    words = ["python"] if processes == 1 else ["torchrun", "--nproc_per_node", str(processes)]
    words.append("train.py")
    default, of_noise = Config().to_flat(), flags_of(AdversarialConfig)
    for name, value in config.given.items():
        # defaults of the noise depend on each other, so its flags are always shown; None is a flag that was left out
        if (
            name in RESUME_FLAGS
            or value is None
            or (name not in of_noise and plain_text(value) == plain_text(default[name]))
        ):
            continue
        words.append(f"--{name}")
        if value is not True:
            words.append(plain_text(value))
    return words


def card_of_run(config: Config, data: RunData, result: RunResult, epoch: int, processes: int, place: str) -> ModelCard:
    """The card of a run's model.

    Args:
        place: where the model is: a folder, or a repository of the Hub.
        epoch: whose parameters these are.
        processes: how many trained together.
    """
    return model_card(
        TrainedModel(
            place=place,
            config=config,
            tasks=dict(zip(data.tasks, data.task_defs, strict=True)),
            examples={part.name: len(part) for part in [*data.train, *data.unlabeled, *data.evaluation.values()]},
            epoch=epoch,
            metrics=next(entry["metrics"] for entry in result.history if entry["epoch"] == epoch),
            processes=processes,
            command=train_command(config, processes),
        )
    )


def model_card(model: TrainedModel) -> ModelCard:
    """The card of a model."""
    name = plain_name(model.place)
    sections = [
        [f"# {text(name)}", "", *_about(model)],
        ["## Use", "", *_use(model)],
        ["## Tasks", "", *_table(("task", "type", "labels"), map(_task_row, model.tasks, model.tasks.values()))],
        _data(model),
        ["## Method", "", *_method(model.config.adversarial)],
        ["## Hyperparameters", "", *_table(("flag", "value"), _hyperparameters(model.config))],
        _results(model),
        ["## Command", "", *_fenced("bash", command_lines(model.command))] if model.command else [],
        ["## Versions", "", _versions(model)],
    ]
    body = "\n\n".join("\n".join(lines) for lines in sections if lines)
    return ModelCard(f"---\n{_metadata(model, name).to_yaml()}\n---\n\n{body}\n")


def plain_name(place: str) -> str:
    """The last part of a repository's or a folder's name."""
    return in_one_line(Path(place).name or "model")


def text(value: object) -> str:
    """A value escaped for Markdown and HTML, on one line, so that a table's cell can hold it."""
    return MARKDOWN.sub(lambda found: f"&#{ord(found[0])};", in_one_line(str(value)))


def command_lines(words: Sequence[str]) -> str:
    """A command for a shell, with one flag a line."""
    quoted = [shlex.quote(word) for word in words]
    return "".join(f" \\\n    {word}" if word.startswith("--") else f" {word}" for word in quoted).lstrip()


def base_model(config: Config) -> str | None:
    """The Hub's name of the encoder; None if it is a folder or a checkpoint."""
    if config.encoder in HUB_NAMES:
        return HUB_NAMES[config.encoder]
    if config.encoder.endswith(".pt") or Path(config.encoder).exists():
        return None
    try:
        validate_repo_id(config.encoder)
    except HFValidationError:
        return None
    return config.encoder


def _metadata(model: TrainedModel, name: str) -> ModelCardData:
    results = list(_eval_results(model))
    adversarial = model.config.adversarial
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE,
        base_model=base_model(model.config),
        tags=["adversarial-training", *_short_names(adversarial)] if adversarial.adv_train else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _eval_results(model: TrainedModel) -> Iterator[EvalResult]:
    """Metrics as the Hub stores them: fractions of 1, not percentages."""
    for dataset, metrics in model.metrics.items():
        base, _, split = in_one_line(dataset).rpartition("_")
        for metric, value in metrics.items():
            if metric in HUB_METRICS:
                yield EvalResult(
                    task_type=PIPELINE, dataset_type=base, dataset_name=base, dataset_split=split,
                    metric_type=HUB_METRICS[metric], metric_name=metric, metric_value=round(value / 100, 6),
                )  # fmt: skip


def _short_names(adversarial: AdversarialConfig) -> list[str]:
    return ["sift"] if adversarial.is_sift else [adversarial.adv_opt]


def _title(adversarial: AdversarialConfig) -> str:
    return "SiFT" if _short_names(adversarial) == ["sift"] else TITLES[adversarial.adv_opt]


def _about(model: TrainedModel) -> Iterator[str]:
    adversarial = model.config.adversarial
    method = f"with {_title(adversarial)}" if adversarial.adv_train else "plainly"
    encoder = text(base_model(model.config) or model.config.encoder)
    yield f"{encoder}, fine-tuned {method} on {', '.join(map(text, model.tasks))}."


def _use(model: TrainedModel) -> list[str]:
    several = len(model.tasks) > 1
    lines = [
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline" if several
        else "from transformers import pipeline",
        "",
    ]  # fmt: skip
    place = json.dumps(model.place)
    before = []
    if several:
        names = ", ".join(f"`{text(task)}`" for task in model.tasks)
        before = [f"Each task has a folder here: {names}. transformers opens one of these, not this folder.", ""]
    for task, task_def in model.tasks.items():
        one = task_def.data_type == DataFormat.PremiseOnly
        more = ", top_k=None" if task_def.task_type.name == "MultiLabel" else ""  # without it, only the likeliest label
        given = '"A text."' if one else '{"text": "A text.", "text_pair": "Another one."}'
        if several:
            folder = json.dumps(task)
            lines += [
                f"tokenizer = AutoTokenizer.from_pretrained({place}, subfolder={folder})",
                f"model = AutoModelForSequenceClassification.from_pretrained({place}, subfolder={folder})",
                f'classify = pipeline("{PIPELINE}", model, tokenizer=tokenizer, truncation=True{more})',
            ]
        else:
            lines.append(f'classify = pipeline("{PIPELINE}", {place}, truncation=True{more})')
        lines.append(f"print(classify({given}))")
    return before + _fenced("python", "\n".join(lines))


def _task_row(task: str, task_def: Definition) -> list[str]:
    labels = task_def.class_names("LABEL_")
    sentences = "of a text" if task_def.data_type == DataFormat.PremiseOnly else "of a pair of texts"
    kind = task_def.task_type.name
    return [text(task), f"{kind} {sentences}", "a number" if kind == "Regression" else ", ".join(map(text, labels))]


def _data(model: TrainedModel) -> list[str]:
    if not model.examples:
        return []
    rows = ([text(f"{name}.json"), str(count)] for name, count in model.examples.items())
    return ["## Data", "", *_table(("file", "examples"), rows)]


def _method(adversarial: AdversarialConfig) -> list[str]:
    rows = list(_method_rows(adversarial))
    if not rows:
        return ["Plain fine-tuning, without noise."]
    name = f"{_title(adversarial)} at `{adversarial.adv_norm_level}`" if adversarial.adv_train else "Without noise"
    term = ", with SMART's Bregman proximal point term" if adversarial.bregman_mu > 0 else ""
    return [f"{name}{term}.", "", *_table(("flag", "value"), rows)]


def _method_rows(adversarial: AdversarialConfig) -> Iterator[list[str]]:
    """The settings that have an effect."""
    values = vars(adversarial)
    idle = {"adv_train", "adv_preset", *adversarial_without_effect(values, adversarial)}
    for name, value in values.items():
        if name not in idle and value is not None and value is not False and value != AT_REST.get(name):
            yield [f"`--{name}`", text(plain_text(value))]


def _hyperparameters(config: Config) -> Iterator[list[str]]:
    flat = config.to_flat()
    for name in HYPERPARAMETERS:
        replaced = name == "batch_size" and flat["max_tokens_per_batch"]
        if not replaced and (flat[name] or name not in OPTIONAL):
            yield [f"`--{name}`", text(plain_text(flat[name]))]


def _results(model: TrainedModel) -> list[str]:
    if not model.metrics:
        return []
    rows = [
        [text(dataset), ", ".join(f"{text(name)} {value:.2f}" for name, value in metrics.items())]
        for dataset, metrics in model.metrics.items()
    ]
    which = "" if model.epoch is None else f" after epoch {model.epoch}, counted from 0"
    return ["## Results", "", f"In percent{which}.", "", *_table(("data", "metrics"), rows)]


def _versions(model: TrainedModel) -> str:
    used = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return used if model.processes is None else f"{used}; processes: {model.processes}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _fenced(language: str, code: str) -> list[str]:
    """A block of code, with a fence longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", code, fence]
