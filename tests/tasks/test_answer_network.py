"""Tasks with `enable_san: true`: what they learn, their checkpoints, their flags."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import predict
from data_utils.errors import FlagError, TaskDefError
from module.dropout_wrapper import DropoutWrapper
from module.san import SANClassifier
from mt_dnn.batcher import Collater, SingleTaskDataset
from mt_dnn.checkpoints.build import restore_network
from mt_dnn.configuration.config import parse_args
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.training.trainer import train
from tasks.definition import TaskDefs
from tests.encoders import tiny_encoder, token_batch
from tests.mt_dnn.runs import assert_same, parameters
from tests.tasks.learning import PROBE, SIFT, SMART, WORDS, learned, write_small_encoder, write_task

DEFINITION = """
pair:
  data_format: PremiseAndOneHypothesis
  task_type: Classification
  n_class: 2
  metric_meta: [ACC]
  enable_san: true
"""


def lines(count: int, seed: int) -> Iterator[str]:
    """Whether both sentences are of one kind, colours or numbers."""
    draw = random.Random(seed)
    kinds = (WORDS[:4], WORDS[4:])
    for number in range(count):
        first, second = draw.randint(0, 1), draw.randint(0, 1)
        premise, hypothesis = (draw.choices(kinds[kind], k=draw.randint(1, 4)) for kind in (first, second))
        yield f"{number}\t{int(first == second)}\t{' '.join(premise)}\t{' '.join(hypothesis)}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"pair_train": lines(500, 1), "pair_dev": lines(100, 2)}
    return write_task(tmp_path_factory.mktemp("pairs"), DEFINITION, splits, encoder)


def test_a_linear_probe_does_not_learn_it(data: Path, encoder: Path, tmp_path: Path) -> None:
    assert learned(data, encoder, tmp_path, "pair", "ACC", *PROBE, "--answer_opt", "0") < 75


@pytest.mark.parametrize("method", [(), SMART, SIFT])
def test_it_learns_what_two_sentences_share(data: Path, encoder: Path, tmp_path: Path, method: tuple[str, ...]) -> None:
    assert learned(data, encoder, tmp_path, "pair", "ACC", "--answer_dropout_p", "0", *method) > 95


def small_run(data: Path, encoder: Path, output: Path, *flags: str) -> Path:
    base = (
        f"--task_def {data.parent / 'tasks.yml'} --data_dir {data} --train_datasets pair --test_datasets pair "
        f"--init_checkpoint {encoder} --output_dir {output} --log_file {output / 'log.txt'} --epochs 2 "
        "--batch_size 100 --learning_rate 1e-3 --dataloader_num_workers 0"
    )
    train(parse_args([*base.split(), *flags]))
    return output


@pytest.mark.parametrize("flags", [(), ("--answer_weight_norm_on", "--answer_rnn_type", "lstm", "--bregman_mu", "1")])
def test_checkpoints_predict_and_resume(data: Path, encoder: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    whole = small_run(data, encoder, tmp_path / "whole", *flags)
    network, _ = restore_network(str(whole / "model_1.pt"))
    assert isinstance(network.scoring_list[0], SANClassifier)
    predict.main(
        ["--prep_input", str(data / "pair_dev.json"), "--checkpoint", str(whole / "model_1.pt"), "--with_label",
         "--score", str(tmp_path / "scores.json")]
    )  # fmt: skip
    found, expected = (
        json.loads(path.read_text()) for path in (tmp_path / "scores.json", whole / "pair_dev_scores_epoch_1.json")
    )
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-6) and found["metrics"] == expected["metrics"]

    again = tmp_path / "again"
    small_run(data, encoder, again, *flags, "--resume", "--model_ckpt", str(whole / "model_0.pt"))
    assert_same(parameters(again / "model_1.pt"), parameters(whole / "model_1.pt"))


def test_parameters_have_mt_dnns_names(data: Path, encoder: Path, tmp_path: Path) -> None:
    """Those of its SANClassifier in `scoring_list`; its constant `alpha` may stand in a checkpoint."""
    output = small_run(data, encoder, tmp_path, "--epochs", "1")
    names = {name for name in parameters(output / "model_0.pt") if name.startswith("scoring_list")}
    cell = [f"rnn.{kind}_{side}" for kind in ("weight", "bias") for side in ("ih", "hh")]
    layers = ("query_wsum.att.linear", "attn.score_func.linear", "classifier.proj")
    expected = [*cell, *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))]
    assert names == {f"scoring_list.0.{name}" for name in expected}

    small_run(data, encoder, tmp_path / "normed", "--epochs", "1", "--answer_weight_norm_on")
    normed = {name for name in parameters(tmp_path / "normed" / "model_0.pt") if name.startswith("scoring_list")}
    split = {"rnn.weight_ih", "rnn.weight_hh", "attn.score_func.linear.weight", "classifier.proj.weight"}
    expected = [part for name in expected for part in ([f"{name}_g", f"{name}_v"] if name in split else [name])]
    assert normed == {f"scoring_list.0.{name}" for name in expected}

    content = torch.load(output / "model_0.pt", weights_only=False)
    content["state"]["scoring_list.0.alpha"] = torch.zeros(1, 1)
    torch.save(content, tmp_path / "mtdnn.pt")
    network, _ = restore_network(str(tmp_path / "mtdnn.pt"))
    assert set(network.state_dict()) == set(parameters(output / "model_0.pt"))


def test_mtdnn_has_it_whatever_answer_opt_says(data: Path, encoder: Path, tmp_path: Path) -> None:
    output = small_run(data, encoder, tmp_path / "run", "--epochs", "1")
    content = torch.load(output / "model_0.pt", weights_only=False)
    theirs = {name: content[name] for name in ("state", "optimizer", "config")}
    assert theirs["config"]["answer_opt"] == 1
    theirs["config"]["answer_opt"] = 0
    torch.save(theirs, tmp_path / "mtdnn.pt")
    network, _ = restore_network(str(tmp_path / "mtdnn.pt"))
    assert isinstance(network.scoring_list[0], SANClassifier)


def network_of(definition: str, folder: Path, family: str = "bert", **opt: object) -> SANBertNetwork:
    (folder / "tasks.yml").write_text(definition)
    task_def = TaskDefs(folder / "tasks.yml").get_task_def("pair")
    torch.manual_seed(0)
    encoder = tiny_encoder(family, dtype=torch.float32)
    return SANBertNetwork({"task_def_list": [task_def], **opt}, encoder).eval()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_masks_in_the_call_win(tmp_path: Path, family: str) -> None:
    network = network_of(DEFINITION, tmp_path, family)
    batch = token_batch(network.bert, lengths=(7, 7))
    batch.input_ids[:, -1] = batch.input_ids[:, 3] = 3  # the separators
    expected = network(*batch)
    left_out_of_premise = torch.tensor([[0, 0, 0, 0, 1, 1, 1]] * 2)
    if family == "bert":
        left_out_of_premise = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)
    same = network(*batch, left_out_of_premise, 1 - left_out_of_premise)
    torch.testing.assert_close(same, expected)
    for masks in ((1 - left_out_of_premise, None), (None, left_out_of_premise), (None, left_out_of_premise[:, :4])):
        assert (network(*batch, *masks) - expected).abs().max() > 1e-5


def test_padding_changes_no_logits(data: Path, tmp_path: Path) -> None:
    network = network_of(DEFINITION, tmp_path)
    task_def = network.tasks[0].task_def
    dataset = SingleTaskDataset(data / "pair_dev.json", False, 0, task_def)
    examples = [dataset[0], dataset[1], dataset[2]]
    narrow, wide = network.run(Collater(0)(examples)), network.run(Collater(0, 0, True, 20)(examples))
    torch.testing.assert_close(wide, narrow, atol=1e-5, rtol=1e-5)


def test_answer_opt_0_has_the_pooled_head(tmp_path: Path) -> None:
    assert not isinstance(network_of(DEFINITION, tmp_path, answer_opt=0).scoring_list[0], SANClassifier)


def test_dropout_of_the_definition_wins_over_the_flags(tmp_path: Path) -> None:
    flags = {"answer_dropout_p": 0.3, "vb_dropout": False}
    head = network_of(DEFINITION, tmp_path, **flags).scoring_list[0]
    assert (head.dropout.p, head.dropout.variational) == (0.3, False)
    head = network_of(DEFINITION + "  dropout_p: 0.2\n", tmp_path, answer_dropout_p=0.3).scoring_list[0]
    assert (head.dropout.p, head.dropout.variational) == (0.2, True)


def test_vb_dropout_is_of_all_heads_over_tokens(tmp_path: Path) -> None:
    labeling = "pair: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 2, metric_meta: [ACC]}\n"
    for variational in (True, False):
        head = network_of(labeling, tmp_path, vb_dropout=variational).scoring_list[0]
        assert isinstance(head[0], DropoutWrapper) and head[0].variational == variational


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("PremiseAndOneHypothesis", "PremiseOnly", "'enable_san': found true, accepted: false for PremiseOnly"),
        ("Classification", "SeqenceLabeling", "'enable_san': found true, accepted: false for SeqenceLabeling"),
    ],
)
def test_a_definition_that_it_does_not_fit_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(TaskDefError, match=message):
        network_of(DEFINITION.replace(old, new), tmp_path)


def test_one_output_has_no_probabilities_to_average(tmp_path: Path) -> None:
    regression = DEFINITION.replace("Classification", "Regression").replace("n_class: 2", "n_class: 1")
    with pytest.raises(FlagError, match="accepted: --answer_mem_type 0"):
        network_of(regression, tmp_path)
    assert isinstance(network_of(regression, tmp_path, answer_mem_type=0).scoring_list[0], SANClassifier)
