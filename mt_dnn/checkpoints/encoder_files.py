"""The shared encoder alone: read from a checkpoint or a transformers folder, and written as either."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from data_utils.errors import DataError
from data_utils.storage.files import atomic_folder
from module.encoder import encoder_from_config, is_checkpoint, load_encoder
from mt_dnn.checkpoints.checkpoint import load_checkpoint, network_of, save_checkpoint
from mt_dnn.matcher import SANBertNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def read_encoder(name: str, cache_dir: str | None = None) -> PreTrainedModel:
    """An encoder with its own dropout.

    Args:
        name: a checkpoint of this project or of MT-DNN, a hub name, a local folder, or `embedded-minilm`.
        cache_dir: folder for downloads from a hub.

    Raises:
        DataError: no encoder of that name can be loaded.
    """
    if not is_checkpoint(name):
        return load_encoder(name, cache_dir=cache_dir)
    content = load_checkpoint(name)

    def over_encoder() -> SANBertNetwork:
        return SANBertNetwork({"task_def_list": []}, encoder_from_config(content["config"]))

    return network_of(content, over_encoder, name, encoder_only=True).bert


def write_checkpoint(path: Path | str, encoder: PreTrainedModel) -> None:
    """Write a checkpoint without heads, for `--init_checkpoint` here and in MT-DNN.

    Its `config` is only the encoder's: MT-DNN would overwrite its flags and tasks with keys of the same name.

    Raises:
        DataError: it cannot be written.
    """
    state = {f"bert.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_checkpoint(path, {"state": state, "config": encoder.config.to_dict()})


def write_folder(path: Path | str, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    """Write a folder that transformers' `from_pretrained` loads, completely or not at all.

    Raises:
        DataError: it cannot be written, or is not empty.
    """
    if Path(path).is_dir() and any(Path(path).iterdir()):
        raise DataError("holds something; accepted: a new or an empty folder", path)
    with atomic_folder(path) as temporary:
        try:
            encoder.save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
        except Exception as error:  # on a full disk safetensors and tokenizers raise errors of their own
            raise OSError(0, str(error)) from error
