"""NEFTune: the noise of transformers' own, in the task loss's one pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.neftune import neftune_post_forward_hook

from mt_dnn.perturbation import NeftunePerturbation
from mt_dnn.perturbation.injection import NoiseInjection
from tests.encoders import tiny_classifier, token_batch
from tests.hf import collate, examples, tiny_model

ALPHA = 5.0


@pytest.mark.parametrize("head", ["classification", "generation"])
def test_the_loss_and_its_gradient_are_those_of_transformers_at_equal_draws(head: str) -> None:
    model, batch = tiny_model(head), collate(examples(head, lengths=(7, 7)))
    words: Any = model.get_input_embeddings()
    words.neftune_noise_alpha = ALPHA
    handle = words.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(4)
    expected = model(**batch).loss
    handle.remove()
    del words.neftune_noise_alpha
    method = NeftunePerturbation.with_defaults(noise_var=ALPHA, length="padded")
    torch.manual_seed(4)
    found = method.regularize(
        lambda: model(**batch), model, None, batch["attention_mask"], task_loss=lambda output: output.loss
    ).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert abs(found.item() - model(**batch).loss.item()) > 1e-3
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(found, parameters, allow_unused=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", ["padded", "real"])
def test_the_length_that_is_counted(length: str) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    method, seen, passes = NeftunePerturbation.with_defaults(length=length), [], []
    words = NoiseInjection(model.bert, "pre_ln").module

    def evaluate() -> Tensor:
        passes.append(1)
        handle = words.register_forward_hook(lambda _, __, h: seen.append(h.detach()))
        try:
            output: Tensor = model(*batch)
        finally:
            handle.remove()
        return output

    method.regularize(
        evaluate, model.bert, None, batch.attention_mask, task_loss=lambda z: z.sum(), noise_seeds=[1, 2, 3]
    )
    assert len(passes) == 1
    delta = seen[0] - words(batch.input_ids).detach()
    lengths = batch.attention_mask.sum(1)
    for row, own in enumerate(lengths.tolist()):
        bound = ALPHA / math.sqrt((7 if length == "padded" else own) * 16)
        largest = delta[row].abs().max().item()
        assert 0.8 * bound < largest <= bound * (1 + 1e-6)
        assert (delta[row, own:] == 0).all()


def test_an_unknown_length_is_refused_in_a_line() -> None:
    with pytest.raises(ValueError, match="^length is 'batch'; accepted: padded, real$"):
        NeftunePerturbation.with_defaults(length="batch")
