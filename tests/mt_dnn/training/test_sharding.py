"""Runs with sharded parameters (`--fsdp`) end as those of DistributedDataParallel; their checkpoints serve both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from data_utils.errors import FlagError
from data_utils.readers import read_score_file
from data_utils.storage.text_files import write_lines
from mt_dnn.checkpoints.checkpoint import load_checkpoint
from mt_dnn.configuration.flag_groups import TrainingConfig
from mt_dnn.training.optim import clip_gradients
from mt_dnn.training.sharding import shard_parameters
from tests.encoder_folder import write_encoder
from tests.mt_dnn.runs import TASK_DEF, assert_same, parameters, tiny_config, tiny_run
from tests.mt_dnn.training.sharded_processes import FAMILIES, QUICK, RUNS
from tests.mt_dnn.training.test_encoder_families import write_data
from tests.mt_dnn.training.two_processes import MIDDLE, resumable, write_heads
from tests.tasks.learning import write_small_encoder

ROOT = Path(__file__).parents[3]
MASKED = "masked: {data_format: MLM, task_type: MaskLM, n_class: 13, metric_meta: [ACC]}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, and of one in `folder`/one, whose checkpoint in the first epoch two go on with."""
    folder = tmp_path_factory.mktemp("sharded")
    write_masked(folder)
    (folder / "tasks.yml").write_text(TASK_DEF.read_text().replace("dropout_p: 0.05", "dropout_p: 0"))
    tiny_run(folder / "one", *resumable(folder))
    start(folder, 2, *QUICK)
    return folder


def write_masked(folder: Path) -> None:
    """Texts for a masked language model, whose head also uses the word table."""
    write_small_encoder(folder / "bert")
    (folder / "masked.yml").write_text(MASKED)
    words = [[2, *(5 + (uid + place) % 8 for place in range(3 + uid % 5)), 3] for uid in range(11)]
    for split in ("train", "dev"):
        lines = [{"uid": str(uid), "token_id": own, "type_id": [0] * len(own)} for uid, own in enumerate(words)]
        write_lines(folder / f"masked_{split}.json", map(json.dumps, lines))


def start(folder: Path, processes: int, *runs: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    finished = subprocess.run(
        [*command, "-m", "tests.mt_dnn.training.sharded_processes", str(folder), *runs],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0 and (folder / "found.json").exists(), finished.stderr[-5000:]


def moments(path: Path) -> dict[str, torch.Tensor]:
    """The optimizer's state in a checkpoint, by parameter and name."""
    state = load_checkpoint(path)["optimizer"]["state"]
    return {f"{index} {name}": torch.as_tensor(x) for index, own in state.items() for name, x in own.items()}


def last(folder: Path) -> Path:
    return sorted(folder.glob("model_?.pt"))[-1]


@pytest.mark.parametrize("run", QUICK)
def test_a_sharded_run_ends_as_one_without_shards(run: str, folder: Path) -> None:
    ours, theirs = folder / run / "fsdp", folder / run / "ddp"
    assert_same(parameters(last(theirs)), parameters(last(ours)), tolerance=1e-5)
    assert_same(moments(last(theirs)), moments(last(ours)), tolerance=1e-5)
    reports = [(path / "metrics.jsonl").read_text().splitlines() for path in (theirs, ours)]
    for wanted, found in zip(*reports, strict=True):
        assert_same_report(json.loads(wanted), json.loads(found))
    for path in theirs.glob("*_scores_epoch_*.json"):
        expected, values = read_score_file(path), read_score_file(ours / path.name)
        assert values["uids"] == expected["uids"]
        assert values["metrics"] == pytest.approx(expected["metrics"], abs=0.02)  # percent


def assert_same_report(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Losses equal to the rounding of a sum, metrics of an evaluation to 0.02 percent."""
    assert found.keys() == expected.keys()
    tolerance = {"rel": 1e-4, "abs": 1e-6} if "loss" in expected else {"abs": 0.02}
    for name in expected.keys() - {"ascent_gain"}:  # the ratio of two small numbers
        value = expected[name]
        assert found[name] == (value if isinstance(value, str) else pytest.approx(value, **tolerance)), name


def test_the_teacher_of_a_sharded_run_is_that_of_one_without(folder: Path) -> None:
    theirs, ours = (load_checkpoint(last(folder / "bregman" / kind))["bregman"] for kind in ("ddp", "fsdp"))
    assert_same(theirs, ours, tolerance=1e-5)


def test_a_checkpoint_of_a_sharded_run_has_the_form_of_any_other(folder: Path) -> None:
    theirs, ours = (torch.load(last(folder / "sift" / kind), weights_only=False) for kind in ("ddp", "fsdp"))
    assert ours.keys() == theirs.keys() and ours["progress"].keys() == theirs["progress"].keys()
    assert list(ours["state"]) == list(theirs["state"])
    assert all(type(tensor) is torch.Tensor and tensor.device.type == "cpu" for tensor in ours["state"].values())
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]


def test_runs_go_on_from_sharded_to_whole_and_the_other_way_round(folder: Path) -> None:
    expected = folder / "one" / "model_1.pt"
    flags = resumable(folder)
    middle = folder / "whole" / "fsdp" / MIDDLE
    tiny_run(folder / "sharded_to_one", *flags, "--resume", "--model_ckpt", str(middle))
    for kind in ("whole/fsdp", "one_to_sharded", "sharded_to_one"):
        found = folder / kind / "model_1.pt"
        assert_same(parameters(expected), parameters(found), tolerance=1e-5)
        assert_same(moments(expected), moments(found), tolerance=1e-5)
        assert_same(load_checkpoint(expected)["bregman"], load_checkpoint(found)["bregman"], tolerance=1e-5)


def test_every_process_knows_of_a_number_that_is_not_finite_in_the_share_of_one(folder: Path) -> None:
    found = json.loads((folder / "found.json").read_text())["finite"]
    assert found == [True, False] * 2


@pytest.mark.slow
def test_four_sharded_processes_end_as_four_without_shards(folder: Path, tmp_path: Path) -> None:
    write_masked(tmp_path)
    write_heads(tmp_path)
    (tmp_path / "toy").mkdir()
    write_data(tmp_path / "toy")
    for family in FAMILIES:
        write_encoder(tmp_path / family, family)
    (tmp_path / "tasks.yml").write_text((folder / "tasks.yml").read_text())
    (tmp_path / "one").symlink_to(folder / "one")
    start(tmp_path, 4, *RUNS)
    for run in RUNS:
        test_a_sharded_run_ends_as_one_without_shards(run, tmp_path)
    test_runs_go_on_from_sharded_to_whole_and_the_other_way_round(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--fp16", "--fsdp and --fp16: found both, accepted: --bf16, or neither"),
        ("--compile", "--fsdp and --compile: found both, accepted: one of them"),
        ("--encode_mode", "--fsdp and --encode_mode: found both, accepted: one of them; --encode_mode trains nothing"),
        ("--save_hf out", "--fsdp and --save_hf: found both, .* python -m mt_dnn.export.export writes its checkpoint"),
    ],
)
def test_what_shards_do_not_do_is_refused(flags: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=message):
        tiny_config(tmp_path, "--fsdp", *flags.split())


@pytest.mark.parametrize(
    ("generates", "layers", "message"),
    [
        (
            True,
            [nn.ModuleList([nn.Linear(2, 2)])],
            "--fsdp: SimpleNamespace writes texts of unequal lengths, .*accepted",
        ),
        (False, [nn.Linear(2, 2)], "--fsdp: Sequential holds no list of layers; accepted: to leave it out"),
    ],
)
def test_networks_that_cannot_be_sharded_are_refused(generates: bool, layers: list[nn.Module], message: str) -> None:
    network: Any = SimpleNamespace(bert=nn.Sequential(*layers), tasks=[SimpleNamespace(generates=generates)])
    with pytest.raises(FlagError, match=message):
        shard_parameters([network], SimpleNamespace())  # type: ignore[arg-type]


def test_one_process_has_nothing_to_share(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match="--fsdp: found one process; accepted: several, by torchrun or accelerate"):
        tiny_run(tmp_path, "--fsdp")


def test_the_norm_of_sharded_gradients_stays_on_their_device() -> None:
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        network = nn.Linear(3, 4, bias=False, device="meta")
        weight = nn.Parameter(DTensor.from_local(network.weight[:2].detach(), mesh, [Shard(0)]))
        weight.grad = DTensor.from_local(torch.empty(2, 3, device="meta"), mesh, [Shard(0)])
        network.weight = weight
        # The losses, with which the norm is checked, are on that device; meta stands for a GPU.
        assert clip_gradients(network, TrainingConfig(global_grad_clipping=1.0)).device.type == "meta"
    finally:
        torch.distributed.destroy_process_group()
