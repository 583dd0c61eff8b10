"""An update of a task whose loss is a mean over tokens is that of one batch, however its examples are dealt out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from torch import Tensor, nn

from data_utils.storage.text_files import write_lines
from mt_dnn.batcher import Batch, Collater, SingleTaskDataset
from mt_dnn.configuration.config import parse_args
from mt_dnn.model import MTDNNModel
from tasks.definition import TaskDefs
from tests.mt_dnn.runs import assert_same
from tests.tasks.learning import write_small_encoder

TASKS = """
labels: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 3, metric_meta: [ACC]}
masked: {data_format: MLM, task_type: MaskLM, n_class: 13, metric_meta: [ACC]}
written: {data_format: PremiseOnly, task_type: SeqenceGeneration, n_class: 1, metric_meta: [ACC]}
classes: {data_format: PremiseOnly, task_type: Classification, n_class: 2, metric_meta: [ACC]}
"""
LENGTHS = (4, 5, 20, 18, 9, 2)  # the last one has no word, and so no masked token
# Large noise, so that a wrong mean of R shows beside the task loss.
LARGE = "--adv_train --adv_norm_level pre_ln --adv_radius 1 --adv_step_size 0.5 --adv_noise_var 0.5"
METHODS = {
    "plain": "",
    "smart, bregman": f"{LARGE} --bregman_mu 2",
    "at": f"{LARGE} --adv_opt at",
    "freelb": f"{LARGE} --adv_opt freelb --adv_k 2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders, an encoder alone and a T5, and a token file of each task, whose examples are of very unequal length."""
    folder = tmp_path_factory.mktemp("tokens")
    for name in ("bert", "t5"):
        write_small_encoder(folder / name)
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
    config = transformers.T5Config(vocab_size=16, eos_token_id=3, dropout_rate=0.0, decoder_start_token_id=0, **sizes)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder / "t5")
    (folder / "tasks.yml").write_text(TASKS)
    words = [[2, *(5 + (uid + place) % 8 for place in range(length - 2)), 3] for uid, length in enumerate(LENGTHS)]
    labels = {
        "labels": [[word % 3 for word in own] for own in words],
        "written": [[0, *own[1:]] for own in words],
        "classes": [uid % 2 for uid in range(len(words))],
    }
    for task in ("labels", "masked", "written", "classes"):
        lines = [{"uid": str(uid), "token_id": own, "type_id": [0] * len(own)} for uid, own in enumerate(words)]
        if task in labels:
            lines = [line | {"label": label} for line, label in zip(lines, labels[task], strict=True)]
        write_lines(folder / f"{task}.json", map(json.dumps, lines))
    return folder


def model_of(folder: Path, flags: str, *tasks: str) -> tuple[MTDNNModel, list[SingleTaskDataset]]:
    encoder = folder / ("t5" if "written" in tasks else "bert")
    names = f"--task_def {folder}/tasks.yml --init_checkpoint {encoder} --dropout_p 0 --bert_dropout_p 0 {flags}"
    task_defs = [TaskDefs(folder / "tasks.yml").get_task_def(task) for task in tasks]
    torch.manual_seed(0)
    model = MTDNNModel(parse_args(names.split()), task_defs, total_updates=10)
    if model.bregman is not None:  # the teacher stands elsewhere than the student
        generator = torch.Generator().manual_seed(1)
        for parameter in model.bregman.teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    datasets = [
        SingleTaskDataset(folder / f"{task}.json", True, task_id, task_def)
        for task_id, (task, task_def) in enumerate(zip(tasks, task_defs, strict=True))
    ]
    return model, datasets


def batch_of(dataset: SingleTaskDataset, examples: Sequence[int]) -> Batch:
    return Collater(0)([dataset[example] for example in examples])


def found_by(model: MTDNNModel, batches: Sequence[Batch], unlabeled: Sequence[Batch] = ()) -> dict[str, Tensor]:
    """The gradients of an update by parameter, before they are clipped, and what it reports."""
    found: dict[str, Tensor] = {}

    def record(network: nn.Module, _: object) -> None:
        found.update({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})

    with patch("mt_dnn.model.clip_gradients", record):
        report = model.update(*batches, unlabeled=unlabeled)
    return found | {f"report {name}": value for name, value in report._asdict().items() if value is not None}


@pytest.mark.parametrize("task", ["labels", "masked", "written"])
@pytest.mark.parametrize("flags", METHODS.values(), ids=METHODS.keys())
def test_accumulated_batches_are_one_batch(folder: Path, task: str, flags: str) -> None:
    found: list[dict[str, Tensor]] = []
    for parts, unlabeled in (
        ([range(6)], [range(5)]),
        ([range(2), range(2, 5), range(5, 6)], [range(3), range(3, 4), range(4, 5)]),
    ):
        model, (data,) = model_of(folder, flags, task)
        beside = [batch_of(data, part) for part in unlabeled] if "bregman" in flags else []
        found.append(found_by(model, [batch_of(data, part) for part in parts], beside))
    assert max(float(value.abs().max()) for value in found[0].values()) > 1e-2
    assert not flags or float(found[0]["report adv_loss"]) > 1e-3
    assert_same(*found, tolerance=1e-5)


def test_the_loss_of_an_update_is_the_mean_over_its_tokens(folder: Path) -> None:
    model, (data,) = model_of(folder, "", "labels")
    logits = [model.network.eval().run(batch_of(data, [example]))[0] for example in range(5)]
    labels = [batch_of(data, [example]).labels[0] for example in range(5)]  # type: ignore[index]
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(labels))
    report = model.update(batch_of(data, range(2)), batch_of(data, range(2, 5)))
    torch.testing.assert_close(report.task_loss, expected.detach())


def test_of_several_tasks_each_has_the_weight_of_its_examples(folder: Path) -> None:
    """Three sentences with labels and two to classify: 3/5 of a mean over tokens and 2/5 of one over examples."""

    def update(*parts: tuple[int, Sequence[int]]) -> dict[str, Tensor]:
        model, data = model_of(folder, "", "labels", "classes")
        return found_by(model, [batch_of(data[task], examples) for task, examples in parts])

    together = update((0, [0, 1]), (1, [3, 4]), (0, [2]))
    labels, classes = update((0, [0, 1, 2])), update((1, [3, 4]))
    expected: dict[str, Any] = {
        name: sum(share * own[name] for share, own in ((0.6, labels), (0.4, classes)) if name in own)
        for name in together
    }
    assert_same(expected, together, tolerance=2e-6)
