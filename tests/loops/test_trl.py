"""SFTTrainer with a regularizer: R and its gradient beside a computation by hand; TRL's own numbers as without it."""

from __future__ import annotations

import importlib.util
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

pytest.importorskip("trl")

import trl
from datasets import Dataset

from mt_dnn.hf_trainer import AdversarialMixin
from mt_dnn.perturbation import AdversarialTraining, FreeLbPerturbation, SmartPerturbation
from tests.docs.pages import ROOT, blocks
from tests.encoders import hook_count
from tests.hf import ALPHA, assert_equal_gradients, gradient_of_update, parameters, search, tiny_model
from tests.loops import decoder_by_hand as by_hand
from tests.loops.decoder_by_hand import fixed_noise as fixed_noise
from tests.loops.trl_trainers import (
    COMPLETIONS,
    EOS,
    LABELS,
    PROMPTS,
    TEXTS,
    added_gradient,
    largest,
    logged,
    method,
    texts,
    tokenizer,
    trained,
    trainer_of,
    words,
)
from tests.loops.trl_trainers import frozen_memory as frozen_memory
from tests.mt_dnn.huggingface.test_peft import lora

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("frozen_memory")]
METHODS = ("smart", "alum", "vat", "random", "at", "freelb")
TOLERANCE = 1e-6  # Llama's norms are computed in single precision
COUNTERS = ("num_tokens", "entropy", "mean_token_accuracy")


def sft(folder: Path, perturbation: Any = None, model: Any = None, **options: Any) -> Any:
    options = {"train_dataset": texts(), "max_length": None, **options}
    model = tiny_model("generation") if model is None else model
    return trainer_of(trl.SFTTrainer, trl.SFTConfig, model, folder, perturbation, **options)


def expected(name: str, model: Any, loss: by_hand.Loss | None = None) -> Tensor:
    """R of the three texts as one batch."""
    ids, labels = by_hand.row(TEXTS, 0), by_hand.row(LABELS, -100)
    mask = by_hand.row([[1] * len(text) for text in TEXTS], 0)
    between = by_hand.divergence(name, labels != -100)
    loss = loss or by_hand.task_loss(labels)
    return by_hand.regularizer(name, by_hand.padded(model, ids, mask), mask, between, loss)


def smoothed(logits: Tensor) -> Tensor:
    """The loss of label smoothing with 0.2."""
    labels = by_hand.row(LABELS, -100)[:, 1:]
    rows = logits[:, :-1][labels != -100].log_softmax(-1)
    return 0.8 * by_hand.task_loss(by_hand.row(LABELS, -100))(logits) - 0.2 * rows.mean(-1).mean()


def doubled(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """A loss of one's own: twice the usual one."""
    summed = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return 2 * summed / num_items_in_batch


def prompts_and_completions() -> Dataset:
    rows = zip(PROMPTS, COMPLETIONS, strict=True)
    return Dataset.from_list([{"prompt": words(p), "completion": f" {words(c)}"} for p, c in rows])


def assistant_masks() -> Dataset:
    masks = [[int(label != -100) for label in labels] for labels in LABELS]
    rows = zip(TEXTS, masks, strict=True)
    return Dataset.from_list([{"input_ids": text, "assistant_masks": mask} for text, mask in rows])


CHECKPOINTING = {"activation_checkpointing": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "nll": {},
    "dft": {"loss_type": "dft"},
    "completions": {"train_dataset": prompts_and_completions},
    "assistant masks": {"train_dataset": assistant_masks},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "own loss": {"compute_loss_func": doubled},
    "checkpointing": CHECKPOINTING,
    "selective checkpointing": {**CHECKPOINTING, "activation_checkpointing_kwargs": {"selective": True}},
    "padding to a multiple": {"pad_to_multiple_of": 8},
    "liger": {"use_liger_kernel": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_r_and_its_gradient_are_those_of_the_tokens_with_labels(
    setting: str, tmp_path: Path, fixed_noise: None
) -> None:
    if setting == "liger" and importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger_kernel is not installed")
    options = {name: value() if name == "train_dataset" else value for name, value in SETTINGS[setting].items()}
    model = tiny_model("generation")
    value = expected("smart", model)
    trainer = sft(tmp_path, method("smart"), **options)
    found = added_gradient(trainer, sft(tmp_path, **options))
    gradient = by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert largest(gradient) > 1e-2
    assert logged(trainer, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_r(name: str, tmp_path: Path, fixed_noise: None) -> None:
    model = tiny_model("generation")
    value = expected(name, model)
    trainer = sft(tmp_path, method(name))
    if name == "freelb":  # in the place of the task loss, without α
        found, gradient = gradient_of_update(trainer), by_hand.gradient(model, value)
        assert logged(trainer, "loss")[0][0] == pytest.approx(value.item(), rel=1e-5)
    else:
        found, gradient = added_gradient(trainer, sft(tmp_path)), by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert largest(gradient) > 1e-2
    assert logged(trainer, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "loss"),
    [("label smoothing", smoothed), ("own loss", lambda x: 2 * by_hand.task_loss(by_hand.row(LABELS, -100))(x))],
)
@pytest.mark.parametrize("name", ["at", "freelb"])
def test_adversarial_training_is_on_the_trainers_own_loss(
    name: str, setting: str, loss: by_hand.Loss, tmp_path: Path, fixed_noise: None
) -> None:
    model, options = tiny_model("generation"), SETTINGS[setting]
    value = expected(name, model, loss)
    trainer = sft(tmp_path, method(name), **options)
    if name == "freelb":
        found, gradient = gradient_of_update(trainer), by_hand.gradient(model, value)
    else:
        found, gradient = added_gradient(trainer, sft(tmp_path, **options)), by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert logged(trainer, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)


def joined(rows: list[list[int]]) -> list[int]:
    return [number for row in rows for number in row]


def cut(row: list[int], lengths: list[int]) -> list[list[int]]:
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    return [row[start : start + length] for start, length in zip(starts, lengths, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {"padding_free": True},
        {"padding_free": True, "pad_to_multiple_of": 8},
        {"packing": True, "max_length": 12, "packing_strategy": "bfd"},
    ],
    ids=["padding-free", "padding-free to a multiple", "packing"],
)
@pytest.mark.parametrize("name", ["smart", "at"])
def test_texts_in_one_row_do_not_see_each_other(
    name: str, options: dict[str, Any], tmp_path: Path, fixed_noise: None
) -> None:
    trainer, plain = (sft(tmp_path, own, **options) for own in (method(name), None))
    rows: dict[str, Any] = trainer.train_dataset[:]
    lengths = joined(rows["seq_lengths"]) if "seq_lengths" in rows else [len(row) for row in rows["input_ids"]]
    assert sorted(lengths) == sorted(map(len, TEXTS))
    in_order = cut(joined(rows["input_ids"]), lengths)
    labels = torch.tensor([joined([[-100, *part[1:]] for part in cut(joined(rows["labels"]), lengths)])])
    model = tiny_model("generation")
    value = by_hand.regularizer(
        name,
        by_hand.packed(model, in_order),
        torch.ones(1, sum(lengths)),
        by_hand.divergence(name, labels != -100),
        by_hand.task_loss(labels),
    )
    found, gradient = added_gradient(trainer, plain), by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert logged(trainer, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)
    vectors = model.get_input_embeddings()(torch.tensor(joined(in_order)))
    assert logged(trainer, "adv_emb_val")[0][0] == pytest.approx(vectors.abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["smart", "at"])
@pytest.mark.parametrize("options", [{}, CHECKPOINTING], ids=["LoRA", "LoRA with checkpointing"])
def test_adapters_learn_from_r(name: str, options: dict[str, Any], tmp_path: Path, fixed_noise: None) -> None:
    trainer, plain, model = (lora("generation", ["q_proj", "v_proj"]) for _ in range(3))
    value = expected(name, model)
    found = added_gradient(sft(tmp_path, method(name), trainer, **options), sft(tmp_path, model=plain, **options))
    gradient = by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert largest(gradient) > 1e-2


@pytest.mark.parametrize("options", [{}, SETTINGS["label smoothing"]], ids=["nll", "label smoothing"])
@pytest.mark.parametrize("name", ["smart", "at"])
def test_the_perturbed_passes_have_the_noise_that_neftune_drew_in_the_clean_one(
    name: str, options: dict[str, Any], tmp_path: Path, fixed_noise: None
) -> None:
    options = {**options, "neftune_noise_alpha": 5.0}
    trainer, plain, model = sft(tmp_path, method(name), **options), sft(tmp_path, **options), tiny_model("generation")
    seen: list[Tensor] = []
    trainer.model.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    found = added_gradient(trainer, plain)
    drawn = seen[0] - model.get_input_embeddings()(by_hand.row(TEXTS, 0)).detach()
    assert float(drawn.abs().max()) > 0.05
    with by_hand.added(model, drawn):
        value = expected(name, model, smoothed if "label_smoothing_factor" in options else None)
    assert_equal_gradients(found, by_hand.gradient(model, ALPHA * value), TOLERANCE)
    assert logged(trainer, "adv_loss")[0][0] == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("options", [{}, SETTINGS["label smoothing"]], ids=["nll", "label smoothing"])
@pytest.mark.parametrize("kind", [SmartPerturbation, AdversarialTraining, FreeLbPerturbation])
def test_accumulated_unequal_batches_give_the_gradient_of_one_batch(
    kind: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    whole = sft(tmp_path, search(kind), per_device_train_batch_size=3, **options)
    parts = sft(tmp_path, search(kind), per_device_train_batch_size=2, gradient_accumulation_steps=2, **options)
    expected_gradient, found = gradient_of_update(whole), gradient_of_update(parts)
    assert_equal_gradients(found, expected_gradient, 2e-6)
    names = ("loss", "adv_loss", "num_tokens")
    assert logged(parts, *names)[0] == pytest.approx(logged(whole, *names)[0], rel=1e-5)


RUNS: dict[str, dict[str, Any]] = {
    "nll": {},
    "label smoothing": SETTINGS["label smoothing"],
    "own loss": SETTINGS["own loss"],
    "padding-free": {"padding_free": True},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["smart", "at", "freelb"])
def test_trl_counts_what_it_counts_without_a_regularizer(name: str, run: str, tmp_path: Path) -> None:
    options = {**RUNS[run], "learning_rate": 0.0, "max_steps": 2}
    trainer, plain = sft(tmp_path, method(name), **options), sft(tmp_path, **options)
    trained(trainer, plain)
    # FreeLB has no clean pass: the first of its passes is counted, whose entropy and accuracy are its own.
    names = COUNTERS[:1] if name == "freelb" else COUNTERS
    assert logged(trainer, *names) == logged(plain, *names)
    assert logged(trainer, "num_tokens")[1][0] == 2 * sum(map(len, TEXTS))
    assert len(logged(trainer, *COUNTERS)) == 2


@pytest.mark.parametrize("options", [{}, {**SETTINGS["label smoothing"], "neftune_noise_alpha": 5.0}, CHECKPOINTING])
@pytest.mark.parametrize("name", ["smart", "at"])
def test_alpha_zero_is_the_plain_trainer_bit_for_bit_with_dropout(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    options = {**options, "learning_rate": 0.1, "max_steps": 3, "per_device_train_batch_size": 2}
    models = [tiny_model("generation", attention_dropout=0.3) for _ in range(2)]
    trainer, plain = (
        sft(tmp_path, method(name), models[0], alpha=0.0, **options),
        sft(tmp_path, None, models[1], **options),
    )
    trained(trainer, plain)
    for parameter, value in parameters(plain.model).items():
        assert torch.equal(parameters(trainer.model)[parameter], value), parameter
    assert all(loss > 1e-4 for (loss,) in logged(trainer, "adv_loss"))


@pytest.mark.parametrize("name", ["smart", "at", "freelb"])
def test_outputs_come_with_the_same_loss(name: str, tmp_path: Path, fixed_noise: None) -> None:
    trainer = sft(tmp_path, method(name))
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(3)])
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    assert torch.equal(loss, trainer.compute_loss(trainer.model, dict(batch)))
    assert outputs.logits.shape == (*batch["input_ids"].shape, 40)


def test_evaluation_is_that_of_the_plain_trainer(tmp_path: Path) -> None:
    trainer, plain = (sft(tmp_path, own, eval_dataset=texts()) for own in (method("smart"), None))
    hooks = hook_count(trainer.model)
    found, wanted = trainer.evaluate(), plain.evaluate()
    names = [name for name in wanted if "time" not in name and "per_second" not in name]
    assert [found[name] for name in names] == [wanted[name] for name in names]
    assert {"eval_loss", "eval_entropy"} <= set(names)
    assert "eval_adv_loss" not in found
    assert hook_count(trainer.model) == hooks


def mixture() -> Any:
    """Two experts a layer, of which a token takes one, with their auxiliary loss."""
    decoder = tiny_model("generation").config.to_dict()
    sizes = {name: decoder[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    config = transformers.MixtralConfig(
        **sizes,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
    )
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).double().train()
    model.set_experts_implementation("eager")  # the others have no double precision
    return model


def test_the_auxiliary_loss_of_experts_is_no_part_of_r(tmp_path: Path, fixed_noise: None) -> None:
    model = mixture()
    value = expected("smart", model)
    trainer = sft(tmp_path, method("smart"), mixture())
    found, gradient = added_gradient(trainer, sft(tmp_path, None, mixture())), by_hand.gradient(model, ALPHA * value)
    assert_equal_gradients(found, gradient, TOLERANCE)
    assert largest(gradient) > 1e-4
    assert logged(trainer, "aux_loss")[0][0] > 0
    message = "^at needs the loss on the labels alone, .* the experts' auxiliary loss in it; accepted: router_aux_lo"
    refused(tmp_path, message, lambda: sft(tmp_path, method("at"), mixture()))
    sft(tmp_path, method("at"), mixture(), router_aux_loss_coef=0.0)


def refused(folder: Path, message: str, make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_what_is_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    sentence = search(norm_level=1)
    message = "^norms over sentences .norm_level=1. .* accepted: norm_level=0"
    refused(tmp_path, message, lambda: sft(tmp_path, sentence, padding_free=True))
    refused(tmp_path, message, lambda: sft(tmp_path, sentence, packing=True, max_length=12))
    reentrant = {**CHECKPOINTING, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    refused(tmp_path, "use_reentrant=True gives no gradient.*", lambda: sft(tmp_path, search(), **reentrant))


class OwnLoss(trl.SFTTrainer):
    """A loss of one's own, of a forward without labels."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("own_labels")
        return doubled(model(**inputs), labels, 10)


def test_a_forward_without_labels_does_not_say_which_tokens_count(tmp_path: Path) -> None:
    trainer = trainer_of(OwnLoss, trl.SFTConfig, tiny_model("generation"), tmp_path, search(), train_dataset=texts())
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(3)])
    batch["own_labels"] = batch.pop("labels")
    trainer.model.train()
    message = "^AdversarialOwnLoss.compute_loss gives its forward no labels, .*; accepted: labels in the batch, or"
    refused(tmp_path, message, lambda: trainer.compute_loss(trainer.model, batch))


def test_the_tokenizer_is_as_it_looks() -> None:
    assert tokenizer()(f"{words(TEXTS[0])}<eos>")["input_ids"] == TEXTS[0]
    assert tokenizer().eos_token_id == EOS


def test_the_trainer_of_the_page_trains(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(ROOT / "docs" / "own_loop.md") if "SFTTrainer" in block.text]
    script = tmp_path / "page.py"
    script.write_text(block.text)
    names = {
        "AdversarialMixin": AdversarialMixin,
        "SmartPerturbation": SmartPerturbation,
        "model": tiny_model("generation"),
        "args": trl.SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_steps=1, report_to=[], logging_steps=1),
        "data": texts(),
        "tokenizer": tokenizer(),
    }
    trainer = runpy.run_path(str(script), names)["trainer"]
    trainer.train()
    assert logged(trainer, "adv_loss")[0][0] > 0
