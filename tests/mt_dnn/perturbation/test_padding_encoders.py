"""Encoders that pad a batch in their forward, to full windows or blocks: it is treated as any other padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from docs_build.encoder_families import SIZES
from mt_dnn.perturbation import Regularization, SmartPerturbation
from mt_dnn.perturbation.delta import CachedDelta
from tests.encoders import LEVELS, Classifier, TokenBatch, token_batch
from tests.search import Trace, regularize, search_linear, smart

LENGTHS, WIDTH, WHOLE = (29, 20, 11), 29, 32
LARGE = {**SIZES, "max_position_embeddings": 64, "type_vocab_size": 1}
BLOCKS = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
LED = {"vocab_size": 40, "d_model": 16, "max_encoder_position_embeddings": 64, "attention_window": 8, "pad_token_id": 0}
LED |= {"encoder_attention_heads": 2, "encoder_layers": 2, "encoder_ffn_dim": 24, "decoder_layers": 1, "dropout": 0.0}


def encoder(family: str) -> Any:
    """A two-layer encoder in float64 and training mode, without dropout."""
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    if family == "longformer":
        model: Any = transformers.LongformerModel(transformers.LongformerConfig(**LARGE, **dropout, attention_window=8))
    elif family == "big_bird":
        model = transformers.BigBirdModel(transformers.BigBirdConfig(**LARGE, **dropout, **BLOCKS))
    else:
        model = transformers.LEDModel(transformers.LEDConfig(**LED)).get_encoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.double().train()


def same_figures(first: Regularization, second: Regularization) -> None:
    for name in ("loss", "emb_val", "eff_perturb", "delta_size", "skipped", "ascent_rise", "chance_rise"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["longformer", "big_bird"])
@pytest.mark.parametrize(
    "options",
    [{"norm_p": "inf"}, {"norm_p": "l2", "norm_level": 1, "scale": "relative"}, {"projection": "none", "radius": None}],
)
def test_the_search_does_not_feel_the_padding_that_the_encoder_adds(
    family: str, level: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the caller had padded the batch to whole blocks: δ of the real tokens, R, its figures and gradients."""
    trace, results, gradients = Trace(monkeypatch), [], []
    for width in (WIDTH, WHOLE):
        model = Classifier(encoder(family))
        batch = token_batch(model.bert, LENGTHS, width)
        method = smart(level=level, k=2, **options)
        results.append(regularize(method, model, batch, measure_gain=True))
        results[-1].loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    short, whole = trace.deltas
    assert short.shape == whole.shape == (3, WHOLE, 16)
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-9)
    real = torch.arange(WHOLE) < torch.tensor(LENGTHS).unsqueeze(1)
    assert not short[~real].any() and short[real].abs().amax(-1).min() > 1e-4
    same_figures(*results)
    assert results[0].loss > 1e-6
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-9)


def test_noise_by_torchs_generator_does_not_depend_on_that_padding_either(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, method = Trace(monkeypatch), smart(k=0)
    for family in ("longformer", "bert"):
        bert = transformers.BertModel(transformers.BertConfig(**LARGE)).double()
        model = Classifier(encoder(family) if family == "longformer" else bert)
        batch = token_batch(model.bert, LENGTHS, WIDTH)
        clean = model(*batch).detach()
        torch.manual_seed(7)
        method.regularize(lambda m=model, b=batch: m(*b), model.bert, clean, batch.attention_mask)
    padded, plain = trace.deltas
    assert torch.equal(padded[:, :WIDTH], plain)


def test_a_cached_delta_is_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--adv_free`: δ comes with the width of the batch; what is handed back has it at the same tokens."""
    model = Classifier(encoder("longformer"))
    batch = token_batch(model.bert, LENGTHS, WIDTH)
    real = batch.attention_mask.unsqueeze(-1)
    before = 0.03 * torch.randn(3, WIDTH, 16, dtype=torch.float64).clamp(-2, 2) * real
    taken: list[Tensor] = []
    kept = CachedDelta(before, torch.ones(3, dtype=torch.bool), taken.append)
    method = SmartPerturbation(step_size=0.01, noise_var=0.5, radius=0.1)
    clean = model(*batch)
    method.regularize(lambda: model(*batch), model.bert, clean, batch.attention_mask, cached=kept).loss.backward()
    (after,) = taken
    assert not after[:, WIDTH:].any()
    moved = (after[:, :WIDTH] - before).abs()[real.squeeze(-1).bool()]
    torch.testing.assert_close(moved.amax(-1), torch.full((sum(LENGTHS),), 0.01, dtype=torch.float64))


class Prefixed(nn.Module):
    """An encoder that puts a token of its own in front, or takes the first away."""

    def __init__(self, in_front: int) -> None:
        super().__init__()
        self.words, self.in_front = nn.Embedding(20, 5), in_front

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, *_: Tensor | None) -> Tensor:
        longer = nn.functional.pad(input_ids, (self.in_front, 0), value=1)
        states: Tensor = self.words(longer)
        return states.mean((1, 2)).unsqueeze(-1)


@pytest.mark.parametrize("in_front", [1, -1])
def test_a_length_that_cannot_be_understood_is_refused(in_front: int) -> None:
    batch = TokenBatch(torch.arange(1, 9).view(2, 4), None, torch.ones(2, 4, dtype=torch.long))
    expected = (
        f"Prefixed has {4 + in_front} tokens at its injection point 'pre_ln', the batch 4; accepted: equal numbers, or"
    )
    with pytest.raises(ValueError, match=expected):
        search_linear(smart(), Prefixed(in_front), batch)


def test_padding_that_is_looked_up_apart_is_refused() -> None:
    model = Classifier(encoder("led"))
    batch = token_batch(model.bert, LENGTHS, WHOLE)
    assert regularize(smart(), model, batch).loss > 1e-6
    with pytest.raises(ValueError, match="LEDEncoder embeds words twice in one forward; accepted: models that"):
        regularize(smart(), model, token_batch(model.bert, LENGTHS, WIDTH))
