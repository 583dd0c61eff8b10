"""R of a decoder and its gradient by the formulas of docs/methods.md, with hooks of its own; shares no code with the
project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mt_dnn.perturbation.noise
from mt_dnn.perturbation.noise import standard_noise
from tests.hf import RADIUS, SIGMA, STEP

NOISE = torch.randn(8, 40, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
IGNORED = -100
COMPARING = ("smart", "alum", "vat", "random")

Run = Callable[[Tensor | float], Tensor]  # δ → logits (rows, tokens, classes)
Loss = Callable[[Tensor], Tensor]  # logits → a mean


@pytest.fixture
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial noise of every search is NOISE at real tokens; other draws, of other sizes, stay as they are."""

    def fixed(mask: Tensor, hidden: int, *more: Any) -> Tensor:
        if hidden != NOISE.size(-1):
            return standard_noise(mask, hidden, *more)
        return NOISE[: mask.size(0), : mask.size(1)] * mask.unsqueeze(-1)

    monkeypatch.setattr(mt_dnn.perturbation.noise, "standard_noise", fixed)


@contextmanager
def added(model: Any, delta: Tensor | float) -> Iterator[None]:
    """Within the block δ is added to the word vectors."""
    handle = model.get_input_embeddings().register_forward_hook(lambda _, __, h: h + delta)
    yield
    handle.remove()


def padded(model: Any, ids: Tensor, mask: Tensor) -> Run:
    def run(delta: Tensor | float) -> Tensor:
        with added(model, delta):
            logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
        return logits

    return run


def packed(model: Any, texts: Sequence[Sequence[int]]) -> Run:
    """Texts that stand in one row, each run alone."""

    def run(delta: Tensor | float) -> Tensor:
        parts, start = [], 0
        for text in texts:
            part = delta[:, start : start + len(text)] if isinstance(delta, Tensor) else delta
            with added(model, part):
                parts.append(model(input_ids=torch.tensor([text])).logits)
            start += len(text)
        return torch.cat(parts, 1)

    return run


def row(texts: Sequence[Sequence[int]], fill: int) -> Tensor:
    """(texts, longest)."""
    width = max(map(len, texts))
    return torch.tensor([[*text, *[fill] * (width - len(text))] for text in texts])


def divergence(method: str, counted: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """D of logits before the counted places, whose (rows, tokens) are true: a mean over them."""

    def between(perturbed: Tensor, clean: Tensor) -> Tensor:
        log_p, log_q = (x[:, :-1][counted[:, 1:]].log_softmax(-1) for x in (perturbed, clean))
        to_clean = (log_q.exp().detach() * (log_q.detach() - log_p)).sum(-1).mean()
        if method == "vat":
            return to_clean
        return to_clean + (log_p.exp().detach() * (log_p.detach() - log_q)).sum(-1).mean()

    return between


def task_loss(labels: Tensor) -> Loss:
    """The mean of −log p over the tokens with a label."""

    def of(logits: Tensor) -> Tensor:
        found, wanted = logits[:, :-1][labels[:, 1:] != IGNORED], labels[:, 1:][labels[:, 1:] != IGNORED]
        return -found.log_softmax(-1).gather(1, wanted[:, None]).mean()

    return of


def ascended(loss: Tensor, delta: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, delta, retain_graph=True)
    size = gradient.abs().amax(-1, keepdim=True)
    step = torch.where(size > 0, STEP * gradient / size.where(size > 0, 1.0), 0.0)
    return (delta + step).clamp(-RADIUS, RADIUS).detach()


def regularizer(method: str, run: Run, real: Tensor, between: Any = None, loss: Loss | None = None) -> Tensor:
    """R at the δ that one ascent step finds (METHODS, section 3), of FreeLB the mean over two points.

    Args:
        run: δ → logits.
        real: (rows, tokens), 1 at real tokens.
        between: D of perturbed and clean logits, for methods that compare.
        loss: ℓ of logits, for the others.
    """
    noise = NOISE[: real.size(0), : real.size(1)] * real.unsqueeze(-1)
    delta = (SIGMA * noise).clamp(-RADIUS, RADIUS).requires_grad_()
    if method in COMPARING:
        clean = run(0.0)
        if method != "random":
            delta = ascended(between(run(delta), clean.detach()), delta)
        return between(run(delta.detach()), clean)
    assert loss is not None
    first = loss(run(delta))
    last = loss(run(ascended(first, delta)))
    if method == "at":
        return last
    return (loss(run(delta.detach())) + last) / 2


def gradient(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(value, list(learned.values()), allow_unused=True)
    found = dict(zip(learned, gradients, strict=True))
    return {
        name: torch.zeros_like(parameter) if found.get(name) is None else found[name]
        for name, parameter in model.named_parameters()
    }
