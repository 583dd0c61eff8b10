"""Two processes (gloo) in loops of one's own: the gradient is that of one process with the whole batch, by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.device import NEEDS_TWO_GPUS
from tests.loops.two_processes import JOBS, JOBS_ON_GPUS, REFUSED, expected

pytest.importorskip("lightning")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found: the gradients of each job, or why it was refused."""
    return run(tmp_path_factory.mktemp("loops") / "found.pt", "cpu")


@pytest.fixture(scope="module")
def found_on_gpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("loops") / "found.pt", "cuda")


def run(file: Path, device: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    finished = subprocess.run(
        [*command, "-m", "tests.loops.two_processes", str(file)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TEST_DEVICE": device},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    result: dict[str, Any] = torch.load(file)
    return result


@pytest.mark.parametrize("job", [job for job in JOBS if job not in REFUSED])
def test_two_processes_have_the_gradient_of_one(job: str, found: dict[str, Any]) -> None:
    assert_gradient_of_one(job, found[job])


@pytest.mark.cuda
@NEEDS_TWO_GPUS
@pytest.mark.parametrize("job", [job for job in JOBS_ON_GPUS if job not in REFUSED])
def test_two_gpus_have_the_gradient_of_one_process_on_the_cpu(job: str, found_on_gpus: dict[str, Any]) -> None:
    assert_gradient_of_one(job, found_on_gpus[job])


def assert_gradient_of_one(job: str, gradients: Any) -> None:
    wanted = expected(job)
    assert not isinstance(gradients, str), gradients
    assert max(float(x.abs().max()) for x in wanted.values()) > 0.1
    for name, gradient in wanted.items():
        if name in gradients or gradient.abs().max() > 1e-9:
            torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-6, msg=name)
    # DDP fills in zeros for a parameter that no forward used.
    assert all(name in wanted or not x.any() for name, x in gradients.items())


@pytest.mark.parametrize("job", REFUSED)
def test_several_forwards_in_a_static_graph_are_refused(job: str, found: dict[str, Any]) -> None:
    assert found[job].startswith("DistributedDataParallel(static_graph=True) takes one forward an update, this method")
