"""The lines at a run's start and end: what it does, what it found, and how to use it."""

from __future__ import annotations

from collections.abc import Iterable

from accelerate import Accelerator

from mt_dnn.configuration.config import Config
from mt_dnn.configuration.description import changed_settings, method_in_words
from mt_dnn.data.dataset import SingleTaskDataset
from mt_dnn.data.run_data import RunData


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
        f"Every epoch ends with an evaluation and a checkpoint: {training.output_dir}/model_0.pt after epoch 1, "
        "model_1.pt after epoch 2, and so on",
    ]


def _sizes(datasets: Iterable[SingleTaskDataset]) -> str:
    """As "900 examples of reviews_train, 50 of news_train"."""
    parts = [f"{len(dataset)} of {dataset.name}" for dataset in datasets]
    parts[0] = parts[0].replace(" of ", " examples of ", 1)
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"
