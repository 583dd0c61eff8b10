"""The cost of R over a large vocabulary: less memory in chunks, the same loss."""

from __future__ import annotations

import pytest

from experiments.bench import decoders
from experiments.bench.decoders import ROWS, Sizes, measure, table


def test_chunks_take_less_memory_for_the_same_loss(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = Sizes(vocabulary=150_000, batch_size=4, tokens=64)
    found = measure(sizes)
    plain, whole, chunked, _ = (found[row] for row in ROWS)
    assert chunked.loss == pytest.approx(whole.loss, abs=1e-6)
    assert whole.loss > plain.loss + 1e-4
    assert chunked.memory < 0.9 * whole.memory
    assert table(found, sizes).splitlines()[0].split("|")[1].strip() == "row"
    decoders.main(["--vocabulary", "100", "--batch_size", "1", "--tokens", "4"])
    assert "SMART, in chunks" in capsys.readouterr().out
