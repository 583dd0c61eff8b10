from __future__ import annotations

import math

import pytest
import torch

from module.pooler import Pooler


@pytest.mark.parametrize(
    ("actf", "function"),
    [
        (None, lambda x: x),
        ("tanh", math.tanh),
        ("relu", lambda x: max(x, 0.0)),
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    ],
)
def test_the_first_tokens_vector_goes_through_a_layer_and_its_activation(actf, function):
    pooler = Pooler(2, dropout_p=0.5, actf=actf).eval()
    with torch.no_grad():
        pooler.dense.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        pooler.dense.bias.copy_(torch.tensor([0.5, 0.0]))
    states = torch.tensor([[[0.3, -0.1], [9.0, 9.0]]])
    expected = [function(0.3 - 0.2 + 0.5), function(0.1)]
    torch.testing.assert_close(pooler(states), torch.tensor([expected]))
