"""Every method at every level, at its defaults, through a whole epoch of the demo's data."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.sift import sweep
from experiments.sift.running.runs import RunStore


@pytest.mark.slow
def test_every_method_at_every_level_searches_well_and_skips_nothing(tmp_path: Path):
    """An hour on 2 cores. For methods on gold labels chance may lower the loss, so the gain is tested as a product."""
    sweep.main(["--defaults", "--train_fraction", "1", "--epochs", "1", "--output_dir", str(tmp_path)])
    records = RunStore(tmp_path / "results.jsonl").read().values()
    assert len(records) == 1 + 7 * 3
    for record in records:
        search, name = record["search"], f"{record['method']} at {record['config']['adv_norm_level']}"
        assert search["skipped"] == 0, name
        if record["method"] not in (sweep.PLAIN.name, "random", "r3f"):
            assert search["ascent_rise"] > 1.2 * max(search["chance_rise"], 0) >= 0, name
