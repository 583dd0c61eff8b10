"""Attention masks that are made once for several forwards."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from docs_build.encoder_families import FAMILIES
from module.attention_masks import MAKERS, AttentionMasks, PaddedMask
from tasks.interfaces import Batch
from tests.encoders import tiny_encoder

PADDED = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
FULL = torch.ones_like(PADDED)


def outputs(encoder: nn.Module, mask: Tensor, passes: int = 1) -> list[Tensor]:
    ids = torch.arange(5, 5 + mask.numel()).view_as(mask) % 30 + 4
    with torch.no_grad():
        return [encoder(input_ids=ids, attention_mask=mask).last_hidden_state for _ in range(passes)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every call that makes BERT's mask."""
    from transformers.models.bert import modeling_bert

    calls: list[dict[str, Any]] = []
    maker = modeling_bert.create_bidirectional_mask

    def counting(*arguments: Any, allow_is_bidirectional_skip: bool = True, **options: Any) -> Any:
        calls.append({**options, "skip": allow_is_bidirectional_skip})
        return maker(*arguments, allow_is_bidirectional_skip=allow_is_bidirectional_skip, **options)

    monkeypatch.setattr(modeling_bert, MAKERS[0], counting)
    return calls


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("mask", [PADDED, FULL], ids=["padded", "full"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_encoder_gives_the_same_numbers(family: str, attention: str, mask: Tensor, known: bool) -> None:
    encoder = tiny_encoder(family)
    if attention == "sdpa" and not encoder._supports_sdpa:
        pytest.skip("has no such attention")
    encoder.set_attn_implementation(attention)
    (expected,) = outputs(encoder, mask)
    batch = PaddedMask(mask, not bool(mask.all()) if known else None)
    with AttentionMasks(encoder).made_once(batch):
        found = outputs(encoder, mask, passes=2)
    for one in found:  # ModernBERT's padding beyond its window is nan, at padding alone
        torch.testing.assert_close(one, expected, rtol=0, atol=0, equal_nan=True)
        assert one[mask.bool()].isfinite().all()


def test_a_mask_is_made_once_for_all_passes_over_a_batch(counted: list[dict[str, Any]]) -> None:
    encoder, other = tiny_encoder("bert"), PADDED.clone()
    masks = AttentionMasks(encoder)
    with masks.made_once(PaddedMask(PADDED, True), PaddedMask(FULL, False)):
        outputs(encoder, PADDED, passes=3)
        assert [(call["attention_mask"] is PADDED, call["skip"]) for call in counted] == [(True, False)]
        outputs(encoder, FULL, passes=2)
        assert [call["attention_mask"] for call in counted[1:]] == [None]
        outputs(encoder, other, passes=2)  # of no batch that was named
        assert [call["attention_mask"] is other for call in counted[2:]] == [True, True]
    outputs(encoder, PADDED, passes=2)
    assert len(counted) == 6
    with masks.made_once(PaddedMask(PADDED, None)):  # in the next block it is made anew: it may have changed
        outputs(encoder, PADDED, passes=2)
    assert len(counted) == 7 and counted[6]["skip"]


def test_other_widths_and_types_have_masks_of_their_own(counted: list[dict[str, Any]]) -> None:
    encoder = tiny_encoder("bert", dtype=torch.float32)
    encoder.set_attn_implementation("eager")  # whose mask holds numbers of the type
    with AttentionMasks(encoder).made_once(PaddedMask(PADDED, True)):
        (single,) = outputs(encoder, PADDED)
        (double,) = outputs(encoder.double(), PADDED)
    assert len(counted) == 2
    assert double.dtype == torch.float64 and torch.allclose(double.float(), single, atol=1e-5)


class ConfigsForOneCall(nn.Module):
    """An encoder that makes masks with configurations of its own for each layer, as NeoMME does."""

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny_encoder("bert").config
        self.config._attn_implementation = "eager"

    def forward(self, mask: Tensor) -> list[Tensor]:
        made, embedded = [], torch.zeros(*mask.shape, 4)
        for _ in range(2):
            config = copy.copy(self.config)  # the next one may get its id
            made.append(create_bidirectional_mask(config=config, inputs_embeds=embedded, attention_mask=mask))
            del config
        return made


def test_a_configuration_for_one_call_shares_no_mask() -> None:
    encoder = ConfigsForOneCall()
    with AttentionMasks(encoder).made_once(PaddedMask(PADDED, True)):
        first, second = encoder(PADDED)
    assert first is not second and torch.equal(first, second)


def test_an_objective_can_be_copied() -> None:
    masks = copy.deepcopy(AttentionMasks(tiny_encoder("bert")))
    with masks.made_once(PaddedMask(PADDED, True)):
        pass


def test_transformers_is_as_before_after_an_error() -> None:
    encoder = tiny_encoder("modernbert")
    module = sys.modules[type(encoder).__module__]
    before = [getattr(module, name) for name in MAKERS]
    with pytest.raises(ZeroDivisionError), AttentionMasks(encoder).made_once(PaddedMask(PADDED, None)):
        assert all(getattr(module, name) is not maker for name, maker in zip(MAKERS, before, strict=True))
        raise ZeroDivisionError
    assert [getattr(module, name) for name in MAKERS] == before


def test_a_batch_knows_whether_it_has_padding_when_it_is_moved() -> None:
    batch = Batch(
        input_ids=PADDED, attention_mask=PADDED, token_type_ids=PADDED, labels=None, task_id=0, uids=("a", "b")
    )
    assert batch.padded is None
    assert batch.to("cpu").padded is True
    assert replace(batch, attention_mask=FULL).to("cpu").padded is False
    on_device = replace(batch.to("cpu"), attention_mask=PADDED.to("meta"))
    assert on_device.to("meta").padded is True  # without a look at the device
    assert replace(batch, attention_mask=PADDED.to("meta")).to("meta").padded is None
