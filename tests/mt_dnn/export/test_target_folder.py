"""Which folder `--save_hf` writes: a new one or its own, and never one with a user's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel

from data_utils.errors import FlagError
from mt_dnn.configuration.config import Config
from mt_dnn.export.export import HfExport, main
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.training.dry_run import dry_run
from mt_dnn.training.trainer import Trainer
from tasks.definition import TaskDef
from tests.mt_dnn.export.tasks import tanh_tasks
from tests.mt_dnn.runs import tiny_config, tiny_run


def tanh_network() -> SANBertNetwork:
    """A tiny network whose head BERT's class can express."""
    entry = {"data_format": "PremiseOnly", "task_type": "Classification", "n_class": 3, "metric_meta": ["ACC"]}
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", **sizes, intermediate_size=24))
    return SANBertNetwork({"task_def_list": [TaskDef.from_yaml({**entry, "actf": "tanh"})]}, encoder)


def test_the_same_run_again_replaces_its_own_model(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--task_def", tanh_tasks(tmp_path), "--save_hf", "hf", "--tokenizer", tokenizer, "--epochs", "1")
    tiny_run(Path("out"), *flags, "--seed", "1")
    weights = Path("hf/mnli/model.safetensors")
    before = weights.read_bytes()
    dry_run(tiny_config(Path("out"), *flags))
    assert weights.read_bytes() == before
    tiny_run(Path("out"), *flags, "--seed", "2")
    assert weights.read_bytes() != before
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(("hf", ".hf"))} == {"hf"}
    with pytest.raises(FlagError, match="hf is not empty; accepted: a new or an empty folder, or the one of an"):
        tiny_run(Path("another"), *flags)


@pytest.mark.parametrize("before", ["exported", "interrupted", "elsewhere", "by another run"])
def test_a_users_files_are_never_replaced(
    before: str, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the folder of the same run, nor in a folder of the same name that the run did not write."""
    flags = ("--task_def", tanh_tasks(tmp_path), "--tokenizer", tokenizer, "--epochs", "1")
    out, here = tmp_path / "out", tmp_path / "here"
    for folder in (here, tmp_path / "there"):
        folder.mkdir()
    monkeypatch.chdir(tmp_path / "there" if before == "elsewhere" else here)
    if before == "interrupted":
        Trainer(tiny_config(out, *flags, "--save_hf", "hf"))
    else:
        tiny_run(tmp_path / "another" if before == "by another run" else out, *flags, "--save_hf", "hf")
    monkeypatch.chdir(here)
    Path("hf").mkdir(exist_ok=True)
    Path("hf/notes.txt").write_text("mine")
    with pytest.raises(FlagError, match="--save_hf: .*hf (is not empty|holds files that .*: notes.txt); accepted"):
        tiny_run(out, *flags, "--save_hf", "hf")
    assert Path("hf/notes.txt").read_text() == "mine"


def test_files_that_come_to_the_folder_during_a_run_stay(tmp_path: Path, tokenizer: str) -> None:
    config = Config.from_flags({"save_hf": str(tmp_path / "hf"), "tokenizer": tokenizer})
    export = HfExport(config, tanh_network(), {"cola": 0})
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    with pytest.raises(FlagError, match="hf is not empty"):
        export.write(ModelCard("---\nlibrary_name: transformers\n---\n"))
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["notes.txt"]


def test_the_command_replaces_no_model_of_a_run(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default of --output_dir is a run's, and the command is not that run."""
    monkeypatch.chdir(tmp_path)
    flags = ("--task_def", tanh_tasks(tmp_path), "--tokenizer", tokenizer, "--epochs", "1")
    tiny_run(Path("checkpoint"), *flags, "--save_hf", "hf")
    before = Path("hf/mnli/model.safetensors").read_bytes()
    with pytest.raises(FlagError, match="hf is not empty"):
        main(["--checkpoint", "checkpoint/model_0.pt", "--save_hf", "hf"])
    assert Path("hf/mnli/model.safetensors").read_bytes() == before
