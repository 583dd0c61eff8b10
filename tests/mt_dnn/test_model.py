"""One update, predictions, encoders taken from checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_utils.errors import FlagError, TaskDefError
from mt_dnn.batcher import Batch, Collater
from mt_dnn.checkpoints.build import build_network, build_objective
from mt_dnn.data.run_data import RunData
from mt_dnn.loss import LossCriterion
from mt_dnn.model import MTDNNModel
from mt_dnn.perturbation import (
    PERTURBATIONS,
    AdversarialPerturbation,
    AlumPerturbation,
    MtdnnReleasePerturbation,
    SiftPerturbation,
    SmartPerturbation,
)
from tests.mt_dnn.runs import RUN, SIFT, parameters, tiny_config

NO_DROPOUT = (
    "--dropout_p",
    "0",
    "--bert_dropout_p",
    "0",
    "--train_datasets",
    "mnli",
    "--test_datasets",
    "mnli_matched",
)

OTHERS = [name for name in PERTURBATIONS if name != "smart"]


def _model_and_data(tmp_path: Path, *flags: str) -> tuple[MTDNNModel, RunData]:
    config = tiny_config(tmp_path, *NO_DROPOUT, *flags)
    data = RunData(config)
    torch.manual_seed(0)
    return MTDNNModel(config, data.task_defs, total_updates=10), data


def _batch(data: RunData, *indices: int) -> Batch:
    return Collater(0)([data.train[0][index] for index in indices])


@pytest.mark.parametrize("first", [2, 3])
@pytest.mark.parametrize("method", [(), SIFT], ids=["plain", "sift"])
def test_two_accumulated_batches_move_the_parameters_as_one_batch_of_both(
    method: tuple[str, ...], first: int, tmp_path: Path
) -> None:
    whole, data = _model_and_data(tmp_path, *method, "--warmup", "0")
    halves, _ = _model_and_data(tmp_path, *method, "--warmup", "0")
    before = {name: tensor.clone() for name, tensor in whole.network.state_dict().items()}
    whole.update(_batch(data, 0, 1, 2, 3))
    halves.update(_batch(data, *range(first)), _batch(data, *range(first, 4)))
    moved = 0.0
    for name, tensor in whole.network.state_dict().items():
        # Adam's first step is the sign of the gradient, so that a gradient of rounding error alone may differ
        if "key.bias" not in name:
            torch.testing.assert_close(halves.network.state_dict()[name], tensor, rtol=0, atol=2e-5)
        moved = max(moved, float((tensor - before[name]).abs().max()))
    assert moved > 5e-4
    assert whole.updates == halves.updates == 1


def test_an_update_reports_means_and_the_share_of_skipped_examples(tmp_path: Path) -> None:
    model, data = _model_and_data(tmp_path, *SIFT)
    report = model.update(_batch(data, 0, 1), _batch(data, 2, 3))
    assert report.adv_loss is not None and report.adv_loss > 0
    assert report.emb_val is not None and 0.5 < report.emb_val < 1.2  # normalized embeddings
    assert report.skipped == 0
    plain, data = _model_and_data(tmp_path)
    assert set(plain.update(_batch(data, 0, 1))[1:]) == {None}


@pytest.mark.parametrize(
    ("task", "key", "found", "accepted"),
    [
        ("cola", "loss", "MseCriterion", "CeCriterion, RankCeCriterion, .* for Classification"),
        ("stsb", "loss", "CeCriterion", "MseCriterion for Regression"),
        ("cola", "kd_loss", "CeCriterion", "MseCriterion, KlCriterion, "),
        ("cola", "adv_loss", "SpanCeCriterion", "MseCriterion, KlCriterion, "),
    ],
)
def test_criteria_that_do_not_fit_their_inputs_are_an_error(
    tmp_path: Path, task: str, key: str, found: str, accepted: str
) -> None:
    config = tiny_config(tmp_path, "--train_datasets", task, "--test_datasets", task, *SIFT)
    config = replace(config, data=replace(config.data, mkd_opt=1))
    (task_def,) = RunData(replace(config, data=replace(config.data, mkd_opt=0))).task_defs
    network = build_network(config, [task_def])
    build_objective(config, network)
    setattr(task_def, key, LossCriterion[found])
    with pytest.raises(TaskDefError, match=f"key '{key}': found {found}, accepted: {accepted}"):
        build_objective(config, network)


def test_predictions_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    model, data = _model_and_data(tmp_path)
    together, classes = model.predict(_batch(data, 0, 1, 2))
    alone, _ = model.predict(_batch(data, 1))
    assert together[1] == pytest.approx(alone[0], abs=1e-6)
    assert together.sum(1) == pytest.approx([1, 1, 1], abs=1e-6)
    assert (classes == together.argmax(1)).all()
    assert model.encode(_batch(data, 0)).shape == (1, data.train[0].lengths[0], 16)


def test_the_encoder_comes_from_a_checkpoint_and_heads_are_new(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, *NO_DROPOUT, "--init_checkpoint", str(RUN / "model_0.pt"))
    network = build_network(config, RunData(config).task_defs)
    saved = parameters(RUN / "model_0.pt")
    for name, tensor in network.bert.state_dict().items():
        assert torch.equal(tensor, saved[f"bert.{name}"]), name
    assert len(network.scoring_list) == 1
    assert not torch.equal(network.scoring_list[0][1].weight, saved["scoring_list.1.1.weight"])


def test_fewer_layers_are_the_lowest_ones(tmp_path: Path) -> None:
    whole, _ = _model_and_data(tmp_path)
    fewer, _ = _model_and_data(tmp_path, "--num_hidden_layers", "1")
    assert len(fewer.network.bert.encoder.layer) == 1
    for (name, first), second in zip(
        fewer.network.bert.encoder.layer[0].named_parameters(),
        whole.network.bert.encoder.layer[0].parameters(),
        strict=True,
    ):
        assert torch.equal(first, second), name


@pytest.mark.parametrize(
    ("flags", "method", "level"),
    [
        (("--adv_norm_level", "pre_ln"), SmartPerturbation, "pre_ln"),
        (("--adv_norm_level", "post_ln"), SiftPerturbation, "post_ln"),
        (("--adv_norm_level", "deberta"), SmartPerturbation, "deberta"),
        (("--adv_preset", "mtdnn_release"), MtdnnReleasePerturbation, "pre_ln"),
        (("--adv_preset", "deberta_release"), SmartPerturbation, "deberta"),
        *((("--adv_opt", name, "--adv_norm_level", "post_ln"), PERTURBATIONS[name], "post_ln") for name in OTHERS),
        (("--adv_opt", "alum", "--adv_start_ratio", "0.2"), AlumPerturbation, "pre_ln"),
    ],
)
def test_flags_reach_the_perturbation(
    flags: tuple[str, ...], method: type[AdversarialPerturbation], level: str, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, *NO_DROPOUT, "--adv_train", *flags)
    network = build_network(config, RunData(config).task_defs)
    objective = build_objective(config, network)
    found, flat = objective.perturbation, config.adversarial
    assert found is not None and type(found) is method and found.level == level
    assert objective.alpha == flat.adv_alpha
    assert (found.radius, found.step_size, found.noise_var) == (flat.adv_radius, flat.adv_step_size, flat.adv_noise_var)
    assert (found.norm_p, found.scope, found.k) == (flat.adv_p_norm, flat.adv_norm_scope, flat.adv_k)
    assert (found.scale, found.projection) == (flat.adv_scale, flat.adv_projection)
    assert (found.noise_clamp, found.detach_base) == (flat.adv_noise_clamp, flat.adv_detach_base)
    assert (found.noise, found.start_ratio) == (flat.adv_noise, flat.adv_start_ratio)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
@pytest.mark.parametrize("flag", ["--cuda", "--fp16"])
def test_a_gpu_that_is_not_there_is_named(flag: str, tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=flag):
        _model_and_data(tmp_path, flag)
