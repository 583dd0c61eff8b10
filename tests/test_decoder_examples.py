"""The decoder examples, run as a user runs them on the sentences of the repository, with a decoder of two updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

pytest.importorskip("trl")
pytest.importorskip("peft")

from examples.small_decoder import Row, attack, load_decoder, noisy, random_noise, read_rows
from tests.test_examples import SENTENCES, run

FEW = ("--rows", "16", "--tests", "12", "--seeds", "1", "--epochs", "1", "--updates", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder that both examples use."""
    folder = tmp_path_factory.mktemp("small") / "decoder"
    load_decoder(folder, [row.text for row in read_rows(SENTENCES) if not row.is_test], 2)
    return folder


def table(output: str) -> dict[str, list[float]]:
    """The numbers of the table at the end of the output, by method."""
    _, _, text = output.rpartition("| --- |")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[1:]]
    return {name: [float(cell.split()[0]) for cell in cells if cell] for name, *cells in rows}


@pytest.mark.parametrize(
    ("module", "methods"),
    [
        ("decoder_classification", ["plain", "SMART"]),
        ("decoder_sft", ["before", "plain", "NEFTune", "SMART", "at"]),
    ],
)
def test_each_prints_its_table(module: str, methods: list[str], folder: Path) -> None:
    finished = run(module, *FEW, "--decoder", str(folder))
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "the decoder there is used again" in finished.stdout
    found = table(finished.stdout)
    assert list(found) == methods
    for name, (clean, _, attacked, *_) in found.items():
        assert attacked <= clean if module == "decoder_classification" else attacked > clean > 1, name
    if module == "decoder_sft":
        assert all(found[name][0] < found["before"][0] for name in methods[1:])


@pytest.mark.parametrize("module", ["decoder_classification", "decoder_sft"])
def test_a_mistake_ends_in_a_line(module: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("1\tgood\tfine\n")
    finished = run(module, "--data", str(path))
    assert finished.returncode == 2
    assert f"{path}, line 1: found" in finished.stderr and finished.stderr.count("\n") == 1


def test_rows_are_read_with_and_without_an_id_and_a_text_is_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("1\tpositive\tGood.\nnegative\tBad.\n")
    assert read_rows(path) == [Row("positive", "Good."), Row("negative", "Bad.")]
    tests = [Row("positive", f"text {number}").is_test for number in range(1000)]
    assert 150 < sum(tests) < 250
    assert tests[:50] == [Row("negative", f"text {number}").is_test for number in range(50)]


def test_the_attack_stays_within_its_radius_and_does_more_than_noise() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**sizes, intermediate_size=24, num_labels=2, pad_token_id=0)
    ).eval()
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 8, 7, 0]]), "attention_mask": torch.ones(2, 4).long()}
    batch["attention_mask"][1, 3] = 0
    labels = torch.tensor([0, 1])

    def loss(output: Any) -> torch.Tensor:
        return F.cross_entropy(output.logits, labels, reduction="sum")

    noises = [torch.zeros(()), random_noise(model, batch, 0.3), attack(model, batch, 0.3, loss)]
    lengths = model.get_input_embeddings()(batch["input_ids"]).norm(dim=-1)
    assert ((noises[1].norm(dim=-1) / lengths - 0.3).abs()[lengths > 0] < 1e-5).all()
    assert ((noises[2].norm(dim=-1) / lengths)[batch["attention_mask"].bool()] < 0.3 + 1e-5).all()
    clean, random, worst = (loss(noisy(model, batch, noise)).item() for noise in noises)
    assert clean == pytest.approx(loss(model(**batch)).item())
    assert worst - clean > 3 * abs(random - clean)
