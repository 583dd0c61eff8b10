"""sentence-transformers' trainers with the regularizer, against R computed column by column and by hand."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, SequentialSampler

pytest.importorskip("sentence_transformers")

import sentence_transformers as st
from datasets import Dataset
from sentence_transformers.cross_encoder import losses as pair_losses
from sentence_transformers.sentence_transformer import losses

from mt_dnn.hf_trainer import SentenceAdversarialMixin
from mt_dnn.huggingface.text_batches import merged_texts
from mt_dnn.perturbation import (
    PERTURBATIONS,
    SiftPerturbation,
)
from mt_dnn.perturbation.noise import example_seeds, standard_noise
from tests.docs.pages import ROOT, blocks
from tests.hf import (
    ALPHA,
    RADIUS,
    SIGMA,
    STEP,
    assert_equal_gradients,
    gradient_of_update,
    parameters,
    search,
    tiny_model,
)
from tests.loops.test_sentence_transformers import block_of, sentence_model, vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PAIRS = {
    "first": ["w1 w2 w3 w30", "w4", "w5 w6"],
    "second": ["w7 w8", "w9 w10 w11 w12 w13", "w1"],
}
THIRD = ["w20 w21 w22 w23", "w24", "w25 w26 w27"]
SCORES = [0.2, 0.9, 0.4]


class InOrder:
    def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, *_: Any, **__: Any) -> BatchSampler:
        return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)


class Sentences(InOrder, SentenceAdversarialMixin, st.SentenceTransformerTrainer):
    pass


class Pairs(InOrder, SentenceAdversarialMixin, st.CrossEncoderTrainer):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = vocabulary(tmp_path_factory.mktemp("bert"))
    tiny_model("classification").save_pretrained(folder)
    return folder


def pair_model(labels: int, place: Path) -> Any:
    """A tiny cross-encoder in float64 with large weights."""
    vocabulary(place)
    tiny_model("regression" if labels == 1 else "classification").save_pretrained(place)
    return st.CrossEncoder(str(place), device="cpu", num_labels=labels).double().train()


def columns(third: bool = False, labels: Any = None) -> Dataset:
    more = ({"third": THIRD} if third else {}) | ({} if labels is None else {"label": labels})
    return Dataset.from_dict({**PAIRS, **more})


def trainer_of(kind: Any, model: Any, loss: Any, data: Any, folder: Path, **options: Any) -> Any:
    """One update of plain gradient descent at rate 1; options of the trainer's arguments, and of the mixin."""
    own = {name: options.pop(name) for name in ("task_type", "eval_dataset", "pairwise") if name in options}
    if issubclass(kind, SentenceAdversarialMixin):
        own |= {"perturbation": search(), "alpha": ALPHA}
        names = ("perturbation", "alpha", "ascent_loss", "noise_mask")
        own |= {name: options.pop(name) for name in names if name in options}
    base = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 1,
        "per_device_train_batch_size": 3,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    args = kind.training_args_class(**{**base, **options})
    return kind(model=model, args=args, train_dataset=data, loss=loss, **own)


def r_by_hand(
    batches: list[dict[str, Any]],
    forward: Callable[[dict[str, Any]], Tensor],
    scores: Callable[[list[Tensor]], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    point: nn.Module,
    names: list[list[str]],
    k: int,
) -> Tensor:
    """R of SMART in `inf` by token, projected: a forward and a δ of its own for each batch, one ascent over all."""
    masks = [batch["attention_mask"].bool() for batch in batches]
    deltas = [
        SIGMA * standard_noise(mask.long(), 16, torch.float64, example_seeds(42, 0, rows), "normal")
        for mask, rows in zip(masks, names, strict=True)
    ]
    deltas = [delta.clamp(-RADIUS, RADIUS) for delta in deltas]
    clean = scores([forward(batch) for batch in batches])

    def perturbed(noise: list[Tensor], keep: bool) -> Tensor:
        found = []
        for batch, delta in zip(batches, noise, strict=True):
            hook = point.register_forward_hook(lambda _, __, h, d=delta: (h if keep else h.detach()) + d)
            found.append(forward(batch))
            hook.remove()
        return scores(found)

    for _ in range(k):
        free = [delta.clone().requires_grad_() for delta in deltas]
        gradients = torch.autograd.grad(distance(perturbed(free, False), clean.detach()), free)
        for number, gradient in enumerate(gradients):
            largest = gradient.abs().amax(-1, keepdim=True)
            step = STEP * gradient / largest.where(largest > 0, 1.0)
            deltas[number] = (deltas[number] + step).clamp(-RADIUS, RADIUS).masked_fill(~masks[number][..., None], 0)
    return distance(perturbed(deltas, True), clean)


def sum_of_gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if x is None else x for (name, p), x in zip(named.items(), found, strict=True)}


def cosines(embeddings: list[Tensor]) -> Tensor:
    first, *others = (x / x.square().sum(-1, keepdim=True).sqrt() for x in embeddings)
    return torch.stack([(first * other).sum(-1) for other in others], -1)


def squared(found: Tensor, clean: Tensor) -> Tensor:
    return (found - clean).square().mean()


def two_kl(found: Tensor, clean: Tensor) -> Tensor:
    """The symmetrized divergence in the value and gradient of MT-DNN's criterion, which detaches each target."""
    p, q = found.log_softmax(-1), clean.log_softmax(-1)
    halves = (q.detach().exp() * (q.detach() - p)).sum(-1) + (p.detach().exp() * (p.detach() - q)).sum(-1)
    return halves.mean()


def two_bernoulli(found: Tensor, clean: Tensor) -> Tensor:
    """The same of one yes or no, as two classes whose logits are 0 and the score."""
    return two_kl(*(torch.stack([torch.zeros_like(x[:, 0]), x[:, 0]], -1) for x in (found, clean)))


@pytest.mark.parametrize("level", ["pre_ln", "post_ln"])
@pytest.mark.parametrize(("third", "k"), [(False, 2), (True, 1)])
def test_sentences_have_the_gradient_by_hand(third: bool, k: int, level: str, folder: Path, tmp_path: Path) -> None:
    """δ of each column belongs to that column's own, unmerged forward."""
    model, twin = sentence_model(folder), sentence_model(folder)
    data = columns(third, None if third else SCORES)
    kind = losses.MultipleNegativesRankingLoss if third else losses.CosineSimilarityLoss
    trainer = trainer_of(Sentences, model, kind(model), data, tmp_path, perturbation=search(level=level, k=k))
    found = gradient_of_update(trainer)

    texts = [twin.preprocess(data[name]) for name in data.column_names if name != "label"]
    own = kind(twin)([dict(text) for text in texts], torch.tensor(SCORES, dtype=torch.float64))
    value = r_by_hand(
        texts,
        lambda batch: twin(dict(batch))["sentence_embedding"],
        cosines,
        squared,
        block_of(twin, level),
        [[f"{row}/{side}" if side else str(row) for row in range(3)] for side in range(len(texts))],
        k,
    )
    assert value > 1e-4
    assert_equal_gradients(found, sum_of_gradients(twin, own + ALPHA * value), 1e-7)
    entry = trainer.state.log_history[0]
    assert entry["adv_loss"] == pytest.approx(value.item(), rel=1e-5)
    assert entry["loss"] == pytest.approx((own + ALPHA * value).item(), rel=1e-5)
    assert entry["adv_ascent_gain"] > 1 and entry["adv_skipped"] == 0 and entry["adv_delta_size"] > 0


CROSS: dict[str, tuple[Any, int, Any, Callable[[Tensor, Tensor], Tensor]]] = {
    "yes or no": (pair_losses.BinaryCrossEntropyLoss, 1, [1, 0, 1], two_bernoulli),
    "number": (pair_losses.MSELoss, 1, SCORES, squared),
    "classes": (pair_losses.CrossEntropyLoss, 3, [2, 0, 1], two_kl),
}


@pytest.mark.parametrize("name", CROSS)
def test_a_cross_encoder_has_the_gradient_by_hand(name: str, folder: Path, tmp_path: Path) -> None:
    kind, labels, targets, distance = CROSS[name]
    model, twin = (pair_model(labels, tmp_path) for _ in range(2))
    trainer = trainer_of(Pairs, model, kind(model), columns(labels=targets), tmp_path, perturbation=search(k=2))
    found = gradient_of_update(trainer)

    own = kind(twin)([PAIRS["first"], PAIRS["second"]], torch.tensor(targets))
    texts = twin.preprocess(list(zip(PAIRS["first"], PAIRS["second"], strict=True)))
    value = r_by_hand(
        [texts],
        lambda batch: twin(dict(batch))["scores"],
        lambda found: found[0],
        distance,
        block_of(twin, "pre_ln"),
        [["0", "1", "2"]],
        2,
    )
    assert value > 1e-4
    assert_equal_gradients(found, sum_of_gradients(twin, own + ALPHA * value), 1e-6)


def test_r_of_a_ranking_loss_is_over_all_pairs_that_it_scores(folder: Path, tmp_path: Path) -> None:
    """Three anchors with their own text and each other's: nine pairs, of which three forwards have three."""
    model, twin = (pair_model(1, tmp_path) for _ in range(2))
    kind = pair_losses.MultipleNegativesRankingLoss
    trainer = trainer_of(Pairs, model, kind(model), columns(), tmp_path)
    found = gradient_of_update(trainer)

    first, second = PAIRS["first"], PAIRS["second"]
    others = [[1, 0, 0], [2, 2, 1]]
    pairs = [list(zip(first, [second[i] for i in order], strict=True)) for order in ([0, 1, 2], *others)]
    texts = [twin.preprocess(some) for some in pairs]
    own = kind(twin)([first, second], None)
    value = r_by_hand(
        texts,
        lambda batch: twin(dict(batch))["scores"],
        torch.cat,
        squared,
        block_of(twin, "pre_ln"),
        [[f"{row}/{side}" if side else str(row) for row in range(3)] for side in range(3)],
        1,
    )
    assert_equal_gradients(found, sum_of_gradients(twin, own + ALPHA * value), 1e-6)


def test_the_reading_of_scores_may_be_given(folder: Path, tmp_path: Path) -> None:
    model = pair_model(1, tmp_path)
    trainer = trainer_of(Pairs, model, pair_losses.MSELoss(model), columns(labels=SCORES), tmp_path, task_type="labels")
    trainer.train()
    assert trainer.regularizer.read["task_type"] == "labels"


class Plain(InOrder, st.SentenceTransformerTrainer):
    pass


def test_without_weight_it_is_the_plain_trainer_and_r_falls_with_it(folder: Path, tmp_path: Path) -> None:
    def after(kind: Any, steps: int, **options: Any) -> tuple[dict[str, Tensor], list[float]]:
        torch.manual_seed(0)
        model = sentence_model(folder)
        data = columns(labels=SCORES)
        options = {"max_steps": steps, "learning_rate": 0.02, "eval_dataset": data, **options}
        trainer = trainer_of(kind, model, losses.CoSENTLoss(model), data, tmp_path, **options)
        trainer.train()
        assert "adv_loss" not in trainer.evaluate()
        return dict(model.named_parameters()), [x["adv_loss"] for x in trainer.state.log_history if "adv_loss" in x]

    plain, _ = after(Plain, 3)
    without, _ = after(Sentences, 3, alpha=0.0)
    assert all(torch.equal(plain[name], without[name]) for name in plain)
    (_, free), (_, held) = (after(Sentences, 25, alpha=alpha) for alpha in (0.0, 20.0))
    assert held[-1] < 0.5 * free[-1]


def test_a_run_that_is_resumed_at_a_smaller_batch_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    def trainer(name: str) -> Any:
        model = sentence_model(folder)
        saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "learning_rate": 0.1}
        loss, data = losses.CosineSimilarityLoss(model), columns(labels=SCORES)
        return trainer_of(Sentences, model, loss, data, tmp_path / name, per_device_train_batch_size=2, **saves)

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert_equal_gradients(parameters(resumed.model), parameters(whole.model), 1e-9)


@pytest.mark.parametrize("left", [False, True])
def test_batches_merge_to_the_longest_and_differ_in_texts_alone(left: bool) -> None:
    short = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2).long(), "modality": "text"}
    long = {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3).long(), "modality": "text"}
    merged = merged_texts([short, long], pad_token=4, left=left)
    assert merged["input_ids"].tolist() == [[4, 5, 6] if left else [5, 6, 4], [7, 8, 9]]
    assert merged["attention_mask"].tolist() == [[0, 1, 1] if left else [1, 1, 0], [1, 1, 1]]
    assert merged["modality"] == "text"
    with pytest.raises(ValueError, match=r"different 'prompt_length'; accepted: .*include_prompt=True"):
        merged_texts([{**short, "prompt_length": 1}, {**long, "prompt_length": 2}])
    with pytest.raises(ValueError, match="several lengths without attention_mask"):
        merged_texts([{"input_ids": batch["input_ids"]} for batch in (short, long)])


@pytest.mark.parametrize("name", [name for name, kind in PERTURBATIONS.items() if kind.with_defaults().needs_clean])
def test_every_method_that_compares_trains_both(name: str, folder: Path, tmp_path: Path) -> None:
    method = PERTURBATIONS[name]
    model, pairs = sentence_model(folder).float(), pair_model(1, tmp_path).float()
    for trainer in (
        trainer_of(
            Sentences, model, losses.MultipleNegativesRankingLoss(model), columns(True), tmp_path, max_steps=3,
            perturbation=method.with_defaults(), learning_rate=1e-3, gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
        ),
        trainer_of(
            Pairs, pairs, pair_losses.BinaryCrossEntropyLoss(pairs), columns(labels=[1, 0, 1]), tmp_path, max_steps=3,
            perturbation=method.with_defaults(), learning_rate=1e-3,
        ),
    ):  # fmt: skip
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "adv_loss" in entry]
        assert logs and all(entry["adv_loss"] > 0 for entry in logs)


def test_columns_may_have_prompts_that_the_embeddings_include(folder: Path, tmp_path: Path) -> None:
    model = sentence_model(folder)
    prompts = {"first": "w3 w4 ", "second": "w5 "}
    data, loss = columns(labels=SCORES), losses.CosineSimilarityLoss(model)
    trainer = trainer_of(Sentences, model, loss, data, tmp_path, prompts=prompts)
    trainer.train()
    written = {name: [prompts[name] + text for text in texts] for name, texts in PAIRS.items()}
    twin = sentence_model(folder)
    same = Dataset.from_dict({**written, "label": SCORES})
    other = trainer_of(Sentences, twin, losses.CosineSimilarityLoss(twin), same, tmp_path)
    other.train()
    assert_equal_gradients(dict(model.named_parameters()), dict(twin.named_parameters()), 1e-12)
    model.set_pooling_include_prompt(False)
    with pytest.raises(ValueError, match="different 'prompt_length'"):
        trainer_of(Sentences, model, loss, data, tmp_path, prompts=prompts).train()


def test_two_data_sets_have_a_loss_each(folder: Path, tmp_path: Path) -> None:
    """Pairs with scores and triplets without, of two and of three columns."""
    model = sentence_model(folder)
    both = {"scores": losses.CosineSimilarityLoss(model), "triplets": losses.MultipleNegativesRankingLoss(model)}
    data = {"scores": columns(labels=SCORES), "triplets": columns(True)}
    trainer = trainer_of(Sentences, model, both, data, tmp_path, max_steps=2, learning_rate=1e-3)
    seen = []
    trainer.regularizer.perturbation.regularize = _seeing(seen, trainer.regularizer.perturbation.regularize)
    trainer.train()
    assert sorted(seen) == [6, 9]  # texts of a batch: three rows of two columns, and of three


def _seeing(seen: list[int], regularize: Callable[..., Any]) -> Callable[..., Any]:
    def call(evaluate: Any, injection: Any, logits: Any, mask: Tensor, **options: Any) -> Any:
        seen.append(len(mask))
        return regularize(evaluate, injection, logits, mask, **options)

    return call


def test_half_precision_gives_nearly_the_same_r(folder: Path, tmp_path: Path) -> None:
    """Both passes have it, so that rounding is no part of R."""

    def first(**options: Any) -> float:
        model = sentence_model(folder).float()
        trainer = trainer_of(Sentences, model, losses.CoSENTLoss(model), columns(labels=SCORES), tmp_path, **options)
        trainer.train()
        return float(trainer.state.log_history[0]["adv_loss"])

    assert first(bf16=True) == pytest.approx(first(), rel=0.2)


def test_the_trainer_of_the_page_trains(folder: Path, tmp_path: Path) -> None:
    (block,) = [x for x in blocks(ROOT / "docs" / "own_loop.md") if "SentenceTransformerTrainer)" in x.text]
    script = tmp_path / "page.py"
    script.write_text(block.text)
    model = sentence_model(folder).float()
    names = {
        "SiftPerturbation": SiftPerturbation,
        "model": model,
        "args": Sentences.training_args_class(
            str(tmp_path), use_cpu=True, max_steps=1, report_to=[], logging_steps=1, save_strategy="no"
        ),
        "pairs": columns(labels=SCORES),
        "loss": losses.CosineSimilarityLoss(model),
    }
    trainer = runpy.run_path(str(script), names)["trainer"]
    trainer.train()
    assert trainer.state.log_history[0]["adv_loss"] > 0
