"""The statistics of the report, on synthetic data with a known effect and with none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, matthews_corrcoef

from data_utils.metrics import Metric
from experiments.sift.reporting.statistics import Difference, Sample, compare, holm, sample

RESAMPLES = 200


@dataclass(frozen=True)
class World:
    """Two probit models. An example is right where the mean of the method + noises > 0.

    seed, example: variances shared by both methods; own_seed, own_example: a draw for each method; rest: for each
    method, seed and example.
    """

    seed: float
    example: float
    own_seed: float
    own_example: float
    rest: float

    @property
    def total(self) -> float:
        return self.seed + self.example + self.own_seed + self.own_example + self.rest

    def draw(self, generator: np.random.Generator, means: tuple[float, float], seeds: int, examples: int) -> np.ndarray:
        """Who is right, (methods, seeds, examples)."""

        def noise(variance: float, *shape: int) -> np.ndarray:
            return np.sqrt(variance) * generator.standard_normal(shape)

        shared = noise(self.seed, 1, seeds, 1) + noise(self.example, 1, 1, examples)
        own = noise(self.own_seed, 2, seeds, 1) + noise(self.own_example, 2, 1, examples)
        return np.array(means)[:, None, None] + shared + own + noise(self.rest, 2, seeds, examples) > 0

    def accuracy(self, mean: float) -> float:
        return float(stats.norm.cdf(mean / np.sqrt(self.total)))

    def components(self, means: tuple[float, float], seeds: int, examples: int) -> tuple[float, float]:
        """Variance of the mean difference: what seeds and the rest give, what examples give; by bivariate normals."""

        def of_difference(same: float, across: float) -> float:
            """The covariance of two entries of the difference, whose latent variables share these variances."""
            bounds = np.array(means) / np.sqrt(self.total)

            def joint(first: int, second: int, shared: float) -> float:
                rho = shared / self.total
                both = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]], allow_singular=True)
                product = stats.norm.cdf(bounds[first]) * stats.norm.cdf(bounds[second])
                return float(both.cdf(bounds[[first, second]]) - product)

            return joint(0, 0, same) + joint(1, 1, same) - 2 * joint(0, 1, across)

        by_seed = of_difference(self.seed + self.own_seed, self.seed)
        by_example = of_difference(self.example + self.own_example, self.example)
        entry = of_difference(self.total, self.seed + self.example)
        rest = entry - by_seed - by_example
        return by_seed / seeds + rest / (seeds * examples), by_example / examples


# Seeds weigh most, examples weigh most, the rest weighs most.
WORLDS = {
    "seeds": World(0.05, 1.0, 0.05, 0.0, 0.1),
    "examples": World(0.02, 1.0, 0.0, 0.15, 0.1),
    "both": World(0.02, 1.0, 0.005, 0.05, 0.1),
    "rest": World(0.0, 1.0, 0.0, 0.0, 0.3),
}


def simulate(
    world: World, means: tuple[float, float], seeds: int, runs: int, metric: Metric = Metric.ACC, examples: int = 200
) -> list[Difference]:
    generator = np.random.default_rng(1)
    found = []
    for _ in range(runs):
        right = world.draw(generator, means, seeds, examples)
        golds = np.ones(examples, dtype=int) if metric == Metric.ACC else generator.integers(2, size=examples)
        ours, theirs = (
            sample(metric, range(seeds), golds, np.where(one, golds, 1 - golds), RESAMPLES) for one in right
        )
        difference = compare([ours], [theirs])
        assert difference is not None
        found.append(difference)
    return found


def assert_holds(found: list[Difference], truth: float) -> None:
    """Rejections of the truth are at most 5 %, within three standard errors of the simulation; the mean is right."""
    outside = np.mean([not one.low <= truth <= one.high for one in found])
    assert outside <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(found))
    estimates = np.array([one.estimate for one in found])
    assert abs(estimates.mean() - truth) < 3.5 * estimates.std() / np.sqrt(len(found))


@pytest.mark.parametrize("seeds", [10, 3])
@pytest.mark.parametrize("name", WORLDS)
def test_without_an_effect_at_most_five_percent_are_called_different(name: str, seeds: int):
    found = simulate(WORLDS[name], (1.0, 1.0), seeds, runs=250)
    assert_holds(found, 0.0)
    assert [one.p < 0.05 for one in found] == [not one.low <= 0 <= one.high for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("metric", [Metric.ACC, Metric.MCC])
@pytest.mark.parametrize("seeds", [10, 3])
@pytest.mark.parametrize("name", WORLDS)
def test_the_false_positive_rate_over_many_simulations(name: str, seeds: int, metric: Metric):
    assert_holds(simulate(WORLDS[name], (1.0, 1.0), seeds, runs=3000, metric=metric), 0.0)


def expected_power(world: World, means: tuple[float, float], seeds: int, examples: int) -> float:
    """The chance that a normal estimate leaves its interval, whose seeds' part is chi-squared."""
    by_seed, by_example = world.components(means, seeds, examples)
    effect = world.accuracy(means[0]) - world.accuracy(means[1])
    chi = stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, seeds - 1) / (seeds - 1)
    half = np.sqrt(stats.t.isf(0.025, seeds - 1) ** 2 * by_seed * chi + stats.norm.isf(0.025) ** 2 * by_example)
    spread = np.sqrt(by_seed + by_example)
    return float(np.mean(stats.norm.sf((half - effect) / spread) + stats.norm.cdf((-half - effect) / spread)))


@pytest.mark.parametrize(("name", "gap"), [("seeds", 0.35), ("examples", 0.15), ("both", 0.12), ("rest", 0.08)])
def test_with_an_effect_the_power_is_the_calculated_one_and_the_interval_covers(name: str, gap: float):
    world, means = WORLDS[name], (1.0 + gap, 1.0)
    expected = expected_power(world, means, 10, 200)
    assert 0.3 < expected < 0.9
    found = simulate(world, means, 10, runs=300)
    power = np.mean([one.p < 0.05 for one in found])
    assert power == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / len(found)) + 0.02)
    truth = 100 * (world.accuracy(means[0]) - world.accuracy(means[1]))
    assert_holds(found, truth)
    # And it is no wider than needed: at least 1 % lie outside.
    assert np.mean([not one.low <= truth <= one.high for one in found]) > 0.01


def test_the_reported_variance_is_the_one_of_the_world():
    world, means = WORLDS["both"], (1.1, 1.0)
    by_seed, by_example = world.components(means, 10, 200)
    found = simulate(world, means, 10, runs=400)
    estimates = np.array([one.estimate for one in found])
    assert estimates.std() / 100 == pytest.approx(np.sqrt(by_seed + by_example), rel=0.12)
    half = np.array([one.high - one.estimate for one in found]) / 100
    square = stats.t.isf(0.025, 9) ** 2 * by_seed + stats.norm.isf(0.025) ** 2 * by_example
    assert np.mean(half**2) == pytest.approx(square, rel=0.08)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("metric", "by_hand"), [(Metric.ACC, accuracy_score), (Metric.MCC, matthews_corrcoef)])
def test_the_resampled_measures_are_scikit_learns(classes: int, metric: Metric, by_hand):
    generator = np.random.default_rng(classes)
    golds, predictions = generator.integers(classes, size=30), generator.integers(classes, size=(2, 30))
    found = sample(metric, [5, 6], golds, predictions, resamples=4)
    assert found.values.tolist() == pytest.approx([100 * by_hand(golds, one) for one in predictions])
    draws = np.random.default_rng(30)
    for row in found.resampled:
        drawn = draws.integers(30, size=30)
        assert row.tolist() == pytest.approx([100 * by_hand(golds[drawn], one[drawn]) for one in predictions])


def test_matthews_correlation_of_a_constant_is_zero():
    golds, constant = np.array([0, 1, 1, 0]), np.ones((2, 4), dtype=int)
    assert sample(Metric.MCC, [1, 2], golds, constant, resamples=3).values.tolist() == [0, 0]


def values(*numbers: float, seeds: tuple[int, ...] | None = None) -> Sample:
    """Measures whose resamples do not vary: examples give no variance."""
    return Sample(seeds or tuple(range(len(numbers))), np.array(numbers), np.tile(numbers, (10, 1)))


def test_without_variance_by_examples_it_is_the_paired_t_test():
    ours, theirs = [81.0, 83.0, 80.0, 84.0], [80.0, 80.0, 80.0, 81.0]
    found = compare([values(*ours)], [values(*theirs)])
    expected = stats.ttest_rel(ours, theirs)
    assert found is not None
    assert (found.estimate, found.p, found.seeds) == (1.75, pytest.approx(expected.pvalue), 4)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_seeds_are_matched_and_the_others_left_out():
    found = compare([values(90, 70, 80, seeds=(3, 1, 2))], [values(60, 75, 1, seeds=(1, 2, 9))])
    assert found is not None and (found.estimate, found.seeds) == (7.5, 2)
    assert compare([values(90, 70, seeds=(1, 2))], [values(60, 75, seeds=(2, 3))]) is None


def test_seeds_that_agree_by_chance_show_nothing():
    # In each of two seeds one more example is right, not the same one: the seeds do not differ, and nothing is known.
    golds = np.ones(200, dtype=int)
    worse = np.ones((2, 200), dtype=int)
    worse[0, 10:20] = worse[1, 30:40] = 0
    better = worse.copy()
    better[0, 10] = better[1, 30] = 1
    found = compare([sample(Metric.ACC, [1, 2], golds, better)], [sample(Metric.ACC, [1, 2], golds, worse)])
    assert found is not None and found.estimate == pytest.approx(0.5)
    # Two independent counts of 1 in 200, of the mean half of which the variance is 100² · 2 · 1 / 400².
    assert found.p == pytest.approx(2 * stats.norm.sf(0.5 / np.sqrt(100**2 * 2 / 400**2)), rel=0.1)
    assert found.low < 0 < found.high


@pytest.mark.parametrize("median", [0.0, -8e-17])
def test_a_difference_of_zero_whose_seeds_differ_has_a_p_of_one(median: float, monkeypatch: pytest.MonkeyPatch):
    """Before scipy 1.17 the median of Student's t is 0 to rounding alone."""
    quantile = stats.t.isf
    monkeypatch.setattr(stats.t, "isf", lambda p, count: median if p == 0.5 else quantile(p, count))
    resampled = np.random.default_rng(0).normal(80, 1, (500, 2))
    ours, theirs = (Sample((1, 2), np.array(values), resampled) for values in ([79.0, 81.0], [81.0, 79.0]))
    found = compare([ours], [theirs])
    assert found is not None and found.estimate == 0 and found.p == 1
    assert found.high == -found.low > 0


def test_equal_methods_do_not_differ_and_differences_turn_with_their_sides():
    same = compare([values(80, 81)], [values(80, 81)])
    assert same == Difference(0.0, 0.0, 0.0, 1.0, 2)
    ours, theirs = values(81, 83, 80.5), values(80, 80, 80)
    one, other = compare([ours], [theirs]), compare([theirs], [ours])
    assert one is not None and other is not None
    assert (one.estimate, one.low, one.p) == pytest.approx((-other.estimate, -other.high, other.p))


def test_over_test_sets_it_is_the_difference_of_the_means():
    """Two test sets without shared examples: the variance by examples is a quarter of the sum."""
    generator = np.random.default_rng(0)
    first, second = (Sample((1, 2), np.array([80.0, 82.0]), generator.normal(scale=s, size=(500, 1)).repeat(2, 1))
                     for s in (1.0, 3.0))  # fmt: skip
    still = Sample((1, 2), np.array([79.0, 81.0]), np.zeros((500, 2)))
    found = compare([first, second], [still, still])
    spread = np.sqrt((np.var(first.resampled[:, 0], ddof=1) + np.var(second.resampled[:, 0], ddof=1)) / 4)
    assert found is not None and found.estimate == 1
    assert found.high - 1 == pytest.approx(stats.norm.isf(0.025) * spread)


def test_holm_by_hand():
    # Holm 1979: sorted p times 4, 3, 2, 1, never falling, at most 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
