"""The bench's measuring and reporting, and a whole tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_utils.errors import DataError, FlagError, UserError
from data_utils.storage.text_files import write_lines
from experiments.bench import __main__ as bench
from experiments.bench import measure, report
from experiments.bench.measure import Memory, Setting
from experiments.bench.report import Bench, Measured, Ratio
from tests.mt_dnn.runs import RUN

COLA = RUN / "tinydata" / "cola_train.json"


def setting(data: Path = COLA, batch_size: int = 4, rounds: int = 3, steps: int = 2) -> Setting:
    return Setting(data, str(RUN / "tiny"), batch_size, rounds, steps, threads=1)


def test_a_ratio_of_medians_is_not_the_median_of_ratios():
    found = report.ratio([1, 4, 3], [1, 2, 6])
    assert (found.of_medians, found.paired) == (1.5, 1.0)


def test_the_interval_is_the_bootstraps_over_rounds():
    assert report.ratio([2.0, 6.0, 4.0], [1.0, 3.0, 2.0]) == Ratio(2.0, 2.0, 2.0, 2.0)
    # Of three rounds the median is the smallest of 1, 2, 4 with probability 7/27, above 2.5 percent.
    assert report.ratio([1, 2, 4], [1, 1, 1]) == Ratio(2.0, 2.0, 1.0, 4.0)
    # Of 25, one outlier is out of reach: 13 draws of it would be needed.
    assert report.ratio([1] * 24 + [100], [1] * 25)[2:] == (1.0, 1.0)
    values = np.random.default_rng(1).normal(1, 0.1, 100)
    low, high = report.ratio(values, np.ones(100))[2:]
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 * 0.1 / 10, rel=0.3)  # of a normal sample's median


def test_seconds_a_step_are_the_median_of_the_rounds_means():
    row = Measured([[1.0, 3.0], [5.0, 6.0], [0.5, 0.5]], 3, 1e9, 100, None)
    assert row.by_round == [2.0, 5.5, 0.5]
    assert row.step == 2.0


def test_every_round_has_each_row_first_by_turns_and_the_warm_up_does_not_count():
    order: list[str] = []

    def step(name: str):
        return lambda batch: order.append(f"{name}{batch}")

    told: list[str] = []
    names = ("a", "b", "c")
    batches = {name: [[1, 2], [3, 4]] for name in names}
    seconds = measure.alternate({name: step(name) for name in names}, batches, told.append)  # type: ignore[arg-type]
    assert " ".join(order) == "a1 a2 b1 b2 c1 c2 b1 b2 c1 c2 a1 a2 c3 c4 a3 a4 b3 b4"
    assert seconds.keys() == set(names)
    assert all([len(times) for times in found] == [2, 2] for found in seconds.values())
    assert len(told) == 3


def lengths_file(folder: Path, count: int) -> Path:
    lengths = np.random.default_rng(0).gamma(3, 4, count).astype(int) % 30 + 2
    lines = [{"uid": str(n), "label": n % 4, "token_id": [5] * int(length)} for n, length in enumerate(lengths)]
    write_lines(folder / "lengths.json", map(json.dumps, lines))
    return folder / "lengths.json"


def test_batches_stand_for_an_epoch_and_every_round_has_narrow_and_wide_ones(tmp_path: Path):
    contest, batches = measure.prepare(setting(lengths_file(tmp_path, 2000), batch_size=8, rounds=4, steps=10))
    assert contest.task_def.n_class == 4
    for rounds in batches.values():
        assert [len(part) for part in rounds] == [10] * 4
        widths = np.array([[batch.input_ids.size(1) for batch in part] for part in rounds])
        assert widths.mean(1).std() < 0.05 * widths.mean()
        assert (widths[:, -1] > 1.5 * widths[:, 0]).all()
    grouped, random = (measure.real_tokens(batches[way]) for way in (True, False))
    assert grouped == pytest.approx(random, rel=0.1)
    padded = {way: np.mean([batch.input_ids.numel() for part in batches[way] for batch in part]) for way in batches}
    assert padded[True] < 1.15 * grouped and padded[False] > 1.4 * random


def test_a_file_with_too_few_examples_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"lengths\.json: holds 5 examples; a batch needs at least 8"):
        measure.prepare(setting(lengths_file(tmp_path, 5), batch_size=8))


def test_the_machines_rate_counts_a_multiply_add_as_two(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "timed", lambda *arguments: 0.5)
    config = type("Config", (), {"hidden_size": 3, "intermediate_size": 5})()
    assert measure.matrix_rate(config, tokens=7) == 2 * 7 * 3 * 5 / 0.5


def test_the_tables_tell_ratios_rates_memory_and_reasons():
    def row(seconds: float, megabytes: int) -> Measured:
        return Measured([[seconds]] * 3, 3, 1e9, 100, Memory(megabytes * 10**6, 10**7))

    rows = {"plain": row(0.5, 800), "trainer": row(1.0, 1000)}
    lines = report.tables(Bench(rows, {"smart-pytorch": "not installed"}, [4e9, 4e9], {})).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[3] == ["trainer", "1.000", "2.00", "2.00 [2.00, 2.00]", "100", "3", "1", "0.25", "1000", "10"]
    assert cells[7] == ["plain", "trainer", "0.50", "0.50 [0.50, 0.50]", "0.80"]
    assert "4 GFLOP/s" in lines[-2] and lines[-1] == "smart-pytorch: not run, not installed."


def test_a_bench_whose_plain_row_cannot_run_says_why(tmp_path: Path) -> None:
    flags = f"--data {COLA} --init_checkpoint {RUN / 'tiny'} --rows trainer --rounds 1 --steps 1 --precision fp16"
    with pytest.raises(UserError, match="--fp16: "):
        bench.main([*flags.split(), "--batch_size", "4", "--threads", "1", "--output_dir", str(tmp_path)])


def test_a_whole_run_writes_all_times_and_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    ballast = np.ones(10**8)  # this process's peak, which must not show in the others'
    monkeypatch.setitem(__import__("sys").modules, "smart_pytorch", None)
    flags = f"--data {COLA} --init_checkpoint {RUN / 'tiny'} --rows trainer,smart-pytorch --rounds 3 --steps 2"
    bench.main([*flags.split(), "--batch_size", "4", "--threads", "1", "--output_dir", str(tmp_path)])
    found = json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert set(found["rows"]) == {"plain", "trainer"} and "not installed" in found["skipped"]["smart-pytorch"]
    for row in found["rows"].values():
        assert np.array(row["seconds"]).shape == (3, 2) and np.min(row["seconds"]) > 0
        assert 10**8 < row["memory"]["peak"] < measure._peak() - ballast.nbytes / 2
    assert found["rows"]["plain"]["over_plain"] == {"of_medians": 1, "paired": 1, "low": 1, "high": 1}
    (compared,) = found["comparisons"]
    assert (compared["ours"], compared["theirs"]) == ("plain", "trainer") and compared["low"] <= compared["high"]
    assert found["environment"]["threads"] == 1 and len(found["matrix_rates"]) == 4
    assert "× plain" in capsys.readouterr().out


@pytest.mark.parametrize("flags", ["--rows smort", "--rounds 0", "--steps 0", "--threads 0", "--batch_size 0"])
def test_a_flag_that_cannot_be_used_is_told(flags: str):
    with pytest.raises(FlagError, match=f"{flags.split()[0]}: found .*accepted: "):
        bench.parse_args(flags.split())


def test_plain_is_always_there_for_it_is_the_unit():
    assert bench.parse_args(["--rows", "sift,smart"]).rows == ["plain", "sift", "smart"]
