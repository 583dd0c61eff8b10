"""The inner search on one batch: initial noise, perturbed passes, gradient, ascent step, projection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .ball import is_finite
from .delta import CachedDelta, Delta
from .injection import NoiseInjection
from .method import SearchSettings
from .noise import default_generator, dropout_seed, forked_dropout, place_seeds

HALF_PRECISION_SCALE = 2.0**12
HALF_PRECISION_LIMIT = 2.0**15


class Search:
    """The search of δ for one batch, at one place or at several.

    Several places have a δ each, and all δ are found in one ascent. A pass adds each δ to the tensor that arrives at
    its place in this pass, so h at a later place depends on the δ before it. The gradient of the ascent loss with
    respect to all δ comes from one backward pass; then each δ takes its own step and projection. The ball of a place
    does not move during the search: with relative noise its unit is the size of the clean pass's h there. If the search
    does not know the clean pass, it is the size of h in its first pass, which the initial noise of the places before
    has moved.

    Args:
        method: its hyperparameters.
        evaluate: the model's forward on this batch.
        places: where noise enters the encoder that this forward runs, in a forward's order (`find_places`).
        mask: (batch, tokens), 1 at real tokens.
        noise_seeds: one seed per row of δ; without them torch's generator draws the noise and then the dropout masks.
        dropout_state: the state of the device's generator before the clean pass. `same_dropout` needs it; otherwise
            only `output_at` uses it.
        bases: h of the clean pass at each place, with its graph; by default h of the first perturbed pass.
        cached: δ from an earlier epoch, used instead of initial noise; with one place.
        check_base: raise an error if a later pass has another h at the first place than the first one.
        noise_mask: (rows, tokens), 1 at the tokens that get noise; by default `mask`. If the batch is n times as many
            rows, its rows i, i + rows, … share a δ, whose ball is around h of row i.

    Attributes:
        mask: (rows, tokens), 1 at real tokens that get noise.
        copies: n, the number of rows of the batch that share a δ.
        base: h at the first place, (batch, tokens, hidden). Every pass starts from it, so that one gradient of the
            embeddings is computed for all passes; that gradient is as large as the word table.
        deltas: δ at each place, by its number in `places`; complete after the first pass.
        skipped: (rows,), true at examples that met a value that is not finite.

    Raises:
        ValueError: `same_dropout` without `dropout_state`; `cached` with several places or a `noise_mask`; or a
            `noise_mask` that does not fit the batch.
    """

    skipped: Tensor

    def __init__(
        self,
        method: SearchSettings,
        evaluate: Callable[[], Any],
        places: Sequence[NoiseInjection],
        mask: Tensor,
        noise_seeds: Sequence[int] | None = None,
        dropout_state: Tensor | None = None,
        bases: Sequence[Tensor] | None = None,
        cached: CachedDelta | None = None,
        check_base: bool = False,
        noise_mask: Tensor | None = None,
    ):
        if method.same_dropout and dropout_state is None and method.needs_clean:
            raise ValueError("same_dropout needs dropout_state, the generator's state before the clean pass")
        if cached is not None and (len(places) > 1 or noise_mask is not None):
            found = "a noise_mask" if len(places) == 1 else f"{len(places)} places"
            raise ValueError(f"δ is cached for all real tokens at one place, found {found}")
        self.copies = 1 if noise_mask is None else _copies(noise_mask, mask)
        if noise_mask is not None:
            mask = mask[: len(noise_mask)] * noise_mask
        if method.same_dropout and noise_seeds is None:
            # Noise drawn inside the fork would shift the dropout masks that the fork repeats.
            noise_seeds = torch.randint(2**62, (len(mask),)).tolist()
        self.method = method
        self.evaluate = evaluate
        self.places = places
        self.mask = mask
        self.noise_seeds = noise_seeds
        self.dropout_state = dropout_state
        self.bases = bases
        self.base = None if bases is None else bases[0]
        self.cached = cached
        self.check_base = check_base
        self.passes = 0
        self.deltas: dict[int, Delta] = {}

    # passes

    def ascent_output(self) -> Any:
        """f(h + δ), differentiable with respect to δ only: the parameters before the first place get no gradient."""
        return self._next_pass(lambda delta: delta.value, learns=False)

    def final_output(self) -> Any:
        """f(h + δ), differentiable with respect to h only, so that the embeddings learn from R too."""
        return self._next_pass(lambda delta: delta.value.detach(), learns=not self.method.detach_base)

    def joint_output(self) -> Any:
        """f(h + δ), differentiable with respect to h and δ: one graph for the ascent step and the parameters."""
        return self._next_pass(lambda delta: delta.value, learns=not self.method.detach_base)

    def output_at(self, noise: Callable[[Delta], Tensor]) -> Any:
        """f(h + `noise`) with the same dropout masks in every call: those of the clean pass, so that R(0) = 0.

        If `dropout_state` is not known, the masks are those of the next pass.

        Args:
            noise: what is added at a place, from its δ.
        """
        start = self._dropout_start() if self.dropout_state is None else self.dropout_state
        if start is None:
            start = default_generator(self.mask.device).get_state()
        return self._evaluate(noise, True, start)

    def _next_pass(self, noise: Callable[[Delta], Tensor], learns: bool) -> Any:
        output = self._evaluate(noise, learns, self._dropout_start())
        self.passes += 1
        return output

    def _evaluate(self, noise: Callable[[Delta], Tensor], learns: bool, dropout_start: int | Tensor | None) -> Any:
        """The forward with noise. Forwards without gradients inside it, such as a reference model's, get no noise.

        Args:
            noise: what is added at a place, from its δ.
            learns: h at the first place has its gradient.
            dropout_start: see `forked_dropout`.
        """
        with ExitStack() as stack:
            for number, place in enumerate(self.places):
                stack.enter_context(place.add(self._perturbing(number, noise, learns)))
            stack.enter_context(forked_dropout(self.mask.device, dropout_start))
            return self.evaluate()

    def _perturbing(self, number: int, noise: Callable[[Delta], Tensor], learns: bool) -> Callable[[Tensor], Tensor]:
        """h at place `number` → h with noise, for one forward.

        Raises:
            ValueError: the forward embeds words twice, as a model does that encodes two texts one after the other, or
                as LED does to embed its own padding: δ belongs to one batch of tokens.
        """
        perturbed, enabled = False, torch.is_grad_enabled()

        def perturb_once(h: Tensor) -> Tensor:
            nonlocal perturbed
            if torch.is_grad_enabled() != enabled:
                return h
            if perturbed:
                raise ValueError(
                    f"{self._encoder} embeds words twice in one forward; accepted: models that embed a batch once, and "
                    "batches that the encoder need not pad"
                )
            perturbed = True
            base = self._shared_base(h) if number == 0 else h
            added = noise(self._delta_at(number, base)).to(h.dtype)
            added = added.repeat(self.copies, 1, 1) if self.copies > 1 else added
            return (base if learns or number > 0 else base.detach()) + added

        return perturb_once

    def _dropout_start(self) -> int | Tensor | None:
        if self.method.same_dropout and self.dropout_state is not None:
            return self.dropout_state
        if self.noise_seeds is None:
            return None
        return dropout_seed(self.noise_seeds, 0 if self.method.same_dropout else self.passes)

    def _shared_base(self, h: Tensor) -> Tensor:
        """The h at the first place that all passes share.

        Raises:
            ValueError: with `check_base`, its values differ from those of the pass before.
        """
        if self.base is None:
            self.base = h
        self._check_shape(h.shape, self.base.shape)
        if self.check_base and self.deltas and not torch.equal(h.detach(), self.base.detach()):
            raise ValueError(
                f"{self._encoder} embeds a batch differently in each pass, for example because it draws noise; run the "
                "clean pass of each batch within `with regularizer.clean(model):`"
            )
        return self.base

    def _delta_at(self, number: int, h: Tensor) -> Delta:
        """δ at place `number`, drawn when a forward reaches the place for the first time.

        Args:
            h: the tensor there, in this pass.
        """
        if number not in self.deltas:
            if len(h) != self.copies * len(self.mask):
                rows = self.copies * len(self.mask)
                raise ValueError(
                    f"{self._encoder} embeds {len(h)} rows, and the batch has {rows}; accepted: equal numbers"
                )
            self.deltas[number] = Delta(
                self.method,
                self.places[number],
                self.mask,
                place_seeds(self.noise_seeds, number),
                h if self.bases is None else self.bases[number],
                self.cached,
            )
            if number == 0:
                self.in_float16 = _computes_in_float16(h)
                self.skipped = torch.zeros(len(self.mask), dtype=torch.bool, device=h.device)
        delta = self.deltas[number]
        self._check_shape(h.shape, (self.copies * len(self.mask), *delta.h.shape[1:]))
        return delta

    def _check_shape(self, shape: Sequence[int], before: Sequence[int]) -> None:
        """Check that h, by its shape, belongs to the same batch as in the pass before.

        Raises:
            ValueError: it does not.
        """
        if tuple(shape) != tuple(before):
            raise ValueError(
                f"{self._encoder} embeds {' x '.join(map(str, shape))} numbers, in the pass before "
                f"{' x '.join(map(str, before))}; accepted: passes on one batch"
            )

    @property
    def _encoder(self) -> str:
        return type(self.places[0].encoder).__name__

    # δ

    def gradient(self, loss: Tensor, retain_graph: bool = False) -> tuple[Tensor, ...]:
        """∂loss/∂δ of each place, (batch, tokens, hidden).

        Under float16 the loss is scaled up for the backward pass, because most gradients of δ underflow in float16.

        Raises:
            ValueError: the backward pass recomputes the encoder's embeddings, without δ.
        """
        scale = HALF_PRECISION_SCALE if self.in_float16 else 1.0
        if loss.dtype == torch.float16:  # the scale times the number of examples flows back through this loss
            scale = min(scale, HALF_PRECISION_LIMIT / len(self.mask))
        with ExitStack() as stack:
            for place in self.places:
                stack.enter_context(place.not_recomputed())
            scaled = loss if scale == 1 else loss * scale
            values = [delta.value for delta in self.deltas.values()]
            gradients = torch.autograd.grad(scaled, values, retain_graph=retain_graph)
        return gradients if scale == 1 else tuple(gradient / scale for gradient in gradients)

    def ascend(self, gradients: Sequence[Tensor], finite: Tensor) -> None:
        """δ ← Π(δ + η · direction(g)) at each place. An example whose logits or gradient are not finite keeps its δ.

        Args:
            gradients: g of each place, (batch, tokens, hidden).
            finite: (batch,), whether an example's logits are finite.
        """
        finite = finite.view(self.copies, -1).all(0) if self.copies > 1 else finite
        deltas = self.deltas.values()
        masked = [g.masked_fill(delta.padding, 0) for g, delta in zip(gradients, deltas, strict=True)]
        for gradient in masked:
            finite = finite & is_finite(gradient).flatten(1).all(1)
        skipped = ~finite
        for gradient, delta in zip(masked, deltas, strict=True):
            delta.ascend(gradient, skipped)
        self.skipped = self.skipped | skipped

    def ascend_in_backward(self, finite: Tensor) -> None:
        """Take the ascent step of δ, and store δ, during the backward pass of the training loss.

        The gradient of δ there is a positive multiple of the ascent loss's. `statistics` that were returned before are
        updated in place.
        """
        (delta,) = self.deltas.values()

        def step(gradient: Tensor) -> None:
            self.ascend((gradient.to(delta.value.dtype),), finite)
            if self.cached is not None:
                self.cached.store(delta.value.detach())
            for reported, value in zip(self._reported, self._step_statistics(), strict=True):
                reported.copy_(value)

        delta.value.register_hook(step)

    # statistics

    def relative_sizes(self) -> Tensor:
        """‖δ‖₂ / ‖h‖₂ of each real token at each place, in one dimension; see `Delta.relative_sizes`."""
        return torch.cat([delta.relative_sizes() for delta in self.deltas.values()])

    def statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`emb_val`, `eff_perturb`, `delta_size` and `skipped` of a `Regularization`."""
        self._reported = self._step_statistics()
        eff_perturb, skipped = self._reported
        deltas = self.deltas.values()
        emb_val = self._mean([delta.size_of_h for delta in deltas])
        return emb_val, eff_perturb, self._mean([delta.value.detach().abs().sum() for delta in deltas]), skipped

    def _step_statistics(self) -> tuple[Tensor, Tensor]:
        return self._mean([delta.last_step.abs().sum() for delta in self.deltas.values()]), self.skipped.sum()

    def _mean(self, sums: Sequence[Tensor]) -> Tensor:
        """The mean over the entries of real tokens at all places, from the sum at each; 0 if no token gets noise."""
        return sum_of(sums) / self._entries

    @cached_property
    def _entries(self) -> Tensor:
        """The number of entries of real tokens at all places, at least 1."""
        return sum_of(delta.entries for delta in self.deltas.values()).clamp(min=1)


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *others = terms
    return sum(others, start=first)


def _copies(noise_mask: Tensor, mask: Tensor) -> int:
    """How many rows of the batch share a δ.

    Raises:
        ValueError: the noise's rows are no divisor of the batch's, its tokens are others, or it holds other numbers
            than 0 and 1, as labels do.
    """
    batch, width = mask.shape
    if noise_mask.dim() != 2 or noise_mask.size(1) != width or len(noise_mask) == 0 or batch % len(noise_mask):
        raise ValueError(
            f"noise_mask of {' x '.join(map(str, noise_mask.shape))}, and the batch is {batch} x {width}; accepted: "
            "the batch's tokens, and its rows or a divisor of their number"
        )
    if noise_mask.dtype != torch.bool and bool((noise_mask * (noise_mask - 1)).any()):
        raise ValueError(
            f"noise_mask of numbers from {noise_mask.min():g} to {noise_mask.max():g}; accepted: 1 at the tokens that "
            "get noise, 0 at the others"
        )
    return batch // len(noise_mask)


def _computes_in_float16(h: Tensor) -> bool:
    """Whether the encoder computes in float16. Call it inside the forward, where autocast may be switched on."""
    device = h.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return autocast or h.dtype == torch.float16
