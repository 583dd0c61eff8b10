"""The comparison of both levels where it is known: J = γ·P/s, P taking out the mean and h's own direction."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from data_utils.errors import DataError, FlagError
from experiments.sift.levels import StepComparison, compare_steps, main, measure

HIDDEN = 64


def compare(weight: torch.Tensor, share: float = 0.01) -> tuple[BertModel, StepComparison]:
    torch.manual_seed(0)
    tiny = BertConfig(
        vocab_size=50, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        initializer_range=1.0, layer_norm_eps=1e-12,
    )  # fmt: skip
    encoder = BertModel(tiny).double().eval()
    encoder.embeddings.LayerNorm.weight.data = weight.double()
    ids = torch.randint(1, 50, (40, 12))
    mask = torch.ones_like(ids)
    mask[:, 9:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    return encoder, compare_steps(encoder, inputs, share, torch.Generator().manual_seed(1))


def test_without_weights_of_its_own_the_layer_norm_takes_two_directions_out() -> None:
    _, found = compare(torch.ones(HIDDEN))
    assert found.cosine.shape == (40 * 9,)
    # cos² of a random direction with its projection onto all but two of 64
    assert found.cosine.square().mean() == pytest.approx((HIDDEN - 2) / HIDDEN, abs=0.005)


def test_weights_that_differ_turn_the_step() -> None:
    """JJᵀg is nearly γ²g, whose cosine with a random g is mean γ² / √mean γ⁴."""
    weight = torch.tensor([1.0, 3.0]).repeat(HIDDEN // 2)
    _, found = compare(weight)
    expected = weight.square().mean() / weight.pow(4).mean().sqrt()
    assert float(expected) == pytest.approx(0.781, abs=0.001)
    # the mean and h's own direction cost a share of 2/64 again
    assert found.cosine.median() == pytest.approx(float(expected), abs=0.03)


def test_the_shift_is_the_step_divided_by_the_deviation_of_h() -> None:
    encoder, found = compare(torch.full((HIDDEN,), 0.5))
    embeddings = encoder.embeddings
    torch.manual_seed(0)
    word_length = embeddings.word_embeddings.weight.detach().norm(dim=1).mean()
    assert found.raw.mean() == pytest.approx(float(word_length), rel=0.05)
    torch.testing.assert_close(found.normalized, torch.full_like(found.normalized, 0.5 * HIDDEN**0.5))
    # word, position and type are as long as each other here: h at the LayerNorm is √3 times as long as the word
    assert (found.shift / found.normalized).mean() == pytest.approx(0.01 / 3**0.5, rel=0.1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("positive\tA fine day.\nAnother text\n")
    main(["--texts", str(texts)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("gradients of 2 texts") and "a step of 3.0% of h at pre_ln is" in lines[2]
    assert float(lines[3].split("median ")[1].split(",")[0]) > 0.95


def test_a_file_without_a_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"texts.txt: found no texts; at least one is needed"):
        main(["--texts", str(tmp_path / "texts.txt")])


def test_an_encoder_without_a_layer_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.sift.levels.available_levels", lambda encoder: ("pre_ln",))
    with pytest.raises(FlagError, match="has no LayerNorm at its embeddings"):
        measure("embedded-minilm", ["a text"], 0.03, 0)
