"""A study's files read back: recomputed metrics, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import brier_score_loss

from data_utils.errors import DataError
from experiments.sift.reporting.predictions import brier_score, calibration_error
from experiments.sift.reporting.results import Study, read_studies, read_study
from tests.experiments.sift.study_results import FIRST, UCI, definition, run, write_results, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results", ["cola"], examples=30) / "cola"


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = json.loads(path.read_text())
    edit(file)
    path.write_text(json.dumps(file))


def first_run(folder: Path) -> Path:
    return sorted((folder / "runs").iterdir())[0]


def test_metrics_are_those_of_the_stored_predictions(folder: Path):
    """Counted here, example by example, from the file."""
    found = next(one for one in read_study(folder).runs if one.method == "sift")
    stored = json.loads(found.path.read_text())["evaluation"]["trained"]["cola_out_test"]
    cells = {(gold, predicted): 0 for gold in (0, 1) for predicted in (0, 1)}
    brier = 0.0
    for gold, (of_zero, of_one) in zip(stored["golds"], stored["probabilities"], strict=True):
        cells[gold, int(of_one > of_zero)] += 1
        brier += (of_one - gold) ** 2 / 30
    tn, fp, fn, tp = cells[0, 0], cells[0, 1], cells[1, 0], cells[1, 1]
    measures = found.evaluation["trained"]["cola_out_test"].measures
    assert measures["ACC"] == pytest.approx(100 * (tp + tn) / 30)
    f1 = [2 * right / (2 * right + fp + fn) for right in (tn, tp)]
    assert measures["F1MAC"] == pytest.approx(50 * sum(f1))
    below = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert measures["MCC"] == pytest.approx(100 * (tp * tn - fp * fn) / below)
    assert measures["Brier"] == pytest.approx(brier)


def test_calibration_error_by_hand():
    """Three bins: 0.9 and 0.92 (one of two right), 0.65 (right), 0.55 (wrong)."""
    golds = np.array([1, 0, 0, 1])
    probabilities = np.array([[0.1, 0.9], [0.08, 0.92], [0.65, 0.35], [0.55, 0.45]])
    gaps = abs(1 - 1.82) + abs(1 - 0.65) + abs(0 - 0.55)
    assert calibration_error(golds, probabilities) == pytest.approx(gaps / 4)
    sure = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert calibration_error(np.array([1, 0]), sure) == 0
    assert calibration_error(np.array([0, 1]), sure) == 1


def test_a_bin_is_closed_above():
    """9/15 = 0.6 (right) shares its bin with 0.55 (wrong), not with 0.65 (right)."""
    probabilities = np.array([[0.6, 0.4], [0.55, 0.45], [0.65, 0.35]])
    expected = (abs(1 - 0.6 - 0.55) + abs(1 - 0.65)) / 3
    assert calibration_error(np.array([0, 1, 0]), probabilities) == pytest.approx(expected)


def test_the_brier_score_of_two_classes_is_scikit_learns():
    generator = np.random.default_rng(0)
    golds, of_one = generator.integers(2, size=20), generator.random(20)
    expected = brier_score_loss(golds, of_one)
    assert brier_score(golds, np.stack([1 - of_one, of_one], axis=1)) == pytest.approx(expected)
    assert brier_score(np.array([2]), np.array([[0.5, 0.5, 0.0]])) == pytest.approx(0.5 * (0.25 + 0.25 + 1))


def test_runs_come_in_the_order_of_the_definition_whatever_their_files_are_called(folder: Path):
    places = [(one.method, one.seed) for one in read_study(folder).runs]
    for number, path in enumerate(reversed(sorted((folder / "runs").iterdir()))):
        path.rename(path.with_name(f"{number:03}.json"))
    study = read_study(folder)
    assert [(one.method, one.seed) for one in study.runs] == places
    assert list(dict.fromkeys(method for method, _ in places)) == ["plain", "smart", "sift", "vat"]
    assert study.missing() == [] and len(study.tuning) == 8


def test_what_is_missing_is_told(folder: Path):
    for path in (folder / "runs").glob(f"cola-smart-{FIRST}-*"):
        path.unlink()
    for path in (folder / "runs").glob("cola-vat-*"):
        path.unlink()
    study = read_study(folder)
    assert study.missing() == ["cola, cola: smart: 3 of 4 seeds", "cola, cola: vat: 0 of 3 seeds"]
    assert study.methods("cola") == ["plain", "smart", "sift"]


def test_runs_that_the_definition_does_not_have_are_left_out(folder: Path):
    path = folder / "study.yml"
    study = yaml.safe_load(path.read_text())
    del study["methods"]["vat"], study["tuning"]["grid"]["vat"]
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    found = read_study(folder)
    assert (found.unlisted, found.methods("cola")) == (3, ["plain", "smart", "sift"])


def edit_study(folder: Path, **changes: Any) -> None:
    path = folder / "study.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))


def test_seeds_that_are_not_planned_count_for_nothing(folder: Path):
    edit_study(folder, seeds={"compared": 2, "others": 2, "first": FIRST + 3})
    study = read_study(folder)
    assert [(run.method, run.seed) for run in study.runs] == [(name, FIRST + 3) for name in ("plain", "smart", "sift")]
    assert study.unlisted == 12
    assert study.missing() == [
        "cola, cola: plain: 1 of 2 seeds", "cola, cola: smart: 1 of 2 seeds", "cola, cola: sift: 1 of 2 seeds",
        "cola, cola: vat: 0 of 2 seeds",
    ]  # fmt: skip


@pytest.mark.parametrize("part", ["definition", "method", "tuned"])
def test_runs_with_other_flags_than_the_study_has_now_are_refused(folder: Path, part: str):
    """As where a study is changed, or tuned anew, and stopped before all runs were made again."""
    if part == "definition":
        edit_study(folder, flags={"epochs": 3, "batch_size": 32})
        message = "was run with epochs 2, study.yml and tuned.json have 3; run the matrix again, or remove the file"
    elif part == "method":
        change(first_run(folder), lambda file: file["config"].update(batch_size=16))
        message = "was run with batch_size 16, study.yml and tuned.json have 32"
    else:
        change(folder / "tuned.json", lambda file: file["plain"]["chosen"].update(learning_rate=5e-5))
        message = "was run with learning_rate 0.0001, study.yml and tuned.json have 5e-05"
    with pytest.raises(DataError, match=message) as found:
        read_study(folder)
    assert str(found.value).startswith(str(first_run(folder)))


@pytest.mark.parametrize("text", ["[]", "{", '{"plain": {"trials": []}}'])
def test_a_damaged_choice_is_told(folder: Path, text: str):
    (folder / "tuned.json").write_text(text)
    with pytest.raises(DataError, match="tuned.json"):
        read_study(folder)


def without_an_example(file: dict[str, Any]) -> None:
    found = file["robustness"]["characters"][UCI[0]]
    for column in ("clean", "attacked", "queries"):
        found[column].pop()


@pytest.mark.parametrize(
    "edit",
    [
        lambda file: file["robustness"]["pgd"][UCI[0]]["post_ln"]["radii"].__setitem__(1, 0.02),
        lambda file: [row.pop() for row in file["robustness"]["pgd"][UCI[0]]["pre_ln"]["correct"]],
        without_an_example,
    ],
)
def test_runs_must_have_met_the_same_attacks(tmp_path: Path, edit: Callable[[dict[str, Any]], object]):
    folder = write_results(tmp_path / "results", ["hate"], examples=30) / "hate"
    other = sorted((folder / "runs").glob("balanced-smart-*"))[1]
    change(other, edit)
    with pytest.raises(DataError, match="sentiment_uciamazon_test.*: attacked with other radii or on another number"):
        read_study(folder)


def test_a_run_without_the_attacks_that_are_planned_is_missing_them(tmp_path: Path):
    folder = write_results(tmp_path / "results", ["hate"], examples=30) / "hate"
    change(sorted((folder / "runs").glob("balanced-sift-*"))[1], lambda file: file.update(robustness={}))
    assert read_study(folder).missing() == ["hate, balanced: sift: not attacked: seeds 2019"]


def test_a_half_written_temporary_file_is_no_run(folder: Path):
    (folder / "runs" / ".cola-plain-2018-0.json.abc.tmp").write_text("{")
    assert len(read_study(folder).runs) == 15


def out_test(file: dict[str, Any]) -> dict[str, Any]:
    return file["evaluation"]["trained"]["cola_out_test"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: out_test(file)["metrics"].update(ACC=101.0), "ACC is 101.00 in the file"),
        (lambda file: out_test(file)["metrics"].update(MCC=1.0), "MCC is 1.00 in the file"),
        (lambda file: out_test(file)["golds"].pop(), "29 golds .* 30 rows"),
        (lambda file: out_test(file)["golds"].__setitem__(0, 2), "golds up to 2"),
        (lambda file: out_test(file)["probabilities"].__setitem__(0, [1.0]), "classes"),
        (lambda file: out_test(file)["probabilities"].__setitem__(0, [float("nan"), 1]), "finite"),
        (lambda file: out_test(file)["probabilities"].__setitem__(0, [1e300, 0]), "less than or equal to 1"),
        (lambda file: out_test(file)["metrics"].update(ACC=float("nan")), "ACC is nan in the file, 80"),
        (lambda file: file["evaluation"]["trained"].pop("cola_in_test"), "no stage 'trained', test 'cola_in_test'"),
        (lambda file: file.pop("seed"), "seed: field required"),
        (lambda file: file.update(robustness={"pgd": {"t": {"pre_ln": {"radii": [0.0], "correct": []}}}}), "radius,"),
        (lambda file: file.update(robustness={"characters": {"t": {"clean": [2], "attacked": [0], "queries": [1]}}}),
         "less than or equal to 1"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_in_one_line(
    folder: Path, edit: Callable[[dict[str, Any]], object], message
):
    path = first_run(folder)
    change(path, edit)
    with pytest.raises(DataError, match=message) as found:
        read_study(folder)
    assert str(found.value).startswith(str(path)) and "\n" not in str(found.value)


@pytest.mark.parametrize("text", ["", "[]", '{"key": "cut', "\ud800", "[" * 5000, '{"seed": 1, "seed": 2}'])
def test_a_damaged_run_is_told_in_one_line(folder: Path, text: str):
    path = first_run(folder)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError) as found:
        read_study(folder)
    assert str(found.value).startswith(str(path)) and "\n" not in str(found.value)


def test_the_recomputed_metric_may_differ_by_rounding_alone(folder: Path):
    path = first_run(folder)
    accuracy = out_test(json.loads(path.read_text()))["metrics"]["ACC"]
    change(path, lambda file: out_test(file)["metrics"].update(ACC=accuracy + 0.9e-4))
    assert len(read_study(folder).runs) == 15
    change(path, lambda file: out_test(file)["metrics"].update(ACC=accuracy + 1.1e-4))
    with pytest.raises(DataError, match="ACC is"):
        read_study(folder)


def test_runs_must_have_seen_the_same_examples(folder: Path):
    path = first_run(folder)

    def swap(file: dict[str, Any]) -> None:
        for values in (out_test(file)["golds"], out_test(file)["probabilities"]):
            values.reverse()

    change(path, swap)
    with pytest.raises(DataError, match="test 'cola_out_test': its golds are not those of"):
        read_study(folder)


def test_two_runs_of_one_seed_are_refused(folder: Path):
    study = definition("cola")
    write_run(folder / "runs", run(study, "cola", "plain", FIRST, 30, 0.0) | {"key": "zz"})
    with pytest.raises(DataError, match="second run of cola, plain, seed 2018 .and .*; remove the older one"):
        read_study(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("metric", "F1", "metric: found 'F1', accepted: ACC, MCC"),
        ("question", None, "question: "),
        (
            "comparison",
            {"methods": ["plain", "sfit"], "setting": "cola", "tests": ["cola_in_test"]},
            "'sfit', accepted",
        ),
        ("comparison", {"methods": ["plain", "sift"], "setting": "c", "tests": ["cola_in_test"]}, "setting: found 'c'"),
        ("comparison", {"methods": ["plain", "sift"], "setting": "cola", "tests": ["x"]}, "tests: found 'x'"),
    ],
)
def test_a_mistake_in_the_definition_is_told(folder: Path, key: str, value: object, message: str):
    path = folder / "study.yml"
    path.write_text(yaml.safe_dump(definition("cola") | {key: value}))
    with pytest.raises(DataError, match=message) as found:
        read_study(folder)
    assert str(found.value).startswith(f"{path}: ") and "\n" not in str(found.value)


def test_a_folder_without_studies_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"found no study; expected: STUDY/study.yml"):
        read_studies(tmp_path)


def test_the_domain_goes_by_the_name(folder: Path):
    setting = read_study(folder).definition.settings["cola"]
    found = [setting.domain_of(test) for test in ("cola_in_test", "cola_out_test", "cola_test", "cola_all_test")]
    assert found == ["in domain", "out of domain", "in domain", "both domains"]


def test_development_scores_are_those_of_the_trained_dataset(folder: Path):
    study: Study = read_study(folder)
    path = study.runs[0].path
    change(path, lambda file: file["history"][0]["metrics"].update(other_dev={"ACC": 1.0, "MCC": 2.0}))
    history = json.loads(path.read_text())["history"]
    expected = [epoch["metrics"]["cola_dev"]["MCC"] for epoch in history]
    assert read_study(folder).runs[0].dev_scores("MCC", "cola") == expected
