"""The one command for a GPU, tried on the CPU with a tiny encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.errors import FlagError
from experiments.bench import gpu
from experiments.bench.gpu import Part
from experiments.bench.measure import PRECISIONS, prepare
from experiments.bench.rows import ROWS
from tests.experiments.bench.test_bench import setting


def test_a_tiny_run_writes_every_figure_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--device cpu --tiny --precisions bf16 --only"
    gpu.main([*flags.split(), "^cola bf16$|operators", "--output_dir", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["parts"]) == ["cola bf16", "operators"]
    assert [part["status"] for part in found["parts"].values()] == [0, 0]
    bench = found["parts"]["cola bf16"]["bench"]
    assert bench["settings"]["precision"] == "bf16"
    assert {"plain", "smart", "sift", "sift-free", "trainer"} <= bench["rows"].keys()
    assert found["peak_rates"].keys() == PRECISIONS.keys() and min(found["peak_rates"].values()) > 0
    page = (tmp_path / "gpu.md").read_text()
    ratio = bench["rows"]["sift"]["seconds_per_step"] / bench["rows"]["plain"]["seconds_per_step"]
    line = next(line for line in page.splitlines() if "sift / plain" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")][2:4] == [f"{ratio:.2f}", "2.7"]
    assert "operators" in page.split("## operators")[1]
    assert "exit status 0" in capsys.readouterr().out


def test_a_command_that_fails_or_takes_too_long_is_named_and_ended(tmp_path: Path) -> None:
    failed = gpu.run(Part("failed", ["-c", "raise SystemExit('no memory')"]), tmp_path, 60, "cpu")
    assert failed["status"] == 1 and "no memory" in failed["output"]
    endless = gpu.run(Part("endless", ["-c", "import time; time.sleep(600)"]), tmp_path, 0.5, "cpu")
    assert endless["status"] is None and endless["seconds"] < 60
    content = {
        "environment": {"gpu": None, "cpu": "a processor", "commit": "1", **dict.fromkeys(gpu.PACKAGES)},
        "peak_rates": {},
        "parts": {"failed": failed, "endless": endless},
    }
    page = gpu.page(content)
    assert "no memory" in page and "it took too long" in page and "Nothing measured." in page


def test_all_commands_are_there_and_the_speeds_come_first(tmp_path: Path) -> None:
    names = [part.name for part in gpu.parts(tmp_path, ["tf32", "bf16", "fp16"], tiny=True)]
    speeds = [f"{data} {precision}" for data in ("cola", "mnli") for precision in ("tf32", "bf16", "fp16")]
    assert names[:6] == speeds
    assert set(names[6:]) == {"profile", "tests", "operators", "memory", "cola bf16 compiled"}


def test_a_mistake_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(FlagError, match="found 'fp8', accepted: float32, tf32, bf16, fp16"):
        gpu.main(["--device", "cpu", "--precisions", "fp8"])
    with pytest.raises(FlagError, match="torch sees no GPU"):
        gpu.main([])


def test_the_precision_reaches_every_row() -> None:
    contest, batches = prepare(setting()._replace(precision="bf16", rounds=1, steps=1))
    assert contest.flags == {"bf16": "true"}
    seen: set[str] = set()
    layer = contest.network.bert.get_submodule("encoder.layer.0.attention.self.query")
    layer.register_forward_hook(lambda module, inputs, output: seen.add(str(output.dtype)))
    for name in ("plain", "trainer"):
        ROWS[name].build(contest)(batches[True][0][0])
        assert seen == {"torch.bfloat16"}
        seen.clear()
