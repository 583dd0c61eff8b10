from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import FlagError
from experiments.sift import demo
from experiments.sift.data import hutto
from experiments.sift.data.hutto import DOMAINS
from experiments.sift.running import runs
from tests.experiments.sift.hutto_archive import rated_lines, write_archive


def record(method: str, seed: int, accuracies: tuple[float, ...], seconds: float = 0.5) -> dict[str, Any]:
    """A finished run; macro-F1 is a point below accuracy, every test set has 400 examples."""
    evaluation = {
        demo.test_set(domain): {"ACC": value, "F1MAC": value - 1, "loss": 0.1, "examples": 400}
        for domain, value in zip(DOMAINS, accuracies, strict=True)
    }
    return {"key": "", "method": method, "seed": seed, "seconds_per_update": seconds, "evaluation": evaluation}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_one_seed_is_shown_as_it_is():
    header, _, plain, sift = cells(
        demo.result_table([record("plain", 1, (96, 84.04, 71, 83)), record("SiFT", 1, (95, 85, 72, 80), 1.234)])
    )
    assert header == ["method", "Tweets", "Amazon reviews", "Movie reviews", "Editorials", "s/step"]
    assert plain == ["plain", "96.0 / 95.0", "84.0 / 83.0", "71.0 / 70.0", "83.0 / 82.0", "0.50"]
    assert sift == ["SiFT", "95.0 / 94.0", "85.0 / 84.0", "72.0 / 71.0", "80.0 / 79.0", "1.23"]


def test_seeds_are_gathered_by_method_as_mean_and_deviation():
    records = []
    for seed in range(3):
        records += [record("plain", seed, (90 + 2 * seed, 80, 70, 60)), record("SMART", seed, (50, 60, 70, 80 - seed))]
    _, _, plain, smart = cells(demo.result_table(records))
    assert plain[1] == "92.0 ± 2.0 / 91.0 ± 2.0"
    assert smart[4] == "79.0 ± 1.0 / 78.0 ± 1.0"
    assert smart[5] == "0.50 ± 0.00"


def test_chance_is_the_deviation_over_seeds_or_the_standard_error_of_one():
    # √(0.9 · 0.1 / 400) = 0.015, √(0.8 · 0.2 / 400) = 0.02, √(0.5 · 0.5 / 400) = 0.025
    assert demo.uncertainty([record("plain", 1, (90, 80, 50, 100))]) == pytest.approx([1.5, 2.0, 2.5, 0.0])
    pair = [record("plain", 1, (90, 80, 50, 70)), record("plain", 2, (92, 80, 50, 70))]
    assert demo.uncertainty(pair) == pytest.approx([2**0.5, 0, 0, 0])


def test_the_report_names_its_command_and_keeps_the_raw_numbers(tmp_path: Path):
    records = [record("plain", 1, (96, 84, 71, 83)), record("SMART", 1, (95, 85, 72, 80))]
    arguments = argparse.Namespace(output_dir=tmp_path, init_checkpoint="tiny", epochs=2)
    text = demo.write_report(records, arguments, "python -m it --seeds 1")
    assert (tmp_path / "results.md").read_text() == text
    assert "`python -m it --seeds 1`" in text and "standard error" in text and demo.result_table(records) in text
    assert json.loads((tmp_path / "results.json").read_text()) == {"command": "python -m it --seeds 1", "runs": records}
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flags", ["--methods plain,smrt", "--seeds 0", "--epochs 0"])
def test_a_flag_that_cannot_be_used_is_told(flags: str):
    with pytest.raises(FlagError, match=f"{flags.split()[0]}: found .*, accepted: "):
        demo.parse_args(flags.split())


def test_from_the_archive_to_the_table(tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    archive = write_archive(tmp_path, {domain: rated_lines(domain, 40) for domain in DOMAINS})
    monkeypatch.setattr(hutto, "download", lambda folder: archive)
    scored: list[tuple[str, int]] = []
    evaluate = runs.evaluate

    def noted(output_dir: Path, epoch: int, path: Path) -> dict[str, float]:
        scored.append((path.stem, epoch))
        return evaluate(output_dir, epoch, path)

    monkeypatch.setattr(runs, "evaluate", noted)
    command = ["--init_checkpoint", str(tiny_encoder), "--epochs", "2", "--seeds", "2", "--output_dir", "found"]
    demo.main(command)
    assert scored == [(demo.test_set(domain), 1) for domain in DOMAINS] * 6  # the last epoch's model, once a run
    text = (tmp_path / "found" / "results.md").read_text()
    assert text in capsys.readouterr().out

    records = json.loads((tmp_path / "found" / "results.json").read_text())["runs"]
    assert [(found["method"], found["seed"]) for found in records] == [
        (method, seed) for seed in (2018, 2019) for method in ("plain", "SMART", "SiFT")
    ]
    for found in records:
        assert {name: values["examples"] for name, values in found["evaluation"].items()} == {
            "sentiment_tweets_test": 8,
            "sentiment_amazon_test": 40,
            "sentiment_movies_test": 40,
            "sentiment_editorials_test": 40,
        }
        assert found["seconds_per_update"] > 0
        assert found["config"]["adv_train"] == (found["method"] != "plain")
    losses = [found["evaluation"]["sentiment_amazon_test"]["loss"] for found in records]
    assert len(set(losses)) == 6  # no two runs are the same run
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        "results.md", "results.json", "results.png", "runs.jsonl",
    }  # fmt: skip

    def no_run(config: object) -> None:
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(runs, "train", no_run)
    demo.main(command)
    assert (tmp_path / "found" / "results.md").read_text() == text
    with pytest.raises(AssertionError, match="run again"):
        demo.main([*command, "--epochs", "3"])
