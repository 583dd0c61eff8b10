"""The `config` of a checkpoint as MT-DNN writes and reads it: from this project's flags, and back.

MT-DNN reads a checkpoint by overwriting its own flags with every key of `config`. So `config` has MT-DNN's names, types
and values; this project's own are in the checkpoint's `settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from data_utils.task_def import EncoderModelType
from mt_dnn.configuration.adversarial_config import AdversarialConfig
from mt_dnn.configuration.config import GROUPS, Config
from mt_dnn.configuration.flag_groups import SAN_ATTENTIONS
from mt_dnn.configuration.flags import flags_of, is_accepted, kind_of
from tasks.definition import TaskDef

if TYPE_CHECKING:
    from mt_dnn.matcher import SANBertNetwork

# All flags of MT-DNN's train.py; first those of the noise.
NOISE: dict[str, Any] = {
    "adv_train": False, "adv_opt": 0, "adv_norm_level": 0, "adv_p_norm": "inf", "adv_alpha": 1.0, "adv_k": 1,
    "adv_step_size": 1e-5, "adv_noise_var": 1e-5, "adv_epsilon": 1e-6,
}  # fmt: skip
OTHERS = """
    data_dir task_def train_datasets test_datasets glue_format_on mkd_opt do_padding tokenizer dataloader_num_workers
    log_file tensorboard tensorboard_logdir init_checkpoint data_sort_on name
    update_bert_opt multi_gpu_on mem_cum_type answer_num_turn answer_mem_drop_p answer_att_hidden_size answer_att_type
    answer_rnn_type answer_sum_att_type answer_merge_opt answer_mem_type max_answer_len answer_dropout_p
    answer_weight_norm_on dump_state_on answer_opt pooler_actf mtl_opt ratio mix_opt max_seq_len init_ratio encoder_type
    num_hidden_layers bert_model_type do_lower_case masked_lm_prob short_seq_prob max_predictions_per_seq bin_on
    bin_size bin_grow_ratio local_rank world_size master_addr master_port backend
    cuda log_per_updates save_per_updates save_per_updates_on epochs batch_size batch_size_eval optimizer grad_clipping
    global_grad_clipping weight_decay learning_rate momentum warmup warmup_schedule adam_eps vb_dropout dropout_p
    dropout_w bert_dropout_p model_ckpt resume scheduler_type output_dir seed grad_accumulation_step fp16 fp16_opt_level
    encode_mode debug transformer_cache
"""
MTDNN_FLAGS = frozenset([*NOISE, *OTHERS.split()])
GROUP_OF = {name: group for group in GROUPS.values() for name in flags_of(group)}

NUMBERED = ("adv_opt", "adv_norm_level")  # numbers there, texts here
# What decides MT-DNN's regularizer and is no flag there.
UNTOLD = set(flags_of(AdversarialConfig)) - MTDNN_FLAGS - {"adv_preset", "adv_norm_scope"}
MODEL_CKPT, BATCH_SIZE_EVAL, LOG_PER_UPDATES = "checkpoints/model_0.pt", 8, 500  # MT-DNN's defaults
OPTIMIZERS = {"adamw": "adam"}  # this project's names of what MT-DNN calls otherwise
KINDS = {
    "bert": EncoderModelType.BERT,
    "roberta": EncoderModelType.ROBERTA,
    "xlm-roberta": EncoderModelType.XLM,
    "deberta": EncoderModelType.DEBERTA,
    "electra": EncoderModelType.ELECTRA,
    "t5": EncoderModelType.T5,
}


def to_mtdnn(config: Config, network: SANBertNetwork, cuda: bool) -> dict[str, Any]:
    """A run's `config` for its checkpoints: MT-DNN's flags, the encoder's configuration over them, `task_def_list`.

    Args:
        config: of the run.
        network: that is trained.
        cuda: whether it is on a GPU.
    """
    flat = {name: value for name, value in config.to_flat().items() if name in MTDNN_FLAGS}
    flat |= _noise(config.adversarial)
    flat |= {
        "data_dir": config.data_dir,
        "init_checkpoint": config.encoder,
        "cuda": cuda,
        "batch_size_eval": config.training.batch_size_eval or BATCH_SIZE_EVAL,
        # MT-DNN would divide by 0.
        "log_per_updates": config.training.log_per_updates or LOG_PER_UPDATES,
        "optimizer": OPTIMIZERS.get(config.training.optimizer, config.training.optimizer),
        "encoder_type": _kind(config, network),
        # MT-DNN would resume from the named file whenever it reads this one.
        "resume": False,
        "model_ckpt": MODEL_CKPT,
    }
    return {**flat, **network.bert.config.to_dict(), "task_def_list": _definitions(config, network)}


def _noise(adversarial: AdversarialConfig) -> dict[str, Any]:
    """The flags of MT-DNN's regularizer if the run has it; otherwise those of a run without a regularizer."""
    theirs = AdversarialConfig(adv_train=True, adv_preset="mtdnn_release")
    same = ("adv_train", "adv_opt", "adv_norm_level", *UNTOLD)
    if any(getattr(adversarial, name) != getattr(theirs, name) for name in same):
        return NOISE
    found = {name: getattr(adversarial, name) for name in NOISE}
    scope = ("token", "sentence").index(adversarial.adv_norm_scope)
    return found | {"adv_opt": 0, "adv_norm_level": scope}


def _kind(config: Config, network: SANBertNetwork) -> int:
    """MT-DNN's number of the encoder's family; the flag's for a family that MT-DNN does not have."""
    if network.bert.config.is_encoder_decoder and network.bert.config.model_type == "t5":
        return int(EncoderModelType.T5G)
    return int(KINDS.get(network.bert.config.model_type, config.model.encoder_type))


def _definitions(config: Config, network: SANBertNetwork) -> list[TaskDef]:
    """The tasks' definitions, with the dropout that a flag gives where they have none: MT-DNN needs a number."""
    found = []
    for task in network.tasks:
        flag = config.model.answer_dropout_p if task.has_answer_network else config.training.dropout_p
        own = task.task_def.dropout_p
        found.append(task.task_def.replaced(dropout_p=flag if own is None else own))
    return found


def from_mtdnn(config: Mapping[str, Any], parameters: Iterable[str]) -> dict[str, Any]:
    """The `config` of a checkpoint of MT-DNN with this project's values.

    MT-DNN takes values that are refused here. Each becomes the one that does there what it did; one without meaning
    here is left out, and so has its default. What is of another type than MT-DNN's flag is left as it is.

    Args:
        config: as the file has it.
        parameters: the names of the file's parameters.
    """
    values = {name: int(value) if isinstance(value, IntEnum) else value for name, value in config.items()}
    for name, meaning in MEANINGS.items():
        if name in values and _has_their_type(name, values[name]):
            values[name] = meaning(values[name])
    if "answer_opt" in values:  # without effect in MT-DNN
        values["answer_opt"] = int(any(name.startswith("scoring_list.") and ".rnn." in name for name in parameters))
    return {name: value for name, value in values.items() if not _is_refused(name, value)}


def _one_of(*accepted: Any, otherwise: Any) -> Callable[[Any], Any]:
    return lambda value: value if value in accepted else otherwise


def _at_least_0(value: Any) -> Any:
    return max(value, 0)


def _once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


# What MT-DNN makes of a value, as a value of this project's flag.
MEANINGS: dict[str, Callable[[Any], Any]] = {
    "train_datasets": _once,
    "test_datasets": _once,
    "mkd_opt": _at_least_0,
    "update_bert_opt": _at_least_0,
    "ratio": _at_least_0,
    "grad_clipping": _at_least_0,
    "global_grad_clipping": _at_least_0,
    "mix_opt": lambda value: int(value >= 1),
    "mem_cum_type": _one_of("mlp", otherwise="simple"),
    "answer_att_type": lambda value: _one_of(*SAN_ATTENTIONS, otherwise="default")(value.lower()),
    "answer_rnn_type": str.lower,
    "answer_merge_opt": lambda value: int(value == 1),
    "answer_mem_type": lambda value: int(value == 1),
    "adv_opt": lambda value: 0,
    "adv_norm_level": lambda value: int(value != 0),
    "adv_p_norm": _one_of("l2", otherwise="inf"),
}


def _has_their_type(name: str, value: object) -> bool:
    """Whether a value is of the type that MT-DNN's flag has."""
    if name in NUMBERED:
        return type(value) is int
    kind, _ = kind_of(GROUP_OF[name], name)
    if kind is tuple:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)
    return type(value) in ((int, float) if kind is float else (kind,))


def _is_refused(name: str, value: object) -> bool:
    """Whether a value of MT-DNN's type is out of this project's range; the encoder's own is not judged."""
    if name not in MTDNN_FLAGS or name in (*NUMBERED, "num_hidden_layers") or not _has_their_type(name, value):
        return False
    return not is_accepted(GROUP_OF[name], name, tuple(value) if isinstance(value, list) else value)
