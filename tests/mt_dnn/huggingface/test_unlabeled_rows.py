"""Unlabeled rows in AdversarialTrainer: their R, their order, their dropout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mt_dnn.huggingface.unlabeled_rows import UnlabeledRows
from mt_dnn.perturbation import AdversarialTraining, SmartPerturbation
from mt_dnn.perturbation.noise import example_seeds
from tests.hf import (
    ALPHA,
    OrderedTrainer,
    arguments,
    assert_equal_gradients,
    collate,
    examples,
    gradient_of_update,
    search,
    tiny_model,
    trainer_of,
)


def unlabeled_trainer(folder: Path, kind: Any = SmartPerturbation, **options: Any) -> Any:
    own = {"unlabeled_dataset": examples("classification", (5, 6, 3, 7, 4)), "alpha": ALPHA, **options}
    args = own.pop("args", arguments(folder))
    return OrderedTrainer(
        model=tiny_model("classification", dropout=own.pop("dropout", 0.0)), args=args, data_collator=collate,
        train_dataset=examples("classification"), perturbation=search(kind), **own,
    )  # fmt: skip


def test_unlabeled_rows_add_alpha_times_their_r(tmp_path: Path) -> None:
    """The gradient of the update is that of the labeled rows and of a loop over the unlabeled ones, by their sum."""
    labeled = gradient_of_update(trainer_of(tiny_model("classification"), "classification", tmp_path))
    trainer = unlabeled_trainer(tmp_path)
    found = gradient_of_update(trainer)
    model = tiny_model("classification")
    trainer.state.global_step = 0
    places, batch = trainer._unlabeled_rows.batch(0)
    assert "labels" not in batch
    names = [f"unlabeled/{place}" for place in places]
    value = search().regularize(
        lambda: model(**batch), model, model(**batch), batch["attention_mask"], noise_seeds=example_seeds(42, 0, names)
    )
    extra = torch.autograd.grad(value.loss, list(model.parameters()), allow_unused=True)
    by_name = dict(zip(dict(model.named_parameters()), extra, strict=True))
    expected = {name: x + (0 if by_name[name] is None else ALPHA * by_name[name]) for name, x in labeled.items()}
    assert_equal_gradients(found, expected, 1e-10)
    assert value.loss > 1e-4


def test_every_unlabeled_row_is_met_once_an_epoch_by_one_process_or_two(tmp_path: Path) -> None:
    rows = [{"input_ids": [number], "label": 1} for number in range(10)]

    def met(batch_size: int, processes: int, batches: int) -> list[list[int]]:
        parts = [UnlabeledRows(rows, lambda got: {"ids": got}, batch_size, processes, p) for p in range(processes)]
        return [[place for part in parts for place in part.batch(number)[0]] for number in range(batches)]

    one, two = met(4, 1, 5), met(2, 2, 5)
    assert one == two
    flat = [place for batch in one for place in batch]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]
    with pytest.raises(ValueError, match="unlabeled_dataset: found no length"):
        UnlabeledRows([], list, 1)  # type: ignore[arg-type]


def test_unlabeled_rows_do_not_move_the_dropout_of_the_labeled_ones(tmp_path: Path) -> None:
    plain = trainer_of(tiny_model("classification", dropout=0.2), "classification", tmp_path, alpha=0.0, max_steps=3)
    plain.train()
    with_rows = unlabeled_trainer(tmp_path, dropout=0.2, alpha=0.0, args=arguments(tmp_path, max_steps=3))
    with_rows.train()
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, dict(with_rows.model.named_parameters())[name]), name


def test_unlabeled_rows_need_a_method_that_compares(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unlabeled_dataset: at needs labels; accepted: methods that compare"):
        unlabeled_trainer(tmp_path, AdversarialTraining)


def test_accumulated_batches_add_the_mean_of_their_unlabeled_rs(tmp_path: Path) -> None:
    """Trainer adds up what each batch gives here: each R of unlabeled rows weighs a half of α."""
    sizes: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    labeled = gradient_of_update(trainer_of(tiny_model("classification"), "classification", tmp_path, **sizes))
    trainer = unlabeled_trainer(tmp_path, args=arguments(tmp_path, **sizes))
    found = gradient_of_update(trainer)
    model = tiny_model("classification")
    expected = dict(labeled)
    for number in (0, 1):
        places, batch = trainer._unlabeled_rows.batch(number)
        seeds = example_seeds(42, 0, [f"unlabeled/{place}" for place in places])
        value = search().regularize(
            lambda batch=batch: model(**batch), model, model(**batch), batch["attention_mask"], noise_seeds=seeds
        )
        extra = torch.autograd.grad(value.loss, list(model.parameters()), allow_unused=True)
        for (name, _), gradient in zip(model.named_parameters(), extra, strict=True):
            expected[name] = expected[name] + (0 if gradient is None else ALPHA / 2 * gradient)
    assert_equal_gradients(found, expected, 1e-10)


def test_the_noise_of_unlabeled_rows_lies_at_the_tokens_of_the_noise_mask_alone(tmp_path: Path) -> None:
    def nowhere(batch: Mapping[str, Tensor]) -> Tensor:
        return torch.zeros_like(batch["input_ids"])

    found, plain = (
        gradient_of_update(unlabeled_trainer(tmp_path, noise_mask=nowhere, alpha=alpha)) for alpha in (ALPHA, 0.0)
    )
    assert_equal_gradients(found, plain, 1e-12)
