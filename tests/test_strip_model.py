"""The shared encoder between checkpoints and transformers folders; refinement of several tasks, then of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import strip_model
from data_utils.errors import UserError
from mt_dnn.checkpoints.build import restore_network
from mt_dnn.checkpoints.checkpoint import load_checkpoint
from mt_dnn.checkpoints.encoder_files import read_encoder
from mt_dnn.training.trainer import Trainer
from tests import mtdnn_reader
from tests.encoder_folder import write_encoder
from tests.mt_dnn.runs import RUN, SIFT, assert_same, parameters, tiny_config, tiny_run

CHECKPOINT = RUN / "model_0.pt"


def encoder_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(checkpoint)["state"]
    return {name: tensor for name, tensor in state.items() if name.startswith("bert.")}


def test_a_stripped_checkpoint_has_the_encoder_alone(tmp_path: Path) -> None:
    strip_model.main(["--fin", str(CHECKPOINT), "--fout", str(tmp_path / "stripped.pt")])
    assert_same(load_checkpoint(tmp_path / "stripped.pt")["state"], encoder_of(CHECKPOINT))
    config = load_checkpoint(tmp_path / "stripped.pt")["config"]
    full = load_checkpoint(CHECKPOINT)["config"]
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert config[key] == full[key]
    assert config["task_def_list"] == [] and load_checkpoint(tmp_path / "stripped.pt").keys() == {"state", "config"}
    assert (tmp_path / "stripped.pt").stat().st_size < CHECKPOINT.stat().st_size / 2


def of_run(folder: Path) -> str:
    """A checkpoint of a run of this project, before its first update."""
    Trainer(tiny_config(folder / "run", *SIFT)).checkpoints.save("model_0.pt", 0, 0)
    return str(folder / "run" / "model_0.pt")


@pytest.mark.parametrize("source", ["mtdnn", "own", "bert", "electra", "deberta"])
def test_mtdnn_reads_a_stripped_encoder_and_keeps_its_own_flags_and_tasks(tmp_path: Path, source: str) -> None:
    names = {"mtdnn": lambda: str(CHECKPOINT), "own": lambda: of_run(tmp_path)}
    name = names.get(source, lambda: str(write_encoder(tmp_path / "encoder", source)))()
    strip_model.main(["--checkpoint", name, "--fout", str(tmp_path / "stripped.pt")])
    kind = {"electra": 7, "deberta": 6}.get(source, 1)
    flags, content = mtdnn_reader.read(tmp_path / "stripped.pt", encoder_type=kind, learning_rate=0.5)
    assert content["config"].keys() & mtdnn_reader.FLAGS.keys() == {"num_hidden_layers"}
    assert flags["task_def_list"] == ["its own"] and flags["learning_rate"] == 0.5
    assert mtdnn_reader.wrong_flags(flags) == {}
    shapes = {name: tensor.shape for name, tensor in content["state"].items()}
    assert shapes == mtdnn_reader.parameters_of(flags | {"task_def_list": []})


def test_from_a_checkpoint_to_a_folder_and_back(tmp_path: Path) -> None:
    strip_model.main(["--checkpoint", str(CHECKPOINT), "--hf", str(tmp_path / "folder")])
    model = AutoModel.from_pretrained(tmp_path / "folder").eval()
    network, _ = restore_network(str(CHECKPOINT))
    ids = torch.tensor([[2, 5, 9, 3]])
    with torch.inference_mode():
        expected = network.eval().encode(ids, torch.zeros_like(ids), torch.ones_like(ids))
        torch.testing.assert_close(model(ids).last_hidden_state, expected, rtol=0, atol=0)
    strip_model.main(["--checkpoint", str(tmp_path / "folder"), "--fout", str(tmp_path / "back.pt")])
    assert_same(encoder_of(tmp_path / "back.pt"), encoder_of(CHECKPOINT))


@pytest.mark.parametrize("family", [None, "roberta", "deberta_v3"])
def test_a_folder_becomes_a_checkpoint_that_gives_the_same_encoder(tmp_path: Path, family: str | None) -> None:
    folder = write_encoder(tmp_path / "encoder", family)
    strip_model.main(["--checkpoint", str(folder), "--fout", str(tmp_path / "encoder.pt")])
    assert_same(read_encoder(str(tmp_path / "encoder.pt")).state_dict(), read_encoder(str(folder)).state_dict())


def test_the_tokenizer_goes_with_the_folder(tmp_path: Path) -> None:
    folder = str(write_encoder(tmp_path / "encoder"))
    strip_model.main(["--checkpoint", folder, "--hf", str(tmp_path / "out"), "--tokenizer", folder])
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("good bad")["input_ids"] == [2, 4, 6, 3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "neither --fout nor --hf"),
        (("--fout", "a.pt", "--tokenizer", "x"), "--tokenizer: found without --hf"),
        (("--hf", "full"), "holds something"),
    ],
)
def test_mistakes_are_told(
    flags: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match=message):
        strip_model.main(["--checkpoint", str(CHECKPOINT), *flags])


def test_refinement_of_several_tasks_then_of_one(tmp_path: Path) -> None:
    """The second run begins with the first one's encoder and a head of its own."""
    tiny_run(tmp_path / "together", "--epochs", "1")
    stripped = tmp_path / "stripped.pt"
    strip_model.main(["--checkpoint", str(tmp_path / "together" / "model_0.pt"), "--fout", str(stripped)])
    one = ("--train_datasets", "cola", "--test_datasets", "cola", "--epochs", "1", "--init_checkpoint", str(stripped))
    frozen = tiny_run(tmp_path / "frozen", *one, "--update_bert_opt", "1")
    refined = tiny_run(tmp_path / "refined", *one)
    assert set(frozen.metrics) == set(refined.metrics) == {"cola_dev"}
    together = parameters(tmp_path / "together" / "model_0.pt")
    after = parameters(tmp_path / "frozen" / "model_0.pt")
    shared = {name: tensor for name, tensor in together.items() if name.startswith("bert.")}
    assert_same(shared, {name: tensor for name, tensor in after.items() if name.startswith("bert.")})
    assert not any(name.startswith("scoring_list.1") for name in after)
    moved = parameters(tmp_path / "refined" / "model_0.pt")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert 0 < (moved[name] - together[name]).abs().max() < 0.1


def test_num_hidden_layers_keeps_the_lowest(tmp_path: Path) -> None:
    flags = ("--train_datasets", "cola", "--test_datasets", "cola", "--epochs", "1", "--update_bert_opt", "1")
    tiny_run(tmp_path, *flags, "--num_hidden_layers", "1")
    state = parameters(tmp_path / "model_0.pt")
    folder = AutoModel.from_pretrained(RUN / "tiny").state_dict()
    assert "encoder.layer.1.output.dense.weight" in folder
    kept = {name.removeprefix("bert."): tensor for name, tensor in state.items() if name.startswith("bert.")}
    assert_same(kept, {name: folder[name] for name in folder if "layer.1." not in name})
    assert load_checkpoint(tmp_path / "model_0.pt")["config"]["num_hidden_layers"] == 1

    tiny_run(tmp_path / "of_checkpoint", *flags, "--num_hidden_layers", "1", "--init_checkpoint", str(CHECKPOINT))
    whole = parameters(CHECKPOINT)
    lowest = {name: tensor for name, tensor in whole.items() if name.startswith("bert.") and "layer.1." not in name}
    state = parameters(tmp_path / "of_checkpoint" / "model_0.pt")
    assert_same({name: tensor for name, tensor in state.items() if name.startswith("bert.")}, lowest)


@pytest.mark.parametrize("encoder", ["tiny", "model_0.pt"])
def test_more_layers_than_the_encoder_has_are_refused(encoder: str, tmp_path: Path) -> None:
    flags = ("--num_hidden_layers", "3", "--init_checkpoint", str(RUN / encoder))
    with pytest.raises(UserError, match="--num_hidden_layers: found 3, accepted: -1 for all layers, or 1 to 2, which"):
        tiny_run(tmp_path, *flags)
