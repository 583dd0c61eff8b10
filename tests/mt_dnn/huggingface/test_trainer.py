"""AdversarialTrainer's objective on each head, against the formulas; the course of a training run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.utils.data import SequentialSampler

import mt_dnn.perturbation.noise
from mt_dnn.huggingface.trainer import AdversarialMixin, AdversarialTrainer
from mt_dnn.perturbation import (
    AdversarialTraining,
    AlumPerturbation,
    FreeLbPerturbation,
    SiftPerturbation,
    SmartPerturbation,
)
from mt_dnn.perturbation.injection import UnsupportedLevelError
from mt_dnn.perturbation.noise import standard_noise
from tests.encoders import hook_count
from tests.hf import (
    ALPHA,
    HEADS,
    LENGTHS,
    RADIUS,
    SIGMA,
    STEP,
    WIDTH,
    OrderedTrainer,
    arguments,
    assert_equal_gradients,
    collate,
    examples,
    gradient_of_update,
    parameters,
    search,
    tiny_model,
    trainer_of,
)

NOISE = torch.randn(len(LENGTHS), WIDTH, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial noise of every search on three examples is NOISE at real tokens; other draws stay as they are."""

    def fixed(mask: Tensor, hidden: int, *more: Any) -> Tensor:
        if hidden != NOISE.size(-1):
            return standard_noise(mask, hidden, *more)
        return NOISE[: len(mask)] * mask.unsqueeze(-1)

    monkeypatch.setattr(mt_dnn.perturbation.noise, "standard_noise", fixed)


def forward(model: Any, batch: dict[str, Tensor], delta: Tensor | float, level: str) -> Any:
    """The model's output with δ added at the word embeddings or behind the embedding LayerNorm."""
    encoder = model.get_input_embeddings() if level == "pre_ln" else model.bert.embeddings.LayerNorm
    handle = encoder.register_forward_hook(lambda _, __, h: h + delta)
    output = model(**batch)
    handle.remove()
    return output


def symmetrized_kl(perturbed: Tensor, clean: Tensor) -> Tensor:
    """KL(Q‖P) + KL(P‖Q), a mean over rows; of each half the first distribution is a constant."""
    log_p, log_q = perturbed.log_softmax(-1), clean.log_softmax(-1)
    first = log_q.exp().detach() * (log_q.detach() - log_p)
    second = log_p.exp().detach() * (log_p.detach() - log_q)
    return (first + second).sum(-1).mean()


def divergence(head: str, perturbed: Any, clean: Any, batch: dict[str, Tensor]) -> Tensor:
    """D by the view of the task type: METHODS, section 4."""
    if head == "spans":
        total = torch.zeros((), dtype=torch.float64)
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            for part in ("start_logits", "end_logits"):
                total = total + symmetrized_kl(
                    perturbed[part][row : row + 1, :length], clean[part][row : row + 1, :length]
                )
        return total / len(batch["input_ids"])
    p, q = perturbed.logits, clean.logits
    if head == "regression":
        return (p - q).square().mean()
    if head == "tokens":
        real = batch["attention_mask"].bool()
        return symmetrized_kl(p[real], q[real])
    if head == "generation":
        target = batch["labels"][:, 1:] != -100
        return symmetrized_kl(p[:, :-1][target], q[:, :-1][target])
    return symmetrized_kl(p, q)


def task_loss(head: str, output: Any, batch: dict[str, Tensor]) -> Tensor:
    if head == "spans":
        parts = ((output.start_logits, "start_positions"), (output.end_logits, "end_positions"))
        return sum((F.cross_entropy(logits, batch[name]) for logits, name in parts), start=torch.zeros(())) / 2
    logits, labels = output.logits, batch["labels"]
    if head == "regression":
        return F.mse_loss(logits.squeeze(-1), labels)
    if head == "generation":
        return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
    return F.cross_entropy(logits.view(-1, 3), labels.flatten())


def ascended(loss: Tensor, delta: Tensor) -> Tensor:
    """One ascent step by the token's max norm, and the projection onto the ball: METHODS, section 3, steps 4 and 5."""
    (gradient,) = torch.autograd.grad(loss, delta, retain_graph=True)
    size = gradient.abs().amax(-1, keepdim=True)
    step = torch.where(size > 0, STEP * gradient / size.where(size > 0, 1.0), 0.0)
    return (delta + step).clamp(-RADIUS, RADIUS).detach()


def expected_objective(model: Any, head: str, level: str) -> tuple[Tensor, Tensor]:
    """Task loss and R of the three examples, by the formulas."""
    batch = collate(examples(head))
    real = batch["attention_mask"].unsqueeze(-1)
    delta = ((SIGMA * NOISE).clamp(-RADIUS, RADIUS) * real).requires_grad_()
    clean = model(**batch)
    loss = divergence(head, forward(model, batch, delta, level), clean, batch)
    delta = ascended(loss, delta) * real
    regularizer = divergence(head, forward(model, batch, delta, level), clean, batch)
    return task_loss(head, clean, batch), regularizer


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_of_an_update_is_that_of_task_loss_and_regularizer(
    head: str, tmp_path: Path, fixed_noise: None
) -> None:
    level = "pre_ln" if head == "generation" else "post_ln"
    model = tiny_model(head)
    loss, regularizer = expected_objective(model, head, level)
    gradients = torch.autograd.grad(loss + ALPHA * regularizer, list(model.parameters()), allow_unused=True)
    expected = {
        name: torch.zeros_like(p) if gradient is None else gradient
        for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True)
    }
    trainer = trainer_of(model, head, tmp_path, search(level=level))
    # Llama's norms and its loss are computed in single precision.
    tolerance = 1e-6 if head == "generation" else 1e-12
    assert_equal_gradients(gradient_of_update(trainer), expected, tolerance)
    logged = trainer.state.log_history[0]
    assert regularizer.item() > 1e-4
    assert logged["adv_loss"] == pytest.approx(regularizer.item(), rel=1e-5)
    assert logged["loss"] == pytest.approx((loss + ALPHA * regularizer).item(), rel=1e-5)


def test_adversarial_training_ascends_the_loss_on_the_labels(tmp_path: Path) -> None:
    model = tiny_model("classification")
    batch = collate(examples("classification"))
    delta = torch.zeros(3, WIDTH, 16, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(forward(model, batch, delta, "pre_ln").logits, batch["labels"])
    (gradient,) = torch.autograd.grad(loss, delta)
    regularizer = F.cross_entropy(forward(model, batch, RADIUS * gradient.sign(), "pre_ln").logits, batch["labels"])
    clean = F.cross_entropy(model(**batch).logits, batch["labels"])
    total = clean + ALPHA * regularizer
    expected = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(total, list(model.parameters())), strict=True)
    )
    method = search(AdversarialTraining, norm_p="l1", noise_var=0.0, step_size=RADIUS)
    trainer = trainer_of(model, "classification", tmp_path, method)
    assert_equal_gradients(gradient_of_update(trainer), expected, 1e-12)
    assert regularizer > clean
    assert trainer.state.log_history[0]["adv_loss"] == pytest.approx(regularizer.item(), rel=1e-6)


def test_freelb_stands_in_the_place_of_the_task_loss(tmp_path: Path, fixed_noise: None) -> None:
    model = tiny_model("classification")
    batch = collate(examples("classification"))
    real = batch["attention_mask"].unsqueeze(-1)
    delta = ((SIGMA * NOISE).clamp(-RADIUS, RADIUS) * real).requires_grad_()
    first = F.cross_entropy(forward(model, batch, delta, "pre_ln").logits, batch["labels"])
    second = F.cross_entropy(forward(model, batch, ascended(first, delta) * real, "pre_ln").logits, batch["labels"])
    mean = (first + second) / 2
    expected = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(mean, list(model.parameters())), strict=True)
    )
    trainer = trainer_of(model, "classification", tmp_path, search(FreeLbPerturbation, k=2))
    assert_equal_gradients(gradient_of_update(trainer), expected, 1e-12)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(mean.item(), rel=1e-6)


def test_freelb_gives_the_clean_outputs_beside_the_same_loss(tmp_path: Path, fixed_noise: None) -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    trainer = trainer_of(model, "classification", tmp_path, search(FreeLbPerturbation, k=2))
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert torch.equal(loss, trainer.compute_loss(model, batch))
    assert torch.equal(outputs.logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("kind", "labelled"), [(SmartPerturbation, [True, False, False]), (AdversarialTraining, [True] * 3)]
)
def test_perturbed_passes_leave_the_labels_out_unless_the_method_needs_them(
    kind: type[Any], labelled: list[bool], tmp_path: Path
) -> None:
    model, batch = tiny_model("spans"), collate(examples("spans"))
    trainer = trainer_of(model, "spans", tmp_path, search(kind))
    seen: list[bool] = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append({"start_positions", "end_positions"} <= inputs.keys()), with_kwargs=True
    )
    trainer.compute_loss(model, batch)
    assert seen == labelled


# A LayerNorm with an eps this large tells embeddings that were normalized before from others.
LARGE_EPS = {"layer_norm_eps": 0.5}


@pytest.mark.parametrize("kind", [SmartPerturbation, AlumPerturbation])
def test_level_deberta_puts_its_layer_norm_in_the_clean_pass(kind: type[SmartPerturbation], tmp_path: Path) -> None:
    model = tiny_model("classification", **LARGE_EPS)
    batch = collate(examples("classification"))
    plain = F.cross_entropy(model(**batch).logits, batch["labels"])
    handle = model.bert.embeddings.LayerNorm.register_forward_pre_hook(
        lambda _, inputs: (F.layer_norm(inputs[0], (16,), eps=1e-7),)
    )
    loss = F.cross_entropy(model(**batch).logits, batch["labels"])
    handle.remove()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = dict(zip(dict(model.named_parameters()), gradients, strict=True))
    # Of the curriculum it is the plain part.
    method = search(kind, level="deberta", start_ratio=1.0 if kind is AlumPerturbation else 0.0)
    trainer = trainer_of(model, "classification", tmp_path, method, alpha=0.0)
    assert_equal_gradients(gradient_of_update(trainer), expected, 1e-12)
    assert abs(plain.item() - loss.item()) > 1e-3


class PlainTrainer(transformers.Trainer):
    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


@pytest.mark.parametrize("level", ["pre_ln", "post_ln"])
def test_alpha_zero_is_the_plain_trainer_bit_for_bit_with_dropout(level: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 3, "learning_rate": 0.1, "per_device_train_batch_size": 2}
    plain = tiny_model("classification", dropout=0.2)
    regularized = tiny_model("classification", dropout=0.2)
    arguments_ = arguments(tmp_path, **options)
    PlainTrainer(plain, arguments_, data_collator=collate, train_dataset=examples("classification")).train()
    trainer = trainer_of(regularized, "classification", tmp_path, search(level=level), alpha=0.0, **options)
    trainer.train()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, dict(regularized.named_parameters())[name]), name
    assert all(entry["adv_loss"] > 1e-4 for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize(("ratio", "updates", "plain"), [(0.5, 4, 2), (0.28, 25, 7)])  # 0.28 * 25 > 7 as floats
def test_a_curriculum_is_plain_before_its_start(ratio: float, updates: int, plain: int, tmp_path: Path) -> None:
    model = tiny_model("classification")
    method = search(AlumPerturbation, start_ratio=ratio)
    trainer = trainer_of(model, "classification", tmp_path, method, max_steps=updates, learning_rate=0.01)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert ["adv_loss" in entry for entry in entries] == [False] * plain + [True] * (updates - plain)
    assert trainer.regularizer.calls == 0  # the trainer names its noise by the update


def test_a_method_without_a_clean_pass_starts_from_no_batch_before(tmp_path: Path) -> None:
    model = tiny_model("classification")
    trainer = trainer_of(model, "classification", tmp_path, search(FreeLbPerturbation, start_ratio=0.5), max_steps=2)
    trainer.train()
    assert ["adv_loss" in entry for entry in trainer.state.log_history if "loss" in entry] == [False, True]


def test_evaluation_and_prediction_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("classification", **LARGE_EPS)
    trainer = trainer_of(model, "classification", tmp_path, search(level="deberta"), per_device_eval_batch_size=3)
    hooks = hook_count(model)
    calls: list[int] = []
    model.bert.register_forward_hook(lambda *_: calls.append(hook_count(model)))
    found = trainer.predict(examples("classification"))
    assert calls == [hooks + 1]
    model.eval()
    expected = model(**collate(examples("classification")))
    assert found.predictions == pytest.approx(expected.logits.detach().numpy(), abs=1e-12)
    assert found.metrics["test_loss"] == pytest.approx(float(expected.loss.detach()), rel=1e-9)
    assert "adv_loss" not in found.metrics


def test_a_resumed_run_ends_with_the_parameters_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def trainer(folder: str) -> OrderedTrainer:
        options: dict[str, Any] = {"max_steps": 4, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 2}
        model = tiny_model("classification", dropout=0.1)
        return trainer_of(model, "classification", tmp_path / folder, search(level="post_ln"), **options)

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, parameter in parameters(whole.model).items():
        assert torch.equal(parameter, parameters(resumed.model)[name]), name
    logs = [[entry["adv_loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert len(logs[0]) == 4
    assert logs[1] == logs[0]


def test_bfloat16_gives_every_parameter_a_gradient_near_that_of_single_precision(tmp_path: Path) -> None:
    def gradient(**options: Any) -> dict[str, Tensor]:
        model = tiny_model("classification", dtype=torch.float32)
        return gradient_of_update(
            trainer_of(model, "classification", tmp_path, search(level="post_ln"), alpha=3.0, **options)
        )

    full, half = gradient(), gradient(bf16=True)
    flat_full, flat_half = (torch.cat([x.flatten() for x in found.values()]) for found in (full, half))
    assert flat_half.isfinite().all()
    assert F.cosine_similarity(flat_full, flat_half, dim=0) > 0.99
    assert float(flat_half.norm() / flat_full.norm()) == pytest.approx(1, abs=0.1)
    assert not torch.equal(flat_full, flat_half)
    for name, expected in full.items():
        if expected.norm() > 1e-3:
            assert F.cosine_similarity(expected.flatten(), half[name].flatten(), dim=0) > 0.9, name


@pytest.mark.parametrize("head", ["classification", "generation"])
def test_gradient_checkpointing_changes_no_gradient(head: str, tmp_path: Path) -> None:
    plain, checkpointed = (
        gradient_of_update(trainer_of(tiny_model(head), head, tmp_path, gradient_checkpointing=on))
        for on in (False, True)
    )
    assert_equal_gradients(checkpointed, plain, 1e-6 if head == "generation" else 1e-12)
    assert max(float(x.abs().max()) for x in plain.values()) > 1e-3


def test_what_cannot_be_regularized_is_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    llama = tiny_model("generation")
    with pytest.raises(UnsupportedLevelError, match="LlamaForCausalLM has no injection point 'post_ln'.*pre_ln"):
        trainer_of(llama, "generation", tmp_path, search(SiftPerturbation))
    with pytest.raises(ValueError, match="SmartPerturbation is a class; accepted: SmartPerturbation.with_defaults"):
        trainer_of(tiny_model("classification"), "classification", tmp_path, SmartPerturbation)
    reentrant: dict[str, Any] = {"gradient_checkpointing": True}
    reentrant["gradient_checkpointing_kwargs"] = {"use_reentrant": True}
    with pytest.raises(
        ValueError, match="use_reentrant=True gives no gradient of the noise; accepted: use_reentrant=Fa"
    ):
        trainer_of(tiny_model("classification"), "classification", tmp_path, **reentrant)


def test_several_gpus_in_one_process_are_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="several GPUs in one process; accepted: DistributedDataParallel with"):
        AdversarialTrainer(model=tiny_model("classification"), args=args, perturbation=search())


def test_alpha_is_the_measured_one_by_default(tmp_path: Path) -> None:
    method = SmartPerturbation.with_defaults()
    trainer = trainer_of(tiny_model("classification"), "classification", tmp_path, method, alpha=None)
    assert trainer.alpha == method.measured_alpha
    assert math.isfinite(trainer.alpha)


class OwnLoss(transformers.Trainer):
    """A loss of one's own, in the way in which transformers' pages show it."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        assert set(more) <= {"num_items_in_batch"}
        output = model(**inputs)
        return (2 * output.loss, output) if return_outputs else 2 * output.loss


class AdversarialOwnLoss(AdversarialMixin, OwnLoss):
    """In the order of the examples, as `OrderedTrainer`."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def test_a_trainer_with_a_loss_of_its_own_is_regularized(tmp_path: Path) -> None:
    plain = trainer_of(tiny_model("classification"), "classification", tmp_path, kind=AdversarialOwnLoss, alpha=0.0)
    once = trainer_of(tiny_model("classification"), "classification", tmp_path, alpha=0.0)
    twice = {name: 2 * gradient for name, gradient in gradient_of_update(once).items()}
    assert_equal_gradients(gradient_of_update(plain), twice)
    own = trainer_of(tiny_model("classification"), "classification", tmp_path, kind=AdversarialOwnLoss)
    own.train()
    assert own.state.log_history[0]["adv_loss"] > 0
