"""How MT-DNN reads a checkpoint: a stand-in, since MT-DNN itself does not import on Python 3.10 and later.

MT-DNN's train.py overwrites its flags with every key of a checkpoint's `config`, writes them to a JSON file, and builds
the encoder and the heads from them. Its flags, defaults, classes and heads stand here once more, so that nothing is
taken from what is tested.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaModel,
    ElectraConfig,
    ElectraModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

# name: type, default
FLAGS: dict[str, tuple[type, Any]] = {
    "data_dir": (str, "data/canonical_data/bert_uncased_lower"),
    "task_def": (str, "experiments/glue/glue_task_def.yml"),
    "train_datasets": (list, ["mnli"]),
    "test_datasets": (list, ["mnli_matched", "mnli_mismatched"]),
    "glue_format_on": (bool, False),
    "mkd_opt": (int, 0),
    "do_padding": (bool, False),
    "tokenizer": (str, None),
    "dataloader_num_workers": (int, 2),
    "log_file": (str, "mt-dnn-train.log"),
    "tensorboard": (bool, False),
    "tensorboard_logdir": (str, "tensorboard_logdir"),
    "init_checkpoint": (str, "mt_dnn_models/bert_model_base_uncased.pt"),
    "data_sort_on": (bool, False),
    "name": (str, "farmer"),
    "update_bert_opt": (int, 0),
    "multi_gpu_on": (bool, False),
    "mem_cum_type": (str, "simple"),
    "answer_num_turn": (int, 5),
    "answer_mem_drop_p": (float, 0.1),
    "answer_att_hidden_size": (int, 128),
    "answer_att_type": (str, "bilinear"),
    "answer_rnn_type": (str, "gru"),
    "answer_sum_att_type": (str, "bilinear"),
    "answer_merge_opt": (int, 1),
    "answer_mem_type": (int, 1),
    "max_answer_len": (int, 10),
    "answer_dropout_p": (float, 0.1),
    "answer_weight_norm_on": (bool, False),
    "dump_state_on": (bool, False),
    "answer_opt": (int, 1),
    "pooler_actf": (str, "tanh"),
    "mtl_opt": (int, 0),
    "ratio": (float, 0),
    "mix_opt": (int, 0),
    "max_seq_len": (int, 512),
    "init_ratio": (float, 1),
    "encoder_type": (int, 1),
    "num_hidden_layers": (int, -1),
    "bert_model_type": (str, "bert-base-uncased"),
    "do_lower_case": (bool, False),
    "masked_lm_prob": (float, 0.15),
    "short_seq_prob": (float, 0.2),
    "max_predictions_per_seq": (int, 128),
    "bin_on": (bool, False),
    "bin_size": (int, 64),
    "bin_grow_ratio": (float, 0.5),
    "local_rank": (int, -1),
    "world_size": (int, 1),
    "master_addr": (str, "localhost"),
    "master_port": (str, "6600"),
    "backend": (str, "nccl"),
    "cuda": (bool, False),
    "log_per_updates": (int, 500),
    "save_per_updates": (int, 10000),
    "save_per_updates_on": (bool, False),
    "epochs": (int, 5),
    "batch_size": (int, 8),
    "batch_size_eval": (int, 8),
    "optimizer": (str, "adamax"),
    "grad_clipping": (float, 0),
    "global_grad_clipping": (float, 1.0),
    "weight_decay": (float, 0),
    "learning_rate": (float, 5e-5),
    "momentum": (float, 0),
    "warmup": (float, 0.1),
    "warmup_schedule": (str, "warmup_linear"),
    "adam_eps": (float, 1e-6),
    "vb_dropout": (bool, True),
    "dropout_p": (float, 0.1),
    "dropout_w": (float, 0.0),
    "bert_dropout_p": (float, 0.1),
    "model_ckpt": (str, "checkpoints/model_0.pt"),
    "resume": (bool, False),
    "scheduler_type": (int, 0),
    "output_dir": (str, "checkpoint"),
    "seed": (int, 2018),
    "grad_accumulation_step": (int, 1),
    "fp16": (bool, False),
    "fp16_opt_level": (str, "O1"),
    "encode_mode": (bool, False),
    "debug": (bool, False),
    "transformer_cache": (str, ".cache"),
    "adv_train": (bool, False),
    "adv_opt": (int, 0),
    "adv_norm_level": (int, 0),
    "adv_p_norm": (str, "inf"),
    "adv_alpha": (float, 1),
    "adv_k": (int, 1),
    "adv_step_size": (float, 1e-5),
    "adv_noise_var": (float, 1e-5),
    "adv_epsilon": (float, 1e-6),
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "optimizer": ("adamax", "adam", "sgd", "adadelta"),
    "scheduler_type": (0, 1, 2, 3),
    "encoder_type": tuple(range(1, 14)),
    "adv_norm_level": (0, 1),
    "adv_p_norm": ("inf", "l2", "l1"),
}
# What its pickles may name: torch's own, and classes that MT-DNN has.
MODULES = ("torch", "torch._utils", "collections", "__builtin__", "_codecs")
CLASSES = {
    "experiments.exp_def TaskDef",
    "data_utils.task_def DataFormat",
    "data_utils.task_def TaskType",
    "data_utils.task_def EncoderModelType",
    "data_utils.metrics Metric",
    "data_utils.vocab Vocabulary",
    "mt_dnn.loss LossCriterion",
}
ENCODERS: dict[int, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    1: (BertConfig, BertModel),
    2: (RobertaConfig, RobertaModel),
    6: (DebertaConfig, DebertaModel),
    7: (ElectraConfig, ElectraModel),
}
DEFINITION = {
    "label_vocab": object, "n_class": int, "data_type": int, "task_type": int, "metric_meta": tuple,
    "split_names": list, "enable_san": bool, "dropout_p": (float, int), "loss": int, "kd_loss": int, "adv_loss": int,
    "actf": (str, type(None)),
}  # fmt: skip


def read(path: Path, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """MT-DNN's flags after it read a checkpoint as `--init_checkpoint`, and what the file holds.

    Args:
        given: flags of its command line.
    """
    assert set(_classes(path)) <= CLASSES
    content = torch.load(path, weights_only=False)
    flags = {name: default for name, (_, default) in FLAGS.items()} | {"task_def_list": ["its own"], **given}
    config = dict(content["config"])
    config["attention_probs_dropout_prob"] = config["hidden_dropout_prob"] = flags["bert_dropout_p"]
    config["multi_gpu_on"] = flags["multi_gpu_on"]
    flags.update(config)
    json.dumps(flags)
    return flags, content


def _classes(path: Path) -> Iterator[str]:
    """The classes that a checkpoint's pickle names, those of torch and Python aside."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (member for member in archive.namelist() if member.endswith("data.pkl"))
        for operation, argument, _ in pickletools.genops(archive.read(name)):
            assert operation.name not in ("STACK_GLOBAL", "INST")
            if operation.name == "GLOBAL" and str(argument).split(" ")[0] not in MODULES:
                yield str(argument)


def wrong_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags whose values MT-DNN could not use, of another type or not among those that it compares with."""

    def usable(name: str) -> bool:
        kind, default = FLAGS[name]
        value = flags[name]
        if value is None:
            return default is None
        right = isinstance(value, kind) if kind is not float else isinstance(value, (int, float))
        return right and isinstance(value, bool) == (kind is bool) and value in CHOICES.get(name, (value,))

    return {name: flags[name] for name in FLAGS if not usable(name)}


def wrong_definitions(task_defs: list[Any]) -> list[str]:
    """The attributes of definitions that MT-DNN could not use."""
    return [
        f"{name} {getattr(task_def, name)!r}"
        for task_def in task_defs
        for name, kind in DEFINITION.items()
        if not isinstance(getattr(task_def, name), kind)
    ] + [name for task_def in task_defs for name in vars(task_def) if name not in DEFINITION]


def encoder_of(flags: dict[str, Any]) -> PreTrainedModel:
    """The encoder that MT-DNN builds."""
    config, model = ENCODERS[flags["encoder_type"]]
    return model(config.from_dict(flags))


def parameters_of(flags: dict[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of the network that MT-DNN builds, all of its tasks pooled."""
    encoder = encoder_of(flags)
    found = {f"bert.{name}": tensor.shape for name, tensor in encoder.state_dict().items()}
    size = encoder.config.hidden_size
    for task_id, task_def in enumerate(flags["task_def_list"]):
        dense, projection = torch.nn.Linear(size, size), torch.nn.Linear(size, task_def.n_class)
        for name, layer in (("0.dense", dense), ("1", projection)):
            for kind, parameter in layer.named_parameters():
                found[f"scoring_list.{task_id}.{name}.{kind}"] = parameter.shape
    return found
