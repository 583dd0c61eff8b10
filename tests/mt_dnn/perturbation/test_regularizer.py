"""A method bound to a model, in a plain loop: its arguments, its noise and dropout, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mt_dnn.perturbation.regularizer as regularizer_module
from data_utils.task_def import TaskType
from mt_dnn.perturbation import (
    AdversarialTraining,
    FreeLbPerturbation,
    ModelRegularizer,
    RandomPerturbation,
    SiftPerturbation,
    SmartPerturbation,
    VatPerturbation,
)
from mt_dnn.perturbation.injection import UnsupportedLevelError
from mt_dnn.perturbation.noise import example_seeds
from mt_dnn.perturbation.reading import view_of_output
from tests.encoders import hook_count, tiny_classifier, token_batch
from tests.hf import HEADS, RADIUS, collate, examples, search, tiny_model
from tests.search import Trace


def bound(model: nn.Module, kind: type[Any] = SmartPerturbation, **options: Any) -> ModelRegularizer:
    own = {name: options.pop(name) for name in ("task_type", "pairwise", "forward", "task_loss") if name in options}
    return ModelRegularizer(search(kind, **options), model, **own)


def classification() -> tuple[Any, dict[str, Tensor]]:
    return tiny_model("classification"), collate(examples("classification"))


def test_logits_come_as_a_tensor_a_tuple_or_an_output() -> None:
    model, batch = classification()
    output = model(**batch)
    found = [bound(model)(model, batch, given) for given in (output, output.logits, (output.logits,))]
    method = search()
    expected = method.regularize(
        lambda: model(**batch),
        model,
        output.logits,
        batch["attention_mask"],
        noise_seeds=example_seeds(torch.initial_seed(), 0, ["0/0", "0/1", "0/2"]),
    )
    assert expected.loss > 1e-4
    assert [value.item() for value in found] == [expected.loss.item()] * 3


def test_a_loop_with_for_model_lowers_the_regularizer() -> None:
    model, batch = classification()
    torch.manual_seed(0)
    sift = SiftPerturbation.for_model(model, radius=0.05)
    assert (sift.perturbation.level, sift.perturbation.radius) == ("post_ln", 0.05)
    assert sift.alpha == sift.perturbation.measured_alpha
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    values = []
    for _ in range(12):
        output = model(**batch)
        regularizer = sift(model, batch, output.logits)
        optimizer.zero_grad()
        (output.loss + 30 * regularizer).backward()
        optimizer.step()
        values.append(regularizer.item())
    assert values[-1] < 0.5 * values[0]
    assert hook_count(model) == 0


def test_a_model_that_is_not_of_transformers_has_its_own_forward_and_loss() -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    labels = torch.tensor([0, 2, 1])
    at = bound(
        model,
        AdversarialTraining,
        norm_p="l1",
        noise_var=0.0,
        step_size=RADIUS,
        forward=lambda network, inputs: network(*inputs["tensors"]),
        task_loss=lambda logits: F.cross_entropy(logits, labels),
    )
    inputs = {"tensors": batch, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    delta = torch.zeros(3, 7, 16, dtype=torch.float64, requires_grad=True)

    def loss(noise: Tensor) -> Tensor:
        handle = model.bert.get_input_embeddings().register_forward_hook(lambda _, __, h: h + noise)
        logits = model(*batch)
        handle.remove()
        return F.cross_entropy(logits, labels)

    (gradient,) = torch.autograd.grad(loss(delta), delta)
    assert at(model, inputs, None).item() == pytest.approx(loss(RADIUS * gradient.sign()).item(), rel=1e-12)


@pytest.mark.parametrize("kind", [AdversarialTraining, FreeLbPerturbation])
@pytest.mark.parametrize("head", HEADS)
def test_an_examples_ascent_on_gold_labels_does_not_depend_on_its_batch(
    head: str, kind: type[AdversarialTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`normalize` takes the gradient as it is, so that δ of the second step would differ too."""
    model, rows, trace = tiny_model(head), examples(head), Trace(monkeypatch)
    seeds = example_seeds(0, 0, ["a", "b", "c"])
    method = bound(model, kind, k=3, radius=None, projection="normalize", step_size=0.5)
    method(model, collate(rows), None, noise_seeds=seeds)
    together = list(trace.steps)
    for row, seed in enumerate(seeds):
        trace.steps.clear()
        method(model, collate(rows[row : row + 1]), None, noise_seeds=[seed])
        for alone, among in zip(trace.steps, together, strict=True):
            assert alone.gradient.abs().max() > 1e-3
            torch.testing.assert_close(among.gradient[row], alone.gradient[0], rtol=1e-4, atol=1e-6)


def test_perturbed_passes_do_not_move_torchs_generator() -> None:
    model = tiny_model("classification", dropout=0.3)
    batch = collate(examples("classification"))
    regularizer = bound(model)
    torch.manual_seed(3)
    output = model(**batch)
    state = torch.get_rng_state()
    regularizer(model, batch, output)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_named_by_seed_call_process_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = classification()
    output = model(**batch)
    torch.manual_seed(1)
    regularizer = bound(model)
    first, second = (regularizer(model, batch, output).item() for _ in range(2))
    assert (first == second, regularizer.calls) == (False, 2)
    again = bound(model)
    again.calls = 1
    assert again(model, batch, output).item() == second
    torch.manual_seed(2)
    assert bound(model)(model, batch, output).item() != first
    torch.manual_seed(1)
    monkeypatch.setattr(regularizer_module, "_process", lambda: 1)
    assert bound(model)(model, batch, output).item() != first
    seeds = example_seeds(0, 0, ["a", "b", "c"])
    named = [bound(model)(model, batch, output, noise_seeds=seeds).item() for _ in range(2)]
    assert named[0] == named[1]


@pytest.mark.parametrize("options", [{"level": "deberta"}, {"same_dropout": True}])
def test_a_forgotten_clean_block_is_an_error_for_every_batch(options: dict[str, Any]) -> None:
    model = tiny_model("classification", dropout=0.2)
    batch = collate(examples("classification"))
    regularizer = bound(model, **options)
    message = r"(level 'deberta'|same_dropout): run the clean pass of each batch within `with regularizer.clean"
    for _ in range(2):
        with regularizer.clean(model):
            output = model(**batch)
        assert regularizer(model, batch, output) > 0
        with pytest.raises(ValueError, match=message):
            regularizer(model, batch, output)


def test_a_clean_block_that_fails_or_is_forgotten_serves_no_later_batch() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    regularizer = SmartPerturbation.for_model(model, level="deberta")
    with pytest.raises(KeyError), regularizer.clean(model):
        raise KeyError
    with pytest.raises(ValueError, match="^level 'deberta': run the clean pass"):
        regularizer(model, batch, model(**batch))
    with regularizer.clean(model):
        model(**batch)
    regularizer.forget_clean()
    with pytest.raises(ValueError, match="^level 'deberta': run the clean pass"):
        regularizer(model, batch, model(**batch))


@pytest.mark.parametrize("level", ["pre_ln", "post_ln", "deberta"])
def test_no_noise_and_the_same_dropout_give_no_difference(level: str) -> None:
    model = tiny_model("classification", dropout=0.2, layer_norm_eps=0.5)
    batch = collate(examples("classification"))
    values = []
    for same in (True, False):
        options: dict[str, Any] = {"radius": None, "projection": "none", "noise_var": 0.0, "level": level}
        regularizer = bound(model, RandomPerturbation, same_dropout=same, **options)
        with regularizer.clean(model):
            output = model(**batch)
        values.append(regularizer(model, batch, output).item())
    assert values[0] == pytest.approx(0, abs=1e-15)
    assert values[1] > 1e-4


def test_last_holds_the_statistics_of_the_call() -> None:
    model, batch = classification()
    regularizer = bound(model)
    value = regularizer(model, batch, model(**batch))
    last = regularizer.last
    assert last is not None
    real = batch["attention_mask"].bool()
    words = model.get_input_embeddings()(batch["input_ids"])[real]
    assert last.loss is value
    assert last.emb_val.item() == pytest.approx(words.abs().mean().item(), rel=1e-12)
    assert 0 < last.delta_size.item() <= RADIUS
    assert last.skipped.item() == 0


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("classification", "classes"),
        ("regression", "numbers"),
        ("tokens", "tokens"),
        ("spans", "spans"),
        ("generation", "next_tokens"),
    ],
)
def test_the_task_type_follows_from_the_model(head: str, expected: str) -> None:
    model = tiny_model(head)
    batch = collate(examples(head))
    output = model(**batch)
    assert view_of_output(model, batch, output) == expected
    assert view_of_output(type("Renamed", (type(model),), {})(model.config), batch, output) == expected


def test_masked_words_are_compared_where_they_have_a_label() -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    model = transformers.BertForMaskedLM(config).double()
    batch = collate(examples("tokens"))
    zero: dict[str, Any] = {"radius": None, "projection": "none", "noise_var": 0.0}
    output = model(**batch)
    shifted = output.logits + torch.arange(40) * (batch["labels"] == -100).unsqueeze(-1)
    assert bound(model, RandomPerturbation, **zero)(model, batch, shifted).item() == pytest.approx(0, abs=0.5)
    config.attention_probs_dropout_prob = config.hidden_dropout_prob = 0.0
    still = transformers.BertForMaskedLM(config).double()
    output = still(**batch)
    apart = output.logits + torch.arange(40) * (batch["labels"] == -100).unsqueeze(-1)
    assert bound(still, RandomPerturbation, **zero)(still, batch, apart).item() == pytest.approx(0, abs=1e-12)
    apart = output.logits + torch.arange(40) * (batch["labels"] != -100).unsqueeze(-1)
    assert bound(still, RandomPerturbation, **zero)(still, batch, apart).item() > 1


def test_without_labels_a_generator_is_compared_where_a_real_token_follows() -> None:
    model = tiny_model("generation")
    ids = torch.tensor([[0, 0, 8, 9, 10], [5, 6, 7, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    logits = model(**batch).logits
    counted = torch.tensor([[0, 0, 1, 1, 0], [1, 1, 0, 0, 0]])
    method: dict[str, Any] = {"radius": None, "projection": "none", "noise_var": 0.0}
    for mark, size in ((1 - counted, 0.0), (counted, 1.0)):
        moved = logits + torch.arange(40) * mark.unsqueeze(-1)
        value = bound(model, RandomPerturbation, **method)(model, batch, moved).item()
        assert (value > size) if size else value == pytest.approx(0, abs=1e-9)


def test_choices_are_rows_of_one_distribution() -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    config.attention_probs_dropout_prob = config.hidden_dropout_prob = 0.0
    model = transformers.BertForMultipleChoice(config).double()
    ids = torch.arange(5, 29).view(2, 3, 4)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 2])}
    logits = model(**batch).logits
    method: dict[str, Any] = {"radius": None, "projection": "none", "noise_var": 0.0}
    moved = logits + torch.tensor([0.0, 1.0, 2.0])
    p, q = logits.log_softmax(-1), moved.log_softmax(-1)
    expected = ((p.exp() - q.exp()) * (p - q)).sum(-1).mean().item()
    assert bound(model, RandomPerturbation, **method)(model, batch, moved).item() == pytest.approx(expected, rel=1e-9)


def test_ranking_compares_groups_of_rows() -> None:
    model = tiny_model("regression")
    rows = {name: x.repeat(2, 1)[:4] for name, x in collate(examples("regression")).items() if name != "labels"}
    logits = model(**rows).logits
    method: dict[str, Any] = {"radius": None, "projection": "none", "noise_var": 0.0}
    regularizer = bound(model, RandomPerturbation, task_type=TaskType.Ranking, pairwise=2, **method)
    moved = logits + torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    p, q = logits.view(2, 2).log_softmax(-1), moved.view(2, 2).log_softmax(-1)
    expected = ((p.exp() - q.exp()) * (p - q)).sum(-1).mean().item()
    assert regularizer(model, rows, moved).item() == pytest.approx(expected, rel=1e-9)


def test_a_wrapped_model_gives_the_value_of_the_model_inside() -> None:
    model, batch = classification()
    output = model(**batch)
    expected = bound(model)(model, batch, output).item()
    wrapped = nn.DataParallel(model)
    assert bound(wrapped)(wrapped, batch, output).item() == expected


def test_without_a_clean_pass_the_wrapper_runs_whose_forward_synchronizes_gradients() -> None:
    model, batch = classification()
    wrapped = nn.DataParallel(model)
    passes: list[int] = []
    wrapped.register_forward_hook(lambda *_: passes.append(1))
    bound(wrapped, AdversarialTraining, k=2)(wrapped, batch, model(**batch))
    assert not passes
    bound(wrapped, AdversarialTraining, k=2)(wrapped, batch, None)
    assert len(passes) == 1
    bound(wrapped, FreeLbPerturbation, k=3)(wrapped, batch, None)
    assert len(passes) == 4


class Siamese(nn.Module):
    """Two texts by one encoder, one after the other; `whole` recomputes it in the backward."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.bert, self.whole = tiny_model("classification").bert, whole

    def forward(self, input_ids: Tensor, attention_mask: Tensor, second: Tensor | None = None) -> Tensor:
        def encoded(ids: Tensor) -> Tensor:
            found: Tensor = self.bert(input_ids=ids, attention_mask=attention_mask).last_hidden_state[:, 0]
            return found

        first: Any = checkpoint(encoded, input_ids, use_reentrant=False) if self.whole else encoded(input_ids)
        return first if second is None else first - encoded(second)


@pytest.mark.parametrize("kind", [RandomPerturbation, SmartPerturbation, SiftPerturbation])
def test_two_texts_by_one_encoder_are_refused(kind: type[Any]) -> None:
    """The noise, and the embeddings that it is added to, are those of one of them."""
    model, batch = Siamese(), {name: x for name, x in classification()[1].items() if name != "labels"}
    regularizer = bound(model, kind, task_type=TaskType.Classification)
    assert regularizer(model, batch, model(**batch)) > 0
    both = batch | {"second": batch["input_ids"].flip(0)}
    with pytest.raises(ValueError, match="BertModel embeds words twice in one forward; accepted: models that embed a"):
        regularizer(model, both, model(**both))
    assert hook_count(model) == 0


def test_an_encoder_that_the_backward_recomputes_is_refused() -> None:
    """Anew it would be computed without the noise, and give another gradient."""
    model, batch = Siamese(whole=True), {name: x for name, x in classification()[1].items() if name != "labels"}
    with pytest.raises(ValueError, match="the backward pass recomputes the embeddings of BertModel, without the noise"):
        bound(model, task_type=TaskType.Classification)(model, batch, model(**batch))
    assert hook_count(model) == 0


def test_a_search_needs_gradients() -> None:
    model, batch = classification()
    with torch.no_grad():
        output = model(**batch)
        with pytest.raises(ValueError, match="smart searches by gradients: call it within `with torch.enable_grad"):
            bound(model)(model, batch, output)
        assert bound(model, RandomPerturbation)(model, batch, output) > 0
        with torch.enable_grad():
            assert bound(model)(model, batch, model(**batch)) > 0


def test_tokens_that_are_not_the_batchs_are_an_error() -> None:
    model, batch = tiny_model("tokens"), collate(examples("tokens"))
    longer = F.pad(model(**batch).logits, (0, 0, 3, 0))
    with pytest.raises(ValueError, match="found logits of 3 x 10 tokens; accepted: of the batch's 3 x 7, of these in"):
        bound(model)(model, batch, longer)


def test_what_is_missing_is_named() -> None:
    model, batch = classification()
    unlabeled = {name: x for name, x in batch.items() if name != "labels"}
    with pytest.raises(ValueError, match="smart compares with the clean pass: give its logits"):
        bound(model)(model, batch, None)
    with pytest.raises(ValueError, match="needs labels: give labels in the batch, or task_loss"):
        bound(model, AdversarialTraining)(model, unlabeled, None)
    with pytest.raises(ValueError, match="a forward's tuple begins with its loss"):
        bound(model)(model, batch, tuple(model(**batch).values()))
    with pytest.raises(UnsupportedLevelError, match="Linear holds no encoder with word embeddings"):
        bound(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"SmartPerturbation is a class; accepted: SmartPerturbation.with_defaults"):
        ModelRegularizer(SmartPerturbation, model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the clean logits have no gradient, and half of smart's would be lost"):
        bound(model)(model, batch, model(**batch).logits.detach())
    assert bound(model, VatPerturbation)(model, batch, model(**batch).logits.detach()) > 0  # it detaches them itself


def test_r_within_its_own_clean_block_is_refused_and_after_it_is_not() -> None:
    model, batch = tiny_model("classification"), collate(examples("classification"))
    bound = SmartPerturbation.for_model(model, level="hidden:0")
    with pytest.raises(ValueError, match="^R within its own `clean` block"), bound.clean(model):
        bound(model, batch, model(**batch).logits)
    with bound.clean(model):
        logits = model(**batch).logits
    assert bound(model, batch, logits).item() > 0
