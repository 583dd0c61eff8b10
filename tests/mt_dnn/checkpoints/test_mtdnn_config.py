"""What a checkpoint's `config` says to MT-DNN, and what MT-DNN's says here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

from data_utils.errors import DataError
from data_utils.task_def import EncoderModelType
from mt_dnn.checkpoints.build import restore_network
from mt_dnn.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from mt_dnn.checkpoints.mtdnn_config import GROUPS, MTDNN_FLAGS, to_mtdnn
from mt_dnn.configuration.config import Config
from mt_dnn.configuration.flags import flags_of
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.model import MTDNNModel
from mt_dnn.training.trainer import Trainer
from tasks.definition import TaskDefs
from tests import mtdnn_reader
from tests.encoders import tiny_encoder
from tests.mt_dnn.runs import RUN, SIFT, SMART, TASK_DEF, tiny_config

THEIRS = RUN / "model_0.pt"
RUNS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "adamax": ("--optimizer", "adamax", "--weight_decay", "0"),
    "sgd": ("--optimizer", "sgd", "--momentum", "0.9", "--scheduler_type", "3"),
    "smart": SMART,
    "sift": SIFT,
    "deberta": ("--adv_train", "--adv_preset", "deberta_release"),
    "smart_paper": ("--adv_train", "--adv_preset", "smart_paper", "--bregman_beta", "0.9"),
    "sentences": (*SIFT, "--adv_norm_scope", "sentence", "--adv_p_norm", "l2", "--adv_radius", "0.1"),
    "no ball": (*SMART, "--adv_projection", "none"),
    "free": (*SIFT, "--adv_free", "--bregman_mu", "1"),
    **{method: (*SMART, "--adv_opt", method) for method in ("random", "at", "vat", "alum", "freelb", "r3f")},
    "many flags": (
        *("--bf16", "--max_tokens_per_batch", "60", "--keep_last", "2", "--early_stop", "3", "--num_beams", "2"),
        *("--dropout_p", "0", "--grad_checkpointing", "--cuda", "false", "--batch_size_eval", "3"),
        *("--best_metric", "cola:ACC"),
    ),
    "fewer layers": ("--num_hidden_layers", "1"),
}  # fmt: skip


def written(folder: Path, *flags: str) -> Path:
    """A run's checkpoint before its first update."""
    Trainer(tiny_config(folder, *flags)).checkpoints.save("model_0.pt", 0, 0)
    return folder / "model_0.pt"


# what MT-DNN reads of this project's


def test_the_flags_are_mtdnns() -> None:
    assert set(mtdnn_reader.FLAGS) == MTDNN_FLAGS
    assert {name for group in GROUPS.values() for name in flags_of(group)} >= MTDNN_FLAGS


@pytest.mark.parametrize("run", RUNS)
def test_mtdnn_can_use_what_it_reads(run: str, tmp_path: Path) -> None:
    path = written(tmp_path, *RUNS[run])
    flags, content = mtdnn_reader.read(path)
    assert mtdnn_reader.wrong_flags(flags) == {}
    assert mtdnn_reader.wrong_definitions(flags["task_def_list"]) == []
    of_encoder = BertConfig().to_dict().keys()
    assert content["config"].keys() - of_encoder == mtdnn_reader.FLAGS.keys() - of_encoder | {"task_def_list"}
    shapes = {name: tensor.shape for name, tensor in content["state"].items()}
    assert shapes == mtdnn_reader.parameters_of(flags)
    assert flags["bert_model_type"] == "bert-base-uncased" and flags["encoder_type"] == 1


@pytest.mark.parametrize("run", RUNS)
def test_what_mtdnn_does_not_know_is_read_here(run: str, tmp_path: Path) -> None:
    path, config = written(tmp_path, *RUNS[run]), tiny_config(tmp_path, *RUNS[run])
    flat = load_checkpoint(path)["config"]
    layers = {"num_hidden_layers": config.model.num_hidden_layers}  # the encoder's own number stands there
    assert Config.from_flat(flat | layers) == config
    assert flat["hidden_size"] == 16 and flat["num_hidden_layers"] == (1 if run == "fewer layers" else 2)


def test_a_regularizer_is_mtdnns_only_where_mtdnn_has_it(tmp_path: Path) -> None:
    sift, _ = mtdnn_reader.read(written(tmp_path / "sift", *SIFT))
    plain, _ = mtdnn_reader.read(written(tmp_path / "plain"))
    noise = {name for name in mtdnn_reader.FLAGS if name.startswith("adv_")}
    assert {name: sift[name] for name in noise} == {name: mtdnn_reader.FLAGS[name][1] for name in noise}
    assert {name: plain[name] for name in noise} == {name: mtdnn_reader.FLAGS[name][1] for name in noise}
    release = ("--adv_train", "--adv_preset", "mtdnn_release", "--adv_alpha", "2", "--adv_norm_level", "1")
    theirs, _ = mtdnn_reader.read(written(tmp_path / "release", *release))
    found = (theirs["adv_train"], theirs["adv_opt"], theirs["adv_norm_level"], theirs["adv_alpha"])
    assert found == (True, 0, 1, 2.0) and theirs["adv_step_size"] == 1e-5


def test_the_names_are_those_that_mtdnn_uses(tmp_path: Path) -> None:
    flags, content = mtdnn_reader.read(written(tmp_path, "--optimizer", "adamw"))
    assert flags["optimizer"] == "adam"  # its AdamW
    assert flags["init_checkpoint"] == str(RUN / "tiny") and flags["data_dir"] == str(RUN / "tinydata")
    assert [task_def.dropout_p for task_def in flags["task_def_list"]] == [0.05, 0.1, 0.1]
    assert load_checkpoint(tmp_path / "model_0.pt")["config"]["optimizer"] == "adamw"
    assert len(content["optimizer"]["param_groups"]) == 2


def test_what_a_command_line_leaves_out_has_a_value() -> None:
    """MT-DNN's flags are texts and numbers, where this project's may be empty."""
    task_def = TaskDefs(TASK_DEF).get_task_def("cola")
    network = SANBertNetwork({"task_def_list": [task_def]}, tiny_encoder("bert", dtype=torch.float32))
    found = to_mtdnn(Config(), network, cuda=False)
    assert mtdnn_reader.wrong_flags(found) == {}
    assert found["log_per_updates"] == 500  # MT-DNN divides by it
    assert (found["init_checkpoint"], found["data_dir"]) == ("bert-base-uncased", Config().data_dir)


def test_mtdnn_does_not_resume_by_reading(tmp_path: Path) -> None:
    """Its flags are overwritten before it looks at --resume."""
    first = written(tmp_path / "first")
    trainer = Trainer(tiny_config(tmp_path / "second", "--resume", "--model_ckpt", str(first)))
    trainer.checkpoints.resume()
    trainer.checkpoints.save("model_0.pt", 0, 0)
    flags, _ = mtdnn_reader.read(tmp_path / "second" / "model_0.pt")
    assert (flags["resume"], flags["model_ckpt"]) == (False, mtdnn_reader.FLAGS["model_ckpt"][1])
    assert load_checkpoint(tmp_path / "second" / "model_0.pt")["config"]["model_ckpt"] == str(first)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "deberta"])
def test_the_encoder_type_is_that_of_the_encoder(family: str, tmp_path: Path) -> None:
    encoder = tiny_encoder(family, dtype=torch.float32)
    task_def = TaskDefs(TASK_DEF).get_task_def("cola")
    network = SANBertNetwork({"task_def_list": [task_def]}, encoder)
    MTDNNModel(tiny_config(tmp_path), [task_def], network=network).save(str(tmp_path / "model_0.pt"))
    flags, content = mtdnn_reader.read(tmp_path / "model_0.pt")
    assert flags["encoder_type"] == EncoderModelType[family.upper()] and type(flags["encoder_type"]) is int
    shapes = {name: tensor.shape for name, tensor in content["state"].items()}
    assert shapes == mtdnn_reader.parameters_of(flags)
    assert load_checkpoint(tmp_path / "model_0.pt")["config"]["encoder_type"] == 1


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("data_format: Seqence, task_type: SeqenceLabeling, dropout_p: 0.1", {"1.weight", "1.bias"}),
        ("data_format: Seqence, task_type: SeqenceLabeling, dropout_p: 0", {"weight", "bias"}),
        ("data_format: MRC, task_type: SpanClassification, dropout_p: 0.1", {"1.weight", "1.bias"}),
    ],
)
def test_heads_over_tokens_have_mtdnns_names(entry: str, names: set[str], tmp_path: Path) -> None:
    entry = entry.replace("MRC", "PremiseAndOneHypothesis")
    metric = "EmF1" if "Span" in entry else "ACC"
    (tmp_path / "tasks.yml").write_text(f"own: {{{entry}, n_class: 2, metric_meta: [{metric}]}}\n")
    task_def = TaskDefs(tmp_path / "tasks.yml").get_task_def("own")
    network = SANBertNetwork({"task_def_list": [task_def]}, tiny_encoder("bert", dtype=torch.float32))
    found = {name for name in network.state_dict() if name.startswith("scoring_list")}
    assert found == {f"scoring_list.0.{name}" for name in names}


# what this project reads of MT-DNN's


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """MT-DNN's checkpoint with another `config`."""
    content = torch.load(THEIRS, weights_only=False)
    change(content["config"])
    torch.save(content, path)
    return path


ACCEPTED_BY_MTDNN = [
    ("encoder_type", EncoderModelType.ROBERTA), ("encoder_type", EncoderModelType.BERT), ("mem_cum_type", "bilinear"),
    ("answer_att_type", "dot"), ("answer_att_type", "Bilinear"), ("answer_rnn_type", "GRU"), ("answer_mem_type", 2),
    ("answer_merge_opt", 3), ("answer_opt", 0), ("answer_opt", 2), ("answer_dropout_p", 1.0), ("adv_opt", 1),
    ("adv_opt", 5), ("adv_norm_level", 1), ("adv_norm_level", 3), ("adv_p_norm", "l1"), ("adv_p_norm", "L2"),
    ("adv_epsilon", 0.0), ("adv_alpha", -1.0), ("adv_k", -1), ("adv_step_size", float("inf")), ("mix_opt", 2),
    ("mix_opt", -1), ("mkd_opt", -1), ("update_bert_opt", -1), ("ratio", -1.0), ("scheduler_type", 7), ("warmup", 1.0),
    ("warmup", -1.0), ("dropout_p", 1.0), ("bert_dropout_p", 1.0), ("learning_rate", 0.0), ("masked_lm_prob", 0.0),
    ("short_seq_prob", 1.0), ("max_predictions_per_seq", 0), ("grad_clipping", -1.0), ("global_grad_clipping", -1.0),
    ("weight_decay", -0.1), ("momentum", 1.0), ("adam_eps", 0.0), ("seed", -1), ("batch_size_eval", 0),
    ("save_per_updates", 0), ("dataloader_num_workers", -1), ("max_answer_len", 0), ("cuda", True),
    ("tokenizer", "bert-base-uncased"), ("train_datasets", ["cola", "mnli", "mnli", "stsb"]),
    ("test_datasets", ["cola", "cola"]), ("test_datasets", [""]), ("rank", 0), ("optimizer", "adam"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ACCEPTED_BY_MTDNN)
def test_a_value_that_mtdnn_accepts_does_not_hinder_reading(name: str, value: object, tmp_path: Path) -> None:
    path = changed(tmp_path / "model_0.pt", lambda config: config.update({name: value}))
    network, flat = restore_network(str(path))
    expected, _ = restore_network(str(THEIRS))
    ids = torch.tensor([[2, 20, 30, 3]])
    assert torch.equal(network.eval()(ids), expected.eval()(ids))
    Config.from_flat(flat)  # as an export does
    assert not any(type(value) is EncoderModelType for value in flat.values())


def test_a_value_gets_the_meaning_that_it_has_in_mtdnn(tmp_path: Path) -> None:
    given = {"mem_cum_type": "linear", "answer_att_type": "other", "answer_rnn_type": "LSTM", "answer_mem_type": 0}
    given |= {"answer_merge_opt": 2, "adv_norm_level": 5, "mix_opt": 3, "scheduler_type": 9, "ratio": 0.5}
    flat = load_checkpoint(changed(tmp_path / "model_0.pt", lambda config: config.update(given)))["config"]
    found = [flat.get(name) for name in given]
    assert found == ["simple", "default", "lstm", 0, 0, 1, 1, None, 0.5]


def test_a_value_that_is_not_mtdnns_is_told(tmp_path: Path) -> None:
    path = changed(tmp_path / "model_0.pt", lambda config: config.update(batch_size="many"))
    with pytest.raises(DataError, match=r"model_0.pt: describes a network that cannot be made \(--batch_size: found"):
        restore_network(str(path))


def test_a_switch_of_the_definition_may_be_a_number(tmp_path: Path) -> None:
    path = changed(tmp_path / "model_0.pt", lambda config: setattr(config["task_def_list"][0], "enable_san", 0))
    assert load_checkpoint(path)["config"]["task_def_list"][0].enable_san is False


# what this project wrote before


def as_before(path: Path) -> None:
    """The file as this project wrote it when `config` held its own flags."""
    content = torch.load(path, weights_only=False)
    task_defs = content["config"]["task_def_list"]
    content["config"] = {**content.pop("settings"), "task_def_list": task_defs}
    save_checkpoint(path, content)


def test_an_older_checkpoint_is_read_as_a_new_one(tmp_path: Path) -> None:
    path = written(tmp_path, *SIFT)
    new = load_checkpoint(path)
    as_before(path)
    assert load_checkpoint(path)["config"] == new["config"] and new["config"]["adv_norm_level"] == "post_ln"


@pytest.mark.parametrize("settings", [7, [1], "x"])
def test_settings_that_are_none_are_told(settings: object, tmp_path: Path) -> None:
    path = written(tmp_path)
    content = torch.load(path, weights_only=False)
    save_checkpoint(path, content | {"settings": settings})
    with pytest.raises(DataError, match=r"model_0.pt: is no checkpoint; settings has to be a dictionary"):
        load_checkpoint(path)
