"""The stochastic answer network against its formulas in NumPy, and what must not change its answer."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_utils.errors import FlagError
from module.san import ATTENTIONS, CELLS, SUMS, AnswerOptions, SANClassifier, masked_softmax
from mt_dnn.configuration.config import Config
from mt_dnn.configuration.flag_groups import SAN_ATTENTIONS, SAN_CELLS, ModelConfig
from mt_dnn.configuration.flags import flags_of

HIDDEN, CLASSES = 3, 2


def network(**options: Any) -> SANClassifier:
    torch.manual_seed(0)
    head = SANClassifier(HIDDEN, options.pop("n_class", CLASSES), AnswerOptions(**options)).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return head


def states_and_masks(rows: int = 2, tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(rows, tokens, HIDDEN, dtype=torch.float64, generator=generator)
    premise = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
    hypothesis = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 0]]).bool()
    return states, premise, hypothesis


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class ByHand:
    """The head's formulas for one row, over the names of its parameters."""

    def __init__(self, head: SANClassifier):
        self.options = head.options
        self.p = {name: tensor.detach().numpy() for name, tensor in head.state_dict().items()}

    def logits(self, premise: np.ndarray, hypothesis: np.ndarray) -> np.ndarray:
        h, c = self.sum_of(hypothesis), np.zeros(HIDDEN)
        turns = []
        for _ in range(self.options.num_turn):
            x = softmax(np.array([self.score(token, h) for token in premise])) @ premise
            parts = [x, h, np.abs(x - h), x * h] if self.options.merge_opt == 1 else [x, h]
            turns.append(self.p["classifier.proj.weight"] @ np.concatenate(parts) + self.p["classifier.proj.bias"])
            h, c = self.cell(x, h, c)
        if self.options.mem_type == 0:
            return turns[-1]
        return np.log(np.mean([softmax(turn) for turn in turns], axis=0))

    def sum_of(self, tokens: np.ndarray) -> np.ndarray:
        scored = tokens
        if self.options.mem_cum_type == "mlp":
            scored = np.maximum(tokens @ self.p["query_wsum.att.FC.weight"].T + self.p["query_wsum.att.FC.bias"], 0)
        scores = scored @ self.p["query_wsum.att.linear.weight"][0] + self.p["query_wsum.att.linear.bias"]
        return softmax(scores) @ tokens

    def score(self, x: np.ndarray, h: np.ndarray) -> float:
        weight, bias = self.p["attn.score_func.linear.weight"], self.p["attn.score_func.linear.bias"]
        features = {"simple": [x, h], "flatsim": [x, h, x * h], "default": [x, h, x * h, np.abs(x - h)]}
        if self.options.att_type == "bilinear":
            return float(x @ (weight @ h + bias))
        return float(weight[0] @ np.concatenate(features[self.options.att_type]) + bias[0])

    def cell(self, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_x = self.p["rnn.weight_ih"] @ x + self.p["rnn.bias_ih"]
        of_h = self.p["rnn.weight_hh"] @ h + self.p["rnn.bias_hh"]
        if self.options.rnn_type == "rnn":
            return np.tanh(of_x + of_h), c
        if self.options.rnn_type == "gru":
            (rx, zx, nx), (rh, zh, nh) = of_x.reshape(3, HIDDEN), of_h.reshape(3, HIDDEN)
            reset, update = sigmoid(rx + rh), sigmoid(zx + zh)
            return (1 - update) * np.tanh(nx + reset * nh) + update * h, c
        write, forget, new, shown = (of_x + of_h).reshape(4, HIDDEN)
        c = sigmoid(forget) * c + sigmoid(write) * np.tanh(new)
        return sigmoid(shown) * np.tanh(c), c


VARIANTS = [
    {},
    {"num_turn": 1},
    {"mem_type": 0},
    {"merge_opt": 0},
    *({"att_type": name} for name in ("simple", "flatsim", "default")),
    *({"rnn_type": name} for name in ("lstm", "rnn")),
    {"mem_cum_type": "mlp"},
    {"rnn_type": "lstm", "mem_type": 0, "att_type": "default"},
    {"n_class": 1, "mem_type": 0},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_logits_are_those_of_the_formulas(options: dict[str, Any]) -> None:
    head = network(**options)
    states, premise, hypothesis = states_and_masks()
    found = head(states, premise, hypothesis).detach().numpy()
    for row in range(2):
        tokens = states[row].numpy()
        expected = ByHand(head).logits(tokens[premise[row]], tokens[hypothesis[row]])
        np.testing.assert_allclose(found[row], expected, rtol=1e-10)


def test_names_of_attentions_and_cells_are_those_that_the_flags_accept() -> None:
    assert tuple(ATTENTIONS) == SAN_ATTENTIONS and tuple(CELLS) == SAN_CELLS
    group = flags_of(ModelConfig)
    assert group["mem_cum_type"].choices == SUMS
    assert AnswerOptions() == AnswerOptions.from_flat(Config().to_flat())


def test_an_unusable_flag_is_an_error_of_one_line() -> None:
    for flat, message in (
        ({"answer_att_type": "dot"}, "--answer_att_type: found 'dot', accepted: bilinear, simple"),
        ({"answer_rnn_type": "tanh"}, "--answer_rnn_type: found 'tanh', accepted: gru, lstm, rnn"),
        ({"mem_cum_type": "bilinear"}, "--mem_cum_type: found 'bilinear', accepted: simple, mlp"),
    ):
        with pytest.raises(FlagError, match=message):
            AnswerOptions.from_flat(flat)
    with pytest.raises(FlagError, match="accepted: --answer_mem_type 0"):
        network(n_class=1)


def test_tokens_outside_the_sentences_change_nothing() -> None:
    head = network()
    states, premise, hypothesis = states_and_masks()
    expected = head(states, premise, hypothesis)
    outside = ~(premise | hypothesis)
    assert outside.any()
    states[outside] = 1e3
    torch.testing.assert_close(head(states, premise, hypothesis), expected, rtol=0, atol=0)
    wider = torch.nn.functional.pad(states, (0, 0, 0, 4), value=-7.0)
    masks = [torch.nn.functional.pad(mask, (0, 4)) for mask in (premise, hypothesis)]
    torch.testing.assert_close(head(wider, *masks), expected, rtol=1e-12, atol=1e-12)


def test_a_row_without_hypothesis_starts_from_zero() -> None:
    head = network()
    states, premise, hypothesis = states_and_masks()
    hypothesis[0] = False
    start = head.query_wsum["att"](states, hypothesis)
    assert torch.equal(start[0], torch.zeros(HIDDEN).double()) and start[1].abs().min() > 0
    assert head(states, premise, hypothesis).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"rnn_type": "lstm", "mem_type": 0}, {"weight_norm_on": True}], ids=str)
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    head = network(**options)
    states, premise, hypothesis = states_and_masks()
    parameters = list(head.parameters())

    def logits(states: Tensor, *_: Tensor) -> Tensor:
        return head(states, premise, hypothesis)

    assert torch.autograd.gradcheck(logits, (states.requires_grad_(), *parameters))


def test_turns_left_out_of_the_average() -> None:
    head = network(num_turn=3, mem_drop_p=0.6, dropout_p=0.0).train()
    torch.manual_seed(0)
    kept = head._turn_mask(torch.zeros(20000, 3))
    assert kept.any(1).all()
    # One turn of three is kept for sure, each other one with probability 0.4.
    assert kept.float().mean() == pytest.approx((1 + 2 * 0.4) / 3, abs=0.01)
    states, premise, hypothesis = (part.repeat_interleave(40, 0) for part in states_and_masks())
    head.eval()
    turns = [ByHand(network(num_turn=count, mem_type=0)) for count in (1, 2, 3)]
    head.load_state_dict(network(num_turn=3).state_dict())
    head.train()
    found = head(states, premise, hypothesis).exp().detach().numpy()
    for row in (0, 40):
        tokens, masks = states[row].numpy(), (premise[row], hypothesis[row])
        probabilities = [softmax(turn.logits(*(tokens[mask] for mask in masks))) for turn in turns]
        means = [
            np.mean([probabilities[turn] for turn in chosen], axis=0)
            for size in (1, 2, 3)
            for chosen in itertools.combinations(range(3), size)
        ]
        for own in found[row : row + 40]:
            assert min(np.abs(own - mean).max() for mean in means) < 1e-9
        assert len({round(float(own[0]), 9) for own in found[row : row + 40]}) > 3
    head.eval()
    assert torch.equal(head(states, premise, hypothesis), head(states, premise, hypothesis))


def test_weight_norm_splits_weights_into_length_and_direction() -> None:
    torch.manual_seed(0)
    plain = SANClassifier(HIDDEN, CLASSES, AnswerOptions())
    torch.manual_seed(0)
    normed = SANClassifier(HIDDEN, CLASSES, AnswerOptions(weight_norm_on=True))
    states, premise, hypothesis = states_and_masks()
    inputs = (states.float(), premise, hypothesis)
    torch.testing.assert_close(normed.eval()(*inputs), plain.eval()(*inputs))
    split = [name for name, _ in normed.named_parameters() if "original0" in name]
    assert sorted(name.split(".parametrizations")[0] for name in split) == [
        "attn.score_func.linear", "classifier.proj", "rnn", "rnn",
    ]  # fmt: skip
    before = normed(*inputs)
    with torch.no_grad():
        for name, parameter in normed.named_parameters():
            if name.endswith("original1"):
                parameter.mul_(3.0)  # a direction has no length
    torch.testing.assert_close(normed(*inputs), before)


def test_masked_softmax() -> None:
    scores = torch.tensor([[0.0, math.log(3.0), 50.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(masked_softmax(scores, mask), torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]))
