"""The lines at a run's start and end: what it does, what it found, and how to use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from accelerate import Accelerator

from mt_dnn.configuration.config import Config
from mt_dnn.configuration.description import changed_settings, method_in_words
from mt_dnn.data.dataset import SingleTaskDataset
from mt_dnn.data.run_data import RunData
from mt_dnn.reporting.run_result import RunResult, metrics_text
from mt_dnn.training.selection import Selection
from tasks.interfaces import Definition
from tasks.table_rows import TEXT_COLUMNS


def opening(config: Config, data: RunData, total_updates: int, accelerator: Accelerator) -> list[str]:
    """What a run is about to do: method, settings, data, updates, device and files, a line each."""
    training, processes = config.training, accelerator.num_processes
    datasets = f"Data: {_sizes(data.train)} to train on"
    if data.unlabeled:
        datasets += f"; {_sizes(data.unlabeled)} without labels"
    return [
        method_in_words(config.adversarial),
        f"Settings that differ from the defaults: {changed_settings(config) or 'none'}",
        f"{datasets}; {_sizes(data.evaluation.values())} to evaluate on",
        f"Training: {_count(training.epochs, 'epoch')}, {_count(total_updates, 'update')}, on "
        f"{accelerator.device.type} with {_count(processes, 'process')}; encoder {config.encoder}",
        f"Every epoch ends with an evaluation and a checkpoint: {training.output_dir}/model_0.pt after epoch 1"
        + (", model_1.pt after epoch 2, and so on" if training.epochs > 1 else ""),
    ]


def found(result: RunResult, selection: Selection) -> list[str]:
    """The best epoch with its metrics, and the minutes that the run took, all of its starts together."""
    ranked = "no development set ranks the epochs"
    if result.best_value is not None:
        ranked = f"{selection}: {result.best_value:.2f}"
    epochs, minutes = len(result.history), result.seconds / 60
    return [
        f"best epoch: {result.best_epoch + 1} of {epochs} ({ranked}); {minutes:.1f} minutes",
        *(f"  {dataset}: {metrics_text(metrics)}" for dataset, metrics in result.metrics.items()),
    ]


def written(result: RunResult, best: Path | None, folder: Path, others: Iterable[str]) -> list[str]:
    """Where the best model and the other files are.

    Args:
        best: the best epoch's checkpoint; None where the folder has none of this run.
        folder: `--output_dir`.
        others: names of files that the run writes there; those that are missing are left out.
    """
    lines = []
    if best is not None:
        lines.append(f"model: {best}, the checkpoint after epoch {result.best_epoch + 1}")
    names = [name for name in others if (folder / name).is_file()]
    if result.metrics:
        names.append(f"*_scores_epoch_{result.best_epoch}.json (predictions of epoch {result.best_epoch + 1})")
    return [*lines, f"in {folder}: {', '.join(names)}"]


def use(tasks: Mapping[str, Definition], best: Path | None, exported: Path | None = None) -> Iterator[str]:
    """The commands that use the model, for each task whose texts a table can have.

    Args:
        tasks: definitions by name.
        best: the best epoch's checkpoint; None where there is none.
        exported: the folder of `--save_hf`, with a folder for each of several tasks.
    """
    several = len(tasks) > 1
    for task, definition in tasks.items():
        columns = TEXT_COLUMNS.get(definition.data_type)
        if columns is None:  # a format that nothing reads from text
            continue
        if exported is not None:
            words = ["--model", str(exported / task if several else exported)]
        elif best is not None:
            words = ["--model", str(best.parent)] + (["--task", task] if several else [])
        else:
            return
        texts = ",".join(columns).upper()
        yield f"to use it: python predict.py {shlex.join(words)} --from new.csv --text {texts} --output answers.csv"
        if exported is not None:
            example = '"A text."' if len(columns) == 1 else '{"text": "A text.", "text_pair": "A second text."}'
            call = f'pipeline("text-classification", {json.dumps(words[1])}, truncation=True)({example})'
            yield f"in Python: from transformers import pipeline; {call}"


def _sizes(datasets: Iterable[SingleTaskDataset]) -> str:
    """As "900 examples of reviews_train, 50 of news_train"."""
    parts = [f"{len(dataset)} of {dataset.name}" for dataset in datasets]
    parts[0] = parts[0].replace(" of ", " examples of ", 1)
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"
