"""Unlabeled examples beside the labeled ones (METHODS section 4)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from data_utils.errors import DataError, FlagError
from mt_dnn.batcher import Collater, SingleTaskDataset
from mt_dnn.data.run_data import RunData
from mt_dnn.data.unlabeled_batches import UnlabeledBatches
from mt_dnn.model import MTDNNModel
from mt_dnn.training.trainer import Trainer
from tests.mt_dnn.runs import RUN, assert_same, parameters, tiny_config, tiny_run

VAT = ("--adv_train", "--adv_opt", "vat", "--unlabeled_datasets", "mnli")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The tiny run's data, with twelve unlabeled examples of mnli and of cola."""
    folder = tmp_path / "data"
    shutil.copytree(RUN / "tinydata", folder)
    for task in ("mnli", "cola"):
        lines = (folder / f"{task}_train.json").read_text().splitlines()[:12]
        samples = [{**json.loads(line), "uid": f"u{number}"} for number, line in enumerate(lines)]
        for sample in samples:
            del sample["label"]
        text = "".join(json.dumps(sample) + "\n" for sample in samples)
        (folder / f"{task}_unlabeled.json").write_text(text)
    return folder


def stream(data_dir: Path, **options: int) -> UnlabeledBatches:
    data = RunData(tiny_config(data_dir / "out", *VAT, "--data_dir", str(data_dir)))
    settings = {"batch_size": 5, "seed": 1, **options}
    return UnlabeledBatches(data.unlabeled, Collater(0), settings.pop("batch_size"), **settings)  # type: ignore[arg-type]


def test_every_example_comes_once_a_round_and_each_round_in_another_order(data_dir: Path) -> None:
    batches = stream(data_dir)
    rounds = []
    for _ in range(2):
        found = [batches.next(1) for _ in range(3)]
        assert all(batch is not None and batch.labels is None and batch.task_id == 1 for batch in found)
        rounds.append([uid for batch in found if batch is not None for uid in batch.uids])
    expected = {f"u{number}" for number in range(12)}
    assert [set(uids) for uids in rounds] == [expected, expected]
    assert rounds[0] != rounds[1]
    assert batches.next(0) is None


def test_it_goes_on_where_it_stood(data_dir: Path) -> None:
    whole = stream(data_dir)
    for _ in range(4):
        whole.next(1)
    resumed = stream(data_dir)
    resumed.go_to(whole.position())
    for _ in range(4):
        first, second = whole.next(1), resumed.next(1)
        assert first is not None and second is not None and first.uids == second.uids


def test_batches_bounded_by_tokens_go_on_where_they_stood(data_dir: Path) -> None:
    lines = (data_dir / "mnli_unlabeled.json").read_text().splitlines()
    for number, line in enumerate(lines):  # lengths far apart, so that the number of batches of a round varies
        sample = json.loads(line)
        del sample["attention_mask"]
        for key in ("token_id", "type_id"):
            sample[key] = sample[key][: 2 + number]
        lines[number] = json.dumps(sample)
    (data_dir / "mnli_unlabeled.json").write_text("\n".join(lines))
    whole = stream(data_dir, max_tokens=30)
    found = [whole.next(1) for _ in range(30)]
    assert all(batch is not None and batch.input_ids.numel() <= 30 for batch in found)
    counts = [whole._streams[1].sampler.batches_in(epoch) for epoch in range(30)]
    assert len(set(counts)) > 1  # rounds of several lengths, so that a position is no plain multiple
    for given in range(30):
        resumed = stream(data_dir, max_tokens=30)
        resumed.go_to({1: given})
        batch, expected = resumed.next(1), found[given]
        assert batch is not None and expected is not None and batch.uids == expected.uids


def test_processes_share_each_batch(data_dir: Path) -> None:
    whole = stream(data_dir).next(1)
    parts = [stream(data_dir, num_processes=2, process_index=index).next(1) for index in range(2)]
    assert whole is not None
    uids = [set(part.uids) for part in parts if part is not None]
    assert uids[0] | uids[1] == set(whole.uids)
    assert not uids[0] & uids[1]


def test_an_update_adds_alpha_times_the_regularizer_of_the_unlabeled_batch(data_dir: Path) -> None:
    """The gradient of the update with it, less that without it, is that of α·R on the unlabeled batch alone."""
    flags = (*VAT, "--data_dir", str(data_dir), "--bert_dropout_p", "0", "--dropout_p", "0", "--adv_alpha", "2",
             "--global_grad_clipping", "0")  # fmt: skip
    config = tiny_config(data_dir / "out", *flags)
    data = RunData(config)
    torch.manual_seed(0)
    model = MTDNNModel(config, data.task_defs, total_updates=10)
    batch = Collater(0)([data.train[1][index] for index in range(4)])
    extra = Collater(0)([data.unlabeled[0][index] for index in range(3)])
    names, tensors = zip(*model.network.named_parameters(), strict=True)

    def gradients(value: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.autograd.grad(value, tensors, allow_unused=True)
        return {name: g for name, g in zip(names, found, strict=True) if g is not None}

    alone = model.objective(batch, [1, 2, 3, 4])
    both = model.objective(batch, [1, 2, 3, 4], extra, [5, 6, 7])
    assert alone.unlabeled is None and both.unlabeled is not None and both.unlabeled_loss is not None
    assert torch.equal(both.loss, alone.loss)
    torch.testing.assert_close(both.unlabeled_loss.detach(), 2 * both.unlabeled)
    method = model.perturbation
    assert method is not None and both.unlabeled > 0

    def evaluate() -> torch.Tensor:
        return model.network(extra.input_ids, extra.token_type_ids, extra.attention_mask, None, None, task_id=1)

    expected = method.regularize(
        evaluate, model.network.bert, evaluate(), extra.attention_mask, task_id=1, noise_seeds=[5, 6, 7]
    )
    torch.testing.assert_close(both.unlabeled, expected.loss.detach())
    found, wanted = gradients(both.unlabeled_loss), gradients(2 * expected.loss)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-9)
    report = model.update(batch, unlabeled=[extra])
    assert report.unlabeled is not None and report.unlabeled != 0  # so small that rounding may take it below 0


def test_labeled_passes_have_the_dropout_of_a_run_without_unlabeled_data(data_dir: Path) -> None:
    shared = ("--data_dir", str(data_dir), "--adv_alpha", "0")
    tiny_run(data_dir / "plain", "--data_dir", str(data_dir))
    tiny_run(data_dir / "zero", *VAT, *shared)
    assert_same(parameters(data_dir / "plain" / "model_1.pt"), parameters(data_dir / "zero" / "model_1.pt"))


def test_a_run_with_unlabeled_data_is_another_run_and_resumes_as_the_unbroken_one(data_dir: Path) -> None:
    flags = ("--data_dir", str(data_dir), "--save_per_updates_on", "--save_per_updates", "4")
    tiny_run(data_dir / "without", "--adv_train", "--adv_opt", "vat", *flags)
    tiny_run(data_dir / "whole", *VAT, *flags)
    start = str(data_dir / "whole" / "model_0_4.pt")
    tiny_run(data_dir / "resumed", *VAT, *flags, "--resume", "--model_ckpt", start)
    whole = parameters(data_dir / "whole" / "model_1.pt")
    assert_same(whole, parameters(data_dir / "resumed" / "model_1.pt"))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(whole[name], parameters(data_dir / "without" / "model_1.pt")[name])


def test_mistakes_are_named(data_dir: Path) -> None:
    shared = ("--data_dir", str(data_dir), "--adv_train", "--unlabeled_datasets")
    with pytest.raises(DataError, match=r"stsb_unlabeled\.json: missing"):
        Trainer(tiny_config(data_dir / "out", *shared, "stsb"))
    with pytest.raises(FlagError, match="--unlabeled_datasets: mnli is of task mnli, which is not trained"):
        Trainer(tiny_config(data_dir / "out", *shared, "mnli", "--train_datasets", "cola", "--test_datasets", "cola"))


def test_labels_in_an_unlabeled_file_are_not_read(data_dir: Path) -> None:
    path = data_dir / "mnli_unlabeled.json"
    lines = [{**json.loads(line), "label": "nonsense"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    definition = RunData(tiny_config(data_dir / "out", "--data_dir", str(data_dir))).task_defs[1]
    assert SingleTaskDataset(path, True, 1, definition, labeled=False).labels is None
    with pytest.raises(DataError, match="label is 'nonsense'"):
        SingleTaskDataset(path, True, 1, definition)
