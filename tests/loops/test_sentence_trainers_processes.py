"""Two processes give sentence-transformers' trainers the parameters that one gives them, with the regularizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

import sentence_transformers as st
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers.cross_encoder import losses as pair_losses
from sentence_transformers.sentence_transformer import losses

from tests.hf import assert_equal_gradients, parameters, tiny_model
from tests.loops.test_sentence_trainers import Pairs, Sentences, trainer_of
from tests.loops.test_sentence_transformers import sentence_model, vocabulary

ROOT = Path(__file__).parents[2]
RUN = """
import os
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tests.hf import parameters
from tests.loops.test_sentence_trainers_processes import JOBS, job_trainer

folder = Path(sys.argv[1])
for job in JOBS:
    trainer = job_trainer(job, folder, 2)
    trainer.train()
    assert trainer.accelerator.num_processes == 2
    if trainer.is_world_process_zero():
        save_file(parameters(trainer.model), folder / f"{job}.safetensors")
# What is left to the interpreter's end, gloo's threads or a thread of Trainer's, may abort the process.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""
JOBS = {"sentences": "classification", "pairs": "regression"}


def job_trainer(job: str, folder: Path, batch_size: int, batches: int = 1) -> Any:
    """A trainer of the model that lies in the folder under the job's name."""
    texts = [" ".join(f"w{(7 * row + 3 * place) % 35}" for place in range(2 + row % 4)) for row in range(16)]
    labels = [0.1 * row for row in range(8)]
    data = Dataset.from_dict({"first": texts[:8], "second": texts[8:], "label": labels})
    options: dict[str, Any] = {"per_device_train_batch_size": batch_size, "max_steps": 2, "learning_rate": 0.1}
    options["gradient_accumulation_steps"] = batches
    if job == "pairs":
        model = st.CrossEncoder(str(folder / job), device="cpu").double()
        # DDP finds no parameters in the BatchEncoding that a cross-encoder returns, with or without the regularizer.
        options["ddp_find_unused_parameters"] = False
        return trainer_of(Pairs, model, pair_losses.MSELoss(model), data, folder, **options)
    model = sentence_model(folder / job)
    return trainer_of(Sentences, model, losses.CosineSimilarityLoss(model), data, folder, **options)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parameters after two updates of each job on two processes with two rows each."""
    folder = tmp_path_factory.mktemp("two_processes")
    for job, head in JOBS.items():
        (folder / job).mkdir()
        tiny_model(head).save_pretrained(vocabulary(folder / job))
    script = folder / "run.py"
    script.write_text(RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    finished = subprocess.run(
        [*command, str(script), str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_end_with_one_processs_parameters(job: str, two_processes: Path) -> None:
    trainer = job_trainer(job, two_processes, 4)
    start = parameters(trainer.model)
    trainer.train()
    found = load_file(two_processes / f"{job}.safetensors")
    assert_equal_gradients(found, parameters(trainer.model), 1e-6)
    assert max(float((found[name] - start[name]).abs().max()) for name in found) > 1e-3


@pytest.mark.parametrize("job", JOBS)
def test_two_batches_an_update_end_with_one_batchs_parameters(job: str, two_processes: Path) -> None:
    one, two = job_trainer(job, two_processes, 4), job_trainer(job, two_processes, 2, batches=2)
    one.train()
    two.train()
    assert_equal_gradients(parameters(two.model), parameters(one.model), 1e-6)
