"""R has the weight that Trainer gives the task loss: over accumulated batches and over processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mt_dnn.perturbation import AdversarialTraining, FreeLbPerturbation, SmartPerturbation
from tests.hf import (
    ALPHA,
    assert_equal_gradients,
    examples,
    gradient_of_update,
    parameters,
    search,
    tiny_model,
    trainer_of,
)
from tests.mt_dnn.huggingface.test_trainer import AdversarialOwnLoss

ROOT = Path(__file__).parents[3]
LENGTHS = (7, 3, 6, 5, 6)
# Methods whose R is a divergence, and whose R is the loss on the labels.
METHODS = (SmartPerturbation, AdversarialTraining)


def own_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """The sum over examples (or tokens) divided by their number in the update, which is always given."""
    return F.cross_entropy(outputs.logits.flatten(0, -2), labels.flatten(), reduction="sum") / num_items_in_batch


class NoLossKwargs(nn.Module):
    """A classifier whose forward takes no further arguments, so that Trainer averages the means of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny_model("classification")
        self.config = self.bert.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        return self.bert(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def gradient(
    model: Any, head: str, folder: Path, batch_size: int, kind: Any = SmartPerturbation, **options: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient of one update on five examples in batches of this size, and the log."""
    trainer = trainer_of(
        model,
        head,
        folder,
        search(kind),
        train_dataset=examples(head, LENGTHS),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=-(-len(LENGTHS) // batch_size),
        **options,
    )
    return gradient_of_update(trainer), trainer.state.log_history[0]


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("generation", {}),
        ("generation", {"label_smoothing_factor": 0.1}),
        ("classification", {"compute_loss_func": own_loss}),
        ("classification", {"label_smoothing_factor": 0.1}),
    ],
    ids=["model with num_items", "its label smoothing", "compute_loss_func", "label smoothing"],
)
def test_accumulated_unequal_batches_give_the_gradient_of_one_batch(
    head: str, options: dict[str, Any], kind: Any, tmp_path: Path
) -> None:
    whole, whole_log = gradient(tiny_model(head), head, tmp_path, 5, kind, **options)
    parts, parts_log = gradient(tiny_model(head), head, tmp_path, 3, kind, **options)
    tolerance = 2e-6 if head == "generation" else 1e-7  # a share of labels is in single precision
    assert_equal_gradients(parts, whole, tolerance)
    assert parts_log["loss"] == pytest.approx(whole_log["loss"], rel=1e-6)
    without_r, _ = gradient(tiny_model(head), head, tmp_path, 5, kind, alpha=0.0, **options)
    assert max(float((whole[name] - without_r[name]).abs().max()) for name in whole) > 1e-3


def mean_objective(folder: Path, make: Callable[[], Any]) -> tuple[dict[str, Tensor], ...]:
    """The gradients of two updates, on examples 0 to 2 and 3 to 4, with the noise that they have as batches of one."""
    found = []
    for part in (slice(0, 3), slice(3, 5)):
        trainer = trainer_of(make(), "classification", folder, search(AdversarialTraining, noise_var=0.0))
        trainer.train_dataset = examples("classification", LENGTHS)[part]
        found.append(gradient_of_update(trainer))
    return tuple(found)


@pytest.mark.parametrize(
    ("make", "factor"),
    [(NoLossKwargs, 0.5), (lambda: tiny_model("classification"), 1.0)],
    ids=["averaged over batches", "added up over batches"],
)
def test_without_a_number_of_items_r_is_combined_as_the_means_of_the_task_loss(
    make: Callable[[], Any], factor: float, tmp_path: Path
) -> None:
    first, second = mean_objective(tmp_path, make)
    trainer = trainer_of(
        make(),
        "classification",
        tmp_path,
        search(AdversarialTraining, noise_var=0.0),
        train_dataset=examples("classification", LENGTHS),
        gradient_accumulation_steps=2,
    )
    expected = {name: factor * (first[name] + second[name]) for name in first}
    assert_equal_gradients(gradient_of_update(trainer), expected, 1e-12)


def test_tokens_without_a_target_weigh_nothing(tmp_path: Path) -> None:
    """A batch of one example without targets changes no gradient of the batches beside it."""
    rows = examples("generation", (7, 6, 5))
    rows[2]["labels"] = [-100] * 7
    whole = trainer_of(tiny_model("generation"), "generation", tmp_path, train_dataset=rows[:2])
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts = trainer_of(tiny_model("generation"), "generation", tmp_path, train_dataset=rows, **options)
    expected, found = gradient_of_update(whole), gradient_of_update(parts)
    assert_equal_gradients(found, expected, 2e-6)


RUN = """
import os
import sys
import torch
from safetensors.torch import save_file
from tests.hf import parameters
from tests.mt_dnn.huggingface.test_normalization import two_process_trainer

folder, *jobs = sys.argv[1:]
for job in jobs:
    trainer = two_process_trainer(job, folder, per_device_train_batch_size=2)
    trainer.train()
    if trainer.is_world_process_zero():
        save_file(parameters(trainer.model), f"{folder}/{job}.safetensors")
        print(job, trainer.accelerator.num_processes, trainer.state.log_history[0]["adv_loss"])
# What is left to the interpreter's end, gloo's threads or a thread of Trainer's, may abort the process.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""

# name: head, method, options of the trainer
JOBS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "generation": ("generation", SmartPerturbation, {"ddp_find_unused_parameters": False}),
    "own_loss": ("classification", SmartPerturbation, {"compute_loss_func": own_loss}),
    "labels": ("classification", AdversarialTraining, {"compute_loss_func": own_loss}),
    "freelb": ("classification", FreeLbPerturbation, {"compute_loss_func": own_loss}),
    "local_items": (
        "classification",
        SmartPerturbation,
        {"compute_loss_func": own_loss, "average_tokens_across_devices": False},
    ),
    "own_compute_loss": ("classification", SmartPerturbation, {"kind": AdversarialOwnLoss}),
    "unused": (
        "classification",
        SmartPerturbation,
        {"compute_loss_func": own_loss, "ddp_find_unused_parameters": True},
    ),
}


def two_process_trainer(job: str, folder: str | Path, **sizes: Any) -> Any:
    head, kind, options = JOBS[job]
    method = search(kind, **({"k": 2} if kind is FreeLbPerturbation else {}))
    model = tiny_model(head)
    if job == "unused":
        model.register_parameter("unused", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    rows = examples(head, (7, 3, 6, 5, 4, 7, 3, 5))
    return trainer_of(
        model, head, Path(folder), method, train_dataset=rows, max_steps=2, learning_rate=0.1, **options, **sizes
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The parameters after two updates of each job on two processes with two examples each, and what was printed."""
    folder = tmp_path_factory.mktemp("two_processes")
    script = folder / "run.py"
    script.write_text(RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [*command, str(script), str(folder), *JOBS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder, finished.stdout.splitlines()


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_end_with_one_processs_parameters(
    job: str, two_processes: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, printed = two_processes
    trainer = two_process_trainer(job, tmp_path, per_device_train_batch_size=4)
    start = parameters(trainer.model)
    trainer.train()
    found = load_file(folder / f"{job}.safetensors")
    assert_equal_gradients(found, parameters(trainer.model), 1e-6)
    assert max(float((found[name] - start[name]).abs().max()) for name in found) > 1e-3
    line = next(line.split() for line in printed if line.startswith(f"{job} "))
    assert line[1] == "2"
    if job != "generation":  # whose examples have unequal numbers of targets: the log's mean is over batches
        assert float(line[2]) == pytest.approx(trainer.state.log_history[0]["adv_loss"], rel=1e-6)


def test_the_weight_of_r_is_alpha_whether_or_not_a_model_heeds_the_number_of_items(tmp_path: Path) -> None:
    """With equal batches both kinds of normalization differ by Trainer's factor alone, for task loss and R alike."""
    rows = examples("classification", (7, 3, 6, 5))
    options: dict[str, Any] = {
        "train_dataset": rows,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    heeding = trainer_of(
        tiny_model("classification"), "classification", tmp_path, compute_loss_func=own_loss, **options
    )
    ignoring = trainer_of(tiny_model("classification"), "classification", tmp_path, alpha=ALPHA, **options)
    mean, total = gradient_of_update(heeding), gradient_of_update(ignoring)
    assert_equal_gradients(total, {name: 2 * value for name, value in mean.items()}, 1e-7)
