"""Two processes give TRL's trainers the parameters that one gives them, with the regularizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import trl
from datasets import Dataset
from safetensors.torch import load_file

from tests.hf import assert_equal_gradients, parameters, tiny_model
from tests.loops.trl_trainers import frozen_memory as frozen_memory
from tests.loops.trl_trainers import method, trainer_of, words

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("frozen_memory")]
ROOT = Path(__file__).parents[2]
RUN = """
import os
import sys
import torch
from safetensors.torch import save_file
from tests.hf import parameters
from tests.loops.test_trl_processes import job_trainer

folder, *jobs = sys.argv[1:]
for job in jobs:
    trainer = job_trainer(job, folder, 2)
    trainer.train()
    assert trainer.accelerator.num_processes == 2
    if trainer.is_world_process_zero():
        save_file(parameters(trainer.model), f"{folder}/{job}.safetensors")
# What is left to the interpreter's end, gloo's threads or a thread of Trainer's, may abort the process.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("smart", {}),
    "labels": ("at", {}),
    "in its place": ("freelb", {}),
    "smoothed": ("smart", {"label_smoothing_factor": 0.2}),
    "unlabeled": ("smart", {}),
    "dpo": ("smart", {}),
}


def texts(job: str) -> Dataset:
    """Eight texts, of `unlabeled` with none to learn in the first batch of the second process."""
    rows = []
    for number, length in enumerate((7, 3, 6, 5, 4, 7, 3, 5)):
        ids = [3 + (5 * number + 7 * place) % 37 for place in range(length)]
        prompt = length if job == "unlabeled" and number in (2, 3) else number % 3
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return Dataset.from_list(rows)


def pairs() -> Dataset:
    """Eight pairs with equally long answers, so that a mean of two batches' means is that of all."""
    return Dataset.from_list(
        [
            {
                "prompt": words([3 + number] * (1 + number % 3)),
                "chosen": f" {words([12 + number, 20 + number])}",
                "rejected": f" {words([22 + number, 13 + number, 9])}",
            }
            for number in range(8)
        ]
    )


def job_trainer(job: str, folder: str | Path, batch_size: int) -> Any:
    name, options = JOBS[job]
    options = {**options, "per_device_train_batch_size": batch_size, "max_steps": 2, "learning_rate": 0.1}
    model, reference = tiny_model("generation"), tiny_model("generation")
    if job == "dpo":
        own = {"train_dataset": pairs(), "ref_model": reference}
        return trainer_of(trl.DPOTrainer, trl.DPOConfig, model, Path(folder), method(name), **own, **options)
    own = {"train_dataset": texts(job), "max_length": None}
    return trainer_of(trl.SFTTrainer, trl.SFTConfig, model, Path(folder), method(name), **own, **options)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parameters after two updates of each job on two processes with two texts each."""
    folder = tmp_path_factory.mktemp("two_processes")
    script = folder / "run.py"
    script.write_text(RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    finished = subprocess.run(
        [*command, str(script), str(folder), *JOBS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_end_with_one_processs_parameters(job: str, two_processes: Path, tmp_path: Path) -> None:
    trainer = job_trainer(job, tmp_path, 4)
    start = parameters(trainer.model)
    trainer.train()
    found = load_file(two_processes / f"{job}.safetensors")
    assert_equal_gradients(found, parameters(trainer.model), 1e-6)
    assert max(float((found[name] - start[name]).abs().max()) for name in found) > 1e-3
