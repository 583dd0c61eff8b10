"""Checkpoints: MT-DNN's structure, nothing unpickled that is not allowed, damage named."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from data_utils.errors import DataError
from data_utils.task_def import TaskType
from mt_dnn.checkpoints.build import restore_network
from mt_dnn.checkpoints.checkpoint import load_checkpoint, load_state, newest_checkpoint, save_checkpoint
from mt_dnn.matcher import SANBertNetwork
from tasks.definition import TaskDef
from tests.encoders import tiny_encoder
from tests.mt_dnn.runs import RUN, tiny_run

MTDNN_CHECKPOINT = RUN / "model_0.pt"


def test_a_checkpoint_of_mtdnn_is_read_with_its_task_definitions() -> None:
    content = load_checkpoint(MTDNN_CHECKPOINT)
    cola, mnli, stsb = content["config"]["task_def_list"]
    assert all(isinstance(task_def, TaskDef) for task_def in (cola, mnli, stsb))
    assert (cola.n_class, mnli.n_class, stsb.n_class) == (2, 3, 1)
    assert mnli.label_vocab.tok2ind == {"contradiction": 0, "neutral": 1, "entailment": 2}
    assert stsb.task_type == TaskType.Regression


def test_a_checkpoint_written_here_has_the_structure_of_mtdnns(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "1", "--optimizer", "adamax")
    ours, theirs = load_checkpoint(tmp_path / "model_0.pt"), load_checkpoint(MTDNN_CHECKPOINT)
    assert theirs.keys() <= ours.keys()
    assert ours["state"].keys() == theirs["state"].keys()
    assert {name: value.shape for name, value in ours["state"].items()} == {
        name: value.shape for name, value in theirs["state"].items()
    }
    groups = [[len(group["params"]) for group in content["optimizer"]["param_groups"]] for content in (ours, theirs)]
    assert groups[0] == groups[1]
    for key in ("init_checkpoint", "learning_rate", "hidden_size", "model_type", "num_hidden_layers", "adv_train"):
        assert key in ours["config"]
    assert ours["config"]["num_hidden_layers"] == 2
    for mine, its in zip(ours["config"]["task_def_list"], theirs["config"]["task_def_list"], strict=True):
        assert mine.keys() == its.keys()
        assert mine.loss == its.loss and mine.adv_loss == its.adv_loss and mine.dropout_p in (its.dropout_p, None)


def test_a_restored_network_computes_what_the_saved_one_did(tmp_path: Path) -> None:
    network, flat = restore_network(str(MTDNN_CHECKPOINT))
    content = {"state": network.state_dict(), "config": flat}
    save_checkpoint(tmp_path / "copy.pt", content)
    again, _ = restore_network(str(tmp_path / "copy.pt"))
    ids = torch.tensor([[101, 20, 30, 102]])
    assert torch.equal(network.eval()(ids, task_id=1), again.eval()(ids, task_id=1))


def test_a_restored_deberta_v3_keeps_what_its_configuration_class_does_not_declare(tmp_path: Path) -> None:
    network = SANBertNetwork({"task_def_list": []}, tiny_encoder("deberta_v3", dtype=torch.float32))
    task_def_list = load_checkpoint(MTDNN_CHECKPOINT)["config"]["task_def_list"]
    config = {"learning_rate": 1e-3, **network.bert.config.to_dict(), "task_def_list": task_def_list[:1]}
    network = SANBertNetwork(config, network.bert)
    save_checkpoint(tmp_path / "model.pt", {"state": network.state_dict(), "config": config})
    again, _ = restore_network(str(tmp_path / "model.pt"))
    ids = torch.arange(5, 20)[None]  # longer than the buckets of relative positions
    assert torch.equal(network.eval()(ids), again.eval()(ids))


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch"])
def test_a_malicious_checkpoint_runs_nothing(plain: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "model.pt"
    content = {"state": {}, "optimizer": {}, "config": Payload(target)}
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(DataError, match="model.pt"):
        load_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, 100_000])
def test_a_truncated_checkpoint_is_named(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "model_0.pt"
    path.write_bytes(MTDNN_CHECKPOINT.read_bytes()[:kept])
    with pytest.raises(DataError, match="model_0.pt") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="is no checkpoint; expected a dictionary with the keys state, config"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(DataError, match="missing"):
        load_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(DataError, match="holds no intact checkpoint"):
        newest_checkpoint(tmp_path / "nothing")


def test_a_parameter_that_does_not_fit_is_named() -> None:
    network, _ = restore_network(str(MTDNN_CHECKPOINT))
    state = dict(network.state_dict())
    name = "scoring_list.1.1.bias"
    with pytest.raises(DataError, match=r"'scoring_list.1.1.bias' has shape \(5,\), the network expects \(3,\)"):
        load_state(network, {**state, name: torch.zeros(5)}, "x.pt")
    with pytest.raises(DataError, match="has no parameter 'scoring_list.1.1.bias'"):
        load_state(network, {key: value for key, value in state.items() if key != name}, "x.pt")
    with pytest.raises(DataError, match="has a parameter 'extra'"):
        load_state(network, {**state, "extra": torch.zeros(1)}, "x.pt")


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model_0.pt"
    path.write_bytes(b"older")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DataError, match=r"model_0.pt: cannot be written: No space left on device"):
        save_checkpoint(path, {"state": {}})
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["model_0.pt"]


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    """A few megabytes of one could fill the memory."""
    path = tmp_path / "model_0.pt"
    with zipfile.ZipFile(MTDNN_CHECKPOINT) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        target.writestr("archive/data/zeros", bytes(1 << 20))
    with pytest.raises(DataError, match=r"model_0.pt: is damaged or no checkpoint \(it is compressed"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_hidden_layers", 10**9, r"names 1000000000 layers \(num_hidden_layers\), and holds"),
        ("hidden_size", 10**12, r"parameter 'bert.*' has shape|cannot be made"),
        ("hidden_size", "x", "describes a network that cannot be made"),
        ("model_type", "none-such", "describes a network that cannot be made"),
        ("dropout_p", "x", "describes a network that cannot be made"),
        ("task_def_list", {}, "task_def_list has to be a list"),
        ("task_def_list", [{}], "task definition in a checkpoint: label_vocab is missing"),
    ],
)
def test_a_configuration_of_which_no_network_can_be_made_is_told(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    content = load_checkpoint(MTDNN_CHECKPOINT)
    save_checkpoint(tmp_path / "model.pt", content | {"config": content["config"] | {key: value}})
    with pytest.raises(DataError, match=words) as caught:
        restore_network(str(tmp_path / "model.pt"))
    assert str(caught.value).startswith(str(tmp_path / "model.pt"))


def test_a_state_of_other_things_than_tensors_is_told(tmp_path: Path) -> None:
    content = load_checkpoint(MTDNN_CHECKPOINT)
    save_checkpoint(tmp_path / "model.pt", content | {"state": content["state"] | {"bert.x": 1}})
    with pytest.raises(DataError, match="state has to hold tensors by name"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_progress_that_is_none_ends_a_resume_in_a_line(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "1")
    content = load_checkpoint(tmp_path / "model_0.pt")
    for change in ({"epoch": "x"}, {"flags": None}, {"random_states": [{}]}, {"history": {}, "batches_done": None}):
        save_checkpoint(tmp_path / "bad.pt", content | {"progress": content["progress"] | change})
        with pytest.raises(DataError, match="bad.pt: holds a state that a run cannot go on with") as caught:
            tiny_run(tmp_path, "--epochs", "1", "--resume", "--model_ckpt", str(tmp_path / "bad.pt"))
        assert "\n" not in str(caught.value)
