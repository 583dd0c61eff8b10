"""R at several places and its gradient computed by hand: hooks, ascent and projections written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt_dnn.perturbation.noise import place_seeds, standard_noise
from tests.hf import RADIUS, SIGMA, STEP
from tests.loops.by_hand import SEEDS, point_of, rows_of

Change = Callable[[Tensor], Tensor]
Loss = Callable[[Any], Tensor]
ONE = torch.ones((), dtype=torch.float64)
# Sizes of the noise as shares of h, in the ℓ2 norm of each token.
RELATIVE: dict[str, Any] = {"norm_p": "l2", "scale": "relative"}


@contextmanager
def changed(model: Any, levels: Sequence[str], changes: Sequence[Change]) -> Iterator[None]:
    """Within the block each change is applied to the tensor at its level."""
    handles = []
    for level, change in zip(levels, changes, strict=True):
        point = point_of(model, level)
        if level == "deberta":
            handles.append(point.register_forward_pre_hook(_before(change)))
        else:
            handles.append(point.register_forward_hook(_after(change)))
    yield
    for handle in handles:
        handle.remove()


def _before(change: Change) -> Any:
    return lambda _, inputs: (change(F.layer_norm(inputs[0], inputs[0].shape[-1:], eps=1e-7)), *inputs[1:])


def _after(change: Change) -> Any:
    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return after


def by_hand(
    name: str,
    model: Any,
    batch: dict[str, Tensor],
    levels: Sequence[str],
    *,
    k: int,
    forward: Callable[[], Any] | None = None,
    relative: bool = False,
    seeds: Sequence[int] = SEEDS,
    ascent: Loss | None = None,
    descent: Loss | None = None,
    noise_mask: Tensor | None = None,
) -> Tensor:
    """R of `smart` or `at`, with δ of each level by token and projected: in `inf`, or `RELATIVE`.

    Args:
        levels: in a forward's order.
        forward: by default the model on the batch.
        ascent, descent: losses of the output in the place of that of `at`.
        noise_mask: the tokens that get noise; rows i, i + (its rows), … of the batch share a δ.
    """
    mask = batch["attention_mask"] if noise_mask is None else noise_mask
    copies = len(batch["attention_mask"]) // len(mask)
    run_model = forward or (lambda: model(**batch))
    seen: list[Tensor] = [torch.zeros(0)] * len(levels)

    def run(deltas: Sequence[Tensor] | None) -> Any:
        def change(number: int) -> Change:
            def apply(h: Tensor) -> Tensor:
                seen[number] = h[: len(mask)].detach()
                return h if deltas is None else h + torch.cat([deltas[number].to(h.dtype)] * copies)

            return apply

        with changed(model, levels, [change(number) for number in range(len(levels))]):
            return run_model()

    clean = None if name == "at" else rows_of(run(None), batch).log_softmax(-1)

    def loss(output: Any, detached: bool) -> Tensor:
        own_loss = ascent if detached else descent
        if own_loss is not None:
            return own_loss(output)
        if clean is None:
            own: Tensor = output.loss
            return own
        q, p = (clean.detach() if detached else clean), rows_of(output, batch).log_softmax(-1)
        return (q.detach().exp() * (q.detach() - p) + p.detach().exp() * (p.detach() - q)).sum(-1).mean()

    draws = [
        standard_noise(mask, model.config.hidden_size, torch.float64, place_seeds(seeds[: len(mask)], number))
        for number in range(len(levels))
    ]

    def length(x: Tensor) -> Tensor:
        return x.square().sum(-1, keepdim=True).sqrt()

    def started(number: int) -> tuple[Tensor, Tensor]:
        """The initial δ at a place and the length that radius and step are shares of."""
        if not relative:
            return (SIGMA * draws[number]).clamp(-RADIUS, RADIUS), ONE
        size = length(seen[number].double())
        return projected(SIGMA * draws[number] * size / seen[number].size(-1) ** 0.5, size), size

    def projected(delta: Tensor, size: Tensor) -> Tensor:
        if not relative:
            return delta.clamp(-RADIUS, RADIUS)
        norm = length(delta).where(length(delta) > 0, ONE)
        return delta * (RADIUS * size / norm).clamp(max=1)

    if name == "at":  # without a clean pass the sizes are those that the noise before has changed
        found: list[tuple[Tensor, Tensor]] = []
        for number in range(len(levels)):
            run([*(delta for delta, _ in found), *(0 * draws[0] for _ in levels[number:])])
            found.append(started(number))
    else:
        found = [started(number) for number in range(len(levels))]
    deltas, sizes = [delta for delta, _ in found], [size for _, size in found]
    for _ in range(k):
        free = [delta.clone().requires_grad_() for delta in deltas]
        for number, gradient in enumerate(torch.autograd.grad(loss(run(free), True), free)):
            gradient = gradient * mask.unsqueeze(-1)
            norm = length(gradient) if relative else gradient.abs().amax(-1, keepdim=True)
            step = STEP * sizes[number] * gradient / norm.where(norm > 0, ONE)
            deltas[number] = projected(deltas[number] + step, sizes[number])
    return loss(run(deltas), False)
