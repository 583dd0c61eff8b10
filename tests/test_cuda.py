"""Whole runs and noise on a GPU: `pytest -m cuda`; with TEST_DEVICE=cpu what a CPU can do of it, to try the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mt_dnn.checkpoints.checkpoint import load_checkpoint
from mt_dnn.perturbation.noise import default_generator, example_seeds, forked_dropout, standard_noise
from tests.device import DEVICE, NEEDS_DEVICE, NEEDS_GPU, ON_GPU
from tests.mt_dnn.runs import SIFT, SMART, assert_same, parameters, tiny_run

pytestmark = [pytest.mark.cuda, NEEDS_DEVICE]


def test_noise_depends_on_the_example_alone() -> None:
    seeds = example_seeds(1, 2, ["a", "b"])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], device=DEVICE)
    both = standard_noise(mask, 8, torch.float32, seeds)
    alone = standard_noise(torch.ones(1, 2, dtype=torch.int64, device=DEVICE), 8, torch.float32, seeds[1:])
    assert torch.equal(both[1, :2], alone[0])
    assert both[mask == 0].abs().sum() == 0


@pytest.mark.parametrize("start", [3, "state"])
def test_a_fork_leaves_the_generator_of_the_gpu_as_it_was(start: int | str) -> None:
    device = torch.device(DEVICE)
    before = default_generator(device).get_state()
    with forked_dropout(device, before if isinstance(start, str) else start):
        drawn = torch.nn.functional.dropout(torch.ones(100, device=device), 0.5)
    assert torch.equal(default_generator(device).get_state(), before)
    again = torch.nn.functional.dropout(torch.ones(100, device=device), 0.5)
    assert torch.equal(drawn, again) == isinstance(start, str)


@pytest.mark.parametrize("method", [SMART, SIFT], ids=["smart", "sift"])
def test_alpha_zero_is_the_plain_run_to_rounding(method: tuple[str, ...], tmp_path: Path) -> None:
    tiny_run(tmp_path / "plain", "--cuda", str(ON_GPU).lower())
    tiny_run(tmp_path / "zero", "--cuda", str(ON_GPU).lower(), *method, "--adv_alpha", "0")
    assert_same(parameters(tmp_path / "plain" / "model_1.pt"), parameters(tmp_path / "zero" / "model_1.pt"), 1e-4)


@pytest.mark.parametrize("precision", ["--bf16", pytest.param("--fp16", marks=NEEDS_GPU)])
def test_mixed_precision_runs_and_skips_no_example(precision: str, tmp_path: Path) -> None:
    tiny_run(tmp_path, precision, *SIFT, "--log_per_updates", "1")
    log = (tmp_path / "log.txt").read_text()
    assert log.count("skipped 0,") == 18


@pytest.mark.parametrize("method", [SMART, SIFT], ids=["smart", "sift"])
def test_recomputed_activations_change_nothing_to_rounding(method: tuple[str, ...], tmp_path: Path) -> None:
    tiny_run(tmp_path / "whole", *method)
    tiny_run(tmp_path / "recomputed", *method, "--grad_checkpointing")
    assert_same(parameters(tmp_path / "whole" / "model_1.pt"), parameters(tmp_path / "recomputed" / "model_1.pt"), 1e-4)


@NEEDS_GPU
def test_a_run_in_float16_goes_on_with_its_scaler(tmp_path: Path) -> None:
    tiny_run(tmp_path / "whole", "--fp16", *SIFT)
    checkpoint = tmp_path / "whole" / "model_0.pt"
    tiny_run(tmp_path / "resumed", "--fp16", *SIFT, "--resume", "--model_ckpt", str(checkpoint))
    assert load_checkpoint(checkpoint)["scaler"]["scale"] > 0
    last = [load_checkpoint(tmp_path / run / "model_1.pt") for run in ("whole", "resumed")]
    assert last[0]["scaler"] == last[1]["scaler"]
    assert_same(last[0]["state"], last[1]["state"], 1e-3)
