"""Flags, their checks, presets, notices, and the flat form in checkpoints."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from data_utils.errors import FlagError, run_command_line
from mt_dnn.configuration.adversarial_config import AdversarialConfig
from mt_dnn.configuration.config import GROUPS, Config, parse_args
from mt_dnn.configuration.flags import flag, flags_of, plain_text
from mt_dnn.configuration.help_groups import help_groups

# flag of MT-DNN: (text on its command line, value here, MT-DNN's default); None as text: a switch given alone
DATA_FLAGS = {
    "data_dir": ("elsewhere", "elsewhere", ...),
    "task_def": ("my.yml", "my.yml", "experiments/glue/glue_task_def.yml"),
    "train_datasets": ("mnli,cola", ("mnli", "cola"), ("mnli",)),
    "test_datasets": ("cola, rte", ("cola", "rte"), ("mnli_matched", "mnli_mismatched")),
    "glue_format_on": (None, True, False),
    "mkd_opt": ("1", 1, 0),
    "do_padding": (None, True, False),
    "tokenizer": ("bert-base-cased", "bert-base-cased", None),
    "dataloader_num_workers": ("0", 0, 2),
    "log_file": ("a.log", "a.log", "mt-dnn-train.log"),
    "tensorboard": (None, True, False),
    "tensorboard_logdir": ("tb", "tb", "tensorboard_logdir"),
    "data_sort_on": (None, True, False),
    "name": ("run", "run", "farmer"),
}
MODEL_FLAGS = {
    "init_checkpoint": ("embedded-minilm", "embedded-minilm", None),
    "update_bert_opt": ("1", 1, 0),
    "multi_gpu_on": (None, True, False),
    "mem_cum_type": ("mlp", "mlp", "simple"),
    "answer_num_turn": ("3", 3, 5),
    "answer_mem_drop_p": ("0.2", 0.2, 0.1),
    "answer_att_hidden_size": ("64", 64, 128),
    "answer_att_type": ("simple", "simple", "bilinear"),
    "answer_rnn_type": ("lstm", "lstm", "gru"),
    "answer_sum_att_type": ("dot", "dot", "bilinear"),
    "answer_merge_opt": ("0", 0, 1),
    "answer_mem_type": ("0", 0, 1),
    "max_answer_len": ("20", 20, 10),
    "answer_dropout_p": ("0.3", 0.3, 0.1),
    "answer_weight_norm_on": (None, True, False),
    "dump_state_on": (None, True, False),
    "answer_opt": ("0", 0, 1),
    "pooler_actf": ("relu", "relu", "tanh"),
    "mtl_opt": ("1", 1, 0),
    "ratio": ("0.4", 0.4, 0),
    "mix_opt": ("1", 1, 0),
    "max_seq_len": ("128", 128, 512),
    "init_ratio": ("0.5", 0.5, 1),
    "encoder_type": ("2", 2, 1),
    "num_hidden_layers": ("3", 3, -1),
    "bert_model_type": ("roberta-base", "roberta-base", "bert-base-uncased"),
    "do_lower_case": (None, True, False),
    "masked_lm_prob": ("0.2", 0.2, 0.15),
    "short_seq_prob": ("0.3", 0.3, 0.2),
    "max_predictions_per_seq": ("64", 64, 128),
    "bin_on": (None, True, False),
    "bin_size": ("32", 32, 64),
    "bin_grow_ratio": ("0.4", 0.4, 0.5),
    "local_rank": ("0", 0, -1),
    "world_size": ("2", 2, 1),
    "master_addr": ("host", "host", "localhost"),
    "master_port": ("7000", "7000", "6600"),
    "backend": ("gloo", "gloo", "nccl"),
}
TRAINING_FLAGS = {
    "cuda": ("false", False, ...),
    "log_per_updates": ("500", 500, 0),  # MT-DNN's 500 is accepted; left out: about 50 reports a run
    "save_per_updates": ("20", 20, 10000),
    "save_per_updates_on": (None, True, False),
    "epochs": ("2", 2, 5),
    "batch_size": ("16", 16, 8),
    "batch_size_eval": ("32", 32, ...),  # left out: a number of tokens
    "optimizer": ("sgd", "sgd", "adamax"),
    "grad_clipping": ("0.5", 0.5, 0),
    "global_grad_clipping": ("2", 2.0, 1.0),
    "weight_decay": ("0", 0.0, 0.01),
    "learning_rate": ("1e-4", 1e-4, 5e-5),
    "momentum": ("0.9", 0.9, 0),
    "warmup": ("0", 0.0, 0.1),
    "warmup_schedule": ("warmup_cosine", "warmup_cosine", "warmup_linear"),
    "adam_eps": ("1e-8", 1e-8, 1e-6),
    "vb_dropout": (None, False, True),
    "dropout_p": ("0.2", 0.2, 0.1),
    "dropout_w": ("0.1", 0.1, 0.0),
    "bert_dropout_p": ("0", 0.0, 0.1),
    "model_ckpt": ("m.pt", "m.pt", ...),
    "resume": (None, True, False),
    "scheduler_type": ("3", 3, 0),
    "output_dir": ("out", "out", "checkpoint"),
    "seed": ("1", 1, 2018),
    "grad_accumulation_step": ("4", 4, 1),
    "fp16": (None, True, False),
    "fp16_opt_level": ("O2", "O2", "O1"),
    "encode_mode": (None, True, False),
    "debug": (None, True, False),
    "transformer_cache": ("tc", "tc", ".cache"),
}
ADVERSARIAL_FLAGS = {
    "adv_train": (None, True, False),
    "adv_opt": ("1", "smart", "smart"),
    "adv_norm_level": ("1", "pre_ln", "pre_ln"),
    "adv_p_norm": ("l1", "l1", ...),
    "adv_alpha": ("3", 3.0, ...),
    "adv_k": ("2", 2, ...),
    "adv_step_size": ("1e-3", 1e-3, ...),
    "adv_noise_var": ("1e-4", 1e-4, ...),
    "adv_epsilon": ("1e-5", 1e-5, 1e-6),
}
MTDNN_FLAGS = [
    (group, name, *row)
    for group, flags in (
        ("data", DATA_FLAGS),
        ("model", MODEL_FLAGS),
        ("training", TRAINING_FLAGS),
        ("adversarial", ADVERSARIAL_FLAGS),
    )
    for name, row in flags.items()
]


@pytest.mark.parametrize(
    ("group", "name", "text", "value", "default"), MTDNN_FLAGS, ids=[row[1] for row in MTDNN_FLAGS]
)
def test_every_flag_of_mtdnn_is_accepted_with_its_default(group, name, text, value, default):
    found = getattr(getattr(parse_args([f"--{name}"] + ([] if text is None else [text])), group), name)
    assert found == value
    assert type(found) is type(value)
    if default is not ...:
        assert getattr(getattr(parse_args([]), group), name) == default


def test_one_command_line_with_every_flag_of_mtdnn():
    argv = [
        word for _, name, text, *_ in MTDNN_FLAGS for word in ([f"--{name}"] if text is None else [f"--{name}", text])
    ]
    config = parse_args(argv)
    for group, name, _, value, _ in MTDNN_FLAGS:
        assert getattr(getattr(config, group), name) == value


def test_flag_names_are_unique_over_the_groups():
    names = [name for group in GROUPS.values() for name in flags_of(group)]
    assert len(names) == len(set(names))
    assert all(len(flags_of(group)) == len(dataclasses.fields(group)) for group in GROUPS.values())


def test_both_spellings_of_datasets_and_equals_signs():
    config = parse_args(["--train_dataset", "cola", "--test_dataset=cola,stsb"])
    assert config.data.train_datasets == ("cola",)
    assert config.data.test_datasets == ("cola", "stsb")


def test_the_projects_own_command_line():
    config = parse_args(
        ["--task_def", "experiments/glue/glue_task_def.yml", "--adv_train", "--adv_norm_level", "post_ln"]
    )
    assert config.adversarial.adv_train
    assert config.adversarial.adv_norm_level == "post_ln"
    assert config.notices == ()


def test_a_switch_takes_a_value_too():
    assert parse_args(["--fp16", "false", "--cuda"]).training.fp16 is False
    assert parse_args(["--cuda", "True"]).training.cuda is True
    assert parse_args([]).training.cuda is None
    preset = ["--adv_preset", "deberta_release"]
    assert parse_args(preset).adversarial.adv_noise_clamp is True
    assert parse_args([*preset, "--adv_noise_clamp", "false"]).adversarial.adv_noise_clamp is False


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--lerning_rate 1", "unknown flag --lerning_rate (did you mean '--learning_rate'?)"),
        ("--adv_radios=1", "unknown flag --adv_radios (did you mean '--adv_radius'?)"),
        ("--epochs x", "--epochs: found 'x', accepted: an integer, at least 1"),
        ("--epochs 0", "--epochs: found '0', accepted: an integer, at least 1"),
        ("--epochs", "--epochs: expected one argument"),
        ("--batch_size 0", "--batch_size: found '0'"),
        ("--batch_size 1.5", "--batch_size: found '1.5', accepted: an integer"),
        ("--warmup 1", "--warmup: found '1.0', accepted: a number, at least 0, below 1"),
        ("--warmup -0.1", "--warmup: found '-0.1'"),
        ("--dropout_p 1", "--dropout_p"),
        ("--bert_dropout_p nan", "--bert_dropout_p: found 'nan'"),
        ("--learning_rate 0", "--learning_rate: found '0.0', accepted: a number, above 0, below 1e+36"),
        ("--learning_rate inf", "--learning_rate: found 'inf'"),
        ("--learning_rate 1e38", "--learning_rate: found '1e+38'"),
        ("--weight_decay -1", "--weight_decay: found '-1.0'"),
        ("--scheduler_type 4", "--scheduler_type: found '4', accepted: 0, 1, 2, 3"),
        ("--optimizer adamx", "accepted: adamax, adamw, adam, sgd, adadelta (did you mean 'adamax'?)"),
        ("--cuda perhaps", "--cuda: found 'perhaps', accepted: true or false"),
        ("--num_hidden_layers 0", "--num_hidden_layers"),
        ("--num_hidden_layers -2", "--num_hidden_layers: found '-2'"),
        ("--train_datasets ,", "--train_datasets: found ''"),
        ("--test_datasets cola,rte,cola", "--test_datasets: found cola more than once"),
        ("--fp16 --bf16", "--fp16 and --bf16: found both"),
        ("--seed -1", "--seed"),
        ("--adv_opt smort", "alum, freelb, r3f, neftune (did you mean 'smart'?)"),
        ("--adv_norm_level postln", "accepted: pre_ln, post_ln, deberta, hidden:N (did you mean 'post_ln'?)"),
        ("--adv_norm_level hidden:x", "accepted: pre_ln, post_ln, deberta, hidden:N"),
        ("--adv_norm_level hidden:1,2", "found 'hidden:1,2', accepted: pre_ln, post_ln, deberta, hidden:N"),
        (
            "--adv_norm_level hidden:1,hidden:1",
            "level is 'hidden:1,hidden:1', which names a place twice; accepted: dif",
        ),
        (
            "--adv_train --adv_norm_level hidden:1 --compile",
            "--compile: compiled layers take no noise at --adv_norm_level hidden:1; accepted: pre_ln, post_ln, deberta",
        ),
        (
            "--adv_train --adv_norm_level pre_ln,hidden:1 --compile",
            "--compile: compiled layers take no noise at --adv_norm_level pre_ln,hidden:1; accepted: pre_ln, post_ln",
        ),
        (
            "--adv_train --adv_norm_level pre_ln,hidden:1 --adv_free",
            "--adv_free: found --adv_norm_level pre_ln,hidden:1, accepted: one place",
        ),
        ("--adv_norm_level 2", "--adv_norm_level: found '2'"),
        ("--adv_preset smart", "--adv_preset: found 'smart', accepted: smart_paper"),
        ("--adv_p_norm l3", "--adv_p_norm: found 'l3', accepted: inf, l2, l1"),
        ("--adv_k -1", "--adv_k: found '-1'"),
        ("--adv_alpha -1", "--adv_alpha: found '-1.0'"),
        ("--adv_step_size nan", "--adv_step_size: found 'nan'"),
        ("--adv_noise_var -1", "--adv_noise_var: found '-1.0'"),
        ("--adv_radius 0", "--adv_radius: found '0.0', accepted: a number, above 0"),
        ("--adv_projection normalize", "--adv_projection normalize: no meaning with --adv_scale relative"),
        ("--adv_projection normalize --adv_scale absolute --adv_p_norm l1", "no meaning with --adv_p_norm l1"),
        ("--adv_preset deberta_release --adv_projection project", "needs --adv_radius"),
        ("--adv_preset mtdnn_release --adv_radius 1", "--adv_radius: no meaning with --adv_projection normalize"),
        ("--adv", "ambiguous option: --adv could match"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(line, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command_line(lambda: parse_args(line.split()))
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert expected in printed
    assert printed.count("\n") == 1


def test_help_shows_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_args(["--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(f"--{name} " in printed for group in GROUPS.values() for name in flags_of(group))


def test_help_begins_with_what_people_need_and_ends_with_what_has_no_use(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    printed = capsys.readouterr().out
    order = re.findall(r"^  --(\w+)", printed, re.M)
    first = "task_def data_dir train_datasets test_datasets init_checkpoint output_dir epochs batch_size learning_rate"
    assert order[:15] == [*first.split(), "adv_train", "adv_norm_level", "adv_opt", "save_hf", "resume", "config"]
    unused = {name for group in GROUPS.values() for name, spec in flags_of(group).items() if spec.notice}
    assert len(unused) > 10 and set(order[-len(unused) :]) == unused
    assert sorted(order) == sorted({"config", *(name for group in GROUPS.values() for name in flags_of(group))})


def test_a_flag_without_a_subject_in_the_help_is_named():
    @dataclasses.dataclass
    class More:
        colour: str = flag("red", "colour of the noise")

    with pytest.raises(KeyError, match="no subject in help_groups.py for colour"):
        help_groups([*GROUPS.values(), More])


@pytest.mark.parametrize("method", ["random", "at", "vat", "smart", "alum", "freelb", "r3f"])
def test_help_has_the_defaults_of_each_method(method, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    found = parse_args(["--adv_train", "--adv_opt", method]).adversarial
    names = "radius step_size noise_var k alpha p_norm norm_scope scale projection noise start_ratio epsilon"
    for name in names.split():
        usual, *others = re.search(rf"--adv_{name} [^(]*\(default: ([^)]*)\)", shown)[1].split("; ")
        own = [other.split(" for ")[0] for other in others if method in other.split(" for ")[1].split(", ")]
        assert (own or [usual])[0] == plain_text(getattr(found, f"adv_{name}")), name


def test_flags_without_effect_are_named_only_where_given():
    assert parse_args(["--epochs", "3"]).notices == ()
    notices = parse_args(
        ["--fp16_opt_level", "O1", "--epochs", "3", "--multi_gpu_on", "--answer_sum_att_type", "simple"]
    ).notices
    assert [notice.split(":")[0] for notice in notices] == [
        "--fp16_opt_level",
        "--multi_gpu_on",
        "--answer_sum_att_type",
    ]
    assert "torchrun" in notices[1]
    assert all("\n" not in notice for notice in notices)


def test_notices_of_flags_that_need_another():
    assert parse_args(["--model_ckpt", "a.pt"]).notices == ("--model_ckpt: no effect without --resume",)
    assert parse_args(["--model_ckpt", "a.pt", "--resume"]).notices == ()
    assert parse_args(["--adv_k", "2", "--adv_alpha", "1"]).notices == (
        "--adv_k, --adv_alpha: no effect without --adv_train",
    )
    given = ["--adv_train", "--adv_epsilon", "1e-5", "--adv_free_budget", "2"]
    assert parse_args(given).notices == (
        "--adv_epsilon: no effect without --adv_projection normalize",
        "--adv_free_budget: no effect without --adv_free",
    )
    assert parse_args([*given, "--adv_free"]).notices[1:] == ()
    assert parse_args([*given[:3], "--adv_preset", "mtdnn_release"]).notices == ()


def test_encoder_and_data_folder():
    assert parse_args([]).encoder == "bert-base-uncased"
    assert parse_args([]).data_dir == "data/canonical_data/bert-base-uncased"
    config = parse_args(["--init_checkpoint", "microsoft/deberta-v3-base"])
    assert (config.encoder, config.data_dir) == ("microsoft/deberta-v3-base", "data/canonical_data/deberta-v3-base")
    checkpoint = parse_args(["--init_checkpoint", "old/model_0.pt", "--bert_model_type", "roberta-base"])
    assert (checkpoint.encoder, checkpoint.data_dir) == ("old/model_0.pt", "data/canonical_data/roberta-base")
    assert parse_args(["--data_dir", "d"]).data_dir == "d"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--train_datasets cola,rte --epochs 2 --cuda false --adv_train --adv_norm_level deberta --adv_radius 0.2",
        "--adv_train --adv_preset deberta_release --adv_k 3 --name x",
        "--adv_train --adv_projection none",
    ],
)
def test_flat_form_and_back(line):
    config = parse_args(line.split())
    flat = config.to_flat()
    assert json.loads(json.dumps(flat)) == flat
    assert Config.from_flat(flat | {"vocab_size": 200, "task_def_list": [object()]}) == config


def test_flat_form_of_a_checkpoint_of_mtdnn():
    flat = {"train_datasets": ["cola", "mnli"], "num_hidden_layers": 2, "vb_dropout": True, "learning_rate": 0.01}
    flat |= {"adv_opt": 0, "adv_norm_level": 0, "adv_p_norm": "inf", "adv_alpha": 1, "adv_k": 1, "adv_step_size": 1e-5}
    config = Config.from_flat(flat | {"adv_noise_var": 1e-5, "adv_epsilon": 1e-6, "hidden_size": 16})
    assert config.data.train_datasets == ("cola", "mnli")
    assert config.model.num_hidden_layers == 2
    assert config.adversarial == AdversarialConfig(adv_preset="mtdnn_release")


def test_from_flags_is_parse_args_without_text():
    assert Config.from_flags({"epochs": 2, "adv_norm_level": "post_ln"}) == parse_args(
        ["--epochs", "2", "--adv_norm_level", "post_ln"]
    )
    with pytest.raises(FlagError, match="unknown flag --epoch;"):
        Config.from_flags({"epoch": 2})
    with pytest.raises(FlagError, match="--epochs: found 'two'"):
        Config.from_flags({"epochs": "two"})
    with pytest.raises(FlagError, match="--epochs: found 'true'"):
        Config.from_flags({"epochs": True})


def test_the_configuration_is_frozen():
    config = parse_args([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.epochs = 9


def test_tokens_win_over_a_batch_size_and_padding_to_a_fixed_length_contradicts_them():
    both = parse_args(["--max_tokens_per_batch", "500", "--batch_size", "4"])
    line = "--batch_size: no effect with --max_tokens_per_batch, which bounds a batch by its tokens"
    assert both.notices == (line,)
    assert parse_args(["--max_tokens_per_batch", "500"]).notices == parse_args(["--batch_size", "4"]).notices == ()
    with pytest.raises(FlagError, match="--do_padding and --max_tokens_per_batch: found both"):
        parse_args(["--max_tokens_per_batch", "500", "--do_padding"])
