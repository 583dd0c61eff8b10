"""--class_weights: a mean over examples of weighted cross-entropies, however the examples are dealt out."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from data_utils.errors import FlagError
from data_utils.readers import read_token_json
from data_utils.storage.text_files import write_lines
from mt_dnn.batcher import Batch, Collater
from mt_dnn.data.class_weights import class_weights
from mt_dnn.data.run_data import RunData
from mt_dnn.loss import CeCriterion
from mt_dnn.model import MTDNNModel
from tests.mt_dnn.runs import RUN, SIFT, assert_same, parameters, tiny_config, tiny_run

MNLI = ("--train_datasets", "mnli", "--test_datasets", "mnli_matched")
NO_DROPOUT = ("--dropout_p", "0", "--bert_dropout_p", "0", "--warmup", "0")
WEIGHTS = (0.2, 1.0, 3.0)
GIVEN = ("--class_weights", "0.2,1,3")
LARGE = ("--adv_train", "--adv_projection", "project", "--adv_radius", "1", "--adv_noise_var", "0.5")


def found(folder: Path, *flags: str) -> dict[int, list[float]]:
    config = tiny_config(folder, *flags)
    return class_weights(config, RunData(config))


def model_and_data(folder: Path, *flags: str) -> tuple[MTDNNModel, RunData]:
    config = tiny_config(folder, *MNLI, *NO_DROPOUT, *flags)
    data = RunData(config)
    torch.manual_seed(0)
    return MTDNNModel(config, data.task_defs, total_updates=10, class_weights=class_weights(config, data)), data


def batch_of(data: RunData, *indices: int) -> Batch:
    return Collater(0)([data.train[0][index] for index in indices])


def test_the_loss_is_the_mean_of_weighted_rows() -> None:
    """Of even logits each row is ln 3: the value is ln 3 times the mean weight of the four rows' classes."""
    criterion = CeCriterion(class_weights=torch.tensor(WEIGHTS))
    labels = torch.tensor([0, 2, 2, 1])
    assert criterion(torch.zeros(4, 3), labels).item() == pytest.approx(torch.tensor(3.0).log().item() * 7.2 / 4)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    # torch's own value, a mean by weight, times the mean weight
    expected = F.cross_entropy(logits, labels, torch.tensor(WEIGHTS, dtype=torch.float64)) * 7.2 / 4
    torch.testing.assert_close(criterion(logits, labels), expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(criterion(logits, labels), logits)
    by_hand = torch.tensor([0.2, 3, 3, 1]).unsqueeze(1) * (logits.softmax(-1) - F.one_hot(labels, 3)) / 4
    torch.testing.assert_close(gradient, by_hand, rtol=1e-6, atol=0)
    ignored = criterion(torch.zeros(5, 3), torch.tensor([0, 2, 2, 1, -1]))
    assert ignored.item() == pytest.approx(torch.tensor(3.0).log().item() * 7.2 / 4)


def test_balanced_weights_by_hand_of_every_classification(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """cola has 13 and 11 examples, mnli 5, 8 and 11; stsb is a regression."""
    with caplog.at_level(logging.INFO):
        weights = found(tmp_path, "--class_weights", "balanced")
    assert weights.keys() == {0, 1}
    assert weights[0] == pytest.approx([24 / (2 * 13), 24 / (2 * 11)])
    assert weights[1] == pytest.approx([24 / (3 * 5), 24 / (3 * 8), 24 / (3 * 11)])
    assert sum(count * weight for count, weight in zip((5, 8, 11), weights[1], strict=True)) == pytest.approx(24)
    assert "--class_weights: cola: 0 0.9231, 1 1.091" in caplog.messages
    assert "--class_weights: mnli: contradiction 1.6, neutral 1, entailment 0.7273" in caplog.messages


def test_all_datasets_of_a_task_are_counted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(RUN / "tinydata", data)
    lines = (data / "cola_train.json").read_text().splitlines(keepends=True)
    (data / "cola_more_train.json").write_text("".join(line for line in lines if '"label": 1' in line))
    names = ("--data_dir", str(data), "--train_datasets", "cola,cola_more", "--test_datasets", "cola")
    assert found(tmp_path, *names, "--class_weights", "balanced")[0] == pytest.approx([35 / 26, 35 / 44])


def test_without_the_flag_there_are_none(tmp_path: Path) -> None:
    assert found(tmp_path) == {}
    model, data = model_and_data(tmp_path)
    same, _ = model_and_data(tmp_path, "--class_weights", "1,1,1")
    assert torch.equal(model.update(batch_of(data, 0, 1)).task_loss, same.update(batch_of(data, 0, 1)).task_loss)


PLAIN_DESCENT = ("--optimizer", "sgd", "--learning_rate", "1", "--global_grad_clipping", "0", "--weight_decay", "0")


@pytest.mark.parametrize(
    "method", [(), SIFT, (*LARGE, "--adv_opt", "at"), (*LARGE, "--adv_opt", "freelb")], ids=lambda flags: flags[-1:]
)
def test_two_accumulated_batches_move_the_parameters_as_one_batch_of_both(
    method: tuple[str, ...], tmp_path: Path
) -> None:
    whole, data = model_and_data(tmp_path, *GIVEN, *method, *PLAIN_DESCENT)
    halves, _ = model_and_data(tmp_path, *GIVEN, *method, *PLAIN_DESCENT)
    unweighted, _ = model_and_data(tmp_path, *method, *PLAIN_DESCENT)
    assert batch_of(data, 0, 1, 2, 4).labels.tolist() == [1, 2, 1, 0]  # type: ignore[union-attr]
    reports = [
        whole.update(batch_of(data, 0, 1, 2, 4)),
        halves.update(batch_of(data, 0), batch_of(data, 1, 2, 4)),
        unweighted.update(batch_of(data, 0, 1, 2, 4)),
    ]
    torch.testing.assert_close(reports[1].task_loss, reports[0].task_loss)
    head = "scoring_list.0.1.weight"
    states = [model.network.state_dict() for model in (whole, halves, unweighted)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-5, msg=name)
    assert float((states[0][head] - states[2][head]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("method", "same"),
    [("smart", True), ("vat", True), ("alum", True), ("random", True), ("r3f", True), ("at", False)],
)
def test_a_regularizer_is_weighted_where_it_is_the_loss_of_labels(method: str, same: bool, tmp_path: Path) -> None:
    flags = (*LARGE, "--adv_opt", method, "--adv_start_ratio", "0")
    weighted, data = model_and_data(tmp_path, *flags, *GIVEN)
    plain, _ = model_and_data(tmp_path, *flags)
    found, expected = (model.update(batch_of(data, 0, 1, 2, 4)) for model in (weighted, plain))
    assert found.adv_loss is not None and expected.adv_loss is not None
    assert found.task_loss != expected.task_loss
    assert bool(found.adv_loss == expected.adv_loss) is same


def test_a_run_takes_the_flag_and_another_weight_is_another_run(tmp_path: Path) -> None:
    runs = {name: (*MNLI, "--epochs", "1", "--class_weights", name) for name in ("1,1,1", "balanced", "9,1,1")}
    ends = {}
    for name, flags in (*runs.items(), ("none", (*MNLI, "--epochs", "1"))):
        tiny_run(tmp_path / name, *flags)
        ends[name] = parameters(tmp_path / name / "model_0.pt")
    assert_same(ends["none"], ends["1,1,1"])
    head = "scoring_list.0.1.bias"
    assert not torch.equal(ends["balanced"][head], ends["none"][head])
    # the class that counts nine times is given more room
    assert ends["9,1,1"][head][0] - ends["none"][head][0] > 1e-3


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((*MNLI, "--class_weights", "1,2"), "found '1,2', accepted: balanced, or 3 numbers of .*contradiction, neutra"),
        ((*MNLI, "--class_weights", "1,2,-3"), "found '1,2,-3', accepted"),
        ((*MNLI, "--class_weights", "1,2,nan"), "found '1,2,nan', accepted"),
        ((*MNLI, "--class_weights", "0,0,0"), "found '0,0,0', accepted"),
        ((*MNLI, "--class_weights", "1,two,3"), "found '1,two,3', accepted"),
        ((*MNLI, "--class_weights", "balancd"), "found 'balancd' .did you mean 'balanced'.., accepted"),
        (("--class_weights", "1,2"), r"numbers for several classifications \(cola, mnli\), accepted: balanced$"),
        (
            ("--train_datasets", "stsb", "--test_datasets", "stsb", "--class_weights", "balanced"),
            r"found stsb \(Regression\), accepted: a Classification or MultiLabel among the trained tasks",
        ),
    ],
)
def test_what_cannot_be_meant_is_told_in_a_line(flags: tuple[str, ...], told: str, tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=told) as caught:
        found(tmp_path, *flags)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("--class_weights")


def test_a_class_without_examples_is_named_where_its_weight_would_be_balanced(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(RUN / "tinydata", data)
    lines = (data / "mnli_train.json").read_text().splitlines(keepends=True)
    (data / "mnli_train.json").write_text("".join(line for line in lines if '"label": 1' not in line))
    flags = (*MNLI, "--data_dir", str(data))
    with pytest.raises(FlagError, match="task mnli has no training example of neutral, accepted: examples of every"):
        found(tmp_path, *flags, "--class_weights", "balanced")
    assert found(tmp_path, *flags, *GIVEN) == {0: list(WEIGHTS)}


# several labels a text


def several(folder: Path, *labels: list[float]) -> tuple[str, ...]:
    """Flags of a task whose 24 training examples have these labels in turn."""
    samples = [sample for _, sample in read_token_json(RUN / "tinydata" / "cola_train.json")]
    lines = [json.dumps(own | {"label": labels[place % len(labels)]}) for place, own in enumerate(samples)]
    for split in ("train", "dev"):
        write_lines(folder / f"toy_{split}.json", lines)
    kind = "data_format: PremiseOnly, task_type: MultiLabel, n_class: 2, labels: [rude, loud], metric_meta: [ACC]"
    (folder / "tasks.yml").write_text(f"toy: {{{kind}, dropout_p: 0}}\n")
    names = ("--train_datasets", "toy", "--test_datasets", "toy", "--task_def", str(folder / "tasks.yml"))
    return (*names, "--data_dir", str(folder), *NO_DROPOUT)


def test_balanced_weights_of_labels_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of four examples one is rude; one and a half of them, a half being a fraction, are loud."""
    flags = several(tmp_path, [1, 0], [0, 1], [0, 0.5], [0, 0])
    with caplog.at_level(logging.INFO):
        assert found(tmp_path, *flags, "--class_weights", "balanced")[0] == pytest.approx([3, 2.5 / 1.5])
    assert "--class_weights: toy: rude 3, loud 1.667" in caplog.messages
    assert found(tmp_path, *flags, "--class_weights", "2,0.5") == {0: [2, 0.5]}


def test_the_weights_of_labels_multiply_the_loss_where_the_label_holds(tmp_path: Path) -> None:
    flags = several(tmp_path, [1, 0], [0, 1], [1, 1], [0, 0])
    losses = {}
    for weights in ("1,1", "3,0", "none"):
        config = tiny_config(tmp_path, *flags, *(() if weights == "none" else ("--class_weights", weights)))
        data = RunData(config)
        torch.manual_seed(0)
        own = class_weights(config, data)
        model = MTDNNModel(config, data.task_defs, total_updates=10, class_weights=own)
        batch = batch_of(data, 0, 1, 2, 3)
        logits = model.network.eval().run(batch).detach()
        losses[weights] = model.update(batch).task_loss
    assert batch.labels is not None and torch.equal(losses["1,1"], losses["none"])
    cells = -F.logsigmoid(logits) * batch.labels * torch.tensor([3, 0]) - F.logsigmoid(-logits) * (1 - batch.labels)
    torch.testing.assert_close(losses["3,0"], cells.mean())


@pytest.mark.parametrize(
    ("labels", "weights", "told"),
    [
        (
            ([1, 0], [0, 0]),
            "balanced",
            "task toy has no training example with loud, accepted: examples with and without",
        ),
        (([1, 1], [1, 0]), "balanced", "task toy has no training example without rude, accepted: examples with and"),
        (([1, 0], [0, 1]), "1", "found '1', accepted: balanced, or 2 numbers .* for the labels of toy: rude, loud"),
    ],
)
def test_weights_of_labels_that_are_none_are_told(
    labels: tuple[list[float], ...], weights: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(FlagError, match=told) as caught:
        found(tmp_path, *several(tmp_path, *labels), "--class_weights", weights)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("--class_weights")
