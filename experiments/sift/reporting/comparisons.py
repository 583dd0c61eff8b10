"""Comparisons of methods: tables of means with marks, tables of differences with intervals, sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from data_utils.metrics import Metric
from experiments.sift.reporting.document import Block, Items, Table
from experiments.sift.reporting.results import Run, Study
from experiments.sift.reporting.statistics import SIGNIFICANT, Difference, Sample, compare, holm, sample

MARKS = "†‡§¶"
METRIC_NAMES = {
    "ACC": "accuracy",
    "F1MAC": "macro-F1",
    "MCC": "Matthews correlation",
    "Pearson": "Pearson correlation",
    "Spearman": "Spearman correlation",
    "ECE": "ECE",
    "Brier": "Brier",
}
BY_METHOD = Mapping[str, Sample]


@dataclass(frozen=True)
class Compared:
    """A comparison of two methods.

    place: row and column of the table; ours, theirs: the methods; found: their difference; corrected: its p-value after
    Holm's correction over the table.
    """

    place: tuple[str, ...]
    ours: str
    theirs: str
    found: Difference
    corrected: float

    @property
    def significant(self) -> bool:
        return self.corrected < SIGNIFICANT


def corrected(found: Sequence[tuple[tuple[str, ...], str, str, Difference | None]]) -> list[Compared]:
    """Comparisons (place, ours, theirs, difference) with p-values corrected together; those without a difference are
    left out."""
    known = [(place, ours, theirs, one) for place, ours, theirs, one in found if one is not None]
    return [Compared(*one, p) for one, p in zip(known, holm([one[3].p for one in known]), strict=True)]


def pairs(methods: Sequence[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (method, baseline), each once; of two baselines the later one is the method."""
    against = [(ours, theirs) for theirs in baselines for ours in methods if theirs in methods and ours != theirs]
    return [
        (ours, theirs)
        for ours, theirs in against
        if ours not in baselines or baselines.index(ours) > baselines.index(theirs)
    ]


def baselines(study: Study) -> list[str]:
    """The methods that all others are compared with: those of the planned comparison except its last."""
    return study.definition.comparison.methods[:-1]


def study_sample(study: Study, runs: Sequence[Run], stage: str, test: str) -> Sample:
    """The study's metric on a test set after a stage, as a sample over seeds and examples."""
    return metric_sample(Metric[study.definition.metric], runs, stage, test)


def metric_sample(metric: Metric, runs: Sequence[Run], stage: str, test: str) -> Sample:
    """A metric of runs on a test set after a stage, as a sample over seeds and examples."""
    found = [run.evaluation[stage][test] for run in runs]
    predictions = np.array([one.predicted for one in found])
    return sample(metric, [run.seed for run in runs], found[0].golds, predictions)


def accuracy_sample(runs: Sequence[Run], right: ArrayLike) -> Sample:
    """The accuracy, in percent, as a sample over seeds and examples.

    Args:
        right: whether each example was classified right, 0 or 1, (runs, examples).
    """
    outcomes = np.array(right)
    return sample(Metric.ACC, [run.seed for run in runs], np.ones(outcomes.shape[1], dtype=int), outcomes)


def mean_and_error(values: Sequence[float], digits: int = 1) -> str:
    """`mean ± standard error` of values; a single value alone."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return f"{array[0]:.{digits}f}"
    return f"{array.mean():.{digits}f} ± {array.std(ddof=1) / np.sqrt(len(array)):.{digits}f}"


def compared_tables(
    what: str,
    group: str,
    columns: Sequence[str],
    cells: Mapping[str, Mapping[str, BY_METHOD]],
    against: Sequence[str],
    means_only: Collection[str] = (),
) -> list[Block]:
    """Two tables: means of every method, marked if they differ from a baseline, and the differences.

    Args:
        what: start of both captions.
        group: header of the groups of rows.
        cells: samples by group, column and method.
        against: the baselines.
        means_only: groups without comparisons.
    """
    places = [(row, column) for row in cells if row not in means_only for column in columns if column in cells[row]]
    found = []
    for row, column in places:
        samples = cells[row][column]
        for ours, theirs in pairs(list(samples), against):
            found.append(((row, column), ours, theirs, compare([samples[ours]], [samples[theirs]])))
    compared = corrected(found)
    marks = {(one.place, one.ours, one.theirs) for one in compared if one.significant}

    def text(row: str, column: str, method: str) -> str:
        if method not in cells[row].get(column, {}):
            return ""
        signs = "".join(MARKS[n] for n, theirs in enumerate(against) if ((row, column), method, theirs) in marks)
        return f"{mean_and_error(list(cells[row][column][method].values))} {signs}".rstrip()

    rows = []
    for row, by_column in cells.items():
        methods = dict.fromkeys(method for samples in by_column.values() for method in samples)
        for method in methods:
            seeds = max(len(samples[method].values) for samples in by_column.values() if method in samples)
            rows.append([row, method, str(seeds), *(text(row, column, method) for column in columns)])
    signs = ", ".join(f"{mark} differs from {name}" for mark, name in zip(MARKS, against, strict=False))
    caption = f"{what}, percent: mean ± standard error over seeds; {signs}"
    if compared:
        caption += f" (p < {SIGNIFICANT:g} after Holm's correction for the {len(compared)} comparisons of the table)"
    means = Table(caption, [group, "method", "seeds", *columns], rows, left=2)
    return [means, difference_table(f"{what}: the {len(compared)} comparisons", compared)] if compared else [means]


def difference_table(caption: str, compared: Sequence[Compared], folded: bool = True) -> Table:
    """A table of differences in points with interval, p-value and corrected p-value."""
    rows = [
        [
            f"{one.ours} − {one.theirs}", ", ".join(one.place), signed(one.found.estimate),
            f"{signed(one.found.low)} to {signed(one.found.high)}", _p(one.found.p), _p(one.corrected),
            str(one.found.seeds),
        ]
        for one in compared
    ]  # fmt: skip
    header = ["comparison", "where", "difference, points", "95 % interval", "p", "p, Holm", "seeds"]
    return Table(caption, header, rows, left=2, folded=folded)


def sentence(one: Compared) -> str:
    """The comparison in words; the verdict depends on the corrected p-value."""
    found = one.found
    if not one.significant:
        verdict = "no difference shown"
    else:
        verdict = f"{one.ours} is {'better' if found.estimate > 0 else 'worse'} than {one.theirs}"
    shown = _p(one.corrected)
    return (
        f"{one.ours} − {one.theirs}: {signed(found.estimate)} points, 95 % interval {signed(found.low)} to "
        f"{signed(found.high)}, p {shown if shown.startswith('<') else '= ' + shown} (Holm), {found.seeds} seeds: "
        f"{verdict}."
    )


def signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def named_comparison(study: Study) -> tuple[list[Block], list[str]]:
    """The planned comparison, over the seeds that all its methods have: blocks of the report, and its sentences."""
    comparison = study.definition.comparison
    runs = {method: study.of(comparison.setting, method) for method in comparison.methods}
    shared = set.intersection(*({run.seed for run in found} for found in runs.values()))
    runs = {method: [run for run in found if run.seed in shared] for method, found in runs.items()}
    if not shared:
        return [], ["The comparison named in advance has no seed that all its methods have: nothing is compared."]
    samples = {
        method: [study_sample(study, found, comparison.stage, test) for test in comparison.tests]
        for method, found in runs.items()
    }
    rows = []
    for method, by_test in samples.items():
        cells = [mean_and_error(list(one.values)) for one in by_test]
        if len(by_test) > 1:
            cells.append(mean_and_error(list(np.mean([one.values for one in by_test], axis=0))))
        rows.append([method, str(len(shared)), *cells])
    mean = ["mean"] if len(comparison.tests) > 1 else []
    name = METRIC_NAMES[study.definition.metric]
    caption = (
        f"{name[0].upper()}{name[1:]}, percent, of {comparison.setting}, stage {comparison.stage}: "
        "mean ± standard error over seeds"
    )
    table = Table(caption, ["method", "seeds", *comparison.tests, *mean], rows)
    family = [
        ((), ours, theirs, compare(samples[ours], samples[theirs]))
        for theirs, ours in combinations(comparison.methods, 2)
    ]
    compared = corrected(family[::-1])
    if not compared:
        return [table], ["One seed: nothing is compared."]
    sentences = [sentence(one) for one in compared]
    over = f"mean over {len(comparison.tests)} test sets" if mean else comparison.tests[0]
    differences = [
        [*row[:1], *row[2:]] for row in difference_table("", compared).rows
    ]  # without the place, which is the same everywhere
    header = ["comparison", "difference, points", "95 % interval", "p", "p, Holm", "seeds"]
    return [
        table,
        Table(f"Differences in {name}, {over}, paired over seeds and examples", header, differences),
        Items(sentences),
    ], sentences
