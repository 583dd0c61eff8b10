"""The stochastic answer network, a head for pairs of sentences [Liu, Duh & Gao 2018, arXiv:1804.07888].

Parameters have the names of MT-DNN's, so that its checkpoints are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from data_utils.errors import FlagError
from module.dropout_wrapper import DropoutWrapper

CELLS: dict[str, Callable[[int, int], nn.Module]] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "rnn": nn.RNNCell}
SUMS = ("simple", "mlp")


@dataclass(frozen=True)
class AnswerOptions:
    """What the flags `--answer_*`, `--mem_cum_type` and `--vb_dropout` say of the network.

    Attributes:
        num_turn: T, how often it looks at the premise.
        mem_type: 1 averages the probabilities of all turns, 0 takes the last turn's logits.
        mem_drop_p: share of turns left out of the average in training; one at least is kept.
        merge_opt: 1 gives the classifier [x; h; |x − h|; x ⊙ h], 0 [x; h].
        att_type: how the premise's tokens are scored, a key of `ATTENTIONS`.
        rnn_type: the cell that updates the state, a key of `CELLS`.
        dropout_p: dropout of all inputs of its layers.
        weight_norm_on: weights of classifier, attention and cell are split into length and direction
            [Salimans & Kingma 2016].
        mem_cum_type: how the hypothesis is summed up: by a linear score a token (`simple`), or one behind a layer with
            ReLU (`mlp`).
        vb_dropout: variational dropout, see `DropoutWrapper`.

    Raises:
        FlagError: a name or number that has no meaning.
    """

    num_turn: int = 5
    mem_type: int = 1
    mem_drop_p: float = 0.1
    merge_opt: int = 1
    att_type: str = "bilinear"
    rnn_type: str = "gru"
    dropout_p: float = 0.1
    weight_norm_on: bool = False
    mem_cum_type: str = "simple"
    vb_dropout: bool = True

    def __post_init__(self) -> None:
        accepted: dict[str, Collection[Any]] = {"att_type": ATTENTIONS, "rnn_type": CELLS}
        accepted |= {"mem_cum_type": SUMS, "mem_type": (0, 1)}
        for name, values in accepted.items():
            if getattr(self, name) not in values:
                found = f"found {getattr(self, name)!r}, accepted: {', '.join(map(str, values))}"
                raise FlagError(f"--{_flag_of(name)}: {found}")

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> AnswerOptions:
        """Of a flat configuration; what it does not hold has its default."""
        names = {field.name: _flag_of(field.name) for field in fields(cls)}
        return cls(**{name: flat[flag] for name, flag in names.items() if flag in flat})


def _flag_of(name: str) -> str:
    return name if name in ("mem_cum_type", "vb_dropout") else f"answer_{name}"


def _name_as_mtdnn(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    """Length and direction of normalized weights as `weight_g` and `weight_v`; torch loads them by these names too."""
    for name in [name for name in state if name.startswith(prefix)]:  # all of them, so that they keep their order
        named = re.sub(r"parametrizations\.(\w+)\.original0$", r"\1_g", name)
        named = re.sub(r"parametrizations\.(\w+)\.original1$", r"\1_v", named)
        state[named] = state.pop(name)


class SANClassifier(nn.Module):
    """Logits of a pair from T looks at the premise: X (rows, tokens, hidden) → (rows, n_class).

    h₀ is a self-attentive sum over the hypothesis. In turn t the tokens of the premise are scored by h, x is their sum
    weighted by the softmax, logits_t a linear function of x and h, and the next h the cell's of x and h.

    Args:
        hidden_size: of the encoder's output.
        n_class: outputs.
        options: see there.

    Raises:
        FlagError: probabilities are to be averaged and there is one output, whose probability is always 1.
    """

    def __init__(self, hidden_size: int, n_class: int, options: AnswerOptions):
        super().__init__()
        if options.mem_type == 1 and n_class == 1:
            raise FlagError(
                "--answer_mem_type 1 averages probabilities of classes, and a task with enable_san has one output; "
                "accepted: --answer_mem_type 0"
            )
        self.options = options
        self.dropout = DropoutWrapper(options.dropout_p, options.vb_dropout)
        self.query_wsum = nn.ModuleDict({"att": SelfAttentiveSum(hidden_size, options.mem_cum_type, self.dropout)})
        attention = ATTENTIONS[options.att_type](hidden_size, self.dropout)
        self.attn = nn.ModuleDict({"score_func": attention})
        self.rnn = CELLS[options.rnn_type](hidden_size, hidden_size)
        merged = 4 if options.merge_opt == 1 else 2
        self.classifier = nn.ModuleDict({"proj": nn.Linear(merged * hidden_size, n_class)})
        if options.weight_norm_on:
            for layer in (self.classifier["proj"], attention.linear):
                weight_norm(layer)
            for name in ("weight_ih", "weight_hh"):
                weight_norm(self.rnn, name)
            self.register_state_dict_post_hook(_name_as_mtdnn)

    def forward(self, states: Tensor, premise: Tensor, hypothesis: Tensor) -> Tensor:
        """Logits; with `mem_type` 1 the logarithms of mean probabilities.

        Args:
            states: the encoder's output, (rows, tokens, hidden).
            premise, hypothesis: boolean (rows, tokens), true at the tokens of each. The sum over none is 0.
        """
        state = self.query_wsum["att"](states, hypothesis)
        memory = torch.zeros_like(state)
        turns = []
        for _ in range(self.options.num_turn):
            weights = masked_softmax(self.attn["score_func"](states, state), premise)
            found = _weighted_sum(weights, states)
            turns.append(self._logits(found, state))
            state = self.dropout(state)
            if isinstance(self.rnn, nn.LSTMCell):
                state, memory = self.rnn(found, (state, memory))
            else:
                state = self.rnn(found, state)
        if self.options.mem_type == 0:
            return turns[-1]
        return self._mean_over_turns(torch.stack(turns, 1))

    def _logits(self, found: Tensor, state: Tensor) -> Tensor:
        parts = [found, state]
        if self.options.merge_opt == 1:
            parts += [(found - state).abs(), found * state]
        return self.classifier["proj"](self.dropout(torch.cat(parts, 1)))

    def _mean_over_turns(self, logits: Tensor) -> Tensor:
        """The logarithm of the mean of the kept turns' probabilities: (rows, turns, n_class) → (rows, n_class)."""
        kept = self._kept_turns(logits[..., 0])
        log_probabilities = _single(logits).log_softmax(-1).masked_fill(~kept.unsqueeze(-1), -torch.inf)
        return log_probabilities.logsumexp(1) - kept.sum(1, keepdim=True, dtype=log_probabilities.dtype).log()

    def _kept_turns(self, like: Tensor) -> Tensor:
        """Which turns count, boolean (rows, turns): all in evaluation; in training one of each row counts for sure."""
        if not self.training or self.options.mem_drop_p == 0:
            return torch.ones_like(like, dtype=torch.bool)
        drawn = torch.rand(like.shape, device=like.device) >= self.options.mem_drop_p
        sure = torch.randint(like.size(1), (len(like), 1), device=like.device)
        return drawn.scatter(1, sure, True)


class SelfAttentiveSum(nn.Module):
    """Σ softmax(score) · token over some tokens of each row.

    Args:
        hidden_size: of the tokens.
        kind: one of `SUMS`.
        dropout: of the tokens.
    """

    def __init__(self, hidden_size: int, kind: str, dropout: nn.Module):
        super().__init__()
        self.FC = nn.Linear(hidden_size, hidden_size) if kind == "mlp" else None
        self.linear = nn.Linear(hidden_size, 1)
        self.dropout = dropout

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(rows, tokens, hidden), true where a token counts (rows, tokens) → (rows, hidden)."""
        states = self.dropout(states)
        scored = states if self.FC is None else self.FC(states).relu()
        return _weighted_sum(masked_softmax(self.linear(scored).squeeze(-1), mask), states)


class BilinearAttention(nn.Module):
    """Scores x·(W h + b): (rows, tokens, hidden), (rows, hidden) → (rows, tokens)."""

    def __init__(self, hidden_size: int, dropout: nn.Module):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.dropout = dropout

    def forward(self, states: Tensor, state: Tensor) -> Tensor:
        return (self.dropout(states) @ self.linear(self.dropout(state)).unsqueeze(-1)).squeeze(-1)


class ConcatenatedAttention(nn.Module):
    """Scores w·[x; h] + b, and further features of x and h behind them; shapes as in `BilinearAttention`."""

    features: tuple[Callable[[Tensor, Tensor], Tensor], ...] = ()

    def __init__(self, hidden_size: int, dropout: nn.Module):
        super().__init__()
        self.linear = nn.Linear((2 + len(self.features)) * hidden_size, 1)
        self.dropout = dropout

    def forward(self, states: Tensor, state: Tensor) -> Tensor:
        states = self.dropout(states)
        state = self.dropout(state).unsqueeze(1).expand_as(states)
        merged = [states, state, *(feature(states, state) for feature in self.features)]
        return self.linear(torch.cat(merged, -1)).squeeze(-1)


class ProductAttention(ConcatenatedAttention):
    """Scores w·[x; h; x ⊙ h] + b."""

    features = (torch.mul,)


class DifferenceAttention(ConcatenatedAttention):
    """Scores w·[x; h; x ⊙ h; |x − h|] + b."""

    features = (torch.mul, lambda x, h: (x - h).abs())


ATTENTIONS: dict[str, Callable[[int, nn.Module], Any]] = {
    "bilinear": BilinearAttention,
    "simple": ConcatenatedAttention,
    "flatsim": ProductAttention,
    "default": DifferenceAttention,
    "defualt": DifferenceAttention,  # as MT-DNN's help spells it
}


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the tokens of the mask, 0 elsewhere, (rows, tokens); all 0 where a row has none."""
    scores = _single(scores)
    return F.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), -1) * mask


def _single(values: Tensor) -> Tensor:
    """In single precision, or in their own where that is finer."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _weighted_sum(weights: Tensor, states: Tensor) -> Tensor:
    """(rows, tokens), (rows, tokens, hidden) → (rows, hidden)."""
    return (weights.to(states.dtype).unsqueeze(1) @ states).squeeze(1)
