"""Evaluation: how examples are put into batches and dealt out among processes changes no score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from data_utils.readers import read_token_json
from mt_dnn.batcher import Collater, SingleTaskDataset, evaluation_batches
from mt_dnn.data.run_data import RunData
from mt_dnn.data.sampler import EVALUATION_TOKENS
from mt_dnn.inference import eval_model, split_among_processes
from mt_dnn.model import MTDNNModel
from tests.mt_dnn.runs import RUN, tiny_config, tiny_run


def test_batch_size_changes_no_score_and_a_given_one_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = RunData(tiny_config(tmp_path))
    model = MTDNNModel(tiny_config(tmp_path), data.task_defs)
    torch.manual_seed(0)
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # scores that differ from example to example
    dataset = data.evaluation["mnli_matched", "dev"]
    sizes: list[int] = []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda batch: sizes.append(len(batch)) or predict(batch))
    found = {
        size: eval_model(model, dataset, dataset.task_def.metric_meta, Collater(0), size) for size in (None, 1, 4, 64)
    }
    assert sizes == [10, *[1] * 10, 4, 4, 2, 10]
    reference = found[1]
    assert np.ptp(reference.scores, axis=0).max() > 0.01
    for other in found.values():
        np.testing.assert_allclose(other.scores, reference.scores, rtol=0, atol=1e-6)
        assert (list(other.uids), other.metrics) == (list(reference.uids), reference.metrics)


def test_by_default_a_batch_is_as_large_as_a_number_of_tokens(corpus) -> None:
    data = corpus(2000, is_train=False)
    batches = evaluation_batches(data)
    assert sorted(index for batch in batches for index in batch) == list(range(2000))
    padded = np.array([len(batch) * data.lengths[batch].max() for batch in batches])
    assert (padded <= EVALUATION_TOKENS).all()
    room = EVALUATION_TOKENS - padded[:-1]
    assert (room < [data.lengths[batch].max() for batch in batches[:-1]]).all()  # not one more would fit
    assert padded.sum() < 1.06 * data.lengths.sum()


def test_an_example_with_too_many_tokens_is_a_batch_alone(dataset) -> None:
    from tests.mt_dnn.conftest import example

    data = dataset([example(0, length=EVALUATION_TOKENS + 1), example(1)], is_train=False)
    assert evaluation_batches(data) == [[0], [1]]


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_no_process_has_more_than_a_batch_more_work_than_another(
    corpus, processes: int, batch_size: int | None
) -> None:
    data: SingleTaskDataset = corpus(2000, is_train=False)
    batches = evaluation_batches(data, batch_size)
    shares = split_among_processes(batches, data.lengths, processes)
    assert sorted(batch for share in shares for batch in share) == sorted(batches)
    work = [[len(batch) * int(data.lengths[batch].max()) for batch in share] for share in shares]
    totals = [sum(share) for share in work]
    assert max(totals) - min(totals) <= max(map(max, work))


def test_encode_mode_writes_the_encoders_output_and_trains_nothing(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--encode_mode", "--test_datasets", "cola,stsb")
    assert not list(tmp_path.glob("model_*.pt"))
    encoder = AutoModel.from_pretrained(RUN / "tiny").eval()
    for name in ("cola", "stsb"):
        encoding = torch.load(tmp_path / f"{name}_encoding.pt")
        samples = [sample for _, sample in read_token_json(RUN / "tinydata" / f"{name}_dev.json")]
        assert encoding.shape[:2] == (len(samples), max(len(sample["token_id"]) for sample in samples))
        for row, sample in enumerate(samples):
            length = len(sample["token_id"])
            with torch.inference_mode():
                ids, types = torch.tensor([sample["token_id"]]), torch.tensor([sample["type_id"]])
                expected = encoder(ids, token_type_ids=types).last_hidden_state[0]
            torch.testing.assert_close(encoding[row, :length], expected, atol=1e-5, rtol=1e-5)
            assert not encoding[row, length:].any()
