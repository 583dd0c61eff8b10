"""Three of a run's four groups of flags: what is read, the model, the training; the noise is `adversarial_config.py`.

Names and defaults are MT-DNN's where MT-DNN has the flag.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_utils.errors import FlagError
from data_utils.task_def import INTERNAL_ENCODERS, EncoderModelType
from mt_dnn.configuration.flags import check_flags, flag

CANONICAL_DATA = "data/canonical_data"

SAN_ATTENTIONS = ("bilinear", "simple", "flatsim", "default", "defualt")  # the last as MT-DNN's help spells it
SAN_CELLS = ("gru", "lstm", "rnn")
LENGTH_GROUPS = "no use any more: batches are grouped by length, --no_group_by_length switches that off"
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
        None, "encoder: hub name, local folder, embedded-minilm or -mpnet, MT-DNN checkpoint", shown="--bert_model_type"
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
        None,
        "weights of classes, or of several labels' positives, in the loss: balanced, or a number each, in their order",
    )
    optimizer: str = flag("adamax", "optimizer", choices=("adamax", "adamw", "adam", "sgd", "adadelta"))
    learning_rate: float = flag(5e-5, "peak learning rate", above=0, below=1e36)
    weight_decay: float = flag(0.01, "weight decay; none on biases and normalizations", at_least=0, below=1e36)
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
        "library of linear layers on the CPU; auto: onednn on AMD processors with AVX-512, else mkl",
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
