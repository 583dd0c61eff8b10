"""Writes a trained network as classifiers of transformers, in folders that its Auto classes and pipelines load.

    python -m mt_dnn.export.export --checkpoint checkpoint/model_2.pt --save_hf DIR

A task's head is dropout, dense layer, activation and projection on the first token. transformers has one such head for
each family of encoders, with a fixed activation. A head that its class cannot express is refused.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from data_utils.errors import DataError, FlagError, OneLineParser, nearest, run_command_line
from data_utils.log_wrapper import create_logger
from data_utils.pretrained import resolve_pretrained
from data_utils.tokenizer import load_tokenizer
from module.encoder import positions_of, takes_types
from mt_dnn.checkpoints.build import network_in
from mt_dnn.checkpoints.checkpoint import load_checkpoint
from mt_dnn.configuration.config import Config
from mt_dnn.export.model_card import CARD_FILE, TrainedModel, model_card
from mt_dnn.export.target_folder import TargetFolder
from mt_dnn.matcher import SANBertNetwork
from tasks.interfaces import Definition

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANY_ACTIVATION = "gelu"  # DeBERTa's own, where the class takes any
DEFINITION_KEY = "mt_dnn_task"  # in config.json: what transformers' own keys do not tell of a task
TOLERANCE = 1e-5  # between the logits of both models, relative to the largest
# By the name of the task type.
PROBLEM_TYPES = {
    "Classification": "single_label_classification",  # pipelines apply a softmax
    "MultiLabel": "multi_label_classification",  # pipelines apply a sigmoid
    "Regression": "regression",  # pipelines give the output as it is
}
TEXT_FLAGS = ("init_checkpoint", "bert_model_type", "tokenizer", "do_lower_case", "max_seq_len", "transformer_cache")


class HeadLayout(NamedTuple):
    """Where a family's classification class has its head.

    Attributes:
        dense, projection: names of the two layers.
        activation: between them; None if the class takes it from its configuration (`pooler_hidden_act`).
    """

    dense: str
    projection: str
    activation: str | None


_OWN_HEAD = HeadLayout("classifier.dense", "classifier.out_proj", "tanh")
_CONTEXT_POOLER = HeadLayout("pooler.dense", "classifier", None)

FAMILIES = {
    "albert": HeadLayout("albert.pooler", "classifier", "tanh"),
    "bert": HeadLayout("bert.pooler.dense", "classifier", "tanh"),
    "camembert": _OWN_HEAD,
    "deberta": _CONTEXT_POOLER,
    "deberta-v2": _CONTEXT_POOLER,
    "distilbert": HeadLayout("pre_classifier", "classifier", "relu"),
    "electra": HeadLayout("classifier.dense", "classifier.out_proj", "gelu"),
    "mpnet": _OWN_HEAD,
    "roberta": _OWN_HEAD,
    "xlm-roberta": _OWN_HEAD,
}


def head_activation(encoder: str, cache_dir: str | None = None) -> str | None:
    """The activation (`actf`) of a head that can be written as the classifier of its encoder's family.

    Args:
        encoder: a hub name, a local folder, or `embedded-minilm`.
        cache_dir: where downloads are kept.

    Returns:
        One of transformers' activations by name; None if there is no such classifier or no configuration.
    """
    try:
        name = resolve_pretrained(encoder)
        family = AutoConfig.from_pretrained(name, cache_dir=cache_dir, trust_remote_code=False).model_type
    except (OSError, ValueError):
        return None
    layout = FAMILIES.get(family)
    return None if layout is None else layout.activation or ANY_ACTIVATION


class HfExport:
    """Writes the heads of a network as classifiers of transformers, each with the encoder and the tokenizer.

    Whatever can be wrong is found when the object is made, before the training that `write` ends.

    Args:
        config: names the folder (`save_hf`) and the tokenizer.
        network: in single precision; its parameters may still change.
        heads: task ids by task name. The files of a single task go to the folder itself, those of several tasks to a
            folder for each.
        output_dir: of the run, which may replace what it exported before; None: the folder has to be new or empty.

    Raises:
        UserError: a head that the class cannot express, a tokenizer that does not fit the encoder, or a folder that
            cannot be used.
    """

    def __init__(
        self, config: Config, network: SANBertNetwork, heads: Mapping[str, int], output_dir: Path | None = None
    ):
        self.network = network
        self.heads = dict(heads)
        folder = Path(config.training.save_hf or "").resolve()
        if output_dir is not None and output_dir.resolve().is_relative_to(folder):
            raise FlagError(f"--save_hf: {folder} contains --output_dir; accepted: a separate folder")
        self._target = TargetFolder(folder, output_dir)
        for task, task_id in self.heads.items():
            sequence_classifier(network, task_id, task)
        self.tokenizer = _tokenizer(config, network.bert)

    @property
    def folder(self) -> Path:
        return self._target.path

    @property
    def task_defs(self) -> dict[str, Definition]:
        """The definitions of the heads, by task."""
        return {task: self.network.tasks[task_id].task_def for task, task_id in self.heads.items()}

    def write(self, card: ModelCard) -> None:
        """Write the whole folder, or nothing.

        Args:
            card: the folder's README.md, `model_card`.

        Raises:
            UserError: it cannot be written, or files of others are in it by now.
        """
        with self._target.replaced() as temporary:
            card.save(temporary / CARD_FILE)
            for task, task_id in self.heads.items():
                target = temporary / task if len(self.heads) > 1 else temporary
                model = sequence_classifier(self.network, task_id, task)
                try:
                    model.save_pretrained(target)
                    self.tokenizer.save_pretrained(target)
                except Exception as error:  # on a full disk safetensors and tokenizers raise errors of their own
                    raise OSError(0, str(error)) from error


def sequence_classifier(network: SANBertNetwork, task_id: int, task: str) -> PreTrainedModel:
    """One task of a network as the classification class of its encoder's family, with the same logits.

    Args:
        network: in single precision; evaluation mode is switched on.
        task_id: number of the head.
        task: the task's name, for messages.

    Raises:
        FlagError: the class cannot express the head.
    """
    encoder, task_def = network.bert, network.tasks[task_id].task_def
    family = encoder.config.model_type
    if family not in FAMILIES:
        raise FlagError(f"--save_hf: found an encoder of the family {family}, accepted: {', '.join(FAMILIES)}")
    if task_def.enable_san or task_def.task_type.name not in PROBLEM_TYPES:
        found = "enable_san: true" if task_def.enable_san else f"task_type {task_def.task_type.name}"
        accepted = ", ".join(PROBLEM_TYPES)
        raise FlagError(f"--save_hf: task {task} has {found}; accepted: {accepted} without enable_san")
    layout = FAMILIES[family]
    model = AutoModelForSequenceClassification.from_config(_config(encoder, task_def), dtype=torch.float32)
    if layout.activation not in (None, task_def.actf):
        found = "no activation" if task_def.actf is None else f"the activation {task_def.actf}"
        raise FlagError(
            f"--save_hf: the head of task {task} has {found} (actf), and {type(model).__name__} applies "
            f"{layout.activation}; accepted: actf: {layout.activation} in the task definition"
        )
    # strict=False: either side may have a pooler that the other lacks; the comparison below finds all else.
    model.base_model.load_state_dict(encoder.state_dict(), strict=False)
    head = network.scoring_list[task_id]
    model.get_submodule(layout.dense).load_state_dict(head.get_submodule("0.dense").state_dict())
    model.get_submodule(layout.projection).load_state_dict(head.get_submodule("1").state_dict())
    difference = _difference(network, model.to(encoder.device).eval(), task_id)
    if not difference <= TOLERANCE:
        raise FlagError(
            f"--save_hf: the logits of {type(model).__name__} differ from task {task}'s by {difference:.1e} of the "
            f"largest; accepted: at most {TOLERANCE:.0e}"
        )
    return model


def _config(encoder: PreTrainedModel, task_def: Definition) -> PretrainedConfig:
    """The encoder's configuration with the task's labels, in the order of the classes."""
    config = copy.deepcopy(encoder.config)
    labels = dict(enumerate(task_def.class_names("LABEL_")))
    ids = {name: index for index, name in labels.items()}
    config.update({"id2label": labels, "label2id": ids, "problem_type": PROBLEM_TYPES[task_def.task_type.name]})
    metrics = [metric.name for metric in task_def.metric_meta]
    config.update({DEFINITION_KEY: {"data_format": task_def.data_type.name, "metric_meta": metrics}})
    if FAMILIES[config.model_type].activation is None:
        config.pooler_hidden_act = task_def.actf or "linear"
    return config


def _difference(network: SANBertNetwork, model: PreTrainedModel, task_id: int) -> float:
    """The largest difference between both models' logits for a padded batch of pairs, relative to the largest logit."""
    config = network.bert.config
    two_types = getattr(config, "type_vocab_size", 0) > 1
    inputs = {
        "input_ids": torch.randint(config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
        "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]]) * int(two_types),
    }
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    network.eval()
    with torch.inference_mode():
        expected = network(**inputs, task_id=task_id)
        if not takes_types(model):
            del inputs["token_type_ids"]
        found = model(**inputs).logits
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def _tokenizer(config: Config, encoder: PreTrainedModel) -> PreTrainedTokenizerFast:
    """The tokenizer as prepro_std.py used it; with `truncation=True` it cuts at `--max_seq_len`."""
    lower = True if config.model.do_lower_case else None
    try:
        tokenizer = load_tokenizer(config.tokenizer, lower, config.training.transformer_cache)
    except DataError as error:
        raise FlagError(f"--save_hf: {error}; --tokenizer names another") from error
    if len(tokenizer) > encoder.config.vocab_size:
        raise FlagError(
            f"--save_hf: the tokenizer {config.tokenizer!r} has {len(tokenizer)} tokens, the encoder's vocabulary "
            f"{encoder.config.vocab_size}; --tokenizer names another"
        )
    tokenizer.model_max_length = min(config.model.max_seq_len, positions_of(encoder) or config.model.max_seq_len)
    if not takes_types(encoder):
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        # what is no argument of the tokenizer's class is not saved with it
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return tokenizer


def export(
    checkpoint: Path | str, folder: Path | str, task: str | None = None, command: Sequence[str] = (), **flags: Any
) -> None:
    """Write a checkpoint of train.py or of MT-DNN as `--save_hf` does.

    Args:
        checkpoint: the file.
        folder: new or empty.
        task: the only task to write; None writes all.
        command: the command that the model card shows, as words.
        flags: `tokenizer`, `do_lower_case`, `max_seq_len`, to use other values than the checkpoint's.

    Raises:
        UserError: as `HfExport` and `restore_network`; an unknown task.
    """
    content = load_checkpoint(str(checkpoint))
    network, flat = network_in(content, str(checkpoint))
    # a task's id is its place among the tasks trained
    names = list(dict.fromkeys(dataset.split("_")[0] for dataset in flat.get("train_datasets", [])))
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise DataError(f"names a task {name!r}; accepted: a name that a folder may have", checkpoint)
    if task is not None and task not in names:
        raise FlagError(f"--task: found {task!r}, accepted: {', '.join(names)}{nearest(task, names)}")
    heads = {name: task_id for task_id, name in enumerate(names) if task in (None, name)}
    given = {name: flat[name] for name in TEXT_FLAGS if name in flat}
    export = HfExport(Config.from_flags({**given, **flags, "save_hf": str(folder)}), network, heads)
    export.write(model_card(_trained(content, flat, str(folder), export, command)))


def _trained(
    content: Mapping[str, Any], flat: Mapping[str, Any], folder: str, export: HfExport, command: Sequence[str]
) -> TrainedModel:
    """What a checkpoint says about its model. MT-DNN's have no data and no metrics, one within an epoch no metrics."""
    config = Config.from_flat({**flat, "save_hf": folder, "push_to_hub": None})
    model = TrainedModel(folder, config, export.task_defs, command=command)
    progress: Any = content.get("progress")
    try:
        examples = {str(name): int(sizes[0]) for name, sizes in progress["sizes"].items()}
        model = replace(model, examples=examples, processes=len(progress["random_states"]))
        last = progress["history"][-1]
        if (progress["epoch"], progress["batches_done"]) == (last["epoch"] + 1, 0):
            metrics = {
                str(dataset): {str(name): float(value) for name, value in found.items()}
                for dataset, found in last["metrics"].items()
            }
            model = replace(model, epoch=int(last["epoch"]), metrics=metrics)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return model  # the checkpoint says less, or something else
    return model


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description="Write a checkpoint as a transformers classifier with its tokenizer.")
    parser.add_argument("--checkpoint", required=True, help="checkpoint of train.py or of MT-DNN")
    parser.add_argument("--save_hf", required=True, help="folder to write, new or empty")
    parser.add_argument("--task", help="the only task to write (default: all; several get a folder each)")
    parser.add_argument("--tokenizer", help="hub name or local folder (default: the encoder's, as it was trained)")
    parser.add_argument("--do_lower_case", action="store_true", help="prepro_std.py was run with --do_lower")
    arguments = parser.parse_args(argv)
    disable_progress_bar()
    create_logger(None)
    flags = {"tokenizer": arguments.tokenizer, "do_lower_case": arguments.do_lower_case}
    given = {name: value for name, value in flags.items() if value}
    words = ["python", "-m", "mt_dnn.export.export", *(sys.argv[1:] if argv is None else argv)]
    export(arguments.checkpoint, arguments.save_hf, arguments.task, words, **given)


if __name__ == "__main__":
    run_command_line(main)
