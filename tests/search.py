"""Common to the tests of the search: one call of `regularize`, and what it did on its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import mt_dnn.perturbation.search
from data_utils.task_def import TaskType
from mt_dnn.perturbation import Regularization, SmartPerturbation
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.perturbation.noise import example_seeds
from tests.encoders import Classifier, LinearModel, TokenBatch


class Step(NamedTuple):
    """One ascent: δ before it and the gradient at that δ, both (batch, tokens, hidden)."""

    delta: Tensor
    gradient: Tensor


class Trace:
    """δ of every final pass and all ascents at the first place, read off the search as it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deltas: list[Tensor] = []
        self.steps: list[Step] = []
        search: Any = mt_dnn.perturbation.search.Search
        final_output, ascend = search.final_output, search.ascend
        monkeypatch.setattr(search, "final_output", self._recording_final(final_output))
        monkeypatch.setattr(search, "ascend", self._recording_ascent(ascend))

    def _recording_final(self, original: Any) -> Any:
        def final_output(search: Any) -> Any:
            result = original(search)
            self.deltas.append(search.deltas[0].value.detach().clone())
            return result

        return final_output

    def _recording_ascent(self, original: Any) -> Any:
        def ascend(search: Any, gradients: tuple[Tensor, ...], *args: Any) -> None:
            self.steps.append(Step(search.deltas[0].value.detach().clone(), gradients[0].detach().clone()))
            original(search, gradients, *args)

        return ascend


def smart(**options: Any) -> SmartPerturbation:
    """A search with noise, steps and a ball of plain size where the test names none of its own."""
    return SmartPerturbation(**{"noise_var": 0.05, "step_size": 0.05, "radius": 0.1, **options})


def seeds_of(count: int, update: int = 0, seed: int = 0) -> list[int]:
    return example_seeds(seed, update, [str(row) for row in range(count)])


def clean_logits(model: Classifier, batch: TokenBatch, level: str = "pre_ln") -> Tensor:
    with NoiseInjection(model.bert, level).clean():
        logits: Tensor = model(*batch)
    return logits


def regularize(
    method: SmartPerturbation,
    model: Classifier,
    batch: TokenBatch,
    logits: Tensor | None = None,
    noise_seeds: Sequence[int] | None = None,
    **options: Any,
) -> Regularization:
    """R of a batch, noise drawn by `noise_seeds` (by row, where none are given)."""
    seeds = seeds_of(batch.input_ids.size(0)) if noise_seeds is None else noise_seeds
    level = method.level
    clean = clean_logits(model, batch, level) if logits is None else logits
    return method.regularize(
        lambda: model(*batch), model.bert, clean, batch.attention_mask, noise_seeds=seeds, **options
    )


def mean_output(input: Tensor, target: Tensor, *_: object) -> Tensor:
    """A stand-in for a divergence whose ascent has the gradient of f itself: the mean of f(h + δ) over rows."""
    return input.mean()


def linear_batch(lengths: Sequence[int] = (4, 2, 3), tokens: int = 4) -> TokenBatch:
    """Word number 1 + position + tokens · row; padding is word 0."""
    rows = len(lengths)
    ids = 1 + torch.arange(rows * tokens).view(rows, tokens)
    mask = (torch.arange(tokens) < torch.tensor(lengths).unsqueeze(1)).long()
    return TokenBatch(ids * mask, None, mask)


def linear_model(
    hidden: int = 5, tokens: int = 4, rows: int = 3, seed: int = 0, zero_table: bool = False
) -> LinearModel:
    """Weights (rows, tokens, hidden) bounded away from zero, word vectors of size about 1."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(rows, tokens, hidden, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, draw.shape, generator=generator) * 2 - 1
    table = torch.randn(1 + rows * tokens, hidden, generator=generator, dtype=torch.float64)
    return LinearModel(0 * table if zero_table else table, sign * (0.3 + draw))


def search_linear(
    method: SmartPerturbation,
    model: nn.Module,
    batch: TokenBatch,
    noise_seeds: Sequence[int] | None = None,
    task_type: TaskType = TaskType.Regression,
) -> Regularization:
    seeds = seeds_of(batch.input_ids.size(0)) if noise_seeds is None else noise_seeds
    return method.regularize(
        lambda: model(*batch), model, model(*batch), batch.attention_mask, task_type=task_type, noise_seeds=seeds
    )
