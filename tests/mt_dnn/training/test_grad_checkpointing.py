"""`--grad_checkpointing`: the same run in less memory, dropout's masks and the noise included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_utils.errors import FlagError
from mt_dnn.batcher import Batch, Collater
from mt_dnn.data.run_data import RunData
from mt_dnn.model import MTDNNModel
from mt_dnn.training.trainer import Trainer
from tests.encoders import tiny_encoder
from tests.mt_dnn.runs import assert_same, parameters, tiny_config

LARGE = ("--adv_train", "--adv_k", "2", "--adv_noise_var", "0.5", "--bregman_mu", "2")
METHODS = {
    "plain": (),
    "smart": (*LARGE, "--adv_norm_level", "pre_ln"),
    "sift": (*LARGE, "--adv_norm_level", "post_ln"),
    "sift, same dropout": (*LARGE, "--adv_norm_level", "post_ln", "--adv_same_dropout"),
    "deberta": (*LARGE, "--adv_norm_level", "deberta"),
    "freelb": (*LARGE, "--adv_opt", "freelb", "--adv_k", "3"),
}


def model_and_batch(folder: Path, *flags: str) -> tuple[MTDNNModel, Batch]:
    config = tiny_config(folder, "--train_datasets", "mnli", "--test_datasets", "mnli_matched", *flags)
    data = RunData(config)
    torch.manual_seed(0)
    model = MTDNNModel(config, data.task_defs, total_updates=10)
    return model, Collater(0)([data.train[0][index] for index in range(8)])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_with_the_same_parameters_bit_for_bit(method: str, tmp_path: Path) -> None:
    runs = {}
    for name, flags in (("whole", ()), ("recomputed", ("--grad_checkpointing",))):
        trainer = Trainer(
            tiny_config(tmp_path / name, *METHODS[method], "--grad_accumulation_step", "2", "--epochs", "1", *flags)
        )
        layers: list[bool] = []
        attention = trainer.model.network.bert.encoder.layer[0].attention
        attention.register_forward_pre_hook(lambda module, *_, layers=layers: layers.append(module.training))
        trainer.run()
        runs[name] = layers.count(True)
    assert_same(parameters(tmp_path / "whole" / "model_0.pt"), parameters(tmp_path / "recomputed" / "model_0.pt"))
    assert runs["recomputed"] > 1.5 * runs["whole"]


@pytest.mark.parametrize("method", ["plain", "sift", "freelb"])
def test_fewer_values_are_kept_and_the_generator_stands_where_it_stood(method: str, tmp_path: Path) -> None:
    kept: list[int] = []
    states = []
    for flags in ((), ("--grad_checkpointing",)):
        model, batch = model_and_batch(tmp_path, *METHODS[method], *flags)
        model.objective.train()
        own = {parameter.untyped_storage().data_ptr() for parameter in model.network.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = model._objective(model._prepare(batch), None, False)
        kept.append(sum(size for pointer, size in sizes.items() if pointer not in own))
        value.loss.backward()
        states.append(torch.get_rng_state())
    assert kept[1] < 0.5 * kept[0]
    assert torch.equal(*states)


def test_a_frozen_encoder_runs_no_backward(tmp_path: Path) -> None:
    model, batch = model_and_batch(tmp_path, "--update_bert_opt", "1", "--grad_checkpointing")
    hidden = model.network.train().encode(batch.input_ids, batch.token_type_ids, batch.attention_mask)
    assert not hidden.requires_grad


def test_an_encoder_without_support_is_named(tmp_path: Path) -> None:
    tiny_encoder("mpnet", dtype=torch.float32).save_pretrained(tmp_path / "mpnet")
    with pytest.raises(FlagError, match="--grad_checkpointing: MPNetModel does not support it"):
        model_and_batch(tmp_path, "--init_checkpoint", str(tmp_path / "mpnet"), "--grad_checkpointing")
