"""Encoders: transformers' models by name, and random ones from the configuration in an MT-DNN checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._functorch import config as functorch_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from data_utils.errors import DataError, FlagError, first_line
from data_utils.pretrained import EMBEDDED_NAME, resolve_pretrained
from module.san_encoder import SanModel

# Keys that DeBERTa's encoders read although the class of their configuration does not declare them.
UNDECLARED_KEYS = {
    "attention_head_size", "conv_act", "conv_groups", "conv_kernel_size", "embedding_size", "norm_rel_ebd",
    "position_buckets", "share_att_key", "talking_head",
}  # fmt: skip
MOST_LAYERS = 1000
TYPES_AMONG_WORDS = ("codegen", "ctrl", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "imagegpt", "openai-gpt")
# Dropout probabilities with these prefixes belong to heads, not to the encoder.
HEAD_KEYS = ("classifier", "cls", "pooler", "qa", "seq_classif", "summary")


def load_encoder(
    name: str,
    *,
    with_decoder: bool = False,
    dropout_p: float | None = None,
    num_hidden_layers: int = -1,
    cache_dir: str | None = None,
) -> PreTrainedModel:
    """A pre-trained encoder in single precision, from a hub name, a local folder or `embedded-minilm`.

    Args:
        name: the encoder.
        with_decoder: load the complete encoder-decoder with its language-model head, not only its encoder.
        dropout_p: dropout of hidden states and attention; None keeps the encoder's value.
        num_hidden_layers: keep this many of the lowest layers; -1 keeps all.
        cache_dir: folder for downloads from a hub.

    Raises:
        DataError: the encoder cannot be loaded.
        FlagError: the encoder has fewer than `num_hidden_layers` layers.
    """
    source = resolve_pretrained(name)
    try:
        config = AutoConfig.from_pretrained(source, cache_dir=cache_dir, trust_remote_code=False)
        check_configuration(config)
        model = _auto_class(config, with_decoder)
        _adjust(config, dropout_p, num_hidden_layers)
        with quiet_loading():
            encoder, info = model.from_pretrained(
                source,
                config=config,
                cache_dir=cache_dir,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (MemoryError, torch.OutOfMemoryError, FlagError):
        raise
    except Exception as error:  # transformers, safetensors and torch raise any kind of error for damaged files
        reason = first_line(error)
        if reason.startswith("Weights only load failed"):
            reason = "its weights are a damaged pickle, or one that holds more than tensors; none of it was run"
        raise DataError(
            f"encoder {name!r} cannot be loaded ({reason}); accepted: a hub name, a local folder with config.json and "
            f"weights, an MT-DNN checkpoint (.pt), {EMBEDDED_NAME}"
        ) from error
    # The pooler is not used; files of masked language models have none.
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise DataError(f"encoder {name!r}: its weights have no parameter {missing[0]!r}; are the files complete?")
    return encoder


def check_configuration(config: PretrainedConfig) -> None:
    """Check that building the encoder runs no code from a hub and does not take forever.

    Raises:
        ValueError: the configuration names code on a hub, or too many layers.
    """
    for part in filter(None, (config, *(getattr(config, name, None) for name in config.sub_configs))):
        wanted = getattr(part, "_attn_implementation", None)
        if "/" in str(wanted):  # transformers would download such an attention from a hub and run it
            raise ValueError(f"its configuration names code on a hub, {wanted!r}, which is not run")
        for name, value in vars(part).items():
            if "layer" in name and type(value) is int and value > MOST_LAYERS:
                raise ValueError(f"its configuration names {value} layers ({name}); accepted: at most {MOST_LAYERS}")


def load_masked_lm(name: str, cache_dir: str | None = None) -> tuple[PreTrainedModel, set[str]] | None:
    """transformers' masked language model of an encoder and the parameters missing in its file; None if it has none."""
    try:
        with quiet_loading():
            model, info = AutoModelForMaskedLM.from_pretrained(
                resolve_pretrained(name),
                cache_dir=cache_dir,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError):
        return None
    return model, set(info["missing_keys"])


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' report on missing parameters, which this module checks, and on unused heads and layers."""
    verbosity = get_verbosity()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(verbosity)


def encoder_from_config(
    config: Mapping[str, Any],
    *,
    with_decoder: bool = False,
    dropout_p: float | None = None,
    num_hidden_layers: int = -1,
) -> PreTrainedModel:
    """A randomly initialized encoder, of the architecture in a flat checkpoint configuration (`model_type`, sizes).

    Other arguments: `load_encoder`.
    """
    model_type = config.get("model_type", "bert")
    default = AutoConfig.for_model(model_type)
    accepted = (set(default.to_dict()) | UNDECLARED_KEYS) - {"model_type", "is_encoder_decoder"}
    encoder_config = AutoConfig.for_model(model_type, **{k: v for k, v in config.items() if k in accepted})
    _adjust(encoder_config, dropout_p, num_hidden_layers)
    return _auto_class(default, with_decoder).from_config(encoder_config, dtype=torch.float32)


def _auto_class(config: PretrainedConfig, with_decoder: bool) -> Any:
    """The Auto class of transformers that builds the encoder, or the encoder-decoder.

    Raises:
        ValueError: the family has no such model.
    """
    if with_decoder and not config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} has no decoder here, which generation needs, as T5 and BART have")
    # The configuration of an encoder that was extracted from an encoder-decoder says that it has no decoder.
    if not config.is_encoder_decoder and not type(config)().is_encoder_decoder:
        return AutoModel
    wanted = AutoModelForSeq2SeqLM if with_decoder else AutoModelForTextEncoding
    if type(config) not in wanted._model_mapping:
        raise ValueError(
            f"the encoder of {config.model_type} cannot be loaded without its decoder; accepted: generation tasks"
        )
    return wanted


def without_attention(encoder: PreTrainedModel, dropout_p: float) -> PreTrainedModel:
    """LSTMs over an encoder's word embeddings (`EncoderModelType.SAN`); the encoder itself if it is one already."""
    return encoder if isinstance(encoder, SanModel) else SanModel.over(encoder, dropout_p)


def checkpoint_activations(encoder: PreTrainedModel) -> None:
    """Switch on activation checkpointing: training stores only the inputs of layers, the backward recomputes the rest.

    Raises:
        ValueError: the encoder does not support it.
    """
    if not encoder.supports_gradient_checkpointing:
        raise ValueError(f"{type(encoder).__name__} does not support it; accepted: to leave it out")
    # Before transformers 5.20 the method had the second name.
    enable = getattr(encoder, "activation_checkpointing_enable", encoder.gradient_checkpointing_enable)
    # The reentrant kind does not support torch.autograd.grad, which the search uses for the gradient of δ.
    enable({"use_reentrant": False})
    # Only the reentrant kind needs a gradient of the embeddings; it would make a frozen encoder run a backward pass.
    encoder.disable_input_require_grads()


def compile_layers(encoder: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each layer with torch.compile, in place; parameters keep their names.

    The embedding block is not compiled, because noise enters there by hooks. Layers of the same kind share their code,
    and batches may have any width.

    Args:
        backend: the backend of torch.compile.

    Raises:
        ValueError: the encoder has no list of layers, or torch.compile does not work here (it needs a C++ compiler).
    """
    layers = list(layers_of(encoder))
    if not layers:
        raise ValueError(f"{type(encoder).__name__} holds no list of layers; accepted: to leave it out")
    try:
        torch.compile(lambda tensor: tensor + 1, backend=backend)(next(encoder.parameters()).detach())
    except RuntimeError as error:
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        raise ValueError(
            f"torch.compile does not work here ({reason}); accepted: with a C++ compiler, on a GPU with Triton too"
        ) from error
    # FreeLB backpropagates through a graph twice, so compiled code may not reuse the graph's memory.
    functorch_config.donated_buffer = False
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in the outermost lists of modules."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else layers_of(child)


def takes_types(encoder: nn.Module) -> bool:
    """Whether an encoder has embeddings for token types; encoders that look types up among the words do not count."""
    has_argument = "token_type_ids" in inspect.signature(encoder.forward).parameters
    return has_argument and getattr(getattr(encoder, "config", None), "model_type", None) not in TYPES_AMONG_WORDS


def positions_of(encoder: nn.Module) -> int | None:
    """The largest number of tokens that an encoder accepts; None if there is no limit."""
    count = getattr(getattr(encoder, "config", None), "max_position_embeddings", None) or 0
    if count <= 0:
        return None
    # RoBERTa and its descendants number positions from that of padding on.
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return count - (0 if padding is None else padding + 1)


def is_checkpoint(name: str) -> bool:
    """Whether an encoder's name is that of an MT-DNN checkpoint: a file, not a folder."""
    return Path(name).is_file() or name.endswith(".pt")


def _adjust(config: PretrainedConfig, dropout_p: float | None, num_hidden_layers: int) -> None:
    if dropout_p is not None:
        for key, value in config.to_dict().items():
            if key.startswith(HEAD_KEYS) or "layerdrop" in key:  # the probability of skipping entire layers
                continue
            if "drop" in key and type(value) in (int, float):
                setattr(config, key, dropout_p)
    if num_hidden_layers > 0:
        if num_hidden_layers > config.num_hidden_layers:
            accepted = f"-1 for all layers, or 1 to {config.num_hidden_layers}, which the encoder has"
            raise FlagError(f"--num_hidden_layers: found {num_hidden_layers}, accepted: {accepted}")
        config.num_hidden_layers = num_hidden_layers
