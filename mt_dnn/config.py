"""The configuration of a run: one frozen dataclass with four groups, built from the flags of `train.py`.

Names and defaults of flags are MT-DNN's where MT-DNN has the flag; the noise has its own file, `adversarial_config.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_utils.errors import FlagError
from data_utils.pretrained import folder_name
from data_utils.task_def import INTERNAL_ENCODERS, EncoderModelType
from mt_dnn.adversarial_config import (
    AdversarialConfig,
    adversarial_hints,
    adversarial_without_effect,
    translate_numbers,
)
from mt_dnn.config_file import ConfigFile, config_text
from mt_dnn.flags import FlagParser, add_flags, build, check_flags, flag, flags_of, plain_text

CANONICAL_DATA = "data/canonical_data"

SAN_ATTENTIONS = ("bilinear", "simple", "flatsim", "default", "defualt")  # the last as MT-DNN's help spells it
SAN_CELLS = ("gru", "lstm", "rnn")
LENGTH_GROUPS = "no use any more: batches are grouped by length, --no_group_by_length switches that off"
RESUME_FLAGS = ("resume", "model_ckpt", "dry_run")  # of one start, not of the run
UPLOAD_FLAGS = ("push_to_hub", "hub_private")  # a run that is repeated replaces no model on the Hub unasked
LAUNCHER = "no use any more: torchrun or `accelerate launch` starts the processes and tells them this"


@dataclass(frozen=True)
class DataConfig:
    """What is read, and where things are written down."""

    data_dir: str | None = flag(
        None, "folder of the token files", shown=f"{CANONICAL_DATA}/ENCODER, where prepro_std.py writes"
    )
    task_def: str = flag("experiments/glue/glue_task_def.yml", "task definitions (YAML)")
    train_datasets: tuple[str, ...] = flag(("mnli",), "datasets to train on")
    test_datasets: tuple[str, ...] = flag(("mnli_matched", "mnli_mismatched"), "datasets to evaluate on")
    glue_format_on: bool = flag(False, "write GLUE's submission files too")
    mkd_opt: int = flag(
        0,
        "above 0: the task's kd_loss compares training examples with their softlabel, where they have one",
        at_least=0,
    )
    do_padding: bool = flag(False, "pad every batch to --max_seq_len")
    tokenizer: str | None = flag(
        None,
        "tokenizer of MaskLM, generation, --dropout_w and --save_hf: hub name, local folder or embedded-minilm",
        shown="the encoder's",
    )
    dataloader_num_workers: int = flag(2, "processes that collate batches", at_least=0)
    log_file: str = flag("mt-dnn-train.log", "file of the log")
    tensorboard: bool = flag(False, "write TensorBoard events")
    tensorboard_logdir: str = flag("tensorboard_logdir", "folder of TensorBoard events")
    data_sort_on: bool = flag(False, "sort data by length", notice=LENGTH_GROUPS)
    name: str = flag("farmer", "name of the run", notice="no use any more: --output_dir tells runs apart")

    def __post_init__(self) -> None:
        check_flags(self)
        for name in ("train_datasets", "test_datasets"):
            datasets = getattr(self, name)
            twice = sorted({dataset for dataset in datasets if datasets.count(dataset) > 1})
            if twice:
                raise FlagError(f"--{name}: found {', '.join(twice)} more than once, accepted: every dataset once")


@dataclass(frozen=True)
class ModelConfig:
    """The encoder, its heads, and how tasks share it."""

    init_checkpoint: str | None = flag(
        None, "encoder: hub name, local folder, embedded-minilm or MT-DNN checkpoint", shown="--bert_model_type"
    )
    bert_model_type: str = flag("bert-base-uncased", "encoder where --init_checkpoint is left out")
    encoder_type: int = flag(
        1,
        "4: LSTMs over the encoder's word embeddings; others: the encoder's own configuration tells",
        choices=tuple(map(int, EncoderModelType)),
    )
    num_hidden_layers: int = flag(-1, "use the first N layers of the encoder; -1: all", at_least=-1)
    update_bert_opt: int = flag(0, "above 0: the encoder is frozen", at_least=0)
    max_seq_len: int = flag(512, "longest example in tokens", at_least=1)
    ratio: float = flag(0.0, "other tasks' batches, as a multiple of task 0's; 0: all", at_least=0)
    mix_opt: int = flag(0, "1: the other tasks' batches first, then task 0's", choices=(0, 1))
    do_lower_case: bool = flag(
        False, "the tokenizer that --save_hf writes lower-cases the text, as prepro_std.py --do_lower does"
    )
    pooler_actf: str = flag("tanh", "pooler's activation", notice="no use: `actf` in the task definition sets it")
    mtl_opt: int = flag(0, "multi-task option", notice="no use any more: --ratio and --mix_opt mix the tasks")
    init_ratio: float = flag(1.0, "initial ratio", notice="no use any more: --ratio and --mix_opt mix the tasks")
    multi_gpu_on: bool = flag(False, "several GPUs", notice=LAUNCHER)
    local_rank: int = flag(-1, "rank of the process", notice=LAUNCHER)
    world_size: int = flag(1, "number of processes", notice=LAUNCHER)
    master_addr: str = flag("localhost", "address of the first process", notice=LAUNCHER)
    master_port: str = flag("6600", "port of the first process", notice=LAUNCHER)
    backend: str = flag("nccl", "backend of torch.distributed", notice=LAUNCHER)
    answer_opt: int = flag(1, "0: tasks with enable_san have the pooled head all the same", choices=(0, 1))
    answer_num_turn: int = flag(5, "turns of the answer network", at_least=1)
    answer_mem_type: int = flag(1, "1: mean probabilities of all turns, 0: the last turn", choices=(0, 1))
    answer_mem_drop_p: float = flag(0.1, "share of turns left out in training, one is kept", at_least=0, below=1)
    answer_merge_opt: int = flag(1, "1: the classifier sees [x; h; |x - h|; x * h], 0: [x; h]", choices=(0, 1))
    answer_att_type: str = flag("bilinear", "how a turn scores the premise's tokens", choices=SAN_ATTENTIONS)
    answer_att_hidden_size: int = flag(
        128, "hidden size of the attention", at_least=1, notice="no use, in MT-DNN neither: the encoder's size is taken"
    )
    answer_sum_att_type: str = flag(
        "bilinear",
        "attention of the sum",
        notice="no use, in MT-DNN neither: --mem_cum_type says how the hypothesis is summed up",
    )
    answer_rnn_type: str = flag("gru", "cell of the answer network", choices=SAN_CELLS)
    answer_dropout_p: float = flag(
        0.1, "dropout of answer networks whose task sets none by dropout_p", at_least=0, below=1
    )
    answer_weight_norm_on: bool = flag(False, "weight normalization of the answer network")
    mem_cum_type: str = flag(
        "simple", "score of the hypothesis's tokens: linear, or behind a hidden layer", choices=("simple", "mlp")
    )
    max_answer_len: int = flag(10, "longest answer in tokens, of spans and of generated text", at_least=1)
    null_score_diff_threshold: float = flag(
        0.0, "spans: a question has no answer where the score of none exceeds the best answer's by more than this"
    )
    num_beams: int = flag(1, "generation: beams of the search; 1: the likeliest token each time", at_least=1)
    masked_lm_prob: float = flag(0.15, "MaskLM: share of masked tokens", above=0, below=1)
    short_seq_prob: float = flag(
        0.2,
        "MaskLM: share of the sequences of which training takes a part of random length",
        at_least=0,
        below=1,
    )
    max_predictions_per_seq: int = flag(128, "MaskLM: most masked tokens of a sequence", at_least=1)
    bin_on: bool = flag(False, "bins of similar length", notice=LENGTH_GROUPS)
    bin_size: int = flag(64, "width of a bin", notice=LENGTH_GROUPS)
    bin_grow_ratio: float = flag(0.5, "growth of bins", notice=LENGTH_GROUPS)
    dump_state_on: bool = flag(False, "dump the state", notice="no use any more: a checkpoint follows every epoch")

    def __post_init__(self) -> None:
        check_flags(self)
        if self.encoder_type in INTERNAL_ENCODERS:
            name = EncoderModelType(self.encoder_type).name
            raise FlagError(
                f"--encoder_type: found {self.encoder_type}, {name}, which is not public; accepted: public encoders"
            )
        if self.num_hidden_layers == 0:
            raise FlagError("--num_hidden_layers: found 0, accepted: -1 for all layers, or at least 1")


@dataclass(frozen=True)
class TrainingConfig:
    """Optimization, evaluation, checkpoints and the machine."""

    cuda: bool | None = flag(None, "use the GPU", shown="where there is one")
    epochs: int = flag(5, "passes over the data", at_least=1)
    batch_size: int = flag(8, "examples a batch, over all processes", at_least=1)
    max_tokens_per_batch: int = flag(
        0, "tokens a batch, padding included, over all processes; 0: --batch_size bounds a batch", at_least=0
    )
    batch_size_eval: int | None = flag(
        None, "examples a batch in evaluation", at_least=1, shown="as many as make a full batch of tokens"
    )
    grad_accumulation_step: int = flag(1, "batches an update", at_least=1)
    no_group_by_length: bool = flag(False, "batches of mixed lengths")
    class_weights: tuple[str, ...] | None = flag(
        None, "weights of a classification's classes in its loss: balanced, or a number each in the order of the labels"
    )
    optimizer: str = flag("adamax", "optimizer", choices=("adamax", "adamw", "adam", "sgd", "adadelta"))
    learning_rate: float = flag(5e-5, "peak learning rate", above=0)
    weight_decay: float = flag(0.01, "weight decay; none on biases and normalizations", at_least=0)
    momentum: float = flag(0.0, "momentum of sgd", at_least=0, below=1)
    adam_eps: float = flag(1e-6, "eps of adamax, adamw and adam", above=0)
    scheduler_type: int = flag(0, "0 linear, 1 cosine, 2 constant, 3 polynomial", choices=(0, 1, 2, 3))
    warmup: float = flag(0.1, "share of the updates in which the learning rate rises", at_least=0, below=1)
    warmup_schedule: str = flag(
        "warmup_linear", "schedule", notice="no use any more: --scheduler_type chooses the schedule"
    )
    grad_clipping: float = flag(0.0, "bound of each tensor's gradient norm; 0: none", at_least=0)
    global_grad_clipping: float = flag(1.0, "bound of the whole gradient's norm; 0: none", at_least=0)
    dropout_p: float = flag(0.1, "dropout of heads whose task sets none", at_least=0, below=1)
    bert_dropout_p: float = flag(0.1, "dropout of the encoder", at_least=0, below=1)
    dropout_w: float = flag(
        0.0, "share of the words of training examples that become the unknown one", at_least=0, below=1
    )
    vb_dropout: bool = flag(
        True, "heads drop the same entries of all tokens of an example; the flag alone switches it off", const=False
    )
    seed: int = flag(2018, "seed of everything random", at_least=0)
    log_per_updates: int = flag(500, "updates between log lines", at_least=1)
    save_per_updates: int = flag(10000, "updates between checkpoints with --save_per_updates_on", at_least=1)
    save_per_updates_on: bool = flag(False, "checkpoints within an epoch too")
    keep_last: int = flag(0, "keep the N newest checkpoints, and the best epoch's; 0: all", at_least=0)
    max_skipped: int = flag(
        10, "stop after N updates in a row whose loss or gradient is not finite; such updates are skipped", at_least=1
    )
    output_dir: str = flag("checkpoint", "folder of checkpoints and score files")
    save_hf: str | None = flag(
        None, "new folder for the best epoch's model in transformers' format; of several tasks, a folder in it each"
    )
    push_to_hub: str | None = flag(
        None, "repository of the Hugging Face Hub, USER/NAME, that gets the folder of --save_hf after the run"
    )
    hub_private: bool = flag(False, "a new repository of --push_to_hub is private")
    resume: bool = flag(False, "go on with a run that was interrupted, from --model_ckpt")
    model_ckpt: str | None = flag(None, "checkpoint to go on from", shown="the newest in --output_dir")
    early_stop: int = flag(0, "stop after N epochs without improvement; 0: never", at_least=0)
    best_metric: str | None = flag(
        None,
        "metric of the best epoch: ACC, or DATASET:ACC",
        shown="mean over the test datasets of their task's first metric",
    )
    fp16: bool = flag(False, "torch's mixed precision with float16")
    bf16: bool = flag(False, "torch's mixed precision with bfloat16")
    cpu_linear: str = flag(
        "auto",
        "library of linear layers on the CPU; auto: onednn on AMD's processors, else mkl",
        choices=("auto", "mkl", "onednn"),
    )
    grad_checkpointing: bool = flag(
        False, "keep the input of each encoder layer alone and compute the rest again: less memory, slower"
    )
    compile: bool = flag(
        False,
        "let torch.compile make the code of the encoder's layers: for GPUs and long runs, minutes to start; needs a "
        "C++ compiler",
    )
    fp16_opt_level: str = flag("O1", "apex level", notice="no use any more: --fp16 is torch's own mixed precision")
    transformer_cache: str = flag(".cache", "folder of downloaded encoders")
    encode_mode: bool = flag(
        False, "train nothing: write the encoder's output for each test dataset to DATASET_encoding.pt"
    )
    dry_run: bool = flag(
        False,
        "train nothing: check data and model, try the largest batch and a checkpoint, time three updates and tell the "
        "run's time, memory and disk; leaves no file but caches",
    )
    debug: bool = flag(False, "debug", notice="no use any more: --log_per_updates 1 logs every update")

    def __post_init__(self) -> None:
        check_flags(self)
        if self.fp16 and self.bf16:
            raise FlagError("--fp16 and --bf16: found both, accepted: one of them")
        if self.dry_run and self.encode_mode:
            raise FlagError("--dry_run and --encode_mode: found both, accepted: one of them; each trains nothing")
        if self.push_to_hub is not None and self.save_hf is None:
            raise FlagError("--push_to_hub: needs --save_hf, the folder that is uploaded")
        if self.compile and self.cpu_linear == "onednn":
            raise FlagError(
                "--compile and --cpu_linear onednn: found both, accepted: one of them; compiled, such layers fit one "
                "width of batches alone"
            )


GROUPS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "adversarial": AdversarialConfig,
}


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        data, model, training, adversarial: the groups; a field's name is its flag's.
        notices: a line for each flag that the user gave and that has no effect (yet).
        given: the flags that the user gave, by name.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    notices: tuple[str, ...] = field(default=(), compare=False)
    given: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.data.do_padding and self.training.max_tokens_per_batch:
            raise FlagError(
                "--do_padding and --max_tokens_per_batch: found both, accepted: one of them; where every example is "
                "padded to --max_seq_len, --batch_size bounds the tokens"
            )

    @property
    def encoder(self) -> str:
        """The encoder's name: a hub name, a local folder, `embedded-minilm` or an MT-DNN checkpoint."""
        return self.model.init_checkpoint or self.model.bert_model_type

    @property
    def tokenizer(self) -> str:
        """The name of the tokenizer whose output the encoder was trained on."""
        return self.data.tokenizer or self._named_encoder

    @property
    def _named_encoder(self) -> str:
        """The encoder's name; that of a checkpoint file tells nothing, so there it is `--bert_model_type`."""
        is_checkpoint = self.encoder.endswith(".pt") or Path(self.encoder).is_file()
        return self.model.bert_model_type if is_checkpoint else self.encoder

    @property
    def data_dir(self) -> str:
        """The folder of the token files: `--data_dir`, or where `prepro_std.py --model` of the same encoder writes."""
        return self.data.data_dir or str(Path(CANONICAL_DATA) / folder_name(self._named_encoder))

    @classmethod
    def from_flags(cls, given: Mapping[str, Any]) -> Config:
        """The configuration with the flags in `given` (name to value) set and all others at their defaults.

        Raises:
            FlagError: an unknown name, a value out of range, or values that contradict each other.
        """
        unknown = [name for name in given if not any(name in flags_of(group) for group in GROUPS.values())]
        if unknown:
            raise FlagError(f"unknown flag --{unknown[0]}; --help lists all")
        values = translate_numbers(given)
        config = cls(**{name: build(group, values) for name, group in GROUPS.items()})
        return replace(config, notices=tuple(_notices(given, config)), given=dict(given))

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Config:
        """The configuration in a checkpoint's flat `config`, MT-DNN's included; keys that are no flags are ignored."""
        values = translate_numbers(flat)
        if "adv_norm_level" in flat and "adv_projection" not in flat:
            # MT-DNN's own run: its release had one projection and no flag for it
            values.setdefault("adv_preset", "mtdnn_release")
        return cls(**{name: build(group, values) for name, group in GROUPS.items()})

    def to_flat(self) -> dict[str, Any]:
        """Flag name to plain value (lists for tuples), as a checkpoint's `config` holds them."""
        flat = {name: value for group in GROUPS for name, value in asdict(getattr(self, group)).items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()}

    def to_yaml(self) -> str:
        """All flags that have an effect, those of a resume and an upload aside, as `--config` reads them."""
        flat = {
            name: plain_text(value) if isinstance(value, list) else value
            for name, value in self.to_flat().items()
            if name not in (*RESUME_FLAGS, *UPLOAD_FLAGS)
        }
        left_out = without_effect(flat, self)
        return config_text(
            {
                title: {name: flat[name] for name in flags_of(group) if name in flat and name not in left_out}
                for title, group in GROUPS.items()
            }
        )

    def changed(self) -> str:
        """The flags but for those of the noise that are not at their default, as a command line has them."""
        default = Config().to_flat()
        return " ".join(
            f"--{name} {shlex.quote(plain_text(value))}"
            for name, value in self.to_flat().items()
            if value != default[name] and name not in flags_of(AdversarialConfig)
        )


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """The configuration that a command line asks for; without `argv`, this process's own.

    Raises:
        UserError: an unknown flag, a value that is not accepted, flags that contradict each other, or a `--config` with
            such or that cannot be read.
    """
    parser = FlagParser(
        prog="train.py",
        usage="%(prog)s [flags]",
        description="Fine-tune a language model on one or more tasks; with --adv_train, under adversarial noise.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE.yml",
        help="flags as YAML, `NAME: VALUE` each, as every run writes its own to config.yml; those of the command line "
        "win, an empty one such as --save_hf '' leaves the file's out",
    )
    for title, group in GROUPS.items():
        add_flags(parser, group, title)
    given = parser.given(argv)
    path = given.pop("config", None)
    if path is None:
        return Config.from_flags(given)
    return ConfigFile(path, GROUPS.values()).beside(given, Config.from_flags)


def without_effect(given: Iterable[str], config: Config) -> dict[str, str]:
    """Of the flags named in `given` those that have no effect in this configuration, each with the reason."""
    flags = {name: spec for group in GROUPS.values() for name, spec in flags_of(group).items()}
    found = {name: flags[name].notice for name in given if flags[name].notice}
    if "encoder_type" in given and config.model.encoder_type != EncoderModelType.SAN:
        found["encoder_type"] = "no use any more but for 4: the encoder's own configuration tells its kind"
    if config.training.model_ckpt is not None and not config.training.resume:
        found["model_ckpt"] = "no effect without --resume"
    if "batch_size" in given and config.training.max_tokens_per_batch:
        found["batch_size"] = "no effect with --max_tokens_per_batch, which bounds a batch by its tokens"
    if config.training.save_hf is None and "do_lower_case" in given:
        found["do_lower_case"] = "no effect without --save_hf; prepro_std.py tokenizes the text"
    if config.training.push_to_hub is None and "hub_private" in given:
        found["hub_private"] = "no effect without --push_to_hub"
    return found | adversarial_without_effect(given, config.adversarial)


def _notices(given: Mapping[str, Any], config: Config) -> list[str]:
    """A line for each reason why given flags have no effect, in the order given, and for what else to know of them."""
    of_reason: dict[str, list[str]] = {}
    for name, reason in without_effect(given, config).items():
        of_reason.setdefault(reason, []).append(f"--{name}")
    lines = [f"{', '.join(names)}: {reason}" for reason, names in of_reason.items()]
    return lines + adversarial_hints(given, config.adversarial)
