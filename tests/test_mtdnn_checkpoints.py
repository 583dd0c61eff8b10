"""Checkpoints of MT-DNN in every command; whose a checkpoint is; the activation that MT-DNN does not apply."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

import predict
from data_utils.readers import read_score_file
from data_utils.storage.text_files import read_json_lines, write_lines
from experiments.dump_embedding import extractor
from mt_dnn.checkpoints.build import restore_network
from mt_dnn.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from mt_dnn.export import export as hf_export
from mt_dnn.training.trainer import Trainer
from tests.encoder_folder import write_encoder
from tests.faults import command
from tests.mt_dnn.checkpoints.test_mtdnn_config import as_before
from tests.mt_dnn.runs import DEFAULT_RUN, RUN, TASK_DEF, assert_same, parameters, tiny_config, tiny_run
from tests.test_faults_files import with_checkpoint

NAMES = ("cola_dev", "mnli_matched_dev", "mnli_mismatched_dev", "stsb_dev")


def scores_of(checkpoint: Path, name: str, folder: Path) -> dict[str, Any]:
    """What predict.py writes."""
    given = ["--task_def", str(TASK_DEF), "--task", name.split("_")[0], "--checkpoint", str(checkpoint), "--with_label"]
    given += ["--prep_input", str(RUN / "tinydata" / f"{name}.json"), "--score", str(folder / "scores.json")]
    predict.main(given)
    return read_score_file(folder / "scores.json")


@pytest.mark.parametrize("name", with_checkpoint(RUN, Path()))
def test_every_command_reads_the_checkpoint_of_a_run_with_default_flags(name: str, tmp_path: Path) -> None:
    main, given = with_checkpoint(DEFAULT_RUN / "model_0.pt", tmp_path)[name]
    if name == "resume":
        given += ["--train_datasets", "cola,mnli,stsb"]
    if name == "hf_export":
        given += ["--tokenizer", write_encoder(tmp_path / "tokenizer")]
    ended = command(main, given)
    if name == "hf_export":  # it was read: its head is one that BERT's class of transformers cannot hold
        assert ended.code == 2 and "the head of task cola has no activation (actf)" in ended.last
    else:
        assert ended.code == 0, ended.output


def test_it_becomes_a_folder_of_transformers_and_features(tmp_path: Path) -> None:
    main, _ = with_checkpoint(RUN, tmp_path)["strip_model"]
    ended = command(main, ["--checkpoint", DEFAULT_RUN / "model_0.pt", "--hf", tmp_path / "hf"])
    assert ended.code == 0, ended.output
    state = load_checkpoint(DEFAULT_RUN / "model_0.pt")["state"]
    assert_same(AutoModel.from_pretrained(tmp_path / "hf").state_dict(), of_encoder(state))
    (tmp_path / "texts.txt").write_text("good ||| bad\n")
    given: list[object] = ["--finput", tmp_path / "texts.txt", "--foutput", tmp_path / "features"]
    given += ["--bert_model", write_encoder(tmp_path / "tokenizer"), "--max_seq_length", 16]
    ended = command(extractor.main, [*given, "--checkpoint", DEFAULT_RUN / "model_0.pt"])
    assert ended.code == 0, ended.output
    assert len(list(read_json_lines(tmp_path / "features"))) == 1


def of_encoder(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("bert."): tensor for name, tensor in state.items() if name.startswith("bert.")}


def test_it_is_resumed_with_its_optimizer(tmp_path: Path) -> None:
    given = ("--resume", "--model_ckpt", str(DEFAULT_RUN / "model_0.pt"), "--optimizer", "adamax")
    trainer = Trainer(tiny_config(tmp_path, *given))
    assert trainer.checkpoints.resume() == (0, 0)
    ran = torch.load(DEFAULT_RUN / "model_0.pt", weights_only=False)
    assert_same(trainer.model.network.state_dict(), ran["state"])
    moments = trainer.model.optimizer.state_dict()["state"]
    assert moments.keys() == ran["optimizer"]["state"].keys()
    assert all(torch.equal(moments[key]["exp_inf"], own["exp_inf"]) for key, own in ran["optimizer"]["state"].items())


# actf


def with_actf(folder: Path, actf: str = "relu") -> Path:
    """The task definitions of the tiny run, each with an activation that its small numbers feel."""
    (folder / "tasks.yml").write_text(TASK_DEF.read_text().replace("}", f", actf: {actf}}}"))
    return folder / "tasks.yml"


def theirs_with(folder: Path, actf: str) -> Path:
    """MT-DNN's checkpoint of definitions with an activation; what MT-DNN computes is what it computes without."""
    content = torch.load(RUN / "model_0.pt", weights_only=False)
    for task_def in content["config"]["task_def_list"]:
        task_def.actf = actf
        task_def["actf"] = repr(actf)
    torch.save(content, folder / "theirs.pt")
    return folder / "theirs.pt"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return theirs_with(tmp_path, "relu")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A run of this project with such definitions."""
    tiny_run(tmp_path / "own", "--epochs", "1", "--task_def", str(with_actf(tmp_path)))
    return tmp_path / "own" / "model_0.pt"


def activations(network: Any) -> list[type[nn.Module]]:
    """Of each head."""
    return [type(head[0].activation) for head in network.scoring_list]


@pytest.mark.parametrize("name", NAMES)
def test_mtdnns_heads_are_scored_without_their_activation(
    name: str, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scores_of(theirs, name, tmp_path)
    expected = read_score_file(RUN / f"{name}_scores_epoch_0.json")
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-6)
    line = f"{theirs}: written by MT-DNN, where `actf` (relu) has no effect: its heads are used without an activation"
    assert capsys.readouterr().out.count(line) == 1


def test_heads_of_this_project_are_scored_with_it(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for written in (lambda path: None, as_before):
        written(own)
        capsys.readouterr()
        found = scores_of(own, "cola_dev", tmp_path)
        expected = read_score_file(own.parent / "cola_dev_scores_epoch_0.json")
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-6)
        assert "MT-DNN" not in capsys.readouterr().out
    network, _ = restore_network(str(own))
    assert activations(network) == [nn.ReLU] * 3
    bare = load_checkpoint(own)
    del bare["progress"]
    save_checkpoint(tmp_path / "bare.pt", bare)
    without = scores_of(tmp_path / "bare.pt", "cola_dev", tmp_path)["scores"]
    assert max(abs(a - b) for a, b in zip(without, found["scores"], strict=True)) > 1e-3


def test_a_checkpoint_that_mtdnn_wrote_after_one_of_this_project_is_mtdnns(own: Path, tmp_path: Path) -> None:
    """It takes over every key of `config`, whatever it is, and writes three keys."""
    for written in (lambda path: None, as_before):
        written(own)
        content = torch.load(own, weights_only=False)
        torch.save({name: content[name] for name in ("state", "optimizer", "config")}, tmp_path / "theirs.pt")
        network, _ = restore_network(str(tmp_path / "theirs.pt"))
        assert activations(network) == [nn.Identity] * 3


def test_a_resume_from_mtdnns_keeps_heads_without_activation(theirs: Path, tmp_path: Path) -> None:
    given = ("--task_def", str(with_actf(tmp_path)), "--epochs", "1", "--resume", "--model_ckpt")
    trainer = Trainer(tiny_config(tmp_path / "run", *given, str(theirs)))
    trainer.run()
    log = (tmp_path / "run" / "log.txt").read_text()
    for task in ("cola", "mnli", "stsb"):
        line = f"--resume: the head of task {task} was trained with the activation none and keeps it; `actf: relu` in"
        assert log.count(line) == 1
    assert activations(trainer.model.network) == [nn.Identity] * 3
    written = load_checkpoint(tmp_path / "run" / "model_0.pt")
    assert [task_def.actf for task_def in written["config"]["task_def_list"]] == [None] * 3
    again = Trainer(tiny_config(tmp_path / "again", *given, str(tmp_path / "run" / "model_0.pt")))
    assert activations(again.model.network) == [nn.Identity] * 3
    found = scores_of(tmp_path / "run" / "model_0.pt", "cola_dev", tmp_path)["scores"]
    assert found == pytest.approx(
        read_score_file(tmp_path / "run" / "cola_dev_scores_epoch_0.json")["scores"], abs=1e-6
    )


def test_a_resume_of_an_own_run_keeps_its_activation(own: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "own", "--epochs", "2", "--resume")  # its definitions have none
    assert activations(Trainer(config).model.network) == [nn.ReLU] * 3


def test_a_new_run_over_mtdnns_encoder_has_the_activation(theirs: Path, tmp_path: Path) -> None:
    given = ("--task_def", str(with_actf(tmp_path)), "--init_checkpoint", str(theirs))
    network = Trainer(tiny_config(tmp_path / "run", *given)).model.network
    assert activations(network) == [nn.ReLU] * 3
    assert_same(network.bert.state_dict(), of_encoder(load_checkpoint(theirs)["state"]))


def test_an_export_writes_no_activation_that_was_not_there(tmp_path: Path) -> None:
    """transformers' classifiers of BERT apply tanh."""
    tiny_run(tmp_path / "own", "--epochs", "1", "--task_def", str(with_actf(tmp_path, "tanh")))
    tokenizer = write_encoder(tmp_path / "tokenizer")
    given = ["--save_hf", tmp_path / "hf", "--task", "cola", "--tokenizer", tokenizer, "--checkpoint"]
    ended = command(hf_export.main, [*given, theirs_with(tmp_path, "tanh")])
    assert ended.code == 2 and "the head of task cola has no activation (actf)" in ended.output
    assert "written by MT-DNN, where `actf` (tanh) has no effect" in ended.output
    ended = command(hf_export.main, [*given, tmp_path / "own" / "model_0.pt"])
    assert ended.code == 0, ended.output


# what was written before


def test_an_older_checkpoint_resumes_to_the_same_end(tmp_path: Path) -> None:
    flags = ("--adv_train", "--adv_norm_level", "post_ln", "--bregman_mu", "1")
    tiny_run(tmp_path / "whole", *flags)
    shutil.copytree(tmp_path / "whole", tmp_path / "older")
    (tmp_path / "older" / "model_1.pt").unlink()
    as_before(tmp_path / "older" / "model_0.pt")
    tiny_run(tmp_path / "older", *flags, "--resume")
    assert_same(parameters(tmp_path / "whole" / "model_1.pt"), parameters(tmp_path / "older" / "model_1.pt"))


def test_an_older_head_over_tokens_is_read(tmp_path: Path) -> None:
    """Its projection was `I.weight` after dropout too."""
    (tmp_path / "tasks.yml").write_text(
        "ner: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 3, metric_meta: [ACC]}\n"
    )
    lines = [{"uid": str(uid), "label": [0, uid % 3, 2], "token_id": [2, 9 + uid, 3]} for uid in range(8)]
    for split in ("train", "dev"):
        write_lines(tmp_path / f"ner_{split}.json", [json.dumps(line | {"type_id": [0, 0, 0]}) for line in lines])
    flags = ("--task_def", str(tmp_path / "tasks.yml"), "--data_dir", str(tmp_path), "--train_datasets", "ner")
    flags += ("--test_datasets", "ner", "--adv_train", "--bregman_mu", "1")
    tiny_run(tmp_path / "whole", *flags)
    shutil.copytree(tmp_path / "whole", tmp_path / "older")
    (tmp_path / "older" / "model_1.pt").unlink()
    path = tmp_path / "older" / "model_0.pt"
    content = torch.load(path, weights_only=False)
    assert "scoring_list.0.1.weight" in content["state"]
    for part in ("state", "bregman"):
        content[part] = {name.replace("list.0.1.", "list.0."): tensor for name, tensor in content[part].items()}
    save_checkpoint(path, content)
    tiny_run(tmp_path / "older", *flags, "--resume")
    assert_same(parameters(tmp_path / "whole" / "model_1.pt"), parameters(tmp_path / "older" / "model_1.pt"))
