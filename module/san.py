"""The stochastic answer network, a head for pairs of sentences [Liu, Duh & Gao 2018, arXiv:1804.07888].

Parameters have MT-DNN's names, so that its checkpoints can be loaded.
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
    """The options of the network: the flags `--answer_*`, `--mem_cum_type` and `--vb_dropout`.

    Attributes:
        num_turn: T, the number of reasoning turns over the premise.
        mem_type: 1 averages the probabilities of all turns, 0 uses the last turn's logits.
        mem_drop_p: the share of turns dropped from the average in training; at least one turn remains.
        merge_opt: the classifier's input: 1 for [x; h; |x − h|; x ⊙ h], 0 for [x; h].
        att_type: how the premise's tokens are scored, a key of `ATTENTIONS`.
        rnn_type: the cell that updates the state, a key of `CELLS`.
        dropout_p: dropout of the inputs of all layers.
        weight_norm_on: weight normalization of classifier, attention and cell [Salimans & Kingma 2016].
        mem_cum_type: how tokens of the hypothesis are scored: linearly (`simple`), or after a layer with ReLU (`mlp`).
        vb_dropout: variational dropout, see `DropoutWrapper`.

    Raises:
        FlagError: an unknown name, or a number out of range.
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
        """The options in a flat configuration; missing ones have their defaults."""
        names = {field.name: _flag_of(field.name) for field in fields(cls)}
        return cls(**{name: flat[flag] for name, flag in names.items() if flag in flat})


def _flag_of(name: str) -> str:
    return name if name in ("mem_cum_type", "vb_dropout") else f"answer_{name}"


def _name_as_mtdnn(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    """Rename the parts of normalized weights to `weight_g` and `weight_v`; torch loads these names too."""
    for name in [name for name in state if name.startswith(prefix)]:  # all names, so that their order does not change
        named = re.sub(r"parametrizations\.(\w+)\.original0$", r"\1_g", name)
        named = re.sub(r"parametrizations\.(\w+)\.original1$", r"\1_v", named)
        state[named] = state.pop(name)


class SANClassifier(nn.Module):
    """Logits of a sentence pair from T turns over the premise: (rows, tokens, hidden) → (rows, n_class).

    h₀ is a self-attentive sum over the hypothesis. In turn t, h scores the tokens of the premise, x is their sum
    weighted by the softmax of the scores, logits_t is a linear function of x and h, and the cell computes the next h
    from x and h.

    Args:
        hidden_size: size of the encoder's output.
        n_class: number of outputs.
        options: see `AnswerOptions`.

    Raises:
        FlagError: `mem_type` 1 averages probabilities, but with one output the probability is always 1.
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
            premise, hypothesis: masks, boolean (rows, tokens). The sum over an empty sentence is 0.
        """
        state = self.query_wsum["att"](states, hypothesis)
        memory = torch.zeros_like(state)
        turns = []
        for _ in range(self.options.num_turn):
            weights = masked_softmax(self.attn["score_func"](states, state), premise)
            read = _weighted_sum(weights, states)
            turns.append(self._logits(read, state))
            state = self.dropout(state)
            if isinstance(self.rnn, nn.LSTMCell):
                state, memory = self.rnn(read, (state, memory))
            else:
                state = self.rnn(read, state)
        if self.options.mem_type == 0:
            return turns[-1]
        return self._mean_over_turns(torch.stack(turns, 1))

    def _logits(self, read: Tensor, state: Tensor) -> Tensor:
        parts = [read, state]
        if self.options.merge_opt == 1:
            parts += [(read - state).abs(), read * state]
        return self.classifier["proj"](self.dropout(torch.cat(parts, 1)))

    def _mean_over_turns(self, logits: Tensor) -> Tensor:
        """The logarithm of the mean probability over the turns: (rows, turns, n_class) → (rows, n_class)."""
        included = self._turn_mask(logits[..., 0])
        log_probabilities = _single(logits).log_softmax(-1).masked_fill(~included.unsqueeze(-1), -torch.inf)
        return log_probabilities.logsumexp(1) - included.sum(1, keepdim=True, dtype=log_probabilities.dtype).log()

    def _turn_mask(self, like: Tensor) -> Tensor:
        """The turns in the average, boolean (rows, turns): all in evaluation, in training at least one random one."""
        if not self.training or self.options.mem_drop_p == 0:
            return torch.ones_like(like, dtype=torch.bool)
        drawn = torch.rand(like.shape, device=like.device) >= self.options.mem_drop_p
        always = torch.randint(like.size(1), (len(like), 1), device=like.device)
        return drawn.scatter(1, always, True)


class SelfAttentiveSum(nn.Module):
    """Σ softmax(score) · token over the selected tokens of each row.

    Args:
        hidden_size: size of a token's vector.
        kind: how tokens are scored, one of `SUMS`.
        dropout: applied to the tokens.
    """

    def __init__(self, hidden_size: int, kind: str, dropout: nn.Module):
        super().__init__()
        self.FC = nn.Linear(hidden_size, hidden_size) if kind == "mlp" else None
        self.linear = nn.Linear(hidden_size, 1)
        self.dropout = dropout

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(rows, tokens, hidden) and a boolean mask (rows, tokens) → (rows, hidden)."""
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
    """Scores w·[x; h; features of x and h] + b; shapes as in `BilinearAttention`."""

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
    "defualt": DifferenceAttention,  # the spelling in MT-DNN's help
}


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the tokens of the mask, 0 at others, (rows, tokens); all 0 in rows with an empty mask."""
    scores = _single(scores)
    return F.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), -1) * mask


def _single(values: Tensor) -> Tensor:
    """The values in single precision, or in double precision if they have that."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _weighted_sum(weights: Tensor, states: Tensor) -> Tensor:
    """(rows, tokens), (rows, tokens, hidden) → (rows, hidden)."""
    return (weights.to(states.dtype).unsqueeze(1) @ states).squeeze(1)
