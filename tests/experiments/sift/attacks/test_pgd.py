"""The attack where its result is known, on a linear model, and what holds for every model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiments.sift.attacks.pgd import pgd
from mt_dnn.batcher import Batch, Collater, Example
from mt_dnn.data.dataset import example_of
from mt_dnn.perturbation.injection import UnsupportedLevelError
from tasks import get_task
from tasks.definition import TaskDefs
from tests.encoders import LinearModel, remove_norm_eps, scale_tables, tiny_classifier

HIDDEN = 12
VOCABULARY = 40  # the tiny encoders' too
COLLATE = Collater(0)
TASK = get_task(TaskDefs("experiments/sift/sentiment_task_def.yml").get_task_def("sentiment"))
RADII = {"pre_ln": [0.3, 0.5], "post_ln": [0.2, 0.3], "deberta": [0.2, 0.3]}  # a tiny encoder's, that part examples


class LinearClassifier(nn.Module):
    """Two classes with the logits 0 and ⟨w, h⟩ + b, h the vectors of the real words."""

    bias = 0.3

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
        self.model = LinearModel(table, torch.randn(HIDDEN, generator=generator, dtype=torch.float64))

    def forward(self, input_ids: Tensor, types: Tensor, mask: Tensor, *_: None, task_id: int = 0) -> Tensor:
        margin = self.model(input_ids, types, mask) + self.bias
        return torch.cat([torch.zeros_like(margin), margin], 1)

    def breaking_radius(self, example: Example) -> float:
        """ε of the smallest noise that brings the margin to 0, |⟨w, h⟩ + b| = ε Σ_t ‖w‖ ‖h_t‖; 0 where it is wrong."""
        h = self.model.word.weight.detach()[torch.as_tensor(example["token_id"])]
        margin = float((h * self.model.weight.detach()).sum()) + self.bias
        is_right = (margin > 0) == (example["label"] == 1)
        return abs(margin) / float(self.model.weight.detach().norm() * h.norm(dim=1).sum()) if is_right else 0.0


def examples_of(count: int, network: nn.Module) -> list[Example]:
    """Examples of 2 to 7 words, each with the class that the network gives it, but every seventh."""
    generator = np.random.default_rng(5)
    examples = []
    for number, length in enumerate(generator.integers(2, 8, count)):
        tokens, types = generator.integers(5, VOCABULARY, length), np.zeros(length, np.int64)
        example = example_of(f"example {number}", tokens, types, TASK, label=np.int64(0))
        best = int(logits_of(network, COLLATE([example])).argmax())
        example["label"] = np.int64((best + (number % 7 == 6)) % 2)
        examples.append(example)
    return examples


@torch.no_grad()
def logits_of(network: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = network.eval()(batch.input_ids, batch.token_type_ids, batch.attention_mask)
    return logits


class Recording:
    """A collater that keeps its batches."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, examples: Sequence[Example]) -> Batch:
        self.batches.append(COLLATE(examples))
        return self.batches[-1]


def test_a_linear_model_falls_where_the_worst_noise_breaks_it() -> None:
    """20 steps come within 1 % of the breaking radius of an example, and never below it."""
    network = LinearClassifier()
    examples = examples_of(80, network)
    breaking = np.array([network.breaking_radius(example) for example in examples])
    radii = [0.02, 0.05, 0.1, 0.2]
    for radius, stands in zip([0, *radii], pgd(network, examples, COLLATE, "pre_ln", radii, steps=20), strict=True):
        assert stands[breaking > radius].all()
        assert not stands[breaking < 0.99 * radius].any()
        assert not stands[breaking == 0].any()
    assert 0 < np.mean(breaking > 0.2) < np.mean(breaking > 0.02) < np.mean(breaking > 0) < 1


def test_noise_stays_in_the_ball_of_each_token_and_off_padding() -> None:
    network = LinearClassifier()
    examples = examples_of(30, network)
    network.model.seen.clear()
    collate, radii = Recording(), [1e-4, 0.05]
    pgd(network, examples, collate, "pre_ln", radii, steps=4, restarts=2)
    batches = collate.batches
    # a clean pass, then for each radius and restart one at the start and four after steps
    passes = [(batches[0], 0.0), *((batches[1 + number // 5], radii[number // 10]) for number in range(20))]
    for number, ((batch, radius), noisy) in enumerate(zip(passes, network.model.seen, strict=True)):
        vectors, real = network.model.word.weight.detach()[batch.input_ids], batch.attention_mask.bool()
        share = (noisy - vectors).norm(dim=-1) / vectors.norm(dim=-1)
        assert (share[~real] == 0).all()
        assert (share[real] <= radius * (1 + 1e-9)).all()
        assert not real.all()
        if number % 5 == 0 and number:
            assert (share[real] > 0.999 * radius).all()  # four steps reach the edge


def test_who_fell_at_a_radius_stays_down_at_larger_ones() -> None:
    class Waves(LinearClassifier):
        """More noise makes an example right again."""

        def forward(self, *inputs: Any, **options: Any) -> Tensor:
            return torch.sin(10 * super().forward(*inputs, **options))

    network, radii = Waves(), [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    examples = examples_of(60, network)
    together = np.array(pgd(network, examples, COLLATE, "pre_ln", radii, steps=1))
    alone = [pgd(network, examples, COLLATE, "pre_ln", [radius], steps=1)[1] for radius in radii]
    np.testing.assert_array_equal(together[1:], np.logical_and.accumulate(alone))
    assert any((later & ~earlier).any() for earlier, later in itertools.pairwise(alone))


@pytest.mark.parametrize("level", RADII)
def test_an_example_stands_whoever_shares_its_batch_and_however_it_is_padded(level: str) -> None:
    network = tiny_classifier(classes=2)
    examples = examples_of(40, network)
    options: dict[str, Any] = {"level": level, "radii": RADII[level], "steps": 1}
    together = np.array(pgd(network, examples, COLLATE, **options))
    alone = [pgd(network, [example], Collater(9, do_padding=True, max_seq_len=9), **options) for example in examples]
    np.testing.assert_array_equal(together, np.array(alone)[:, :, 0].T)
    assert 0 < together[2].mean() < together[1].mean() < together[0].mean() < 1


def test_the_start_depends_on_the_seed_the_restart_and_the_example_alone() -> None:
    network = LinearClassifier()
    first, second = [example for example in examples_of(6, network) if network.breaking_radius(example) > 0][:2]

    def starts(*examples: Example, seed: int = 0) -> list[Tensor]:
        """δ of the first example at the start of each restart."""
        collate, tokens = Recording(), torch.as_tensor(examples[0]["token_id"])
        network.model.seen.clear()
        pgd(network, examples, collate, "pre_ln", [1e-6], steps=1, restarts=2, seed=seed)
        passes = zip(collate.batches[1:], network.model.seen[1::2], strict=True)
        rows = [h[batch.uids.index(examples[0]["uid"]), : len(tokens)] for batch, h in passes]
        return [row - network.model.word.weight.detach()[tokens] for row in rows]

    own, again = starts(first)
    assert own.norm() > 0 and (own - again).norm() > 0.5 * own.norm()
    torch.testing.assert_close(starts(first, second), [own, again])
    assert (starts(first, seed=1)[0] - own).norm() > 0.5 * own.norm()
    renamed = first.copy()
    renamed["uid"] = "another"
    assert (starts(renamed)[0] - own).norm() > 0.5 * own.norm()


@pytest.mark.parametrize("level", RADII)
def test_the_scale_of_the_embeddings_does_not_matter(level: str) -> None:
    networks = [tiny_classifier(classes=2) for _ in range(2)]
    for network in networks:
        remove_norm_eps(network)
    scale_tables(networks[1].bert, 100.0)
    examples = examples_of(40, networks[0])
    first, second = (pgd(network, examples, COLLATE, level, RADII[level], steps=3) for network in networks)
    np.testing.assert_array_equal(first, second)
    assert 0 < first[2].mean() < first[1].mean() < first[0].mean()


def test_parameters_and_their_gradients_stay_as_they_are() -> None:
    network = tiny_classifier(classes=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.head.bias.grad = torch.ones(2, dtype=torch.float64)
    state = torch.get_rng_state()
    pgd(network, examples_of(10, network), COLLATE, "post_ln", [0.1, 0.5], steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.head.bias.grad.eq(1).all()
    assert all(p.grad is None for name, p in network.named_parameters() if name != "head.bias")


def test_dropout_is_off() -> None:
    network = tiny_classifier(classes=2, dropout=0.5)
    examples = examples_of(30, network)
    network.train()
    first, second = (np.array(pgd(network, examples, COLLATE, "pre_ln", [0.2, 0.4], steps=2)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first[0].mean() == pytest.approx(26 / 30)  # labels are those of the network without dropout, but for 4


def test_a_logit_that_is_not_finite_is_no_right_answer() -> None:
    class Broken(LinearClassifier):
        """Nan for examples of two words once they have noise."""

        def forward(self, input_ids: Tensor, types: Tensor, mask: Tensor, *_: None, task_id: int = 0) -> Tensor:
            logits = super().forward(input_ids, types, mask)
            noisy = (self.model.seen[-1] != self.model.word.weight[input_ids]).any()
            return torch.where((mask.sum(1, keepdim=True) == 2) & noisy, torch.nan, logits)

    sound, network = LinearClassifier(), Broken()
    examples = examples_of(40, sound)
    short = np.array([len(example["token_id"]) == 2 for example in examples])
    expected = np.array(pgd(sound, examples, COLLATE, "pre_ln", [0.05], steps=2))
    found = np.array(pgd(network, examples, COLLATE, "pre_ln", [0.05], steps=2))
    assert expected[1][short].any() and not found[1][short].any()
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1][~short], expected[1][~short])


def test_a_level_that_the_encoder_has_not_is_refused() -> None:
    network = LinearClassifier()
    with pytest.raises(UnsupportedLevelError, match="it has: pre_ln"):
        pgd(network, examples_of(2, network), COLLATE, "post_ln", [0.1])
