"""AdversarialTrainer: the objective of each head, Trainer's own loss normalization, adapters, precision, processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from module.noise_injection import NoiseInjection, UnsupportedLevelError
from mt_dnn.hf_trainer import AdversarialTrainer
from mt_dnn.perturbation import (
    AdversarialPerturbation,
    AdversarialTraining,
    AlumPerturbation,
    FreeLbPerturbation,
    SiftPerturbation,
    SmartPerturbation,
)
from tests.encoders import hook_count

ROOT = Path(__file__).parents[2]
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
NO_NOISE: dict[str, Any] = {"noise_var": 0.0, "step_size": 0.1, "radius": 0.1, "norm_p": "l2"}
HEADS = ("sequence", "regression", "token", "span", "causal")


def tiny_bert(head: str = "sequence", dropout: float = 0.0, **options: Any) -> Any:
    torch.manual_seed(0)
    if head == "causal":
        config = transformers.LlamaConfig(**SIZES, max_position_embeddings=24, pad_token_id=0, **options)
        return transformers.LlamaForCausalLM(config)
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    labels = {"sequence": 3, "regression": 1, "token": 4, "span": 2}[head]
    config = transformers.BertConfig(**SIZES, **drop, max_position_embeddings=24, num_labels=labels, **options)
    classes = {"token": transformers.BertForTokenClassification, "span": transformers.BertForQuestionAnswering}
    model = classes.get(head, transformers.BertForSequenceClassification)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name or "qa_outputs" in name:
                parameter.mul_(20)  # logits that differ
    return model


def rows_of(head: str = "sequence", count: int = 6) -> list[dict[str, Any]]:
    """Examples of several lengths, padded to eight tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(count):
        length = 8 - number % 4
        ids = torch.randint(5, 40, (8,), generator=generator)
        mask = (torch.arange(8) < length).long()
        row: dict[str, Any] = {"input_ids": ids * mask, "attention_mask": mask}
        if head == "sequence":
            row["labels"] = number % 3
        elif head == "regression":
            row["labels"] = float(number)
        elif head == "span":
            row |= {"start_positions": 1, "end_positions": number % 4}
        elif head == "token":
            row["labels"] = torch.where(mask == 1, ids % 4, -100)
        else:
            row["labels"] = torch.where(mask == 1, ids, -100)
        rows.append(row)
    return rows


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 3, "max_steps": 1, "learning_rate": 1e-2, "optim": "sgd", "max_grad_norm": 0.0,
        "weight_decay": 0.0, "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "logging_steps": 1, "seed": 3, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**settings, **options})


def trainer_of(
    folder: Path, model: Any, rows: list[dict[str, Any]], perturbation: AdversarialPerturbation | None, **options: Any
) -> Any:
    own = {name: options.pop(name) for name in ("alpha", "compute_loss_func") if name in options}
    settings = arguments(folder, **options)
    if perturbation is None:
        return Trainer(model=model, args=settings, train_dataset=rows, **own)
    return AdversarialTrainer(model=model, args=settings, train_dataset=rows, perturbation=perturbation, **own)


def batch_of(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}")  # noqa: B023


def moved(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((tensor - second[name]).abs().max()) for name, tensor in first.items())


# the objective


def expected_regularizer(model: Any, head: str, batch: dict[str, Tensor], delta: Tensor, level: str) -> Tensor:
    """R of METHODS section 4 at this δ, by task type."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    clean = model(**inputs)
    with NoiseInjection(model, level).add(delta):
        noisy = model(**inputs)
    real = batch["attention_mask"].bool()

    def symmetric(first: Tensor, second: Tensor) -> Tensor:
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        # the criterion detaches the first distribution of each half
        return (log_q.detach().exp() * (log_q.detach() - log_p)).sum(-1) + (
            log_p.detach().exp() * (log_p.detach() - log_q)
        ).sum(-1)

    if head == "regression":
        return (noisy.logits - clean.logits).square().mean()
    if head == "sequence":
        return symmetric(noisy.logits, clean.logits).mean()
    if head == "token":
        return symmetric(noisy.logits[real], clean.logits[real]).mean()
    if head == "causal":
        targets = torch.zeros_like(real)
        targets[:, :-1] = (batch["labels"] != -100)[:, 1:]
        return symmetric(noisy.logits[targets], clean.logits[targets]).mean()
    total = torch.zeros((), dtype=clean.start_logits.dtype)
    for name in ("start_logits", "end_logits"):
        parts = [symmetric(noisy[name][row, mask], clean[name][row, mask]) for row, mask in enumerate(real)]
        total = total + torch.stack(parts).mean()
    return total


@pytest.mark.parametrize("head", HEADS)
def test_a_step_is_that_of_the_task_loss_and_alpha_times_the_regularizer(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mt_dnn.perturbation.search

    model, rows = tiny_bert(head), rows_of(head, 3)
    level = "pre_ln" if head == "causal" else "post_ln"
    deltas: list[Tensor] = []
    final_pass = mt_dnn.perturbation.search.Search.final_pass

    def recording(search: Any, h: Tensor) -> Tensor:
        output = final_pass(search, h)
        deltas.append(search.delta.detach().clone())
        return output

    monkeypatch.setattr(mt_dnn.perturbation.search.Search, "final_pass", recording)
    method = SmartPerturbation(noise_var=0.02, step_size=0.1, radius=0.2, level=level)
    before = state_of(model)
    trainer = trainer_of(tmp_path, model, rows, method, alpha=2.0)
    trainer.train()
    after = state_of(model)
    twin = tiny_bert(head)
    twin.load_state_dict(before)
    twin.train()
    batch = batch_of(rows)
    regularizer = expected_regularizer(twin, head, batch, deltas[-1], level)
    (twin(**batch).loss + 2.0 * regularizer).backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
    assert_close(state_of(twin), after, 2e-6)
    assert moved(before, after) > 1e-4
    assert regularizer.item() > 1e-6
    (entry,) = [entry for entry in trainer.state.log_history if "adv_loss" in entry]
    assert entry["adv_loss"] == pytest.approx(regularizer.item(), rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_alpha_zero_is_the_plain_trainer_bit_for_bit(dropout: float, tmp_path: Path) -> None:
    found = []
    for perturbation in (None, SiftPerturbation.with_defaults(), SiftPerturbation.with_defaults(level="pre_ln")):
        model = tiny_bert(dropout=dropout)
        options = {} if perturbation is None else {"alpha": 0.0}
        trainer_of(tmp_path, model, rows_of(), perturbation, max_steps=4, **options).train()
        found.append(state_of(model))
    assert_close(found[0], found[1], 0.0)
    assert_close(found[0], found[2], 0.0)


def test_evaluation_is_plain_and_leaves_no_hook(tmp_path: Path) -> None:
    model = tiny_bert()
    trainer = trainer_of(tmp_path, model, rows_of(), SiftPerturbation.with_defaults())
    trainer.train()
    forwards: list[int] = []
    handle = model.bert.register_forward_hook(lambda *_: forwards.append(1))
    found = trainer.evaluate(rows_of())
    assert len(forwards) == 1
    handle.remove()
    with torch.no_grad():
        assert found["eval_loss"] == pytest.approx(model.eval()(**batch_of(rows_of())).loss.item(), rel=1e-5)
    assert hook_count(model) == 0


# normalization


UPDATES: dict[str, Any] = {
    "plain": lambda: None,
    "smart": lambda: SmartPerturbation(**NO_NOISE | {"noise_var": 0.05}, level="pre_ln"),
    "at": lambda: AdversarialTraining(**NO_NOISE, k=2, level="pre_ln"),
    "freelb": lambda: FreeLbPerturbation(**NO_NOISE, k=2, level="pre_ln"),
}


def steps_of(head: str, method: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What one update on six examples does to the parameters: as one batch, and as three batches accumulated."""
    found = []
    for size, steps in ((6, 1), (2, 3)):
        model = tiny_bert(head)
        before = state_of(model)
        settings: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        if method != "plain":
            settings["alpha"] = 2.0
        trainer_of(folder, model, rows_of(head), UPDATES[method](), **settings).train()
        found.append({name: tensor - before[name] for name, tensor in state_of(model).items()})
    return found[0], found[1]


@pytest.mark.parametrize("method", UPDATES)
def test_accumulated_batches_of_unequal_token_counts_weigh_as_one_batch(method: str, tmp_path: Path) -> None:
    """Trainer divides by the labels of the whole update; so is R divided."""
    whole, accumulated = steps_of("causal", method, tmp_path)
    assert_close(whole, accumulated, 2e-6)
    assert max(float(step.abs().max()) for step in whole.values()) > 1e-4


@pytest.mark.parametrize("method", UPDATES)
def test_where_a_model_ignores_the_number_of_labels_the_regularizer_is_added_up_as_its_loss_is(
    method: str, tmp_path: Path
) -> None:
    """transformers' classifiers take `num_items_in_batch` without using it: Trainer adds up the batches' means."""
    whole, accumulated = steps_of("sequence", method, tmp_path)
    assert_close({name: 3 * step for name, step in whole.items()}, accumulated, 6e-6)
    assert max(float(step.abs().max()) for step in whole.values()) > 1e-4


def test_a_loss_function_of_the_user_is_what_adversarial_training_climbs(tmp_path: Path) -> None:
    """A loss that falls where the model's own rises turns the direction round."""

    def reversed_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        loss = -nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    found = []
    for own in ({}, {"compute_loss_func": reversed_loss}):
        model = tiny_bert()
        method = AdversarialTraining(**NO_NOISE, level="post_ln")
        trainer = trainer_of(tmp_path, model, rows_of(count=3), method, alpha=1.0, **own)
        trainer.train()
        found.append(trainer.state.log_history[0]["adv_loss"])
    clean = tiny_bert()(**batch_of(rows_of(count=3))).loss.item()
    assert found[0] > clean + 1e-4
    assert found[1] > -clean + 1e-4


def test_label_smoothing_keeps_the_labels_for_every_pass(tmp_path: Path) -> None:
    model = tiny_bert()
    before = state_of(model)
    trainer = trainer_of(
        tmp_path, model, rows_of(), AdversarialTraining(**NO_NOISE), label_smoothing_factor=0.1, max_steps=2
    )
    trainer.train()
    assert moved(before, state_of(model)) > 1e-4


# methods


def test_alum_trains_plainly_before_its_start(tmp_path: Path) -> None:
    model = tiny_bert()
    trainer = trainer_of(tmp_path, model, rows_of(), AlumPerturbation(**NO_NOISE | {"noise_var": 0.1}), max_steps=4)
    trainer.train()
    logged = {entry["step"]: "adv_loss" in entry for entry in trainer.state.log_history if "loss" in entry}
    assert logged == {1: False, 2: False, 3: True, 4: True}


def test_freelb_with_one_point_and_no_noise_is_the_plain_trainer(tmp_path: Path) -> None:
    found = []
    for method in (None, FreeLbPerturbation(**NO_NOISE, k=1)):
        model = tiny_bert()
        trainer_of(tmp_path, model, rows_of(), method, max_steps=3).train()
        found.append(state_of(model))
    assert_close(found[0], found[1], 1e-7)


@pytest.mark.parametrize("level", ["pre_ln", "post_ln", "deberta"])
def test_every_level_trains_and_the_clean_pass_has_the_levels_own_form(level: str, tmp_path: Path) -> None:
    model = tiny_bert()
    method = SmartPerturbation(**NO_NOISE, k=0, level=level)
    trainer = trainer_of(tmp_path, model, rows_of(count=3), method, alpha=1.0)
    trainer.train()
    assert trainer.state.log_history[0]["adv_loss"] == pytest.approx(0.0, abs=1e-12)  # no noise: the same pass twice


def test_refusals(tmp_path: Path) -> None:
    sift = SiftPerturbation.with_defaults()
    with pytest.raises(ValueError, match="no divergence for multi_label_classification"):
        trainer_of(tmp_path, tiny_bert(problem_type="multi_label_classification"), rows_of(), sift)
    with pytest.raises(UnsupportedLevelError, match="has no injection point 'post_ln'; it has: pre_ln"):
        trainer_of(tmp_path, tiny_bert("causal"), rows_of("causal"), sift)
    t5 = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, num_labels=3)
    with pytest.raises(UnsupportedLevelError, match="embeds words in 2 stacks"):
        trainer_of(tmp_path, transformers.T5ForSequenceClassification(t5), rows_of(), SmartPerturbation.with_defaults())


# precision, checkpoints


def test_bfloat16_moves_every_parameter_about_as_single_precision(tmp_path: Path) -> None:
    """Under autocast a cached copy of a weight without gradient would leave parameters where they were."""
    found = []
    for bf16 in (False, True):
        model = tiny_bert()
        before = state_of(model)
        trainer_of(
            tmp_path, model, rows_of(count=3), AdversarialTraining(**NO_NOISE, k=2), bf16=bf16, alpha=1.0
        ).train()
        found.append({name: tensor - before[name] for name, tensor in state_of(model).items()})
    assert {name for name, step in found[0].items() if step.any()} == {n for n, step in found[1].items() if step.any()}
    flat = [torch.cat([tensor.flatten() for tensor in steps.values()]) for steps in found]
    assert nn.functional.cosine_similarity(*flat, dim=0) > 0.99


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    found = []
    for on in (False, True):
        model = tiny_bert()
        trainer_of(tmp_path, model, rows_of(), SiftPerturbation.with_defaults(), gradient_checkpointing=on).train()
        found.append(state_of(model))
    assert_close(found[0], found[1], 1e-7)


def test_a_run_resumed_from_a_checkpoint_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole, resumed = tiny_bert(dropout=0.1), tiny_bert(dropout=0.1)
    trainer_of(tmp_path, whole, rows_of(count=12), SiftPerturbation.with_defaults(), **options).train()
    trainer = trainer_of(tmp_path, resumed, rows_of(count=12), SiftPerturbation.with_defaults(), **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_close(state_of(whole), state_of(resumed), 0.0)


# adapters


@pytest.mark.parametrize("targets", [["query"], ["query", "word_embeddings"]])
@pytest.mark.parametrize("level", ["pre_ln", "post_ln", "deberta"])
def test_lora_trains_its_own_parameters_alone_under_noise(targets: list[str], level: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS", init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_bert(), config)
    before = state_of(model)
    method = SmartPerturbation(**NO_NOISE | {"noise_var": 0.05}, level=level)
    trainer = trainer_of(tmp_path, model, rows_of(), method, alpha=1.0)
    trainer.train()
    changed = {name for name, tensor in state_of(model).items() if not torch.equal(tensor, before[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed and changed <= trained
    assert any("lora" in name for name in changed) and any("classifier" in name for name in changed)
    assert trainer.state.log_history[0]["adv_loss"] > 1e-8


# processes

TWO = """
import sys
from pathlib import Path
import torch
from tests.mt_dnn.test_hf_trainer import UPDATES, rows_of, state_of, tiny_bert, trainer_of
folder, name, head, size = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
model = tiny_bert(head)
trainer = trainer_of(folder, model, rows_of(head, 8), UPDATES[name](), per_device_train_batch_size=size, max_steps=4,
                     num_train_epochs=2, alpha=1.0, average_tokens_across_devices=head == "causal")
trainer.train()
torch.save(state_of(model), folder / f"{name}_{trainer.args.world_size}_{trainer.args.process_index}.pt")
"""


@pytest.mark.parametrize(("name", "head"), [("smart", "causal"), ("at", "sequence"), ("freelb", "causal")])
def test_two_processes_end_with_one_processs_parameters(name: str, head: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = tmp_path / "two.py"
    script.write_text(TWO)
    for launcher, size in (([], 4), (["-m", "torch.distributed.run", "--nproc_per_node", "2"], 2)):
        command = [sys.executable, *launcher, str(script), str(tmp_path), name, head, str(size)]
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert finished.returncode == 0, finished.stderr[-3000:]
    one, first, second = (torch.load(tmp_path / f"{name}_{of}.pt") for of in ("1_0", "2_0", "2_1"))
    assert_close(first, second, 0.0)
    assert_close(one, first, 5e-6)
    assert moved(state_of(tiny_bert(head)), one) > 1e-4
