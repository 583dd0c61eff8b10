"""DPO, KTO, Reward, GRPO and RLOO with a regularizer: R and its gradient beside a computation by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

pytest.importorskip("trl")

import trl
from datasets import Dataset

from tests.hf import ALPHA, assert_equal_gradients, gradient_of_update, search, tiny_model
from tests.loops import decoder_by_hand as by_hand
from tests.loops.decoder_by_hand import fixed_noise as fixed_noise
from tests.loops.trl_trainers import (
    COMPLETIONS,
    PROMPTS,
    added_gradient,
    largest,
    logged,
    method,
    trained,
    trainer_of,
    words,
)
from tests.loops.trl_trainers import frozen_memory as frozen_memory
from tests.mt_dnn.huggingface.test_peft import lora

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("frozen_memory")]
TOLERANCE = 1e-6
REJECTED = ([17, 1], [18, 19, 20, 1], [21, 1])
BETA = 0.1


def pairs() -> Dataset:
    rows = zip(PROMPTS, COMPLETIONS, REJECTED, strict=True)
    return Dataset.from_list(
        [{"prompt": words(p), "chosen": f" {words(c)}", "rejected": f" {words(r)}"} for p, c, r in rows]
    )


def other_model() -> Any:
    """A reference that is not the model itself."""
    model = tiny_model("generation")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return model


class Texts:
    """Prompts with completions as one batch."""

    def __init__(self, prompts: Any, completions: Any) -> None:
        rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        labels = [[-100] * len(prompt) + completion for prompt, completion in zip(prompts, completions, strict=True)]
        self.ids = by_hand.row(rows, 0)
        self.mask = by_hand.row([[1] * len(text) for text in rows], 0)
        self.labels = by_hand.row(labels, -100)

    def of(self, model: Any) -> by_hand.Run:
        return by_hand.padded(model, self.ids, self.mask)

    def sums(self, logits: Tensor) -> Tensor:
        """log p of each completion."""
        labels = self.labels[:, 1:]
        found = logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None]).squeeze(-1)
        return (found * (labels != -100)).sum(1)


PAIRS = Texts(PROMPTS * 2, COMPLETIONS + REJECTED)


def preference_loss(reference: Any) -> by_hand.Loss:
    """Rafailov et al. 2023, equation 7."""
    with torch.no_grad():
        constant = PAIRS.sums(PAIRS.of(reference)(0.0))

    def of(logits: Tensor) -> Tensor:
        chosen, rejected = (PAIRS.sums(logits) - constant).chunk(2)
        return -F.logsigmoid(BETA * (chosen - rejected)).mean()

    return of


def pairs_r(name: str, model: Any, reference: Any) -> Tensor:
    between = by_hand.divergence(name, PAIRS.labels != -100)
    return by_hand.regularizer(name, PAIRS.of(model), PAIRS.mask, between, preference_loss(reference))


def dpo(folder: Path, perturbation: Any = None, model: Any = None, **options: Any) -> Any:
    model = tiny_model("generation") if model is None else model
    options = {"train_dataset": pairs(), "beta": BETA, **options}
    return trainer_of(trl.DPOTrainer, trl.DPOConfig, model, folder, perturbation, **options)


@pytest.mark.parametrize("precomputed", [False, True], ids=["reference", "precomputed reference"])
@pytest.mark.parametrize("name", ["smart", "vat", "random", "at", "freelb"])
def test_dpo_has_the_r_of_the_completions(name: str, precomputed: bool, tmp_path: Path, fixed_noise: None) -> None:
    model = tiny_model("generation")
    value = pairs_r(name, model, other_model())
    own, without = (
        dpo(tmp_path, method_, ref_model=other_model(), precompute_ref_log_probs=precomputed)
        for method_ in (method(name), None)
    )
    if name == "freelb":
        found, gradient = gradient_of_update(own), by_hand.gradient(model, value)
    else:
        found, gradient = added_gradient(own, without), by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert largest(gradient) > 1e-3
    assert logged(own, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("adapter", ["trained before", "new"])
@pytest.mark.parametrize("name", ["smart", "at"])
def test_dpos_reference_without_the_adapter_takes_no_noise(
    name: str, adapter: str, tmp_path: Path, fixed_noise: None
) -> None:
    targets = ["q_proj", "v_proj"]
    if adapter == "new":
        config = {"peft_config": peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_dropout=0.0, target_modules=targets)}
        own, without = (dpo(tmp_path, method_, **config) for method_ in (method(name), None))
        model, reference = (
            peft.get_peft_model(tiny_model("generation"), config["peft_config"]),
            tiny_model("generation"),
        )
        model.load_state_dict(own.model.state_dict())
    else:
        own, without = (dpo(tmp_path, method_, lora("generation", targets)) for method_ in (method(name), None))
        model, reference = lora("generation", targets), lora("generation", targets)
    value = pairs_r(name, model, reference)
    found, gradient = added_gradient(own, without), by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients({parameter: found[parameter] for parameter in gradient}, gradient, TOLERANCE)
    assert largest(gradient) > 1e-4
    assert logged(own, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)


SIDES = (True, False, True)


def judged() -> Dataset:
    rows = zip(PROMPTS, COMPLETIONS, SIDES, strict=True)
    return Dataset.from_list([{"prompt": words(p), "completion": f" {words(c)}", "label": side} for p, c, side in rows])


def kto(folder: Path, perturbation: Any = None, **options: Any) -> Any:
    options = {"train_dataset": judged(), "beta": BETA, "ref_model": other_model(), **options}
    return trainer_of(trl.KTOTrainer, trl.KTOConfig, tiny_model("generation"), folder, perturbation, **options)


@pytest.mark.parametrize("name", ["smart", "at", "freelb"])
def test_kto_has_the_r_of_the_completions(name: str, tmp_path: Path, fixed_noise: None) -> None:
    own, without = kto(tmp_path, method(name)), kto(tmp_path)
    model, reference, batch = tiny_model("generation"), other_model(), Texts(PROMPTS, COMPLETIONS)
    mismatched = Texts(PROMPTS, own.train_dataset["KL_completion_ids"])
    with torch.no_grad():
        constant = batch.sums(batch.of(reference)(0.0))
        logits, baseline = (mismatched.of(kind)(0.0) for kind in (model, reference))
        kl = (mismatched.sums(logits) - mismatched.sums(baseline)).mean().clamp(min=0)

    def loss(logits: Tensor) -> Tensor:
        """Ethayarajh et al. 2024, equation 8."""
        signs = torch.tensor([1.0 if side else -1.0 for side in SIDES])
        return (1 - torch.sigmoid(BETA * signs * (batch.sums(logits) - constant - kl))).mean()

    between = by_hand.divergence(name, batch.labels != -100)
    value = by_hand.regularizer(name, batch.of(model), batch.mask, between, loss)
    if name == "freelb":
        found, gradient = gradient_of_update(own), by_hand.gradient(model, value)
    else:
        found, gradient = added_gradient(own, without), by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert largest(gradient) > 1e-3
    assert logged(own, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)


def test_the_same_dropout_is_that_of_the_forward_that_gave_the_loss(tmp_path: Path) -> None:
    """Without noise nothing is left of R, though KTO runs another forward first."""
    still = search(same_dropout=True, noise_var=0.0, k=0)
    trainer = kto(tmp_path, still, disable_dropout=False)
    for module in trainer.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    trained(trainer)
    assert logged(trainer, "adv_loss")[0][0] == pytest.approx(0, abs=1e-12)


def scorer() -> Any:
    """A decoder with one number a text, tiny and in float64."""
    decoder = tiny_model("generation")
    config = transformers.LlamaConfig(**{**decoder.config.to_dict(), "num_labels": 1, "pad_token_id": 0})
    torch.manual_seed(1)
    model = transformers.LlamaForSequenceClassification(config).double()
    model.model.load_state_dict(decoder.model.state_dict())
    return model.train()


@pytest.mark.parametrize("name", ["smart", "at", "freelb"])
def test_rewards_are_compared_as_numbers(name: str, tmp_path: Path, fixed_noise: None) -> None:
    own, without = (
        trainer_of(trl.RewardTrainer, trl.RewardConfig, scorer(), tmp_path, method_, train_dataset=pairs())
        for method_ in (method(name), None)
    )
    model = scorer()

    def loss(rewards: Tensor) -> Tensor:
        chosen, rejected = rewards.squeeze(-1).chunk(2)
        return -F.logsigmoid(chosen - rejected).mean()

    value = by_hand.regularizer(
        name, PAIRS.of(model), PAIRS.mask, lambda perturbed, clean: (perturbed - clean).square().mean(), loss
    )
    if name == "freelb":
        found, gradient = gradient_of_update(own), by_hand.gradient(model, value)
    else:
        found, gradient = added_gradient(own, without), by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert largest(gradient) > 1e-3
    assert logged(own, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)


def reward(completions: list[str], **_: Any) -> list[float]:
    """A number that differs between completions."""
    return [sum(int(word[1:]) for word in text.split() if word[1:].isdigit()) % 7 / 7 for text in completions]


ONLINE = {"GRPO": (trl.GRPOTrainer, trl.GRPOConfig), "RLOO": (trl.RLOOTrainer, trl.RLOOConfig)}


def online(kind: str, folder: Path, perturbation: Any = None, **options: Any) -> Any:
    base: dict[str, Any] = {
        "train_dataset": Dataset.from_list([{"prompt": words(prompt)} for prompt in PROMPTS[:2]]),
        "reward_funcs": reward,
        "num_generations": 2,
        "max_completion_length": 4,
        "per_device_train_batch_size": 4,
    }
    if kind == "RLOO":
        base["beta"] = 0.0  # without a reference, which it loads from the hub
    return trainer_of(*ONLINE[kind], tiny_model("generation"), folder, perturbation, **{**base, **options})


def forwards_of(trainer: Any) -> list[dict[str, Tensor]]:
    """The arguments of the first forward with gradients of each batch to come."""
    seen: list[dict[str, Tensor]] = []
    compute_loss = trainer.compute_loss

    def keep(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and not seen[-1]:
            seen[-1].update({name: arguments[name] for name in ("input_ids", "attention_mask", "labels")})

    def begin(model: Any, inputs: Any, **options: Any) -> Tensor:
        seen.append({})
        loss: Tensor = compute_loss(model, inputs, **options)
        seen[-1]["inputs"] = inputs
        return loss

    trainer.model.register_forward_pre_hook(keep, with_kwargs=True)
    trainer.compute_loss = begin
    return seen


STEPS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("options", [{}, STEPS], ids=["one batch", "accumulation"])
@pytest.mark.parametrize("kind", ["GRPO", "GRPO grpo", "RLOO"])
def test_online_trainers_have_the_mean_r_of_the_batches_completions(
    kind: str, options: dict[str, Any], tmp_path: Path, fixed_noise: None
) -> None:
    kind, _, loss_type = kind.partition(" ")
    options = {**options, "loss_type": loss_type} if loss_type else options
    own, without = (online(kind, tmp_path, method_, **options) for method_ in (method("smart"), None))
    batches, others = forwards_of(own), forwards_of(without)
    found, model = added_gradient(own, without), tiny_model("generation")
    assert len(batches) == len(others) == (2 if "gradient_accumulation_steps" in options else 1)
    assert all(torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(batches, others, strict=True))
    assert any((batch["attention_mask"][:, 0] == 0).any() for batch in batches)  # padding on the left
    values = [
        by_hand.regularizer(
            "smart",
            by_hand.padded(model, batch["input_ids"], batch["attention_mask"]),
            batch["attention_mask"],
            by_hand.divergence("smart", batch["labels"] != -100),
        )
        for batch in batches
    ]
    gradient = by_hand.gradient(model, ALPHA * torch.stack(values).mean())
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert largest(gradient) > 1e-2


def test_rloo_has_the_r_of_its_loss(tmp_path: Path, fixed_noise: None) -> None:
    own, without = online("RLOO", tmp_path, method("at")), online("RLOO", tmp_path)
    (batches, _), model = (forwards_of(own), forwards_of(without)), tiny_model("generation")
    found = added_gradient(own, without)
    (batch,) = batches
    inputs: Any = batch["inputs"]
    wanted, mask = inputs["completion_ids"], inputs["completion_mask"]

    def loss(logits: Tensor) -> Tensor:
        """Ahmadian et al. 2024, with the ratio clipped to 0.8 … 1.2."""
        each = logits[:, -wanted.size(1) - 1 : -1].log_softmax(-1).gather(2, wanted[..., None]).squeeze(-1)
        ratio = ((each * mask).sum(1) - inputs["old_logps"]).exp()
        return -torch.min(ratio * inputs["advantages"], ratio.clamp(0.8, 1.2) * inputs["advantages"]).mean()

    run = by_hand.padded(model, batch["input_ids"], batch["attention_mask"])
    value = by_hand.regularizer("at", run, batch["attention_mask"], None, loss)
    gradient = by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert largest(gradient) > 1e-4


def test_freelb_is_refused_where_a_batch_is_not_the_models_arguments(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="^freelb has no clean pass .* have prompt_ids, .*; accepted: batches with input"
    ):
        online("RLOO", tmp_path, method("freelb")).train()


MADE = {
    "DPO": lambda folder, own, **options: dpo(folder, own, ref_model=other_model(), **options),
    "KTO": kto,
    "RLOO": lambda folder, own, **options: online("RLOO", folder, own, **options),
    "GRPO": lambda folder, own, **options: online("GRPO", folder, own, **options),
}


@pytest.mark.parametrize("kind", MADE)
def test_trl_counts_what_it_counts_without_a_regularizer(kind: str, tmp_path: Path) -> None:
    own, without = (MADE[kind](tmp_path, own, learning_rate=0.0, max_steps=2) for own in (method("smart"), None))
    trained(own, without)
    found, wanted = (
        [
            {name: value for name, value in entry.items() if "time" not in name and "per_second" not in name}
            for entry in trainer.state.log_history
        ]
        for trainer in (own, without)
    )
    changed = {"loss", "grad_norm", "train_loss", "total_flos"}
    for entry, other in zip(found, wanted, strict=True):
        assert {name: entry[name] for name in other if name not in changed} == {
            name: value for name, value in other.items() if name not in changed
        }
    assert {"num_tokens", "entropy"} <= set(wanted[0])


@pytest.mark.parametrize("name", ["at", "freelb"])
def test_methods_on_labels_are_refused_where_the_loss_is_a_share_of_an_updates(name: str, tmp_path: Path) -> None:
    message = f"^{name} needs the loss of a batch, and that of AdversarialGRPOTrainer is a share .*; accepted: methods"
    with pytest.raises(ValueError, match=message):
        online("GRPO", tmp_path, method(name))


def test_distillation_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    message = "^AdversarialDistillationTrainer: DistillationTrainer computes its loss from .*; accepted: transformers'"
    with pytest.raises(ValueError, match=message):
        trainer_of(trl.DistillationTrainer, trl.DistillationConfig, None, tmp_path, search())
