"""The encoder of LSTMs: its layers in closed form, noise at each level, folders, runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from module.encoder import encoder_from_config, load_encoder
from module.san_encoder import SanConfig, SanModel
from mt_dnn.checkpoints.build import restore_network
from mt_dnn.checkpoints.checkpoint import load_checkpoint
from mt_dnn.configuration.config import parse_args
from mt_dnn.perturbation.injection import NoiseInjection, available_levels
from tests.encoders import tiny_encoder
from tests.mt_dnn.runs import SIFT, parameters, tiny_run

IDS = torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 8, 9, 4, 3]])
MASK = (IDS != 0).long()


def encoder() -> SanModel:
    torch.manual_seed(0)
    config = SanConfig(vocab_size=12, hidden_size=4, num_hidden_layers=2, initializer_range=0.5)
    return SanModel(config).double().eval()


def test_layers_are_those_of_the_formula() -> None:
    """LayerNorm(x + max of both directions), each direction an LSTM of its own over the row's real tokens."""
    model = encoder()
    found = model(IDS, MASK).last_hidden_state
    for row, length in enumerate(MASK.sum(1).tolist()):
        words = model.embeddings.word_embeddings.weight[IDS[row, :length]]
        states = F.layer_norm(words, (4,), eps=1e-12)
        for layer in model.layer:
            one_way = torch.nn.LSTM(4, 4).double()
            directions = []
            for suffix, order in (("", [*range(length)]), ("_reverse", [*reversed(range(length))])):
                one_way.load_state_dict(
                    {name: getattr(layer.rnn, name + suffix) for name in one_way.state_dict()}, strict=True
                )
                directions.append(one_way(states[order])[0][order])
            states = F.layer_norm(states + torch.maximum(*directions), (4,), eps=1e-12)
        torch.testing.assert_close(found[row, :length], states)


def test_padding_changes_nothing() -> None:
    model = encoder()
    alone = model(IDS[:1, :4]).last_hidden_state
    torch.testing.assert_close(model(IDS, MASK).last_hidden_state[:1, :4], alone)


@pytest.mark.parametrize("level", ["pre_ln", "post_ln", "deberta"])
def test_noise_enters_at_each_level(level: str) -> None:
    model = encoder()
    assert level in available_levels(model)
    injection = NoiseInjection(model, level)
    assert injection.size == 4
    with injection.clean() as seen:
        clean = model(IDS, MASK).last_hidden_state
    delta = 0.1 * torch.randn(*IDS.shape, 4, dtype=torch.float64) * MASK.unsqueeze(-1)
    with injection.add(0 * delta):
        assert torch.equal(model(IDS, MASK).last_hidden_state, clean)
    with injection.add(delta):
        noisy = model(IDS, MASK).last_hidden_state
    embeddings = model.embeddings
    entered = F.layer_norm(seen[0] + delta, (4,), eps=1e-12) if level != "post_ln" else seen[0] + delta
    expected = seen[0] if level == "pre_ln" else None
    if expected is not None:
        assert torch.equal(expected, embeddings.word_embeddings(IDS))
    states = entered
    for layer in model.layer:
        states = layer(states, MASK.sum(1))
    torch.testing.assert_close(noisy, states)


def test_folders_and_configurations_give_the_same_encoder(tmp_path: Path) -> None:
    model = encoder().float()
    model.save_pretrained(tmp_path)
    loaded = load_encoder(str(tmp_path), dropout_p=0.0)
    assert isinstance(loaded, SanModel) and loaded.config.hidden_dropout_prob == 0
    torch.testing.assert_close(loaded.eval()(IDS, MASK)[0], model(IDS, MASK)[0], rtol=0, atol=0)
    assert isinstance(AutoModel.from_pretrained(tmp_path), SanModel)
    again = encoder_from_config(model.config.to_dict(), num_hidden_layers=1)
    assert isinstance(again, SanModel) and len(again.layer) == 1


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_it_takes_over_the_word_embeddings_of_another_encoder(family: str) -> None:
    bert = tiny_encoder(family, dtype=torch.float32)
    model = SanModel.over(bert, 0.3)
    assert torch.equal(model.embeddings.word_embeddings.weight, bert.get_input_embeddings().weight)
    if family == "bert":
        assert torch.equal(model.embeddings.LayerNorm.weight, bert.embeddings.LayerNorm.weight)
    assert len(model.layer) == 2 and model.config.hidden_dropout_prob == 0.3


def test_a_run_with_encoder_type_4(tmp_path: Path) -> None:
    flags = ("--encoder_type", "4", "--num_hidden_layers", "1", *SIFT)
    whole = tmp_path / "whole"
    tiny_run(whole, *flags)
    network, _ = restore_network(str(whole / "model_1.pt"))
    assert isinstance(network.bert, SanModel) and len(network.bert.layer) == 1
    again = tmp_path / "again"
    tiny_run(again, *flags, "--resume", "--model_ckpt", str(whole / "model_0.pt"))
    first, second = parameters(whole / "model_1.pt"), parameters(again / "model_1.pt")
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    from_checkpoint = tmp_path / "from"
    tiny_run(from_checkpoint, "--init_checkpoint", str(whole / "model_1.pt"), "--epochs", "1")
    assert load_checkpoint(from_checkpoint / "model_0.pt")["config"]["model_type"] == "san"


def test_other_encoder_types_are_derived_from_the_encoder() -> None:
    assert "the encoder's configuration" in parse_args(["--encoder_type", "2"]).notices[0]
    assert parse_args(["--encoder_type", "4"]).notices == ()
