"""The search against numbers that the public implementations computed: MT-DNN's update, DeBERTa's SiFT step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import mt_dnn.perturbation.noise
from data_utils.task_def import TaskType
from mt_dnn.perturbation import SiftPerturbation, SmartPerturbation
from mt_dnn.perturbation.injection import NoiseInjection
from tests.encoders import LinearModel, TokenBatch
from tests.search import Trace, mean_output

FIXTURES = Path(__file__).parents[2] / "fixtures"
UPDATE: dict[str, Any] = json.loads((FIXTURES / "golden_normalize_update.json").read_text())
STEP: dict[str, Any] = json.loads((FIXTURES / "golden_deberta_sift_step.json").read_text())


def start_from(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    """Let the search draw this as its standard normal noise."""

    def drawn(mask: Tensor, hidden: int, dtype: torch.dtype, seeds: object = None, kind: str = "normal") -> Tensor:
        return (noise * mask.unsqueeze(-1)).to(dtype)

    monkeypatch.setattr(mt_dnn.perturbation.noise, "standard_noise", drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalize_update(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """u = δ + η·g, δ ← u / (‖u‖ + ε): a linear f makes the golden gradient the gradient of this ascent."""
    noise, gradient = torch.tensor(UPDATE["noise"], dtype=dtype), torch.tensor(UPDATE["grad"], dtype=dtype)
    rows, tokens, hidden = noise.shape
    start_from(monkeypatch, noise)
    model = LinearModel(torch.zeros(2, hidden, dtype=dtype), gradient)
    ids, mask = torch.ones(rows, tokens, dtype=torch.long), torch.ones(rows, tokens, dtype=torch.long)
    method = SmartPerturbation(
        UPDATE["epsilon"], False, UPDATE["step_size"], 1.0, UPDATE["norm_p"], 1, loss_map=[mean_output]
    )
    result = method.regularize(
        lambda: model(ids, None, mask), model, model(ids, None, mask), mask, task_type=TaskType.Regression
    )
    torch.testing.assert_close(model.delta(ids), torch.tensor(UPDATE["new_noise"], dtype=dtype), rtol=0.0, atol=1e-6)
    expected = torch.tensor(UPDATE["eff_noise"], dtype=torch.float64).abs().mean().item()
    assert result.eff_perturb.item() == pytest.approx(expected, abs=1e-6)


class GoldenClassifier(nn.Module):
    """The two-layer BERT of the golden data with its linear head on the first token.

    With sdpa, as the golden numbers were computed: eager attention rounds differently, by 1.3e-6 in a logit.
    """

    def __init__(self) -> None:
        super().__init__()
        weights = load_file(FIXTURES / "tiny_bert.safetensors")
        options = json.loads((FIXTURES / "tiny_bert_config.json").read_text())
        config = transformers.BertConfig(**{**options, "attn_implementation": "sdpa"})
        self.bert: Any = transformers.BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, 3)
        self.bert.load_state_dict({k.removeprefix("enc."): v for k, v in weights.items() if k.startswith("enc.")})
        self.head.load_state_dict({k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")})
        self.train()

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, *_: object) -> Tensor:
        states = self.bert(
            input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask
        ).last_hidden_state
        logits: Tensor = self.head(states[:, 0])
        return logits


def golden_batch() -> TokenBatch:
    batch = {name: torch.tensor(rows) for name, rows in STEP["batch"].items()}
    return TokenBatch(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])


def test_clean_logits_with_and_without_ln0() -> None:
    # In double precision, for single precision rounds differently on each processor; the golden numbers are single,
    # and 1.7e-6 from what double precision gives.
    model, batch = GoldenClassifier().double(), golden_batch()
    plain, normalized = (torch.tensor(STEP[name], dtype=torch.float64) for name in ("logits", "clean_logits"))
    torch.testing.assert_close(model(*batch), plain, rtol=0.0, atol=3e-6)
    with NoiseInjection(model.bert, "deberta").clean():
        with_ln0 = model(*batch)
    torch.testing.assert_close(with_ln0, normalized, rtol=0.0, atol=3e-6)


def test_deberta_sift_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """δ after the ascent, perturbed logits, the loss up to its two entropies, and the gradients of R."""
    model, batch = GoldenClassifier(), golden_batch()
    sigma = STEP["init_perturbation"]
    start_from(monkeypatch, torch.tensor(STEP["init_delta"], dtype=torch.float64) / sigma)
    trace = Trace(monkeypatch)
    sift = SiftPerturbation(
        step_size=STEP["learning_rate"],
        noise_var=sigma,
        norm_p="inf",
        k=1,
        projection="none",
        level="deberta",
        noise_clamp=True,
        detach_base=True,
    )
    with NoiseInjection(model.bert, "deberta").clean():
        clean = model(*batch)
    outputs: list[Tensor] = []

    def evaluate() -> Tensor:
        outputs.append(model(*batch))
        return outputs[-1]

    result = sift.regularize(evaluate, model.bert, clean, batch.attention_mask)

    real = batch.attention_mask.bool()
    golden_delta = torch.tensor(STEP["delta_after_ascent"])
    torch.testing.assert_close(trace.deltas[-1][real], golden_delta[real], rtol=0.0, atol=1e-8)
    assert not trace.deltas[-1][~real].any()
    assert len(outputs) == 2
    torch.testing.assert_close(outputs[-1], torch.tensor(STEP["adv_logits"]), rtol=0.0, atol=1e-6)

    entropies = sum(
        -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean().item() for logits in (clean, outputs[-1])
    )
    assert result.loss.item() + entropies == pytest.approx(STEP["loss"], abs=1e-6)

    result.loss.backward()
    torch.testing.assert_close(model.head.weight.grad, torch.tensor(STEP["grad_head_weight"]), rtol=0.0, atol=1e-6)
    word = model.bert.embeddings.word_embeddings.weight.grad
    query = model.bert.encoder.layer[0].attention.self.query.weight.grad
    assert word.norm().item() == pytest.approx(STEP["grad_word_embeddings_norm"], abs=1e-6)
    assert query.norm().item() == pytest.approx(STEP["grad_layer0_query_norm"], abs=1e-6)
