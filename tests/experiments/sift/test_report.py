"""The report of synthetic studies: numbers, words, and the two files."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from experiments.sift import report
from experiments.sift.reporting.comparisons import signed
from experiments.sift.reporting.results import read_study
from experiments.sift.reporting.run_table import COLUMNS
from tests.experiments.sift.study_results import FIRST, UCI, write_results

GAINS = {"plain": -0.2, "sift": 0.5}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("study") / "results", examples=61, gains=GAINS)


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report")
    report.main([str(results), "--output", str(output)])
    return output


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(markdown: str, caption: str) -> list[list[str]]:
    """Header and rows of the table under the line that begins with `caption`."""
    lines = markdown.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(caption)) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def accuracies(results: Path, setting: str, method: str, test: str, stage: str = "trained") -> list[float]:
    """By seed, counted from the files."""
    found = []
    for path in sorted((results / "hate" / "runs").glob(f"{setting}-{method}-*.json")):
        stored = json.loads(path.read_text())["evaluation"][stage][test]
        right = [int(p[1] > p[0]) == gold for gold, p in zip(stored["golds"], stored["probabilities"], strict=True)]
        found.append(100 * sum(right) / len(right))
    return found


def shown(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values) / math.sqrt(len(values)):.1f}"


def test_the_table_of_runs_has_each_measure_of_each_run_as_the_files_say_it(results: Path, written: Path):
    with (written / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = {tuple(row[name] for name in COLUMNS[:-1]): float(row["value"]) for row in rows}
    assert len(values) == len(rows)  # no place twice
    expected = 0
    for path in (path for study in results.iterdir() for path in (study / "runs").glob("*.json")):
        run = json.loads(path.read_text())
        place = (path.parents[1].name, "embedded-minilm", run["setting"], run["method"], str(run["seed"]))
        for stage, tests in run["evaluation"].items():
            for test, stored in tests.items():
                count, loss = len(stored["golds"]), 0.0
                for gold, probabilities in zip(stored["golds"], stored["probabilities"], strict=True):
                    loss += sum((p - (number == gold)) ** 2 for number, p in enumerate(probabilities)) / 2
                own = {"ACC": stored["metrics"]["ACC"], "Brier": loss / count}
                for measure, value in own.items():
                    key = (*place, stage, test, str(count), measure)
                    assert values[key] == pytest.approx(value, rel=1e-5)
                expected += 5
        for test, levels in run.get("robustness", {}).get("pgd", {}).items():
            for level, found in levels.items():
                for radius, right in zip(found["radii"], found["correct"], strict=True):
                    key = (*place, "trained", test, str(len(right)), f"PGD {level} {radius:g}")
                    assert values[key] == pytest.approx(100 * sum(right) / len(right), rel=1e-5)
                    expected += 1
        for test, found in run.get("robustness", {}).get("characters", {}).items():
            for when in ("clean", "attacked"):
                key = (*place, "trained", test, str(len(found[when])), f"characters {when}")
                assert values[key] == pytest.approx(100 * sum(found[when]) / len(found[when]), rel=1e-5)
                expected += 1
    assert len(rows) == expected > 500


def test_every_cell_of_a_table_is_what_the_files_say(results: Path, written: Path):
    header, *rows = table((written / "report.md").read_text(), "Accuracy, balanced, percent")
    assert header == ["stage", "method", "seeds", "sentiment_hatebalanced_test", *UCI]
    assert len(rows) == 3 * 4
    for stage, method, seeds, *cells in rows:
        for test, cell in zip(header[3:], cells, strict=True):
            if stage != "trained" and test not in UCI:
                assert cell == ""  # no test after this stage
                continue
            values = accuracies(results, "balanced", method, test, stage)
            assert re.sub(" [†‡]+$", "", cell) == shown(values)
            assert seeds == str(len(values))


def test_the_named_comparison_is_the_mean_over_its_tests(results: Path, written: Path):
    markdown = (written / "report.md").read_text()
    by_method = {}
    for method in ("plain", "smart", "sift"):
        by_test = [accuracies(results, "balanced", method, test) for test in UCI]
        by_method[method] = [mean(values) for values in zip(*by_test, strict=True)]
    _, *rows = table(markdown, "Accuracy, percent, of balanced, stage trained")
    assert {row[0]: row[-1] for row in rows} == {name: shown(values) for name, values in by_method.items()}
    section = markdown.split("## Study: hate")[1]
    _, *rows = table(section, "Differences in accuracy, mean over 3 test sets")
    for row, (ours, theirs) in zip(rows, [("sift", "smart"), ("sift", "plain"), ("smart", "plain")], strict=True):
        difference = mean(by_method[ours]) - mean(by_method[theirs])
        assert row[:2] == [f"{ours} − {theirs}", signed(difference)]
    # Holm by hand: the smallest of three p-values times 3, the next times 2, the largest as it is, and none below
    # the one before; the table shows three digits.
    raw, adjusted = ([float(row[column].removeprefix("< ")) for row in rows] for column in (3, 4))
    smallest, middle, largest = sorted(range(3), key=raw.__getitem__)
    assert 0.002 < raw[middle] < raw[largest] < 2 * raw[middle] + 0.05  # what follows could fail
    assert adjusted[smallest] <= 3 * raw[smallest]
    assert adjusted[middle] == pytest.approx(2 * raw[middle], abs=0.0015)
    assert adjusted[largest] == pytest.approx(max(raw[largest], adjusted[middle]), abs=0.001)


def test_other_measures_calibration_and_spread_are_what_the_files_say(results: Path, written: Path):
    runs = read_study(results / "hate").of("raw", "sift")
    measures = [run.evaluation["uci 10 %"][UCI[0]].measures for run in runs]
    section = (written / "report.md").read_text().split("## Study: hate")[1]

    def cell(caption: str, column: str) -> str:
        header, *rows = table(section, caption)
        return next(row for row in rows if row[:2] == ["uci 10 %", "sift"])[header.index(column)]

    assert cell("Other measures, raw", f"{UCI[0]}: macro-F1") == shown([one["F1MAC"] for one in measures])
    assert cell("Calibration, raw", f"{UCI[0]} (out of domain): ECE") == shown([one["ECE"] for one in measures])
    brier = [one["Brier"] for one in measures]
    expected = f"{mean(brier):.3f} ± {stdev(brier) / math.sqrt(len(brier)):.3f}"
    assert cell("Calibration, raw", f"{UCI[0]} (out of domain): Brier") == expected
    values = [one["ACC"] for one in measures]
    expected = f"{stdev(values):.2f} ({min(values):.1f} to {max(values):.1f})"
    assert cell("Accuracy by seed, raw", UCI[0]) == expected


def test_robustness_is_what_the_files_say(results: Path, written: Path):
    section = (written / "report.md").read_text().split("## Study: hate")[1]
    by_radius: dict[str, list[float]] = {"0": [], "0.01": [], "0.05": []}
    attacked = []
    for path in sorted((results / "hate" / "runs").glob("balanced-smart-*.json")):
        found = json.loads(path.read_text())["robustness"]
        worst = found["pgd"][UCI[0]]["post_ln"]
        for values, correct in zip(by_radius.values(), worst["correct"], strict=True):
            values.append(100 * sum(correct) / 41)
        attacked.append(100 * sum(found["characters"][UCI[0]]["attacked"]) / 41)
    header, *rows = table(section, "Worst-case accuracy under PGD by radius")
    assert header == ["radius", "method", "seeds", "pre_ln", "post_ln"]
    found = {row[0]: re.sub(" [†‡]+$", "", row[4]) for row in rows if row[1] == "smart"}
    assert found == {radius: shown(values) for radius, values in by_radius.items()}
    _, *rows = table(section, "Accuracy before and after the character attack, balanced")
    assert re.sub(" [†‡]+$", "", next(row for row in rows if row[1] == "smart")[4]) == shown(attacked)


def test_without_noise_nothing_is_compared_again_under_every_level(written: Path):
    section = (written / "report.md").read_text().split("## Study: hate")[1]
    what = f"Worst-case accuracy under PGD by radius (a share of the vectors' length), balanced, {UCI[0]}"
    _, *rows = table(section, f"{what}, as far as it finds it (steps 5, restarts 1, examples 41): the 20 comparisons")
    radii = [row[1].split(", ")[0] for row in rows]
    assert radii.count("0.01") == radii.count("0.05") == 2 * 5  # levels × (three against plain, two against smart)
    assert len(radii) == 20


def test_two_encoders_of_one_study_are_two_studies(tmp_path: Path):
    """Their folders differ, the name in their definitions is one."""
    results = write_results(tmp_path / "results", ["cola"], gains=GAINS)
    (tmp_path / "results" / "cola").rename(results / "cola-other")
    path = results / "cola-other" / "study.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"encoder": "other"}))
    write_results(results, ["cola"], gains={"sift": -0.5})
    report.main([str(results)])
    text = (results / "report.md").read_text()
    heads = text.split("## Study: ")[0]
    ours, others = (heads.split(f"{name}: Does SiFT")[1].split("Does SiFT")[0] for name in ("cola", "cola-other"))
    for name, head in (("cola", ours), ("cola-other", others)):
        _, *rows = table(text.split(f"## Study: {name}\n")[1], "Differences in Matthews correlation, cola_out_test")
        assert all(f"{row[0]}: {row[1]} points" in head for row in rows)
    assert ours != others
    pictures = re.findall(r"\(figures/([^)]+)\)", text)
    assert len(set(pictures)) == len(pictures) >= 4
    assert {path.name for path in (results / "figures").iterdir()} == set(pictures)
    anchors = re.findall(r' id="([^"]+)"', (results / "report.html").read_text())
    assert len(set(anchors)) == len(anchors)


def test_a_mark_stands_where_the_corrected_p_is_below_the_level(written: Path):
    markdown = (written / "report.md").read_text().split("## Study: sentiment")[1]
    header, *rows = table(markdown, "Accuracy, tweets, percent")
    marked = {
        (row[1], theirs, test)
        for row in rows
        for test, cell in zip(header[3:], row[3:], strict=True)
        for sign, theirs in (("†", "plain"), ("‡", "smart"))
        if sign in cell
    }
    _, *rows = table(markdown, "Accuracy, tweets: the")
    expected = {
        (*row[0].split(" − "), row[1].removeprefix("trained, "))
        for row in rows
        if float(row[5].removeprefix("< ")) < 0.05
    }
    assert marked == expected
    assert len(rows) == 4 * 5  # tests × (three against plain, two against smart)


def test_sources_stand_beside_targets(written: Path):
    _, *rows = table((written / "report.md").read_text(), "Accuracy, percent, by setting trained in (rows)")
    assert [row[:2] for row in rows][:6] == [[s, m] for s in ("balanced", "raw") for m in ("plain", "smart", "sift")]
    assert rows[0][-1] == "" and rows[3][-1] != ""  # only raw is tested on its own tweets


def test_chosen_hyperparameters_are_those_of_the_runs(written: Path):
    _, *rows = table((written / "report.md").read_text(), "Matthews correlation on the development set")
    assert [(row[1], row[2], row[4]) for row in rows] == [
        ("plain", "learning_rate 5e-05", ""),
        ("plain", "learning_rate 0.0001", "yes"),
        ("smart", "learning_rate 0.0001", "yes"),
        ("smart", "learning_rate 0.0002", ""),
        ("sift", "learning_rate 0.0001", "yes"),
        ("sift", "learning_rate 0.0002", ""),
        ("vat", "learning_rate 0.0001", "yes"),
        ("vat", "learning_rate 0.0002", ""),
    ]


def test_published_numbers_stand_beside_ours_with_the_reason(results: Path, written: Path):
    section = (written / "report.md").read_text().split("## Study: cola")[1].split("## Study: hate")[0]
    header, *rows = table(section, "Jiang et al. 2020, SMART, ACL (arXiv 1911.03437), table 2")
    cells = {row[0]: row[header.index("CoLA MCC")] for row in rows}
    values = [
        run.evaluation["trained"]["cola_in_test"].measures["MCC"]
        for run in read_study(results / "cola").of("cola", "sift")
    ]
    assert cells["SMART, BERT base"] == "59.1"
    assert cells["here: embedded-minilm, sift"] == shown(values)
    assert section.count("Not comparable: ") == 2
    assert "last batch alone" not in section  # the table of the other study
    assert "last batch alone" in (written / "report.md").read_text()


class Page(HTMLParser):
    """What a page holds: tags that are open, captions by table, links to elsewhere, anchors and links to them."""

    VOID = ("meta", "img", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables, self.captions = 0, 0
        self.elsewhere: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.anchors: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.tables += tag == "table"
        self.captions += tag == "caption" and self.open[-2] == "table"
        if tag == "img":
            self.images.append(found)
        if tag == "a":
            self.links.append(str(found["href"]))
        if "id" in found:
            self.anchors.append(str(found["id"]))
        if tag in ("script", "link", "iframe") or re.match("https?:|//", str(found.get("src", found.get("href", "")))):
            self.elsewhere.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(written: Path):
    text = (written / "report.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [] and page.elsewhere == []
    assert page.tables == page.captions > 30
    assert all(image["alt"] and str(image["src"]).startswith("data:image/svg+xml;base64,") for image in page.images)
    assert len(page.images) == len(list((written / "figures").iterdir())) > 20
    assert sorted(page.links) == sorted(f"#{anchor}" for anchor in page.anchors if anchor != "top")
    assert len(set(page.anchors)) == len(page.anchors)
    assert "@import" not in text and "url(" not in text
    assert 'name="viewport"' in text and "&lt;b&gt;really" in text


def test_all_figures_are_linked_from_the_markdown(written: Path):
    linked = re.findall(r"\]\((figures/.*?\.svg)\)", (written / "report.md").read_text())
    assert sorted(linked) == sorted(f"figures/{path.name}" for path in (written / "figures").iterdir())
    for kind in (
        "hate_target_balanced",
        f"hate_share_{UCI[0]}",
        f"hate_pgd_raw_{UCI[0]}_post_ln",
        "hate_dev",
        "hate_loss",
    ):
        assert f"figures/{kind}.svg" in linked


def test_the_report_is_the_same_byte_for_byte_whatever_the_files_are_called(
    results: Path, written: Path, tmp_path: Path
):
    for number, path in enumerate(sorted((results / "hate" / "runs").iterdir(), key=lambda path: path.name[::-1])):
        file = json.loads(path.read_text()) | {"seconds": 1e6}  # another time of day
        path.write_text(json.dumps(file))
        path.rename(path.with_name(f"{number:03}-{path.name}"))
    report.main([str(results), "--output", str(tmp_path)])
    try:
        assert files(tmp_path) == files(written)
    finally:
        for path in (results / "hate" / "runs").iterdir():
            path.rename(path.with_name(path.name[4:]))


def test_an_unfinished_matrix_is_told_first_and_compared_on_the_seeds_that_all_have(tmp_path: Path):
    results = write_results(tmp_path / "results", ["cola"], examples=30)
    for path in (results / "cola" / "runs").glob(f"cola-smart-{FIRST}-*"):
        path.unlink()
    report.main([str(results)])
    text = (results / "report.md").read_text()
    assert text.split("\n")[2:5] == ["Missing:", "", "- cola, cola: smart: 3 of 4 seeds"]
    header, *rows = table(text, "Differences in Matthews correlation")
    assert [row[header.index("seeds")] for row in rows] == ["3", "3", "3"]
    for path in (results / "cola" / "runs").glob("cola-smart-*"):
        path.unlink()
    report.main([str(results)])
    text = (results / "report.md").read_text()
    assert "- cola, cola: smart: 0 of 4 seeds" in text and "nothing is compared" in text


def test_one_seed_has_means_without_errors_and_no_comparison(tmp_path: Path):
    results = write_results(tmp_path / "results", ["hate"], examples=30)
    for path in (results / "hate" / "runs").iterdir():
        if f"-{FIRST}-" not in path.name:
            path.unlink()
    report.main([str(results)])
    text = (results / "report.md").read_text()
    assert "One seed: nothing is compared." in text
    _, *rows = table(text, "Accuracy, balanced, percent")
    assert all(re.fullmatch(r"\d+\.\d", cell) for row in rows for cell in row[4:])
