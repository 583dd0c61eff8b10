"""The training objective: what its passes share, and that sharing changes no value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt_dnn.batcher import Batch
from mt_dnn.checkpoints.build import build_network, build_objective
from mt_dnn.training.objective import TrainingObjective
from tests.encoders import LEVELS
from tests.mt_dnn.runs import tiny_config
from tests.search import seeds_of

METHODS = ("random", "at", "vat", "smart", "alum", "freelb", "r3f")


def objective_of(folder: Path, *flags: str) -> TrainingObjective:
    """In double precision, on the tiny run's encoder, with dropout."""
    from mt_dnn.data.run_data import RunData

    config = tiny_config(folder, "--adv_train", *flags)
    torch.manual_seed(0)
    return build_objective(config, build_network(config, RunData(config).task_defs)).double()


def labelled_batch(objective: TrainingObjective) -> Batch:
    """Of the first task, cola."""
    ids = torch.randint(5, 90, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(7) < torch.tensor([[7], [5], [3]])).long()
    return Batch(ids * mask, mask, torch.zeros_like(ids), torch.tensor([0, 1, 1]), 0, ("a", "b", "c"))


def nodes(loss: Tensor) -> Iterator[Any]:
    """Every node of the graph behind a tensor."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [before for before, _ in node.next_functions]


def lookups_of(table: nn.Embedding, loss: Tensor) -> int:
    """How many gradients as large as the table the backward of `loss` computes."""
    found = [node for node in nodes(loss) if "EmbeddingBackward" in node.name()]
    return sum(getattr(node.next_functions[0][0], "variable", None) is table.weight for node in found)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", METHODS)
def test_words_are_looked_up_once_for_the_backward(tmp_path: Path, method: str, level: str) -> None:
    objective = objective_of(tmp_path, "--adv_opt", method, "--adv_norm_level", level, "--adv_k", "2")
    value = objective(labelled_batch(objective), seeds_of(3))
    assert lookups_of(objective.network.bert.get_input_embeddings(), value.loss) == 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", METHODS)
def test_passes_that_share_their_embeddings_give_the_same_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, level: str
) -> None:
    objective = objective_of(tmp_path, "--adv_opt", method, "--adv_norm_level", level, "--adv_k", "2")
    batch = labelled_batch(objective)
    parameters = [p for p in objective.network.parameters() if p.requires_grad]

    def value_and_gradients() -> tuple[Tensor, list[Tensor | None]]:
        torch.manual_seed(2)
        loss = objective(batch, seeds_of(3)).loss
        return loss.detach(), list(torch.autograd.grad(loss, parameters, allow_unused=True))

    shared, gradients = value_and_gradients()
    import mt_dnn.perturbation.search as search

    original = search.Search._shared_base

    def own(self: Any, h: Tensor) -> Tensor:
        original(self, h)
        return h

    monkeypatch.setattr(search.Search, "_shared_base", own)
    apart, expected = value_and_gradients()
    assert torch.equal(shared, apart)
    for gradient, other in zip(gradients, expected, strict=True):
        if other is None:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)
