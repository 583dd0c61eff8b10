"""The examples of adversarial training on preference data: as commands, and their losses against a plain loop."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

import mt_dnn.perturbation
from examples import continuous_adversarial_training as cat
from examples import latent_adversarial_training as lat
from tests.encoders import throughout
from tests.hf import tiny_model
from tests.loops.by_hand import assert_same, gradients
from tests.mt_dnn.huggingface.test_peft import lora
from tests.mt_dnn.perturbation.several_places import changed

ROOT = Path(__file__).parents[1]
EXAMPLES = {"continuous_adversarial_training": "--steps", "latent_adversarial_training": "--updates"}
VOCABULARY = {word: number for number, word in enumerate(["<pad>", "<eos>", "a", "b", "c", "d", "e", "f", "g"])}
ROWS = [
    {"prompt": "a b", "chosen": "c d e", "rejected": "f g"},
    {"prompt": "b c d", "chosen": "e", "rejected": "g f a b"},
]


def printed(output: str) -> dict[str, list[float]]:
    """The numbers of each line, by the words before them."""
    lines = re.findall(r"^(\w+) *: (\w+) *answer: cross-entropy (.*)$", output, re.M)
    return {f"{when} {kind}": [float(x) for x in re.findall(r"\d+\.\d+", rest)] for when, kind, rest in lines}


@pytest.mark.parametrize("example", EXAMPLES)
def test_training_withstands_the_attack_wherever_the_file_lies(example: str, tmp_path: Path) -> None:
    script = tmp_path / f"{example}.py"
    script.write_text((ROOT / "examples" / script.name).read_text(encoding="utf-8"), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), EXAMPLES[example], "30"]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = printed(finished.stdout)
    assert list(found) == [f"{when} {kind}" for when in ("before", "after") for kind in ("safe", "harmful", "ordinary")]
    # The model refused, but not under attack; now it does so under attack too, and helps as before.
    safe, attacked_safe = found["before safe"]
    assert safe < 1 and 4 * safe < attacked_safe
    assert found["after safe"][1] < 0.5 * attacked_safe
    assert found["after harmful"][1] > found["before harmful"][1] + 1
    assert found["after ordinary"][0] < 0.5


def batch() -> dict[str, Tensor]:
    return lat.preference_batch(ROWS, VOCABULARY)


def test_the_two_answers_of_a_prompt_begin_with_the_same_tokens() -> None:
    found = batch()
    assert found["input_ids"].tolist()[1] == [3, 4, 5, 6, 1, 0, 0, 0]
    assert found["labels"].tolist()[3] == [-100, -100, -100, 8, 7, 2, 3, 1]
    assert found["prompt_mask"].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    _, tokenizer = cat.toy_model(ROWS, seed=0)
    other = cat.preference_batch(ROWS, tokenizer)
    assert tokenizer.get_vocab() == VOCABULARY
    assert found.keys() == other.keys() and all(torch.equal(found[name], other[name]) for name in found)


def token_log_p(logits: Tensor, labels: Tensor, half: int) -> Tensor:
    """log p of every token of the safe answers (half 0) or of the harmful ones."""
    logits, labels = logits.chunk(2)[half], labels.chunk(2)[half]
    found = []
    for row, answer in zip(logits, labels, strict=True):
        for position in range(1, len(answer)):
            if answer[position] >= 0:
                exponentials = row[position - 1].exp()
                found.append((exponentials[answer[position]] / exponentials.sum()).log())
    return torch.stack(found)


def plain_loop(
    model: Any,
    base: Any,
    inputs: dict[str, Tensor],
    levels: Sequence[str],
    radius_of: Callable[[Tensor], Tensor],
    k: int,
    climbed: Callable[[Tensor], Tensor],
    descended: Callable[[Tensor], Tensor],
) -> Tensor:
    """K steps of half a radius in ℓ2 by token, projected, from zero; both answers of a prompt share δ."""
    prompts = inputs["prompt_mask"].unsqueeze(-1).double()
    rows, hidden = len(prompts), base.config.hidden_size
    deltas = [torch.zeros(*inputs["prompt_mask"].shape, hidden, dtype=torch.float64) for _ in levels]
    radii: list[Tensor] = [torch.zeros(0)] * len(levels)

    def run(deltas: Sequence[Tensor], start: bool = False) -> Tensor:
        def change(number: int) -> Callable[[Tensor], Tensor]:
            def apply(h: Tensor) -> Tensor:
                if start:
                    radii[number] = radius_of(h[:rows].detach())
                return h + torch.cat([deltas[number], deltas[number]]).to(h.dtype)

            return apply

        with changed(base, levels, [change(number) for number in range(len(levels))]):
            logits: Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return logits

    run(deltas, start=True)
    for _ in range(k):
        free = [delta.clone().requires_grad_() for delta in deltas]
        for number, gradient in enumerate(torch.autograd.grad(climbed(run(free)), free)):
            moved = deltas[number] + 0.5 * radii[number] * prompts * torch.nan_to_num(
                gradient / gradient.norm(dim=-1, keepdim=True)
            )
            length = moved.norm(dim=-1, keepdim=True)
            deltas[number] = torch.where(length > radii[number], moved * radii[number] / length, moved)
    return descended(run(deltas))


def models(adapter: bool) -> tuple[Any, Any]:
    """A tiny Llama of the words above, alone or with LoRA; and the model inside."""
    if not adapter:
        model = tiny_model("generation")
        return model, model
    model = lora("generation", ["q_proj", "v_proj"])
    return model, model.get_base_model()


@pytest.mark.parametrize("adapter", [False, True])
def test_continuous_adversarial_training_is_the_plain_loop(adapter: bool) -> None:
    model, base = models(adapter)
    inputs = batch()
    with throughout(torch.float64):
        found = cat.adversarial_loss(cat.continuous_attack(model), model, inputs)
        table = base.get_input_embeddings().weight.detach()
        radius = cat.RADIUS * table.square().sum(-1).sqrt().mean()

        def descended(logits: Tensor) -> Tensor:
            safe, harmful = (-token_log_p(logits, inputs["labels"], half).mean() for half in (0, 1))
            assert harmful < 5 and safe > 0.5  # within the cut-offs
            return 0.5 * safe - 0.5 * harmful

        expected = plain_loop(
            model, base, inputs, ("pre_ln",), lambda h: radius.expand(*h.shape[:2], 1), cat.STEPS,
            lambda logits: token_log_p(logits, inputs["labels"], 1).mean(), descended,
        )  # fmt: skip
        shifted = gradients(model, 10 + expected)  # the loss may be negative
        assert_same(gradients(model, 10 + found), shifted, 1e-9)
    assert {name for name in shifted.gradients if "lora_" in name} if adapter else shifted.gradients


@pytest.mark.parametrize("adapter", [False, True])
def test_latent_adversarial_training_is_the_plain_loop(adapter: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lat, "PLACES", ("hidden:0", "pre_ln"))
    model, base = models(adapter)
    inputs = batch()

    def away(logits: Tensor, half: int) -> Tensor:
        log_p = token_log_p(logits, inputs["labels"], half)
        return torch.where(log_p < -5, 0.0, -(1 - log_p.exp()).log()).mean()

    with throughout(torch.float64):
        found = lat.adversarial_loss(lat.latent_attack(model), model, inputs)
        expected = plain_loop(
            model, base, inputs, ("pre_ln", "hidden:0"), lambda h: lat.RADIUS * h.norm(dim=-1, keepdim=True), lat.STEPS,
            lambda logits: token_log_p(logits, inputs["labels"], 1).mean() - away(logits, 0),
            lambda logits: away(logits, 1) - token_log_p(logits, inputs["labels"], 0).mean(),
        )  # fmt: skip
        assert_same(gradients(model, found), gradients(model, expected), 1e-9)


def test_cut_offs_keep_a_thousandth_of_the_gradient() -> None:
    loss = torch.tensor([0.2, 0.8, -7.0], requires_grad=True)
    cut = torch.stack([cat.cut_off(loss[0], 0.5), cat.cut_off(loss[1], 0.5), cat.cut_off(loss[2], -5.0)])
    torch.testing.assert_close(cut, torch.tensor([0.4997, 0.8, -5.002]))
    (gradient,) = torch.autograd.grad(cut.sum(), loss)
    torch.testing.assert_close(gradient, torch.tensor([0.001, 1.0, 0.001]))


def test_the_away_term_leaves_unlikely_tokens_alone_and_is_finite_where_p_is_1() -> None:
    logits = torch.tensor([[[0.0, 9.0, 0.0], [60.0, 0.0, 0.0], [0.0, 0.0, 0.0]]], requires_grad=True)
    labels = torch.tensor([[-100, 0, 0]])
    found = lat.away(logits, labels)
    torch.testing.assert_close(found, torch.tensor((60 - torch.tensor(2.0).log()) / 2))
    (gradient,) = torch.autograd.grad(found, logits)
    assert not gradient[0, 0].any() and gradient[0, 1].isfinite().all() and gradient[0, 1].any()


@pytest.mark.parametrize("example", EXAMPLES)
def test_only_public_names_of_the_library_are_used(example: str) -> None:
    tree = ast.parse((ROOT / "examples" / f"{example}.py").read_text(encoding="utf-8"))
    own = [x for x in ast.walk(tree) if isinstance(x, ast.ImportFrom) and str(x.module).startswith("mt_dnn")]
    assert {node.module for node in own} == {"mt_dnn.perturbation"}
    assert {alias.name for node in own for alias in node.names} <= set(mt_dnn.perturbation.__all__)
