"""`--adv_free` and `--adv_every`: the ascent step in the backward, δ kept by example, weights of what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_utils.errors import DataError, FlagError
from mt_dnn.checkpoints.checkpoint import deltas_of
from mt_dnn.perturbation import PERTURBATIONS
from mt_dnn.perturbation.delta import CachedDelta
from mt_dnn.perturbation.injection import NoiseInjection, available_levels
from mt_dnn.training.delta_cache import DeltaCache
from mt_dnn.training.trainer import Trainer
from tests.encoders import ALL_FAMILIES, LEVELS, tiny_classifier, tiny_encoder, token_batch
from tests.mt_dnn.runs import SIFT, assert_same, parameters, tiny_config, tiny_run
from tests.search import clean_logits, seeds_of

FREE = (*SIFT, "--adv_free")
SIZES = {"noise_var": 0.05, "step_size": 0.05, "radius": 0.1, "norm_p": "l2", "scale": "relative"}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["at", "vat", "smart", "alum"])
def test_the_step_in_the_backward_is_the_searchs_own(name: str, level: str) -> None:
    """Of one epoch to the next: R at the kept δ, then the δ that one ascent step from there gives."""
    method = PERTURBATIONS[name](**SIZES, level=level)
    model = tiny_classifier().double()
    batch = token_batch(model.bert)
    labels = torch.tensor([0, 2, 1])
    options: dict[str, Any] = {
        "noise_seeds": seeds_of(3),
        "task_loss": lambda logits: torch.nn.functional.cross_entropy(logits, labels),
    }
    clean = clean_logits(model, batch, level)
    kept: list[torch.Tensor] = []

    def call(delta: torch.Tensor, known: torch.Tensor) -> Any:
        given = CachedDelta(delta, known, kept.append)
        return method.regularize(
            lambda: model(*batch), model.bert, clean, batch.attention_mask, cached=given, **options
        )

    nothing = torch.zeros(3, 7, 16, dtype=torch.float64)
    found = call(nothing, torch.tensor([False] * 3))
    assert kept == []
    (5 * found.loss).backward(retain_graph=True)
    expected = PERTURBATIONS[name](**SIZES, level=level)
    deltas: list[torch.Tensor] = []
    with torch.enable_grad():
        exact = _searched_delta(expected, model, clean, batch, options, deltas)
    torch.testing.assert_close(kept[0], deltas[0], rtol=1e-9, atol=1e-12)
    # R of the next epoch is R at the δ that was kept, which is what the exact search ends with.
    again = call(kept[0], torch.tensor([True] * 3))
    torch.testing.assert_close(again.loss, exact.loss, rtol=1e-9, atol=1e-12)
    assert found.eff_perturb > 0 and again.eff_perturb == 0


def _searched_delta(
    method: Any, model: Any, clean: Any, batch: Any, options: dict[str, Any], deltas: list[torch.Tensor]
) -> Any:
    """The exact search with K = 1; appends the δ it ends with."""
    original = method.search

    def search(course: Any, comparison: Any) -> torch.Tensor:
        loss = original(course, comparison)
        deltas.append(course.deltas[0].value.detach())
        return loss

    method.search = search
    return method.regularize(lambda: model(*batch), model.bert, clean, batch.attention_mask, **options)


def test_an_example_whose_gradient_is_not_finite_keeps_its_delta() -> None:
    method = PERTURBATIONS["smart"](**SIZES)
    model = tiny_classifier()
    batch = token_batch(model.bert)
    kept: list[torch.Tensor] = []
    before = 0.01 * torch.randn(3, 7, 16, dtype=torch.float64) * batch.attention_mask.unsqueeze(-1)
    given = CachedDelta(before, torch.tensor([True] * 3), kept.append)
    clean = clean_logits(model, batch)
    found = method.regularize(lambda: model(*batch), model.bert, clean, batch.attention_mask, cached=given,
                              noise_seeds=seeds_of(3))  # fmt: skip
    (found.loss * float("inf")).backward()
    torch.testing.assert_close(kept[0], before)
    assert found.skipped == 3


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_size_of_what_is_kept_is_known_before_the_first_pass(family: str) -> None:

    encoder = tiny_encoder(family)
    ids = torch.randint(5, 20, (2, 4))
    for level in available_levels(encoder):
        injection = NoiseInjection(encoder, level)
        with injection.clean() as seen:
            encoder(input_ids=ids)
        assert injection.size == seen[0].size(-1)


# the file


def test_what_was_kept_comes_back_by_example(tmp_path: Path) -> None:
    lengths = np.array([3, 1, 2])
    deltas = DeltaCache(tmp_path / "deltas", lengths, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    delta = torch.arange(24.0).view(2, 3, 4) * mask.unsqueeze(-1)
    assert not deltas.of([2, 0], mask).known.any()
    deltas.of([2, 0], mask).store(delta)
    other = DeltaCache(tmp_path / "deltas", lengths, 4, new=False)
    found = other.of([0, 1, 2], torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]))
    assert found.known.tolist() == [True, False, True]
    assert torch.equal(found.delta[[2, 0]], delta)
    assert not found.delta[1].any()
    assert (tmp_path / "deltas").stat().st_size == DeltaCache.bytes_of(lengths, 4) == 4 + 2 * 6 * 4
    deltas.save(tmp_path / "copy")
    fresh = DeltaCache(tmp_path / "fresh", lengths, 4)
    fresh.load(tmp_path / "copy")
    assert torch.equal(fresh.of([2, 0], mask).delta, delta)
    with pytest.raises(DataError, match="expected 18 for this data"):
        DeltaCache(tmp_path / "less", lengths[:2], 2).load(tmp_path / "copy")


# runs


def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    tiny_run(tmp_path / "whole", *FREE, "--epochs", "3")
    tiny_run(tmp_path / "part", *FREE, "--epochs", "3", "--save_per_updates_on", "--save_per_updates", "7")
    assert_same(parameters(tmp_path / "whole" / "model_2.pt"), parameters(tmp_path / "part" / "model_2.pt"))
    stop = tmp_path / "stop"
    trainer = Trainer(tiny_config(stop, *FREE, "--epochs", "3"))
    evaluate = trainer._evaluate

    def stopping(epoch: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        evaluate(epoch)

    trainer._evaluate = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert deltas_of(stop / "model_0.pt").is_file()
    tiny_run(stop, *FREE, "--epochs", "3", "--resume")
    assert_same(parameters(tmp_path / "whole" / "model_2.pt"), parameters(stop / "model_2.pt"))
    assert {path.name for path in stop.glob("*.deltas")} == {"model_1.deltas", "model_2.deltas"}


def test_it_does_something_else_than_the_exact_search(tmp_path: Path) -> None:
    free, exact = (parameters_of(tmp_path / name, *flags) for name, flags in (("free", FREE), ("exact", SIFT)))
    assert any(not torch.equal(free[name], exact[name]) for name in free)


def parameters_of(folder: Path, *flags: str) -> dict[str, torch.Tensor]:
    tiny_run(folder, *flags)
    return parameters(folder / "model_1.pt")


def test_more_than_the_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FlagError, match=r"--adv_free: the noise of \d+ tokens takes \S+ GB; .*--adv_free_budget, 1e-06"
    ):
        tiny_run(tmp_path, *FREE, "--adv_free_budget", "1e-6")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--adv_opt", "freelb"), "no search to spare with --adv_opt freelb"),
        (("--adv_k", "2"), "one ascent step an epoch, found --adv_k 2"),
        (("--adv_preset", "mtdnn_release"), "no meaning with --adv_projection normalize"),
        (("--adv_alpha", "0"), "no gradient reaches the noise"),
        (("--unlabeled_datasets", "mnli"), "leave out --unlabeled_datasets"),
    ],
)
def test_what_it_does_not_go_with_is_refused(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(FlagError, match=message):
        tiny_config(tmp_path, "--adv_train", "--adv_free", *flags)


def test_every_nth_update_is_regularized_with_n_times_the_weight(tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tmp_path, *SIFT, "--adv_every", "3", "--adv_alpha", "2"))
    reports = []
    update = trainer.model.update

    def reporting(*batches: Any, **options: Any) -> Any:
        reports.append(update(*batches, **options))
        return reports[-1]

    trainer.model.update = reporting  # type: ignore[method-assign]
    trainer.run()
    assert [report.adv_loss is not None for report in reports] == [n % 3 == 0 for n in range(1, len(reports) + 1)]
    assert trainer.accelerator.unwrap_model(trainer.model.objective).alpha == 6.0


def test_a_logged_update_shows_the_figures_of_the_last_regularized_one(tmp_path: Path) -> None:
    flags = ["--adv_every", "3", "--log_per_updates", "4", "--epochs", "3"]
    trainer = Trainer(tiny_config(tmp_path, *SIFT, *flags))
    found: dict[int, Any] = {}
    update = trainer.model.update

    def reporting(*batches: Any, **options: Any) -> Any:
        report = update(*batches, **options)
        found[trainer.model.updates] = report
        return report

    trainer.model.update = reporting  # type: ignore[method-assign]
    trainer.run()
    lines = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
    by_update = {line["update"]: line for line in lines if line["kind"] == "update"}
    assert list(by_update)[:3] == [1, 4, 8] and "emb_val" not in by_update[1]
    for logged, regularized in ((4, 3), (8, 6)):
        assert by_update[logged]["emb_val"] == float(found[regularized].emb_val)
        assert by_update[logged]["ascent_rise"] == float(found[regularized].ascent_rise)
    # Measured where it is shown, and nowhere else: updates 3, 6 and 12 of the first 12.
    assert [n for n in range(1, 13) if n in found and found[n].ascent_rise is not None] == [3, 6, 12]
