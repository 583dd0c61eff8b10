"""Words that become the unknown one, and the encoder's output for a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_utils.errors import UserError
from mt_dnn.batcher import Batch
from mt_dnn.configuration.config import parse_args
from mt_dnn.data.run_data import RunData
from mt_dnn.data.word_dropout import WordDropout
from mt_dnn.model import MTDNNModel
from tests.encoder_folder import write_encoder
from tests.mt_dnn.runs import tiny_config


def batch_of(rows: int, tokens: int) -> Batch:
    ids = torch.full((rows, tokens), 50)
    ids[:, 0], ids[:, -1] = 2, 3
    mask = torch.ones_like(ids)
    mask[0, 10:] = 0
    return Batch(ids, mask, torch.zeros_like(ids), None, 0, tuple(map(str, range(rows))))


def test_a_share_of_the_words_becomes_unknown_and_special_tokens_stay() -> None:
    batch = batch_of(40, 200)
    changed = WordDropout(0.2, 1, [0, 1, 2, 3])(batch, range(40)).input_ids
    replaced = changed == 1
    assert torch.equal(changed[~replaced], batch.input_ids[~replaced])
    assert not replaced[:, 0].any() and not replaced[:, -1].any() and not replaced[0, 10:].any()
    assert replaced[1:].float().mean() == pytest.approx(0.2 * 198 / 200, abs=0.01)


def test_which_words_depends_on_the_rows_seed_alone() -> None:
    dropout = WordDropout(0.5, 1, [2, 3])
    whole, alone = batch_of(3, 20), batch_of(1, 20)
    found = dropout(whole, [7, 8, 9]).input_ids
    assert torch.equal(dropout(alone, [7]).input_ids[0], found[0])
    assert not torch.equal(found[1], found[2])


def test_training_meets_other_words_in_each_update(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder")  # its unknown token is 1
    flags = ("--train_datasets", "cola", "--test_datasets", "cola", "--tokenizer", str(folder), "--dropout_w", "0.5")
    config = tiny_config(tmp_path, *flags)
    assert config.notices == ()
    run = RunData(config)
    model = MTDNNModel(config, run.task_defs, 3)
    seen: list[torch.Tensor] = []
    model.network.bert.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[1][0].clone()))
    from mt_dnn.batcher import Collater

    batch = Collater(0)([run.train[0][index] for index in range(4)])
    model.update(batch)
    model.update(batch)
    model.predict(batch)
    assert (seen[0] == 1).any() and not torch.equal(seen[0], seen[1]) and torch.equal(seen[2], batch.input_ids)


def test_it_needs_a_tokenizer_and_a_share(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dropout_w: found '1.0', accepted: a number, at least 0, below 1"):
        parse_args(["--dropout_w", "1"])
    with pytest.raises(UserError, match="tokenizer"):
        WordDropout.of(tiny_config(tmp_path, "--dropout_w", "0.1"))
