"""Three of a run's four groups of flags: data, model and training; `adversarial_config.py` has the noise.

Flags that MT-DNN has keep its names and, with the exceptions in docs/migration.md, its defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_utils.errors import FlagError
from data_utils.task_def import INTERNAL_ENCODERS, EncoderModelType
from mt_dnn.configuration.flags import check_flags, flag

CANONICAL_DATA = "data/canonical_data"

SAN_ATTENTIONS = ("bilinear", "simple", "flatsim", "default", "defualt")  # the last as MT-DNN's help spells it
SAN_CELLS = ("gru", "lstm", "rnn")
LENGTH_GROUPS = "no use any more: batches are grouped by length; --no_group_by_length switches that off"
LAUNCHER = "no use any more: torchrun or `accelerate launch` starts the processes and sets this"


@dataclass(frozen=True)
class DataConfig:
    """What is read, and where logs are written."""

    data_dir: str | None = flag(
        None, "folder of the token files that prepro_std.py writes", shown=f"{CANONICAL_DATA}/ENCODER"
    )
    task_def: str = flag("experiments/glue/glue_task_def.yml", "YAML file that defines the tasks")
    train_datasets: tuple[str, ...] = flag(("mnli",), "datasets to train on, separated by commas")
    test_datasets: tuple[str, ...] = flag(
        ("mnli_matched", "mnli_mismatched"), "datasets to evaluate on after every epoch"
    )
    glue_format_on: bool = flag(False, "also write submission files for the GLUE benchmark")
    mkd_opt: int = flag(
        0,
        "above 0: distill, by adding the task's kd_loss on training examples that have a softlabel",
        at_least=0,
    )
    do_padding: bool = flag(False, "pad every batch to --max_seq_len")
    tokenizer: str | None = flag(
        None,
        "tokenizer for MaskLM, generation, --dropout_w and --save_hf: hub name, local folder or embedded-minilm",
        shown="the encoder's",
    )
    dataloader_num_workers: int = flag(2, "processes that prepare batches; 0: the training process does", at_least=0)
    log_file: str = flag("mt-dnn-train.log", "file that the log is added to")
    tensorboard: bool = flag(False, "write curves for TensorBoard")
    tensorboard_logdir: str = flag("tensorboard_logdir", "folder of the curves for TensorBoard")
    data_sort_on: bool = flag(False, "sort data by length", notice=LENGTH_GROUPS)
    name: str = flag("farmer", "name of the run", notice="no use any more: each run has its own --output_dir")

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
        None,
        "encoder to start from: hub name, local folder, embedded-minilm or -mpnet, MT-DNN checkpoint",
        shown="--bert_model_type",
    )
    bert_model_type: str = flag("bert-base-uncased", "encoder, if --init_checkpoint is left out")
    encoder_type: int = flag(
        1,
        "4: LSTMs over the encoder's word embeddings; other numbers have no effect, the encoder knows its kind",
        choices=tuple(map(int, EncoderModelType)),
    )
    num_hidden_layers: int = flag(-1, "use the first N layers of the encoder; -1: all layers", at_least=-1)
    update_bert_opt: int = flag(0, "above 0: freeze the encoder and train the heads only", at_least=0)
    max_seq_len: int = flag(512, "most tokens of an example; longer training examples are left out", at_least=1)
    ratio: float = flag(
        0.0, "batches of the other tasks in an epoch, as a multiple of the first task's; 0: all batches", at_least=0
    )
    mix_opt: int = flag(
        0, "0: batches of all tasks in random order; 1: the first task's batches come last", choices=(0, 1)
    )
    do_lower_case: bool = flag(
        False, "write a lower-casing tokenizer with --save_hf, for data made with prepro_std.py --do_lower"
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
    answer_opt: int = flag(
        1, "1: tasks with enable_san have the answer network; 0: they have the usual head", choices=(0, 1)
    )
    answer_num_turn: int = flag(5, "reasoning steps (turns) of the answer network", at_least=1)
    answer_mem_type: int = flag(1, "1: average the probabilities of all turns; 0: use the last turn", choices=(0, 1))
    answer_mem_drop_p: float = flag(0.1, "share of turns dropped in training; at least one stays", at_least=0, below=1)
    answer_merge_opt: int = flag(1, "1: classify from [x; h; |x - h|; x * h]; 0: from [x; h]", choices=(0, 1))
    answer_att_type: str = flag("bilinear", "how a turn scores the tokens of the first text", choices=SAN_ATTENTIONS)
    answer_att_hidden_size: int = flag(
        128, "hidden size of the attention", at_least=1, notice="no use, as in MT-DNN: the encoder's size is taken"
    )
    answer_sum_att_type: str = flag(
        "bilinear",
        "attention of the sum",
        notice="no use, as in MT-DNN: --mem_cum_type chooses the attention",
    )
    answer_rnn_type: str = flag("gru", "recurrent cell of the answer network", choices=SAN_CELLS)
    answer_dropout_p: float = flag(
        0.1, "dropout of the answer network, unless the task definition sets dropout_p", at_least=0, below=1
    )
    answer_weight_norm_on: bool = flag(False, "use weight normalization in the answer network")
    mem_cum_type: str = flag(
        "simple",
        "how tokens of the second text are scored: by a linear layer, or with a hidden layer before it",
        choices=("simple", "mlp"),
    )
    max_answer_len: int = flag(10, "most tokens of an answer, for spans and generated text", at_least=1)
    null_score_diff_threshold: float = flag(
        0.0, "spans: answer 'none' if its score is above the best answer's by more than this"
    )
    num_beams: int = flag(1, "generation: beams of the search; 1: greedy", at_least=1)
    masked_lm_prob: float = flag(0.15, "MaskLM: share of tokens that are masked", above=0, below=1)
    short_seq_prob: float = flag(
        0.2,
        "MaskLM: share of sequences that training cuts to a random length",
        at_least=0,
        below=1,
    )
    max_predictions_per_seq: int = flag(128, "MaskLM: most masked tokens in a sequence", at_least=1)
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

    cuda: bool | None = flag(None, "use the GPU; with false the CPU", shown="the GPU, if there is one")
    epochs: int = flag(5, "passes over the training data", at_least=1)
    batch_size: int = flag(8, "examples in a batch, over all processes", at_least=1)
    max_tokens_per_batch: int = flag(
        0, "most tokens in a batch, with padding, over all processes; 0: use --batch_size", at_least=0
    )
    batch_size_eval: int | None = flag(
        None, "examples in a batch of the evaluation", at_least=1, shown="as many as fit into 1024 tokens"
    )
    grad_accumulation_step: int = flag(1, "batches whose gradients are added up for one update", at_least=1)
    no_group_by_length: bool = flag(False, "do not group examples of similar length into batches")
    class_weights: tuple[str, ...] | None = flag(
        None,
        "weights of the classes in the loss, for rare classes: balanced, or a number for each label in its order",
    )
    optimizer: str = flag("adamax", "optimizer; adam is adamw", choices=("adamax", "adamw", "adam", "sgd", "adadelta"))
    learning_rate: float = flag(5e-5, "highest learning rate, reached after --warmup", above=0, below=1e36)
    weight_decay: float = flag(0.01, "weight decay; biases and normalization layers have none", at_least=0, below=1e36)
    momentum: float = flag(0.0, "momentum of --optimizer sgd", at_least=0, below=1)
    adam_eps: float = flag(1e-6, "epsilon of adamax, adamw and adam", above=0)
    scheduler_type: int = flag(
        0,
        "learning rate after the warmup: 0 linear to 0, 1 cosine to 0, 2 constant, 3 polynomial to 1e-7",
        choices=(0, 1, 2, 3),
    )
    warmup: float = flag(0.1, "share of all updates in which the learning rate rises from 0", at_least=0, below=1)
    warmup_schedule: str = flag(
        "warmup_linear", "schedule", notice="no use any more: --scheduler_type chooses the schedule"
    )
    grad_clipping: float = flag(0.0, "clip the gradient norm of each tensor to this; 0: no clipping", at_least=0)
    global_grad_clipping: float = flag(1.0, "clip the norm of the whole gradient to this; 0: no clipping", at_least=0)
    dropout_p: float = flag(0.1, "dropout of the heads, unless the task definition sets dropout_p", at_least=0, below=1)
    bert_dropout_p: float = flag(0.1, "dropout of the encoder", at_least=0, below=1)
    dropout_w: float = flag(
        0.0, "share of the tokens of training examples that are replaced by the unknown token", at_least=0, below=1
    )
    vb_dropout: bool = flag(
        True,
        "drop the same entries of all tokens of an example in the heads; --vb_dropout alone switches it off",
        const=False,
    )
    seed: int = flag(2018, "random seed: same seed, same results", at_least=0)
    log_per_updates: int = flag(
        0, "updates between two reports in the log and the curves; 0: about 50 reports a run", at_least=0
    )
    save_per_updates: int = flag(10000, "updates between two checkpoints, with --save_per_updates_on", at_least=1)
    save_per_updates_on: bool = flag(False, "also save checkpoints within an epoch")
    keep_last: int = flag(0, "keep only the N newest checkpoints and the best epoch's; 0: keep all", at_least=0)
    max_skipped: int = flag(
        10,
        "stop after N updates in a row with a loss or gradient that is not finite; such updates are skipped",
        at_least=1,
    )
    output_dir: str = flag("checkpoint", "folder for checkpoints, scores and results")
    save_hf: str | None = flag(
        None, "new folder for the best model in transformers' format; several tasks get a subfolder each"
    )
    push_to_hub: str | None = flag(
        None, "upload the folder of --save_hf to this repository of the Hugging Face Hub, USER/NAME"
    )
    hub_private: bool = flag(False, "make a new repository of --push_to_hub private")
    resume: bool = flag(
        False, "go on with a run that was interrupted, or train a finished one further with a larger --epochs"
    )
    model_ckpt: str | None = flag(None, "checkpoint to resume from", shown="the newest in --output_dir")
    early_stop: int = flag(0, "stop after N epochs in which the best metric does not improve; 0: never", at_least=0)
    best_metric: str | None = flag(
        None,
        "metric that chooses the best epoch, such as ACC or DATASET:ACC",
        shown="the first metric of each task, averaged over the development sets",
    )
    fp16: bool = flag(False, "mixed precision with float16; needs a GPU")
    bf16: bool = flag(False, "mixed precision with bfloat16")
    cpu_linear: str = flag(
        "auto",
        "library for linear layers on the CPU; auto: onednn on AMD processors with full AVX-512 (Zen 5), otherwise mkl",
        choices=("auto", "mkl", "onednn"),
    )
    grad_checkpointing: bool = flag(
        False, "recompute the inside of each encoder layer in the backward pass: less memory, slower"
    )
    compile: bool = flag(
        False,
        "compile the encoder's layers with torch.compile: for GPUs and long runs; takes minutes to start and needs a "
        "C++ compiler",
    )
    fsdp: bool = flag(
        False,
        "shard parameters, gradients and the optimizer's state over the processes, for encoders that do not fit one "
        "device; needs several processes",
    )
    fp16_opt_level: str = flag("O1", "apex level", notice="no use any more: --fp16 is torch's own mixed precision")
    transformer_cache: str = flag(".cache", "folder for downloaded encoders")
    encode_mode: bool = flag(
        False, "do not train: write the encoder's output for each test dataset to DATASET_encoding.pt"
    )
    dry_run: bool = flag(
        False,
        "do not train: check data and model, try the largest batch and a checkpoint, and estimate the run's time, "
        "memory and disk; leaves no file but caches",
    )
    debug: bool = flag(False, "debug", notice="no use any more: --log_per_updates 1 logs every update")

    def __post_init__(self) -> None:
        check_flags(self)
        if self.fp16 and self.bf16:
            raise FlagError("--fp16 and --bf16: found both, accepted: one of them")
        if self.fsdp:
            self._check_fsdp()
        if self.dry_run and self.encode_mode:
            raise FlagError("--dry_run and --encode_mode: found both, accepted: one of them; each trains nothing")
        if self.push_to_hub is not None and self.save_hf is None:
            raise FlagError("--push_to_hub: needs --save_hf, the folder that is uploaded")
        if self.compile and self.cpu_linear == "onednn":
            raise FlagError(
                "--compile and --cpu_linear onednn: found both, accepted: one of them; compiled, such layers fit one "
                "width of batches alone"
            )

    def _check_fsdp(self) -> None:
        """Check that sharded parameters do what the other flags ask.

        Raises:
            FlagError: they do not.
        """
        instead = {
            "fp16": "--bf16, or neither",
            "compile": "one of them",
            "encode_mode": "one of them; --encode_mode trains nothing",
            "save_hf": "one of them; after the run, python -m mt_dnn.export.export writes its checkpoint",
        }
        for name, accepted in instead.items():
            if getattr(self, name):
                raise FlagError(f"--fsdp and --{name}: found both, accepted: {accepted}")
