"""`--fp16` as accelerate runs it, on the CPU: float16 autocast and a gradient scaler, whose steps may be skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from mt_dnn.batcher import Batch, Collater
from mt_dnn.data.run_data import RunData
from mt_dnn.model import MTDNNModel
from mt_dnn.perturbation import PERTURBATIONS, ModelRegularizer
from mt_dnn.perturbation.noise import example_seeds
from mt_dnn.training.processes import build_accelerator
from tests.hf import collate, examples, search, tiny_model, trainer_of
from tests.mt_dnn.runs import SIFT, tiny_config
from tests.search import Trace

MNLI = ("--train_datasets", "mnli", "--test_datasets", "mnli_matched")
FLAGS = (*SIFT, "--bregman_mu", "2", "--warmup", "0.2")


def half_precision_model(folder: Path, *flags: str, scale: float = 2.0**16) -> tuple[MTDNNModel, list[Batch]]:
    """A model as `--fp16` makes it on a GPU; accelerate refuses it here, so its three settings are set by hand."""
    config = tiny_config(folder, *MNLI, *FLAGS, *flags)
    accelerator = build_accelerator(config)
    AcceleratorState._shared_state["_mixed_precision"] = "fp16"
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    data = RunData(config)
    torch.manual_seed(0)
    model = MTDNNModel(config, data.task_defs, 20, accelerator)
    return model, [Collater(0)([data.train[0][index] for index in range(start, start + 4)]) for start in (0, 4, 8, 12)]


def moving_state(model: MTDNNModel) -> dict[str, torch.Tensor]:
    assert model.bregman is not None
    return {
        **{f"student {name}": tensor.clone() for name, tensor in model.network.state_dict().items()},
        **{f"teacher {name}": tensor.clone() for name, tensor in model.bregman.state_dict().items()},
        "rate": torch.tensor(model.schedule.get_last_lr()),
    }


def test_layers_run_in_float16_and_gradients_are_those_of_single_precision(tmp_path: Path) -> None:
    gradients = []
    for half in (True, False):
        dropout = ("--dropout_p", "0", "--bert_dropout_p", "0", "--global_grad_clipping", "0")
        model, batches = half_precision_model(tmp_path, *dropout)
        seen: list[torch.dtype] = []
        linear = model.network.bert.encoder.layer[0].attention.self.query
        linear.register_forward_hook(lambda *args, seen=seen: seen.append(args[-1].dtype))
        if not half:
            config = tiny_config(tmp_path, *MNLI, *FLAGS, *dropout)
            data = RunData(config)
            torch.manual_seed(0)
            model = MTDNNModel(config, data.task_defs, 20)
        found: dict[str, torch.Tensor] = {}
        model.wrapped_optimizer.zero_grad = lambda found=found, model=model, **_: found.update(
            {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}
        )
        report = model.update(batches[0])
        gradients.append(torch.cat([gradient.flatten() for gradient in found.values()]))
        assert report.skipped == 0 and model.skipped_steps == 0
        if half:
            assert set(seen) == {torch.float16}
    half_gradient, single = gradients
    assert torch.nn.functional.cosine_similarity(half_gradient, single, dim=0) > 0.999
    assert half_gradient.norm() == pytest.approx(float(single.norm()), rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "adamax"])  # a fused one, which skips by itself, and another
def test_a_step_that_the_scaler_skips_moves_neither_schedule_nor_teacher(optimizer: str, tmp_path: Path) -> None:
    model, batches = half_precision_model(tmp_path, "--optimizer", optimizer)
    model.update(batches[0])
    before = moving_state(model)
    model.accelerator.scaler.update(2.0**80)  # its gradients overflow
    model.update(batches[1])
    after = moving_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (model.updates, model.skipped_steps) == (2, 1)
    model.accelerator.scaler.update(2.0**10)
    model.update(batches[2])
    moved = moving_state(model)
    for kind in ("student", "teacher", "rate"):
        assert any(not torch.equal(moved[name], before[name]) for name in moved if name.startswith(kind)), kind
    assert model.skipped_steps == 1


def test_a_resumed_run_goes_on_with_the_scaler_and_the_schedule_of_the_unbroken_one(tmp_path: Path) -> None:
    whole, batches = half_precision_model(tmp_path)
    whole.update(batches[0])
    whole.accelerator.scaler.update(2.0**80)
    whole.update(batches[1])
    whole.accelerator.scaler.update(2.0**10)
    whole.update(batches[2])
    whole.save(str(tmp_path / "model.pt"))
    generator = torch.get_rng_state()
    resumed, _ = half_precision_model(tmp_path)
    resumed.load(str(tmp_path / "model.pt"))
    assert resumed.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert resumed.accelerator.scaler.get_scale() == 2.0**10
    for model in (whole, resumed):
        torch.set_rng_state(generator)
        for batch in batches:
            model.update(batch)
    expected, found = moving_state(whole), moving_state(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed.accelerator.scaler.get_scale() == whole.accelerator.scaler.get_scale() > 2.0**10


def test_a_checkpoint_of_single_precision_resumes_in_half_precision_and_the_reverse(tmp_path: Path) -> None:
    half, batches = half_precision_model(tmp_path)
    half.update(batches[0])
    half.save(str(tmp_path / "half.pt"))
    single = MTDNNModel(tiny_config(tmp_path, *MNLI, *FLAGS), half.task_defs, 20)
    single.load(str(tmp_path / "half.pt"))
    single.update(batches[1])
    single.save(str(tmp_path / "single.pt"))
    half, _ = half_precision_model(tmp_path)
    half.load(str(tmp_path / "single.pt"))
    assert half.updates == 2
    assert half.accelerator.scaler.get_scale() == 2.0**16


# autocast within the model's forward alone, where accelerate puts it


def in_float16(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `mixed_precision="fp16"` on a GPU, which accelerate refuses here."""
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu")


def gradient_of_the_noise(
    how: str, name: str, size: float, folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int = 3
) -> Tensor:
    """∂ℓ_a/∂δ of the real tokens in the first ascent step, (tokens, hidden), with a head of that size."""
    lengths = tuple(4 + row % 4 for row in range(rows))
    batch = collate(examples("classification", lengths))
    model = tiny_model("classification", dtype=torch.float32)
    with torch.no_grad():
        model.classifier.weight.mul_(size)
        model.classifier.bias.zero_()
    method = search(PERTURBATIONS[name], noise_var=0.3, norm_p="l2", radius=None, projection="none", k=2)
    trace = Trace(monkeypatch)
    if how == "Trainer":
        trainer = trainer_of(model, "classification", folder, method, train_dataset=examples("classification", lengths))
        in_float16(trainer.accelerator, monkeypatch)
        trainer.train()
    else:
        if how == "accelerate":
            accelerator = Accelerator(cpu=True)
            in_float16(accelerator, monkeypatch)
            model = accelerator.prepare_model(model)
        regularizer = ModelRegularizer(method, model.half() if how == "pure" else model)
        seeds = example_seeds(42, 0, [str(row) for row in range(len(lengths))])  # the Trainer's of its first update
        regularizer(model, batch, model(**batch), noise_seeds=seeds)
        assert regularizer.last is not None and regularizer.last.skipped == 0
    monkeypatch.undo()
    return trace.steps[0].gradient[batch["attention_mask"].bool()]


@pytest.mark.parametrize("how", ["accelerate", "Trainer", "pure"])
@pytest.mark.parametrize(("name", "size"), [("smart", 3e-3), ("at", 1e-6), ("freelb", 1e-6)])
def test_gradients_of_the_noise_do_not_vanish_where_autocast_ends_before_the_search_goes_on(
    how: str, name: str, size: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a head so small that most entries lie below float16's smallest number, 6e-8, unless the loss is scaled."""
    single = gradient_of_the_noise("single", name, size, tmp_path, monkeypatch)
    half = gradient_of_the_noise(how, name, size, tmp_path, monkeypatch)
    assert single.abs().median() < 6e-8
    assert (half == 0).double().mean() < 0.05
    assert F.cosine_similarity(single.flatten(), half.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("name", ["smart", "at", "freelb"])
def test_a_loss_in_float16_of_many_examples_does_not_overflow(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, half = (gradient_of_the_noise(how, name, 1.0, tmp_path, monkeypatch, 40) for how in ("single", "pure"))
    assert F.cosine_similarity(single.flatten(), half.flatten(), dim=0) > 0.999
