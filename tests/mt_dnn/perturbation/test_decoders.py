"""What SiFT is for, on decoders: relative noise at the word vectors does not depend on their scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mt_dnn.perturbation import SiftPerturbation, SmartPerturbation
from mt_dnn.perturbation.injection import UnsupportedLevelError
from tests.encoders import Classifier, remove_norm_eps, tiny_classifier, token_batch
from tests.hf import tiny_model

# What writes into the residual stream. All of it times c scales the stream, and the final norm removes c.
WRITERS = {
    "llama": ("embed_tokens.weight", "o_proj.weight", "down_proj.weight"),
    "qwen3": ("embed_tokens.weight", "o_proj.weight", "down_proj.weight"),
    "gpt2": ("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias"),
}


def scale_residual_stream(model: Classifier, names: tuple[str, ...], factor: float) -> None:
    with torch.no_grad():
        for name, parameter in model.bert.named_parameters():
            if name.endswith(names):
                parameter.mul_(factor)


@pytest.mark.parametrize("family", WRITERS)
def test_relative_noise_does_not_depend_on_the_scale_of_a_decoders_words(family: str) -> None:
    model = tiny_classifier(family)
    remove_norm_eps(model)
    batch = token_batch(model.bert)

    def found(method: Any) -> tuple[Tensor, float]:
        clean = model(*batch)
        result = method.regularize(
            lambda: model(*batch), model.bert, clean, batch.attention_mask, noise_seeds=[1, 2, 3]
        )
        return clean.detach(), result.loss.item()

    relative = SmartPerturbation.with_defaults(radius=0.3, k=2)
    absolute = SmartPerturbation(radius=0.1, step_size=0.1, noise_var=0.01, k=2)
    assert relative.scale == "relative"
    (clean, at_first), (_, absolute_at_first) = found(relative), found(absolute)
    scale_residual_stream(model, WRITERS[family], 8.0)
    (scaled, then), (_, absolute_then) = found(relative), found(absolute)
    torch.testing.assert_close(scaled, clean, rtol=1e-9, atol=1e-9)
    assert at_first > 1e-4
    assert then == pytest.approx(at_first, rel=1e-6)
    assert absolute_then < 0.2 * absolute_at_first


def test_sift_on_a_decoder_names_the_call_that_works_there() -> None:
    model = tiny_model("generation")
    with pytest.raises(UnsupportedLevelError) as error:
        SiftPerturbation.for_model(model)
    message = str(error.value)
    assert "\n" not in message and "no LayerNorm follows its word vectors" in message
    assert "SmartPerturbation.for_model(model)" in message
    assert SmartPerturbation.for_model(model).perturbation.scale == "relative"  # type: ignore[attr-defined]
