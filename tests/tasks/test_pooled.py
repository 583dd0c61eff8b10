"""Classification and regression over the pooled representation: what they learn of pairs of sentences."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tasks.learning import PROBE, SIFT, WORDS, learned, write_small_encoder, write_task

LONGER = ("--epochs", "8")
DEFINITION = """
kind:
  data_format: PremiseAndOneHypothesis
  task_type: Classification
  n_class: 2
  labels: [other, same]
  metric_meta: [ACC]
share:
  data_format: PremiseAndOneHypothesis
  task_type: Regression
  n_class: 1
  metric_meta: [Pearson]
"""


def pairs(count: int, seed: int) -> Iterator[tuple[str, str, int]]:
    """Two sentences of one kind each, colours or numbers, and how many words of the first are of the second's kind."""
    draw = random.Random(seed)
    kinds = (WORDS[:4], WORDS[4:])
    for _ in range(count):
        first, second = draw.choice(kinds), draw.choice(kinds)
        premise, hypothesis = (draw.choices(own, k=draw.randint(1, 4)) for own in (first, second))
        yield " ".join(premise), " ".join(hypothesis), len(premise) if first == second else 0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits: dict[str, list[str]] = {}
    for split, count, seed in (("train", 800, 1), ("dev", 100, 2)):
        texts = list(enumerate(pairs(count, seed)))
        splits[f"kind_{split}"] = [f"{n}\t{'same' if right else 'other'}\t{a}\t{b}" for n, (a, b, right) in texts]
        splits[f"share_{split}"] = [f"{n}\t{right / 4}\t{a}\t{b}" for n, (a, b, right) in texts]
    return write_task(tmp_path_factory.mktemp("pairs"), DEFINITION, splits, encoder)


TASKS = pytest.mark.parametrize(
    ("task", "metric", "probe", "least"), [("kind", "ACC", 75, 95), ("share", "Pearson", 60, 90)]
)


@TASKS
def test_a_linear_probe_does_not_learn_it(
    data: Path, encoder: Path, tmp_path: Path, task: str, metric: str, probe: int, least: int
) -> None:
    assert learned(data, encoder, tmp_path, task, metric, *PROBE, *LONGER) < probe


@TASKS
@pytest.mark.parametrize("method", [(), SIFT])
def test_it_learns_what_two_sentences_share(
    data: Path, encoder: Path, tmp_path: Path, task: str, metric: str, probe: int, least: int, method: tuple[str, ...]
) -> None:
    assert learned(data, encoder, tmp_path, task, metric, *method, *LONGER) > least
