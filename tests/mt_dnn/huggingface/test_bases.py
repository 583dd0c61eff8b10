"""AdversarialTrainer over other base trainers: the clean pass, counters, weights, the log."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.utils.data import SequentialSampler

from mt_dnn.huggingface.trainer import AdversarialMixin, AdversarialTrainer
from mt_dnn.perturbation import (
    AdversarialTraining,
    FreeLbPerturbation,
    RandomPerturbation,
    SmartPerturbation,
    VatPerturbation,
)
from tests.hf import (
    ALPHA,
    OrderedTrainer,
    arguments,
    assert_equal_gradients,
    collate,
    examples,
    gradient_of_update,
    search,
    tiny_model,
    trainer_of,
)
from tests.mt_dnn.perturbation.test_reading import encoder_decoder


class InOrder:
    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]


class ForwardsTwice(transformers.Trainer):
    """As TRL's: the outputs come from a second forward without gradients, and every forward is counted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.measures: dict[str, list[float]] = defaultdict(list)
        self.tokens = 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        output = model(**inputs)
        with torch.no_grad():
            again = model(**inputs)
        self.tokens += int(inputs["attention_mask"].sum())
        self.measures["loss"].append(output.loss.item())
        loss = output.loss if num_items_in_batch is None else output.loss * 3 / num_items_in_batch
        return (loss, again) if return_outputs else loss


class AdversarialForwardsTwice(InOrder, AdversarialMixin, ForwardsTwice):
    pass


METHODS = {
    "smart": (SmartPerturbation, {}),
    "vat": (VatPerturbation, {}),
    "at": (AdversarialTraining, {}),
    "freelb": (FreeLbPerturbation, {"k": 2}),
}


@pytest.mark.parametrize("name", METHODS)
def test_r_holds_the_forward_that_gave_the_loss_and_counters_stay_those_of_it(name: str, tmp_path: Path) -> None:
    """A second forward without gradients changes no gradient, and perturbed passes count nothing."""
    kind, options = METHODS[name]
    plain = trainer_of(tiny_model("classification"), "classification", tmp_path, search(kind, **options))
    other = trainer_of(
        tiny_model("classification"), "classification", tmp_path, search(kind, **options), kind=AdversarialForwardsTwice
    )
    assert_equal_gradients(gradient_of_update(other), gradient_of_update(plain), 1e-12)
    assert other.tokens == 7 + 4 + 6
    assert len(other.measures["loss"]) == 1


class IgnoresItems(ForwardsTwice):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return super().compute_loss(model, inputs, return_outputs)


def test_asking_whether_the_loss_is_divided_by_items_counts_nothing(tmp_path: Path) -> None:
    for base in (ForwardsTwice, IgnoresItems):
        kind = type("Mine", (InOrder, AdversarialMixin, base), {})
        own: dict[str, Any] = {"compute_loss_func": lambda *_, **__: None}  # so that Trainer counts labels
        trainer = trainer_of(tiny_model("classification"), "classification", tmp_path, kind=kind, **own)
        trainer.train()
        assert trainer._loss_weights.scaling.by_items is (base is ForwardsTwice)
        assert trainer.tokens == 17


class Overrides(AdversarialTrainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        output = model(**inputs)
        return (output.loss, output) if return_outputs else output.loss


class AsksAnother(AdversarialTrainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        return transformers.Trainer.compute_loss(self, model, inputs, return_outputs, **more)


class AddsToIt(AdversarialTrainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        return 2 * super().compute_loss(model, inputs, *args, **more)


def test_a_compute_loss_that_goes_past_the_mixin_is_refused(tmp_path: Path) -> None:
    first = type("First", (ForwardsTwice, AdversarialTrainer), {})
    for kind in (Overrides, first):
        with pytest.raises(ValueError, match=rf"^{kind.__name__}: its compute_loss does not call Adversarial"):
            trainer_of(tiny_model("classification"), "classification", tmp_path, kind=kind)
    late = trainer_of(tiny_model("classification"), "classification", tmp_path, kind=AsksAnother)
    with pytest.raises(ValueError, match="AsksAnother: its compute_loss does not call AdversarialMixin's"):
        late.train()
    once = trainer_of(tiny_model("classification"), "classification", tmp_path)
    twice = trainer_of(
        tiny_model("classification"), "classification", tmp_path, kind=type("Twice", (InOrder, AddsToIt), {})
    )
    expected = {name: 2 * x for name, x in gradient_of_update(once).items()}
    assert_equal_gradients(gradient_of_update(twice), expected, 1e-12)


class TwoTexts(transformers.Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return model(**inputs).loss + model(**inputs).loss


class NoForward(transformers.Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return model.bert(inputs["input_ids"]).last_hidden_state.sum()


@pytest.mark.parametrize(("base", "number"), [(TwoTexts, 2), (NoForward, 0)])
def test_a_loss_of_several_forwards_or_of_none_is_refused(base: type, number: int, tmp_path: Path) -> None:
    trainer = trainer_of(
        tiny_model("classification"), "classification", tmp_path, kind=type("Mine", (AdversarialMixin, base), {})
    )
    with pytest.raises(ValueError, match=f"Mine.compute_loss ran {number} forwards with gradients; accepted: one"):
        trainer.train()


def gpt2() -> Any:
    """Its forward takes the number of items, its loss is shifted, and Trainer may count unshifted labels for it."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=24, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = transformers.GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    return model.train()


@pytest.mark.parametrize("kind", [SmartPerturbation, AdversarialTraining])
def test_accumulated_batches_of_gpt2_give_the_r_and_the_gradient_of_one(kind: Any, tmp_path: Path) -> None:
    rows = examples("generation", (7, 3, 6, 5, 6, 2, 7, 4))
    found, logs = [], []
    for size in (8, 4):
        trainer = trainer_of(
            gpt2(), "generation", tmp_path, search(kind), train_dataset=rows, per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )  # fmt: skip
        found.append(gradient_of_update(trainer))
        logs.append(trainer.state.log_history[0])
    assert_equal_gradients(found[1], found[0], 2e-6)
    for name in ("adv_loss", "loss"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-6)
    batch = collate(rows)
    labels = batch["labels"][:, 1:]
    log_p = gpt2()(**{name: x for name, x in batch.items() if name != "labels"}).logits[:, :-1].log_softmax(-1)
    clean = F.nll_loss(log_p[labels != -100], labels[labels != -100]).item()
    # Where Trainer counts a label too many a row, task loss and R are both smaller by that, and α is what it was.
    share = int((labels != -100).sum()) / float(trainer_items(gpt2(), rows, tmp_path))
    assert logs[0]["loss"] == pytest.approx(share * (clean + ALPHA * logs[0]["adv_loss"]), rel=1e-5)


def trainer_items(model: Any, rows: Any, folder: Path) -> Any:
    trainer = trainer_of(model, "generation", folder, train_dataset=rows)
    return trainer._get_num_items_in_batch([collate(rows)], torch.device("cpu"))


def test_several_labels_in_the_trainer_with_the_loss_inside_and_outside(tmp_path: Path) -> None:
    rows = [
        row | {"labels": labels} for row, labels in zip(examples("classification"), torch.eye(3).tolist(), strict=True)
    ]

    def outside(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs.logits, labels)

    inside = trainer_of(
        tiny_model("classification", problem_type="multi_label_classification"), "classification", tmp_path,
        train_dataset=rows,
    )  # fmt: skip
    expected = gradient_of_update(inside)
    assert inside.state.log_history[0]["adv_loss"] > 1e-4
    assert inside.regularizer.read["task_type"] == "labels"
    apart = {"train_dataset": rows, "compute_loss_func": outside}
    own = trainer_of(
        tiny_model("classification"), "classification", tmp_path, kind=type(
            "Labels", (InOrder, AdversarialMixin, transformers.Trainer), {}
        ), **apart,
    )  # fmt: skip
    with pytest.raises(ValueError, match="give task_type='classes', 'labels'"):
        own.train()
    told = labels_trainer(rows, outside, tmp_path)
    assert_equal_gradients(gradient_of_update(told), expected, 1e-7)


def labels_trainer(rows: Any, loss: Any, folder: Path) -> Any:
    return OrderedTrainer(
        model=tiny_model("classification"), args=arguments(folder), data_collator=collate, train_dataset=rows,
        perturbation=search(), alpha=ALPHA, compute_loss_func=loss, task_type="labels",
    )  # fmt: skip


@pytest.mark.parametrize("family", ["T5", "Bart"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_encoder_decoder_in_seq2seq_trainer(family: str, smoothing: float, tmp_path: Path) -> None:
    """Accumulated unequal batches give R over the targets' tokens, and the gradient of one batch where Trainer does."""
    rows = examples("generation", (7, 4, 6, 5))
    targets = [[5, 6, 7, 1], [8, 1, -100, -100], [9, 4, 1, -100], [7, 1, -100, -100]]
    rows = [row | {"labels": target, "decoder_input_ids": [0, *(max(t, 0) for t in target[:-1])]}
            for row, target in zip(rows, targets, strict=True)]  # fmt: skip
    kind = type("Mine", (InOrder, AdversarialMixin, transformers.Seq2SeqTrainer), {})
    base = vars(arguments(tmp_path))
    names = ("output_dir", "use_cpu", "max_steps", "optim", "learning_rate", "lr_scheduler_type", "max_grad_norm",
             "logging_steps", "save_strategy", "report_to", "disable_tqdm")  # fmt: skip
    args = transformers.Seq2SeqTrainingArguments(
        **{name: base[name] for name in names}, per_device_train_batch_size=4, label_smoothing_factor=smoothing
    )
    model = encoder_decoder(family)
    trainer = kind(
        model=model, args=args, data_collator=collate, train_dataset=rows, perturbation=search(RandomPerturbation),
        alpha=ALPHA,
    )  # fmt: skip
    gradient = gradient_of_update(trainer)
    entry = trainer.state.log_history[0]
    model = encoder_decoder(family)
    batch = collate(rows)
    words = model.get_encoder().get_input_embeddings()
    target = batch["labels"] != -100
    clean = model(**batch).logits[target].log_softmax(-1)
    seeds = trainer._row_seeds.of(batch, 0)
    method = search(RandomPerturbation)
    from mt_dnn.perturbation.noise import standard_noise

    trainer.state.global_step = 0
    seeds = trainer._row_seeds.of(batch, 0)
    delta = standard_noise(batch["attention_mask"], 16, torch.float64, seeds) * method.noise_var
    handle = words.register_forward_hook(lambda _, __, h: h + delta.clamp(-method.radius, method.radius))
    noisy = model(**batch).logits[target].log_softmax(-1)
    handle.remove()
    value = ((noisy.exp() - clean.exp()) * (noisy - clean)).sum(-1).mean()
    assert entry["adv_loss"] == pytest.approx(value.item(), rel=1e-5)
    assert value > 1e-5
    assert all(x.isfinite().all() for x in gradient.values())


def test_the_log_tells_what_the_search_found_at_the_steps_that_are_logged(tmp_path: Path) -> None:
    trainer = trainer_of(
        tiny_model("classification"), "classification", tmp_path, max_steps=4, logging_steps=2, learning_rate=0.01
    )
    gains: list[bool] = []
    original = trainer.regularizer.__class__.__call__

    def called(*args: Any, **kwargs: Any) -> Tensor:
        gains.append(kwargs["measure_gain"])
        value: Tensor = original(*args, **kwargs)
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.regularizer.__class__, "__call__", called)
        trainer.train()
    assert gains == [False, True, False, True]
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    words = tiny_model("classification").get_input_embeddings()(collate(examples("classification"))["input_ids"])
    real = collate(examples("classification"))["attention_mask"].bool()
    for entry in entries:
        assert entry["adv_skipped"] == 0
        assert entry["adv_ascent_gain"] > 1
        assert 0 < entry["adv_delta_size"] <= 0.1
        assert entry["adv_emb_val"] == pytest.approx(words[real].abs().mean().item(), rel=0.05)


def test_alpha_and_radius_can_be_searched(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seen: list[tuple[float, float, float]] = []

    class Searched(OrderedTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            method = self.regularizer.perturbation
            seen.append((self.alpha, method.radius, method.step_size))
            return super().compute_loss(*args, **kwargs)

    trainer = Searched(
        model_init=lambda: tiny_model("classification"), args=arguments(tmp_path), data_collator=collate,
        train_dataset=examples("classification"), eval_dataset=examples("classification"),
        perturbation=search(), alpha=ALPHA,
    )  # fmt: skip
    values = iter([(0.5, 0.2), (2.0, 0.05)])

    def space(trial: Any) -> dict[str, float]:
        if trial.number not in chosen:
            chosen[trial.number] = next(values)
        alpha, radius = chosen[trial.number]
        return {
            "adv_alpha": trial.suggest_float("adv_alpha", alpha, alpha),
            "adv_radius": trial.suggest_float("adv_radius", radius, radius),
        }

    chosen: dict[int, tuple[float, float]] = {}
    with contextlib.redirect_stdout(None):
        trainer.hyperparameter_search(hp_space=space, n_trials=2, backend="optuna", direction="minimize")
    trained = [entry for place, entry in enumerate(seen) if place in (0, 2)]
    assert [entry[:2] for entry in trained] == [(0.5, 0.2), (2.0, 0.05)]
    assert [entry[2] for entry in trained] == pytest.approx([0.1, 0.025])


def test_a_compiled_trainer_has_the_r_of_the_model(tmp_path: Path) -> None:
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        options = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
        trainer = trainer_of(tiny_model("generation"), "generation", tmp_path, **options)
        found.append((gradient_of_update(trainer), trainer.state.log_history[0]["adv_loss"]))
    assert_equal_gradients(found[1][0], found[0][0], 2e-6)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)
    assert found[0][1] > 1e-5


def test_neftune_draws_the_same_noise_in_all_passes(tmp_path: Path) -> None:
    method = search(SmartPerturbation, radius=None, projection="none", noise_var=0.0, step_size=0.0)
    trainer = trainer_of(tiny_model("generation"), "generation", tmp_path, method, neftune_noise_alpha=5)
    trainer.train()
    assert trainer.state.log_history[0]["adv_loss"] == pytest.approx(0, abs=1e-12)
