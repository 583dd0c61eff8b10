"""The word table's gradient by rows: the gradient of the dense table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mt_dnn.training.word_gradient import WordGradient
from tests.mt_dnn.runs import SIFT, assert_same, parameters, tiny_run
from tests.mt_dnn.training.test_grad_checkpointing import model_and_batch


class TiedModel(nn.Module):
    """Its output layer has the weight of its embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 4, padding_idx=0)
        self.output = nn.Linear(4, 50, bias=False)
        self.output.weight = self.words.weight


@pytest.mark.parametrize(
    "method",
    [(), (*SIFT, "--bregman_mu", "1"), ("--adv_train", "--adv_opt", "freelb", "--adv_k", "3")],
    ids=["plain", "sift", "freelb"],
)
@pytest.mark.parametrize(("accumulated", "tolerance"), [("1", 0.0), ("2", 1e-6)])  # another order of additions
def test_a_run_ends_with_the_parameters_of_dense_gradients(
    method: tuple[str, ...], accumulated: str, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*method, "--grad_accumulation_step", accumulated, "--grad_clipping", "0.1")
    tiny_run(tmp_path / "rows", *flags)
    monkeypatch.setattr(WordGradient, "of", lambda *_: None)
    tiny_run(tmp_path / "dense", *flags)
    assert_same(parameters(tmp_path / "dense" / "model_1.pt"), parameters(tmp_path / "rows" / "model_1.pt"), tolerance)


def test_rows_of_earlier_updates_are_forgotten_and_rows_that_come_twice_add_up() -> None:
    words = nn.Embedding(50, 4, padding_idx=0)
    gradient = WordGradient.of(words, words, Accelerator(cpu=True))
    assert gradient is not None
    for tokens in ([3, 4, 0], [5, 5, 3], [7, 7, 7]):
        ids = torch.tensor(tokens)
        for _ in range(2):  # accumulated
            (words(ids) * torch.arange(12.0).view(3, 4)).sum().backward()
        gradient.finish()
        expected = torch.zeros(50, 4).index_add(0, ids, 2 * torch.arange(12.0).view(3, 4))
        expected[0] = 0
        assert words.weight.grad is not None and not words.weight.grad.is_sparse
        assert torch.equal(words.weight.grad, expected)
        gradient.clear()
        assert words.weight.grad is None


def test_a_table_that_something_else_uses_is_left_alone() -> None:
    tied = TiedModel()
    frozen = nn.Embedding(50, 4).requires_grad_(False)
    assert WordGradient.of(tied, tied.words, Accelerator(cpu=True)) is None
    assert WordGradient.of(frozen, frozen, Accelerator(cpu=True)) is None
    assert not tied.words.sparse and not frozen.sparse


def test_predictions_need_no_table(tmp_path: Path) -> None:
    model, batch = model_and_batch(tmp_path)
    assert model.word_gradient is not None
    model.predict(batch)
    assert "table" not in vars(model.word_gradient)
    model.update(batch)
    assert "table" in vars(model.word_gradient)
