"""`--compile`: the same updates, whatever the method, by code that torch.compile makes once for all widths."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from data_utils.errors import FlagError
from docs_build.encoder_families import FAMILIES, tiny_model
from module.encoder import compile_layers
from mt_dnn.batcher import Collater
from mt_dnn.configuration.flag_groups import TrainingConfig
from mt_dnn.data.run_data import RunData
from mt_dnn.model import MTDNNModel
from tests.mt_dnn.runs import RUN, TASK_DEF, assert_same, tiny_config
from tests.mt_dnn.training.test_grad_checkpointing import METHODS

HAS_COMPILER = shutil.which("g++") is not None or shutil.which("clang++") is not None


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def ends(folder: Path, *flags: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Parameters and losses of four updates by SGD (whose step keeps differences small) on batches of four widths."""
    config = tiny_config(folder, "--optimizer", "sgd", "--learning_rate", "0.1", "--cpu_linear", "mkl", *flags)
    data = RunData(config)
    torch.manual_seed(0)
    model = MTDNNModel(config, data.task_defs, total_updates=4)
    torch.manual_seed(1)
    lengths = data.train[0].lengths
    batches = [[index for index in range(len(lengths)) if lengths[index] == width] for width in sorted(set(lengths))]
    chosen = [batch for batch in batches if len(batch) > 1][:4]
    assert len(chosen) == 4
    losses = []
    for examples in chosen:
        report = model.update(Collater(0)([data.train[0][index] for index in examples]), measure_gain=True)
        losses += [float(value) for value in (report.task_loss, report.adv_loss, report.bregman) if value is not None]
    return model.network.state_dict(), losses


def by_need(method: str) -> object:
    """FreeLB stands for all in the quick tests: it searches, and goes through its graphs twice."""
    return pytest.param(method, marks=() if method == "freelb" else pytest.mark.slow)


def assert_same_updates(folder: Path, method: str, *flags: str) -> None:
    expected, losses = ends(folder, *METHODS[method], *flags)
    found, compiled_losses = ends(folder, *METHODS[method], *flags, "--compile")
    assert_same(expected, found, tolerance=1e-5)
    assert compiled_losses == pytest.approx(losses, abs=1e-5)
    # One for layers with a mask and one for those without; the search may ask for others, widths must not.
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


@pytest.mark.parametrize("method", [by_need(method) for method in METHODS])
def test_updates_are_those_without_it(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt_dnn.model.compile_layers", partial(compile_layers, backend="aot_eager"))
    assert_same_updates(tmp_path, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sift", "freelb"])
def test_layers_may_be_recomputed_in_the_backward(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt_dnn.model.compile_layers", partial(compile_layers, backend="aot_eager"))
    assert_same_updates(tmp_path, method, "--grad_checkpointing")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize("method", METHODS)
def test_updates_of_made_code_are_those_without_it(method: str, tmp_path: Path) -> None:
    # Made code draws dropout's masks by a generator of its own.
    assert_same_updates(tmp_path, method, "--bert_dropout_p", "0", "--dropout_p", "0")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_encoders_layers_are_found_and_its_state_keeps_its_names(family: str) -> None:
    encoder = tiny_model(family)
    names = list(encoder.state_dict())
    compile_layers(encoder, backend="eager")
    compiled = {name for name, module in encoder.named_modules() if module._compiled_call_impl is not None}
    assert len(compiled) == (1 if family == "albert" else 2)
    assert list(encoder.state_dict()) == names


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(FlagError, match="--compile and --cpu_linear onednn: found both"):
        TrainingConfig(compile=True, cpu_linear="onednn")
    with pytest.raises(ValueError, match="Linear holds no list of layers"):
        compile_layers(torch.nn.Linear(2, 2), backend="eager")


def test_a_backend_that_fails_is_told() -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("no compiler")

    encoder = tiny_model("bert")
    with pytest.raises(ValueError, match=r"torch.compile does not work here \(.*no compiler"):
        compile_layers(encoder, backend=failing)
    assert all(module._compiled_call_impl is None for module in encoder.modules())


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_so_in_a_line(tmp_path: Path) -> None:
    flags = f"--task_def {TASK_DEF} --data_dir {RUN / 'tinydata'} --train_datasets mnli --test_datasets mnli_matched"
    command = [sys.executable, "train.py", *flags.split(), "--init_checkpoint", str(RUN / "tiny"), "--compile"]
    command += ["--output_dir", str(tmp_path / "out"), "--log_file", str(tmp_path / "log.txt")]
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: --compile: torch.compile does not work here")
    assert "Traceback" not in ended.stderr
