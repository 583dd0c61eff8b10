"""AdversarialTrainer with parameters sharded by FSDP version 2: gradients and log are those without shards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mt_dnn.huggingface.trainer_checks import refuse_settings
from tests.hf import assert_equal_gradients, tiny_model
from tests.mt_dnn.huggingface.sharded_trainers import JOBS, QUICK, UPDATES, found_by, trainer

ROOT = Path(__file__).parents[3]
BF16 = 0.02  # the loss and every sum of a layer are rounded to 8 bits


def start(folder: Path, processes: int, *jobs: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    finished = subprocess.run(
        [*command, "-m", "tests.mt_dnn.huggingface.sharded_trainers", str(folder), *jobs],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-5000:]
    found: dict[str, Any] = torch.load(folder / "found.pt")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded_trainers")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return start(folder, 2, *QUICK)


@pytest.mark.parametrize("job", QUICK)
def test_sharded_gradients_are_those_of_whole_parameters(job: str, found: dict[str, Any]) -> None:
    assert_same_updates(job, found[job])


def assert_same_updates(job: str, found: dict[str, Any]) -> None:
    whole, sharded = found["ddp"], found["fsdp"]
    assert sharded["sharded"] and not whole["sharded"]
    assert len(sharded["gradients"]) == len(whole["gradients"]) == UPDATES
    for ours, theirs in zip(sharded["gradients"], whole["gradients"], strict=True):
        assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 0.01
        if job == "bf16":
            assert distance(ours, theirs) < BF16
        else:
            assert_equal_gradients(ours, theirs, 1e-12)
    for entry, expected in zip(sharded["logs"], whole["logs"], strict=True):
        assert entry["adv_loss"] == pytest.approx(expected["adv_loss"], rel=0.05 if job == "bf16" else 1e-6)
        assert entry["adv_loss"] > 1e-4


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The length of the difference of two gradients, relative to that of the second."""
    pairs = [(first[name].double(), second[name].double()) for name in second]
    lengths = [sum(float(x.square().sum()) for x in own) for own in ((a - b for a, b in pairs), (b for _, b in pairs))]
    return float((lengths[0] / lengths[1]) ** 0.5)


def test_two_sharded_processes_have_the_gradient_of_one_process(found: dict[str, Any], tmp_path: Path) -> None:
    alone = found_by(trainer("causal", tmp_path))
    for ours, theirs in zip(found["causal"]["fsdp"]["gradients"], alone["gradients"], strict=True):
        assert_equal_gradients(ours, theirs, 1e-6)


def test_a_sharded_trainer_goes_on_after_a_checkpoint(found: dict[str, Any]) -> None:
    whole, resumed = (found["resume"][kind]["parameters"] for kind in ("whole", "resumed"))
    assert_equal_gradients(resumed, whole, 0.0)


def test_the_model_in_a_sharded_checkpoint_loads_without_shards(found: dict[str, Any], folder: Path) -> None:
    kind = type(tiny_model("classification"))
    model = kind.from_pretrained(folder / "saved" / f"checkpoint-{UPDATES}", dtype=torch.float64)
    assert_equal_gradients(dict(model.named_parameters()), found["resume"]["whole"]["parameters"], 0.0)


@pytest.mark.slow
def test_four_sharded_processes_have_the_gradients_of_whole_parameters(tmp_path: Path) -> None:
    found = start(tmp_path, 4, *JOBS)
    for job in JOBS:
        assert_same_updates(job, found[job])


def settings(**own: Any) -> Any:
    """What a trainer shows of its processes."""
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=own.pop("version", 2)))
    accelerator = SimpleNamespace(state=state, parallelism_config=own.pop("parallelism_config", None))
    args = SimpleNamespace(n_gpu=1)
    given = {"is_fsdp_enabled": True, "is_deepspeed_enabled": False, **own}
    return SimpleNamespace(args=args, accelerator=accelerator, **given)


def test_version_2_is_accepted() -> None:
    refuse_settings(settings(parallelism_config=SimpleNamespace(tp_size=1, cp_size=1, sp_size=1, dp_shard_size=2)))


@pytest.mark.parametrize(
    ("own", "what"),
    [
        ({"version": 1}, "with version 1 of FSDP"),
        ({"is_deepspeed_enabled": True}, "with DeepSpeed"),
        ({"parallelism_config": SimpleNamespace(tp_size=2)}, r"where processes split products of matrices \(tp_size\)"),
        (
            {"parallelism_config": SimpleNamespace(tp_size=1, cp_size=2)},
            r"where processes split a text's tokens \(cp_size",
        ),
    ],
)
def test_other_ways_to_split_a_model_are_refused(own: dict[str, Any], what: str) -> None:
    with pytest.raises(
        ValueError, match=f"^no perturbed passes {what}.*; accepted: fsdp=True with fsdp_config=.*2"
    ) as caught:
        refuse_settings(settings(**own))
    assert "\n" not in str(caught.value)
