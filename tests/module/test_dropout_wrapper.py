from __future__ import annotations

import torch

from module.dropout_wrapper import DropoutWrapper


def test_variational_dropout_drops_the_same_entries_of_all_tokens_of_an_example():
    torch.manual_seed(0)
    dropped = DropoutWrapper(0.25).train()(torch.ones(200, 4, 50))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((dropped == 0).float().mean() - 0.25) < 0.02
    assert not torch.equal(dropped[0], dropped[1])


def test_ordinary_dropout_has_a_mask_per_token_and_vectors_always_have_it():
    torch.manual_seed(0)
    dropped = DropoutWrapper(0.5, variational=False).train()(torch.ones(2, 4, 50))
    assert not torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    vectors = DropoutWrapper(0.5).train()(torch.ones(40, 50))
    assert len({tuple(row.tolist()) for row in vectors}) == 40


def test_evaluation_drops_nothing():
    states = torch.randn(2, 3, 4)
    assert torch.equal(DropoutWrapper(0.9).eval()(states), states)
