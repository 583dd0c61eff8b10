from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from data_utils.errors import UserError
from experiments.dump_embedding import extractor
from mt_dnn.checkpoints.encoder_files import read_encoder, write_checkpoint
from tests.encoder_folder import write_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a tokenizer that gives token types."""
    folder = write_encoder(tmp_path_factory.mktemp("extractor") / "encoder", "electra")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = [
        "input_ids",
        "token_type_ids",
        "attention_mask",
    ]
    tokenizer.save_pretrained(folder)
    return folder


def run(folder: Path, text: str, *flags: str) -> list[dict[str, str]]:
    (folder.parent / "in.txt").write_text(text)
    files = ("--finput", str(folder.parent / "in.txt"), "--foutput", str(folder.parent / "out.json"))
    extractor.main([*files, "--bert_model", str(folder), *flags])
    return [json.loads(line) for line in (folder.parent / "out.json").read_text().splitlines()]


def test_vectors_are_the_encoders_whatever_the_batch(folder: Path) -> None:
    found = run(folder, "good fine bad\ngood ||| bad poor\npoor\n", "--batch_size", "2")
    ids = [[2, 4, 5, 6, 3], [2, 4, 3, 6, 7, 3], [2, 7, 3]]
    types = [[0] * 5, [0, 0, 0, 1, 1, 1], [0] * 3]
    model = AutoModel.from_pretrained(folder).eval()
    assert [line["uid"] for line in found] == ["0", "1", "2"]
    for line, own, kinds in zip(found, ids, types, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([own]), token_type_ids=torch.tensor([kinds]), output_hidden_states=True)
        assert set(line) == {"uid", "0", "1"}
        for layer in (0, 1):
            expected = states.hidden_states[layer + 1][0]
            np.testing.assert_allclose(json.loads(line[str(layer)]), expected, atol=1e-5)


def test_layers_and_checkpoint(folder: Path, tmp_path: Path) -> None:
    encoder = read_encoder(str(folder))
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight.mul_(2.0)
    write_checkpoint(tmp_path / "other.pt", encoder)
    (own,) = run(folder, "good\n", "--layers", "1")
    (other,) = run(folder, "good\n", "--layers", "1", "--checkpoint", str(tmp_path / "other.pt"))
    assert set(own) == {"1", "uid"} and own["1"] != other["1"]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("good\n", ("--layers", "10,11"), r"--layers: found '10', accepted: 0 to 1"),
        ("good\na ||| b ||| c\n", (), r"in.txt, line 2: found 3 texts"),
        ("", (), "found no line"),
        ("good\n", ("--checkpoint", "no.pt"), "missing"),
    ],
)
def test_mistakes_are_told(folder: Path, text: str, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(folder, text, *flags)
