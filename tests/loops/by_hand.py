"""R and its gradient computed by hand: ascent, divergence and hooks written out, without this project's code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt_dnn.perturbation import PERTURBATIONS, ModelRegularizer
from mt_dnn.perturbation.noise import standard_noise
from tests.hf import RADIUS, SIGMA, STEP, search

SEEDS = (11, 12, 13, 14, 15, 16)
LEVELS = ("pre_ln", "post_ln", "deberta")


class Found(NamedTuple):
    """R and its gradient of each parameter."""

    value: float
    gradients: dict[str, Tensor]


def point_of(model: Any, level: str) -> nn.Module:
    """The module that noise enters at, in the tiny BERT and Llama of `tests.hf`."""
    if level.startswith("hidden:"):
        layers = model.bert.encoder.layer if hasattr(model, "bert") else model.model.layers
        layer: nn.Module = layers[int(level.partition(":")[2])]
        return layer
    if not hasattr(model, "bert"):
        words: nn.Module = model.model.embed_tokens
        return words
    block = model.bert.embeddings
    found: nn.Module = block.word_embeddings if level == "pre_ln" else block.LayerNorm
    return found


def rows_of(output: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits with one distribution a row: of a decoder those of the tokens that come before one with a label."""
    logits: Tensor = output.logits
    return logits[:, :-1][batch["labels"][:, 1:] != -100] if logits.dim() == 3 else logits


def by_hand(
    name: str,
    forward: Callable[[], Any],
    point: nn.Module,
    batch: dict[str, Tensor],
    *,
    level: str = "pre_ln",
    k: int = 1,
    seeds: Sequence[int] = SEEDS,
    state: Tensor | None = None,
    same_dropout: bool = False,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    numbers: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """R of `smart`, `vat`, `at` or `freelb` as METHODS.md has it, in `inf` by token, projected.

    Args:
        state: of torch's generator before the clean pass, where there is dropout; perturbed passes have masks of their
            own, drawn by a seed that the seeds of the rows and the number of the pass give, or the same ones.
        precision: the block that every forward runs in.
        dtype: of the noise.
        numbers: the forward returns numbers, compared by the squared error.
    """
    mask = batch["attention_mask"].bool()
    assert mask.size(0) <= len(seeds)
    passes = iter(range(-1 if name in ("smart", "vat") else 0, k + 1))

    def run(noise: Callable[[Tensor], Tensor] | None) -> Any:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = F.layer_norm(inputs[0], inputs[0].shape[-1:], eps=1e-7)
            return (h if noise is None else noise(h), *inputs[1:])

        def after(_: nn.Module, __: Any, h: Tensor) -> Tensor:
            return h if noise is None else noise(h)

        number = next(passes)
        if state is not None and (same_dropout or number < 0):
            torch.set_rng_state(state)
        elif state is not None:
            text = f"dropout/{number}/{','.join(map(str, seeds[: len(mask)]))}"
            torch.manual_seed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
        handle = point.register_forward_pre_hook(before) if level == "deberta" else point.register_forward_hook(after)
        with precision():
            output = forward()
        handle.remove()
        return output

    def read(output: Any) -> Tensor:
        found: Tensor = output if numbers else rows_of(output, batch)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    clean = None if name in ("at", "freelb") else read(run(None))
    units = len(mask) if clean is None else len(clean)

    def loss(output: Any, detached: bool) -> Tensor:
        if clean is None:
            own: Tensor = output.loss
            return own
        if numbers:
            return (read(output) - (clean.detach() if detached else clean)).square().mean()
        q = (clean.detach() if detached or name == "vat" else clean).log_softmax(-1)
        p = read(output).log_softmax(-1)
        total = (q.detach().exp() * (q.detach() - p)).sum(-1)
        if name == "smart":
            total = total + (p.detach().exp() * (p.detach() - q)).sum(-1)
        return total.mean()

    kind = "uniform" if name == "freelb" else "normal"
    delta = _noise(mask, next(point.parameters()).size(-1), seeds, kind, dtype).clamp(-RADIUS, RADIUS)
    values = []
    for step in range(k if name == "freelb" else k + 1):
        if name == "freelb" or step == k:
            fixed = delta.clone()
            values.append(loss(run(lambda h, fixed=fixed: h + fixed), False))  # type: ignore[misc]
        if step == (k - 1 if name == "freelb" else k):
            break
        free = delta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            loss(run(lambda h, free=free: h.detach() + free), True) * units,  # type: ignore[misc]
            free,
        )
        largest = gradient.abs().amax(-1, keepdim=True)
        delta = (delta + STEP * gradient / largest.where(largest > 0, 1.0)).clamp(-RADIUS, RADIUS)
    return torch.stack(values).mean()


def _noise(mask: Tensor, hidden: int, seeds: Sequence[int], kind: str, dtype: torch.dtype) -> Tensor:
    """What is given here, as weights and texts are: the draw has tests of its own, by published numbers."""
    return SIGMA * standard_noise(mask.long(), hidden, dtype, list(seeds[: len(mask)]), kind)


def gradients(model: nn.Module, value: Tensor) -> Found:
    """Of a scalar, by the names of the model's parameters; without those that get none."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return Found(value.item(), {name: x for name, x in zip(named, found, strict=True) if x is not None})


def regularizer(name: str, model: nn.Module, level: str = "pre_ln", k: int = 1, **options: Any) -> ModelRegularizer:
    """This project's, with the sizes of `by_hand`."""
    own = {key: options.pop(key) for key in ("task_type", "forward", "task_loss") if key in options}
    return ModelRegularizer(search(PERTURBATIONS[name], level=level, k=k, **options), model, **own)


def assert_same(found: Found, expected: Found, tolerance: float = 1e-10) -> None:
    assert abs(found.value - expected.value) <= tolerance * max(1.0, abs(expected.value))
    assert expected.value > 1e-4
    empty = {name for name in found.gradients.keys() ^ expected.gradients.keys()}
    for name in empty:
        assert (found.gradients | expected.gradients)[name].abs().max() <= tolerance, name
    for name in found.gradients.keys() & expected.gradients.keys():
        torch.testing.assert_close(
            found.gradients[name],
            expected.gradients[name],
            rtol=0,
            atol=tolerance,
            msg=lambda text: f"{name}: {text}",  # noqa: B023
        )
    assert max(float(x.abs().max()) for x in expected.gradients.values()) > 1e-5
