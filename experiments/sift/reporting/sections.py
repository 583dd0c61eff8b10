"""The sections of a study's report: runs, methods by test, calibration, seeds, robustness, learning curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_utils.metrics import Metric
from experiments.sift.attacks.robustness import parse_spec
from experiments.sift.reporting.comparisons import (
    METRIC_NAMES,
    accuracy_sample,
    baselines,
    compared_tables,
    mean_and_error,
    study_sample,
)
from experiments.sift.reporting.document import Block, Figure, Items, Paragraph, Table
from experiments.sift.reporting.figures import Series, panel
from experiments.sift.reporting.predictions import CLASSIFIED, CORRELATED
from experiments.sift.reporting.results import Run, Study, given_flags
from experiments.sift.reporting.statistics import Sample


def name_of(metric: str) -> str:
    name = METRIC_NAMES[metric]
    return name[0].upper() + name[1:]


def flags_text(flags: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (flags or {}).items()) or "none of its own"


def what_was_run(study: Study) -> list[Block]:
    """Settings, methods with their seeds and flags, environment."""
    definition = study.definition
    settings = [
        [name, setting.train,
         ", ".join(f"{stage}: {further.train}" for stage, further in setting.stages.items()) or "none",
         ", ".join(f"{test} ({_examples(study, name, test)})" for test in setting.tests)]
        for name, setting in definition.settings.items()
    ]  # fmt: skip
    methods = [
        [
            method,
            flags_text(definition.methods[method]),
            *(_seeds(study.of(name, method)) for name in definition.settings),
        ]
        for method in definition.methods
    ]
    environments: dict[str, int] = {}
    for run in study.runs:
        text = ", ".join(f"{name} {value}" for name, value in sorted(run.environment.items()))
        environments[text] = environments.get(text, 0) + 1
    return [
        Items(
            [
                f"Encoder: {definition.encoder}.",
                f"Flags of all runs: {flags_text(definition.flags)}.",
                f"The measure that tuning and comparison use: {METRIC_NAMES[definition.metric]}.",
            ]
        ),
        Table("Settings: what is trained on, and the test sets (examples)", ["setting", "trained on", "then", "tests"],
              settings, left=4),
        Table("Methods: their flags, and how many seeds ran in each setting",
              ["method", "flags", *definition.settings], methods, left=2 + len(definition.settings)),
        Table("Environments", ["environment", "runs"], [[text, str(n)] for text, n in sorted(environments.items())],
              folded=True),
    ]  # fmt: skip


def _examples(study: Study, setting: str, test: str) -> str:
    runs = [run for run in study.runs if run.setting == setting]
    return f"{len(runs[0].evaluation['trained'][test].golds):,}" if runs else "no run"


def _seeds(runs: Sequence[Run]) -> str:
    seeds = [run.seed for run in runs]
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{len(seeds)} ({seeds[0]} to {seeds[-1]})"
    return f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "0"


def tuning(study: Study) -> list[Block]:
    """Every trial with its score on the development set, and which one was chosen."""
    definition = study.definition
    if definition.tuning is None or not study.tuning:
        return [Paragraph("Nothing was tuned: the flags are those of the study's definition.")]
    rows = []
    for setting, details in definition.settings.items():
        for method in definition.methods:
            runs = [run for run in study.tuning if (run.setting, run.method) == (setting, method)]
            grid = definition.tuning.grid.get(method, [])
            varied = {name for point in grid for name in point}
            for point in grid:
                parts = (definition.flags, definition.methods[method], point, definition.tuning.flags)
                flags = given_flags(*parts, also=varied)
                tried = [run for run in runs if flags.items() <= run.config.items()]
                scores = [score[-1] for run in tried if (score := run.dev_scores(definition.metric, details.train))]
                diverged = sum(run.diverged is not None for run in tried)
                if scores or diverged:
                    found = [mean_and_error(scores)] if scores else []
                    found += [f"{diverged} diverged"] if diverged else []
                    used = "yes" if study.tuned.get(method) == point else ""
                    rows.append([setting, method, flags_text(point), ", ".join(found), used])
    spec = definition.tuning
    other_flags = f", {flags_text(spec.flags)}" if spec.flags else ""
    caption = (
        f"{name_of(definition.metric)} on the development set, percent, after the last epoch; seeds: {spec.seeds}, "
        f"share of the training set: {spec.train_fraction:g}{other_flags}. Chosen: what the study's runs were made with"
    )
    return [Table(caption, ["setting", "method", "flags", "development", "chosen"], rows, left=3)]


def methods_by_test(study: Study, setting: str) -> list[Block]:
    """The study's metric of every method on every test after every stage, compared with the baselines."""
    details, definition = study.definition.settings[setting], study.definition
    cells = {
        stage: {
            test: {method: study_sample(study, study.of(setting, method), stage, test)
                   for method in study.methods(setting)}
            for test in details.tests_of(stage)
        }
        for stage in details.all_stages
    }  # fmt: skip
    what = f"{name_of(definition.metric)}, {setting}"
    return compared_tables(what, "stage", details.all_tests, cells, baselines(study))


def _rows(study: Study, setting: str) -> Iterable[tuple[str, str, list[Run]]]:
    for stage in study.definition.settings[setting].all_stages:
        for method in study.methods(setting):
            yield stage, method, study.of(setting, method)


def other_measures(study: Study, setting: str) -> Table:
    """The measures besides the study's metric: accuracy, macro-F1, Matthews correlation; of numbers, correlations."""
    known = CORRELATED if Metric[study.definition.metric] in CORRELATED else CLASSIFIED
    measures = [metric.name for metric in known if metric.name != study.definition.metric]
    caption = f"Other measures, {setting}, percent: mean ± standard error over seeds"
    return _measure_table(study, setting, caption, measures, {})


def calibration(study: Study, setting: str) -> list[Block]:
    """ECE and Brier score on every test; empty for a regression."""
    if Metric[study.definition.metric] in CORRELATED:
        return []
    caption = (
        f"Calibration, {setting}: expected calibration error (15 bins of equal width, percent) and Brier score "
        "(0 to 1), lower is better; mean ± standard error over seeds"
    )
    details = study.definition.settings[setting]
    domains = {test: details.domain_of(test) for test in details.all_tests}
    return [_measure_table(study, setting, caption, ["ECE", "Brier"], domains)]


def _measure_table(
    study: Study, setting: str, caption: str, measures: Sequence[str], notes: Mapping[str, str]
) -> Table:
    tests = study.definition.settings[setting].all_tests
    header = [
        f"{test}{f' ({notes[test]})' if test in notes else ''}: {METRIC_NAMES[measure]}"
        for test in tests
        for measure in measures
    ]
    rows = []
    for stage, method, runs in _rows(study, setting):
        cells = [
            mean_and_error(
                [run.evaluation[stage][test].measures[measure] for run in runs], 3 if measure == "Brier" else 1
            )
            if test in study.definition.settings[setting].tests_of(stage)
            else ""
            for test in tests
            for measure in measures
        ]
        rows.append([stage, method, *cells])
    return Table(caption, ["stage", "method", *header], rows, left=2)


def seed_sensitivity(study: Study, setting: str) -> Table:
    """Standard deviation and range of the study's metric over seeds."""
    details, metric = study.definition.settings[setting], study.definition.metric
    tests = details.all_tests
    rows = []
    for stage, method, runs in _rows(study, setting):
        cells = []
        for test in tests:
            if test not in details.tests_of(stage):
                cells.append("")
                continue
            values = [run.evaluation[stage][test].measures[metric] for run in runs]
            spread = f"{np.std(values, ddof=1):.2f} " if len(values) > 1 else ""
            cells.append(f"{spread}({min(values):.1f} to {max(values):.1f})")
        rows.append([stage, method, str(len(runs)), *cells])
    caption = f"{name_of(metric)} by seed, {setting}, points: standard deviation (lowest to highest seed)"
    return Table(caption, ["stage", "method", "seeds", *tests], rows, left=2)


def sources_and_targets(study: Study) -> list[Block]:
    """The metric by training data and test set: a row for each setting and method, a column for each test."""
    definition, comparison = study.definition, study.definition.comparison
    if len({setting.train for setting in definition.settings.values()}) < 2:
        return []
    tests = list(dict.fromkeys(test for setting in definition.settings.values() for test in setting.tests))
    rows = []
    for name, setting in definition.settings.items():
        for method in comparison.methods:
            runs = study.of(name, method)
            if runs:
                cells = [
                    mean_and_error([run.evaluation["trained"][test].measures[definition.metric] for run in runs])
                    if test in setting.tests else "" for test in tests
                ]  # fmt: skip
                rows.append([name, method, *cells])
    caption = (
        f"{name_of(definition.metric)}, percent, by setting trained in (rows) and test set (columns), stage trained"
    )
    return [Table(f"{caption}: mean ± standard error over seeds", ["setting", "method", *tests], rows, left=2)]


def _place(study: Study, method: str) -> int:
    return list(study.definition.methods).index(method)


def target_figure(study: Study) -> Figure:
    """The metric by test set, a panel for each setting, after the comparison's stage if the setting has it."""
    metric, panels = study.definition.metric, []
    for name, setting in study.definition.settings.items():
        stage = study.definition.comparison.stage
        stage = stage if stage in setting.all_stages else "trained"
        tests = setting.tests_of(stage)
        series = [
            Series.over_seeds(method, _place(study, method), range(len(tests)),
                              _values(study.of(name, method), [(stage, test) for test in tests], metric))
            for method in study.methods(name)
        ]  # fmt: skip
        if series:
            panels.append(
                panel(f"{study.name}_target_{name}", f"{name}, {stage}", "test set",
                      f"{METRIC_NAMES[metric]}, %", series, ticks=tests, joined=False)
            )  # fmt: skip
    return Figure(f"{name_of(metric)} by test set; bars: standard error over seeds", panels)


def _values(runs: Sequence[Run], places: Sequence[tuple[str, str]], metric: str) -> np.ndarray:
    """A metric of each run at each place (stage, test), (runs, places)."""
    return np.array([[run.evaluation[stage][test].measures[metric] for stage, test in places] for run in runs])


def share_figure(study: Study) -> list[Figure]:
    """The metric by stage, that is, by share of the target's data; a panel for each test of the comparison."""
    comparison, metric = study.definition.comparison, study.definition.metric
    setting = study.definition.settings[comparison.setting]
    if not setting.stages or not study.methods(comparison.setting):
        return []
    panels = []
    for test in setting.all_tests:
        stages = [stage for stage in setting.all_stages if test in setting.tests_of(stage)]
        if len(stages) < 2:
            continue
        places = [(stage, test) for stage in stages]
        series = [
            Series.over_seeds(method, _place(study, method), range(len(places)),
                              _values(study.of(comparison.setting, method), places, metric))
            for method in study.methods(comparison.setting)
        ]  # fmt: skip
        panels.append(
            panel(f"{study.name}_share_{test}", test, "trained on", f"{METRIC_NAMES[metric]}, %", series,
                  ticks=stages)
        )  # fmt: skip
    return [Figure(f"{name_of(metric)} by share of the target's data, {comparison.setting}", panels)]


def pgd(study: Study, setting: str) -> list[Block]:
    """Accuracy under PGD by radius: for each attacked test a table and a panel for each level."""
    blocks: list[Block] = []
    attacked = {
        method: [run for run in study.of(setting, method) if run.robustness.pgd] for method in study.methods(setting)
    }
    attacked = {method: runs for method, runs in attacked.items() if runs}
    tests = dict.fromkeys(test for runs in attacked.values() for run in runs for test in run.robustness.pgd)
    for test in tests:
        cells: dict[str, dict[str, dict[str, Sample]]] = {}
        panels = []
        levels = dict.fromkeys(
            level for runs in attacked.values() for run in runs for level in run.robustness.pgd.get(test, {})
        )
        for level in levels:
            series = []
            for method, found in attacked.items():
                runs = [run for run in found if level in run.robustness.pgd.get(test, {})]
                if not runs:
                    continue
                radii = runs[0].robustness.pgd[test][level].radii
                right = np.array([run.robustness.pgd[test][level].correct for run in runs])  # (runs, radii, examples)
                for number, radius in enumerate(radii):
                    by_level = cells.setdefault(f"{radius:g}", {}).setdefault(level, {})
                    by_level[method] = accuracy_sample(runs, right[:, number])
                series.append(Series.over_seeds(method, _place(study, method), radii, 100 * right.mean(axis=2)))
            name = f"{study.name}_pgd_{setting}_{test}_{level}"
            panels.append(panel(name, f"{test}, noise at {level}", "radius", "accuracy, %", series))
        what = f"Worst-case accuracy under PGD by radius (a share of the vectors' length), {setting}, {test}"
        caption = f"{what}{_strength(study, 'pgd', 'steps', 'restarts', 'examples')}"
        blocks += compared_tables(caption, "radius", list(levels), cells, baselines(study), means_only=["0"])
        blocks.append(Figure(f"{what}; bars: standard error over seeds", panels))
    return blocks


def _strength(study: Study, attack: str, *names: str) -> str:
    """The strength of an attack, as a part of a caption."""
    spec = getattr(parse_spec(study.definition.robustness.measured), attack)
    return f", as far as it finds it ({', '.join(f'{name} {getattr(spec, name)}' for name in names)})" if spec else ""


def characters(study: Study, setting: str) -> list[Block]:
    """Accuracy before and after the character attack, and a text that it changed for each compared method."""
    cells: dict[str, dict[str, dict[str, Sample]]] = {}
    examples, queries = [], []
    for method in study.methods(setting):
        runs = [run for run in study.of(setting, method) if run.robustness.characters]
        for test in dict.fromkeys(test for run in runs for test in run.robustness.characters):
            attacked = [run for run in runs if test in run.robustness.characters]
            found = [run.robustness.characters[test] for run in attacked]
            by_column = cells.setdefault(test, {"clean": {}, "attacked": {}})
            by_column["clean"][method] = accuracy_sample(attacked, [one.clean for one in found])
            by_column["attacked"][method] = accuracy_sample(attacked, [one.attacked for one in found])
            queries.append([test, method, mean_and_error([float(np.mean(one.queries)) for one in found])])
            if found[0].examples and method in study.definition.comparison.methods:
                examples.append([test, method, *found[0].examples[0]])
    if not cells:
        return []
    strength = _strength(study, "characters", "queries", "examples")
    what = f"Accuracy before and after the character attack, {setting}{strength}"
    blocks = compared_tables(what, "test set", ["clean", "attacked"], cells, baselines(study))
    blocks.append(Table(f"Queries of a text by the character attack, {setting}: mean ± standard error over seeds",
                        ["test set", "method", "queries"], queries, left=2, folded=True))  # fmt: skip
    if examples:
        caption = f"The first text whose prediction the character attack changed, first seed, {setting}"
        blocks.append(Table(caption, ["test set", "method", "before", "after"], examples, left=4, folded=True))
    return blocks


def learning_curves(study: Study) -> list[Figure]:
    """Development metric by epoch and training loss by update, for the comparison's setting."""
    definition, setting = study.definition, study.definition.comparison.setting
    by_epoch, by_update = [], []
    for method in study.methods(setting):
        runs, place = study.of(setting, method), _place(study, method)
        scores = [run.dev_scores(definition.metric, definition.settings[setting].train) for run in runs]
        epochs = min(map(len, scores))
        if epochs:
            values = np.array([one[:epochs] for one in scores])
            by_epoch.append(Series.over_seeds(method, place, range(1, epochs + 1), values))
        losses = [
            {line["update"]: line["loss"] for line in run.updates if {"update", "loss"} <= set(line)} for run in runs
        ]
        updates = sorted(set.intersection(*(set(one) for one in losses)))
        if updates:
            values = np.array([[one[update] for update in updates] for one in losses])
            by_update.append(Series.over_seeds(method, place, updates, values))
    prefix, panels = study.name, []
    if by_epoch:
        label = f"{METRIC_NAMES[definition.metric]}, %"
        panels.append(panel(f"{prefix}_dev", "Development set", "epochs", label, by_epoch))
    if by_update:
        panels.append(panel(f"{prefix}_loss", "Training", "updates", "task loss", by_update))
    return [Figure(f"Learning curves, {setting}: mean over seeds, bars: standard error", panels)] if panels else []
