"""Finds and loads the model in a folder or a file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_utils.errors import DataError, FlagError, nearest
from data_utils.prepro import TokenizerSpec
from data_utils.storage.text_files import read_json
from module.encoder import positions_of
from mt_dnn.checkpoints.build import network_in
from mt_dnn.checkpoints.checkpoint import checkpoints_in, load_checkpoint, newest_checkpoint
from mt_dnn.configuration.config import Config
from mt_dnn.prediction.hf_classifier import CONFIG_FILE, load_classifier
from mt_dnn.prediction.model_path import ACCEPTED, check_model_path
from mt_dnn.prediction.text_examples import TextTokenization
from mt_dnn.prediction.text_model import TaskModel, TextModel, chosen_device, ready
from mt_dnn.reporting.run_result import RESULT_FILE

logger = logging.getLogger(__name__)

LONGEST = 512  # tokens, where nothing tells
WINDOW_PART = 3  # of a window, a question takes at most one part in three, and so does what it shares with the next


def load_model(
    path: Path | str,
    *,
    task: str | None = None,
    tokenizer: str | None = None,
    max_seq_len: int | None = None,
    cuda: bool | None = None,
) -> TextModel:
    """A trained model, ready to answer.

    Args:
        path: the folder of a run (its best epoch's checkpoint is taken), a checkpoint of this project or of MT-DNN, or
            a folder of `--save_hf`.
        task: the only task to load; None loads all.
        tokenizer: name of the tokenizer; None uses the one that the model names.
        max_seq_len: longer texts are cut to this many tokens, or read in windows; None uses the model's limit.
        cuda: whether to use the GPU; None uses it if there is one.

    Raises:
        UserError: there is no model, it is damaged, or its tokenizer is not found.
    """
    place, device = check_model_path(path), chosen_device(cuda)
    if place.is_file():
        return _of_checkpoint(load_checkpoint(place), place, task, tokenizer, max_seq_len, device)
    if checkpoints_in(place) or (place / RESULT_FILE).is_file():
        found, content = _best_checkpoint(place)
        return _of_checkpoint(content, found, task, tokenizer, max_seq_len, device)
    folders = _classifier_folders(place)
    if not folders:
        raise DataError(f"holds no model; {ACCEPTED}", place)
    models = {}
    for name in [_named(task, list(folders))] if task is not None else folders:
        loaded, folder = load_classifier(folders[name]), folders[name]
        text = _tokenization(tokenizer or str(folder), None, max_seq_len, None, loaded.network.bert)
        models[name] = TaskModel(name, ready(loaded.network, device), 0, text, loaded.formats, loaded.metrics)
    return TextModel(models)


def _classifier_folders(folder: Path) -> dict[str, Path]:
    """The classifiers of transformers in a folder, by task: the folder itself, or its subfolders."""
    if (folder / CONFIG_FILE).is_file():
        return {folder.resolve().name: folder}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / CONFIG_FILE).is_file()}


def _best_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a run's best epoch, and its content. If the run has no results yet, the newest checkpoint.

    Raises:
        DataError: the checkpoint is missing or damaged.
    """
    results = folder / RESULT_FILE
    if not results.is_file():
        path, content = newest_checkpoint(folder, lambda line: logger.warning("%s", line))
        logger.warning("%s has no %s; the newest checkpoint is taken, %s", folder, RESULT_FILE, path.name)
        return path, content
    found = read_json(results)
    epoch = found.get("best_epoch") if isinstance(found, dict) else None
    if type(epoch) is not int:
        raise DataError(
            "names no best epoch; accepted: the file as train.py wrote it, or --model with a checkpoint", results
        )
    path = folder / f"model_{epoch}.pt"
    if not path.is_file():
        others = ", ".join(sorted(other.name for other in checkpoints_in(folder))) or "none"
        raise DataError(f"missing, the best epoch's checkpoint; --model with another takes that, found: {others}", path)
    logger.info("%s: the best epoch's checkpoint", path)
    return path, load_checkpoint(path)


def _of_checkpoint(
    content: dict[str, Any],
    path: Path,
    task: str | None,
    tokenizer: str | None,
    max_seq_len: int | None,
    device: torch.device,
) -> TextModel:
    """The model of a checkpoint that was read from `path`."""
    if tokenizer is not None:
        content["config"]["tokenizer"] = tokenizer
    network, flat = network_in(content, str(path))
    names = task_names(flat)
    if task is not None:
        _named(task, names)
    config = Config.from_flat(flat)
    lower = True if config.model.do_lower_case else None
    text = _tokenization(config.tokenizer, lower, max_seq_len, config.model.max_seq_len, network.bert)
    if tokenizer is None:
        logger.info("%s: tokenizer %s, which the checkpoint names", path, config.tokenizer)
    ready(network, device)
    chosen = [(name, task_id) for task_id, name in enumerate(names) if task in (None, name)]
    return TextModel({name: TaskModel(name, network, task_id, text) for name, task_id in chosen})


def task_names(flat: dict[str, Any]) -> list[str]:
    """The tasks of a checkpoint in the order of their heads; their numbers where it does not name them."""
    names = list(dict.fromkeys(str(dataset).split("_")[0] for dataset in flat.get("train_datasets", [])))
    count = len(flat["task_def_list"])
    return names if len(names) == count else [str(task_id) for task_id in range(count)]


def _named(task: str, names: list[str]) -> str:
    if task not in names:
        raise FlagError(f"--task: found {task!r}{nearest(task, names)}, accepted: {', '.join(names)}")
    return task


def _tokenization(
    name: str, lower: bool | None, wanted: int | None, trained: int | None, encoder: Any
) -> TextTokenization:
    """The tokenizer of a model, with a limit of tokens: what the user wants, else the model's.

    Raises:
        FlagError: there is no such tokenizer, it does not fit the encoder, or the encoder has too few positions.
    """
    positions = positions_of(encoder)
    if wanted is not None and positions is not None and wanted > positions:
        raise FlagError(f"--max_seq_len: found {wanted}, accepted: at most {positions}, which the encoder has")
    try:
        text = TextTokenization(TokenizerSpec(name, lower, max_seq_len=wanted or LONGEST))
    except DataError as error:
        raise FlagError(f"--tokenizer: the model's is not found ({error}); --tokenizer names it") from error
    longest = wanted or min(trained or text.tokenizer.model_max_length, positions or LONGEST)
    text.spec = replace(
        text.spec,
        max_seq_len=longest,
        doc_stride=min(text.spec.doc_stride, longest // WINDOW_PART),
        max_query_len=min(text.spec.max_query_len, longest // WINDOW_PART),
    )
    if len(text.tokenizer) > encoder.config.vocab_size:
        raise FlagError(
            f"--tokenizer: {name!r} has {len(text.tokenizer)} tokens, the encoder's vocabulary "
            f"{encoder.config.vocab_size}; --tokenizer names the one that it was trained with"
        )
    return text
