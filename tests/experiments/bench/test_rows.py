"""The steps of the bench: what the others compute, and what a step costs."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data_utils.errors import UserError
from docs_build.encoder_families import tiny_model
from experiments.bench import others
from experiments.bench.measure import forward_flops
from experiments.bench.others import Contest, PlainAdamax
from experiments.bench.rows import COMPARED, ROWS, still_config
from experiments.sift.running.runs import TASK, TASK_DEF
from mt_dnn.batcher import Batch
from mt_dnn.loss import SymKlCriterion
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.model import MTDNNModel
from mt_dnn.perturbation import SmartPerturbation
from mt_dnn.training.optim import DecoupledAdamax, decay_groups
from tasks.definition import TaskDefs

EXAMPLES, WIDTH, LONGEST = 6, 12, 20
OURS = [name for name in ROWS if name not in ("trainer", "smart-pytorch", "standin", "standin-smart")]


def tiny_contest(dropout: float = 0.0, **options: float) -> Contest:
    torch.manual_seed(0)
    encoder = tiny_model("bert", dropout=dropout, **options)
    task_def = TaskDefs(TASK_DEF).get_task_def(TASK)
    network = SANBertNetwork({"task_def_list": [task_def], "dropout_p": dropout}, encoder)
    return Contest(network, "tiny", task_def, np.full(EXAMPLES, LONGEST))


def batch_of(examples: int = EXAMPLES, width: int = WIDTH, padding: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(examples, width, dtype=torch.int64)
    mask[0, width - padding :] = 0
    return Batch(
        input_ids=torch.randint(5, 40, (examples, width), generator=generator) * mask,
        attention_mask=mask,
        token_type_ids=torch.zeros_like(mask),
        labels=torch.arange(examples) % 2,
        task_id=0,
        uids=tuple(map(str, range(examples))),
        positions=tuple(range(examples)),
    )


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone().to_dense() for name, p in network.named_parameters() if p.grad is not None}


def parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.named_parameters()}


@pytest.mark.parametrize("build", [others.standin_step, others.standin_smart_step])
def test_the_stand_in_learns(build):
    contest = tiny_contest(dropout=0.1)
    step = build(contest, still_config(contest, learning_rate=3e-2))
    losses = [step(batch_of()) for _ in range(40)]
    assert losses[0] > 0.6 and max(losses[-5:]) < 0.2


def test_the_stand_ins_plain_gradients_are_ours():
    contest = tiny_contest()
    network, batch = contest.network, batch_of(padding=3)
    model = MTDNNModel(still_config(contest), [contest.task_def], network=network)
    ours = gradients(network, model.objective(batch, range(EXAMPLES)).loss)
    theirs = gradients(network, others.standin_loss(network, batch))
    assert ours.keys() == theirs.keys() and len(ours) > 30
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=1e-7)
    assert max(float(gradient.abs().max()) for gradient in ours.values()) > 1e-2


def test_the_stand_ins_smart_loss_is_smarts_with_the_releases_norm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(others, "STEP_SIZE", 1.0)  # with the release's the gradient would hardly show in the noise
    contest = tiny_contest(initializer_range=0.3)
    network, batch = contest.network, batch_of()
    smart = SmartPerturbation(
        epsilon=others.EPSILON,
        step_size=others.STEP_SIZE,
        noise_var=others.NOISE_VAR,
        norm_p="inf",
        projection="normalize",
        loss_map=[SymKlCriterion()],
    )
    logits = network(batch.input_ids, batch.token_type_ids, batch.attention_mask)
    torch.manual_seed(3)
    regularizer, _, _ = smart(network, logits, batch.input_ids, batch.token_type_ids, batch.attention_mask)
    expected = gradients(network, nn.functional.cross_entropy(logits, batch.labels) + others.ALPHA * regularizer)
    torch.manual_seed(3)
    loss = others.standin_smart_loss(network, batch)
    found = gradients(network, loss)
    rise = (loss - others.standin_loss(network, batch)).item()
    assert rise > 0.1
    assert rise == pytest.approx(others.ALPHA * regularizer.item(), rel=1e-4)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_the_stand_ins_adamax_is_decoupled_adamax():
    first = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    second = copy.deepcopy(first)
    ours = DecoupledAdamax(decay_groups(first, 0.1), lr=0.02, eps=1e-6)
    theirs = PlainAdamax(decay_groups(second, 0.1), 0.02, 1e-6)
    before = parameters(first)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        for one, two in zip(first.parameters(), second.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        second[2].bias.grad = first[2].bias.grad = None
        ours.step()
        theirs.step()
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(second.get_parameter(name), parameter, rtol=0, atol=1e-6)
        assert (name == "2.bias") == torch.equal(parameter, before[name])


def test_the_trainers_steps_are_those_of_its_own_loop():
    stepped, looped = tiny_contest(), tiny_contest()
    batch = batch_of()
    config = still_config(stepped, learning_rate=1e-2, global_grad_clipping=0.01)
    torch.manual_seed(5)
    step = others.trainer_step(stepped, config)
    for _ in range(3):  # to Adam the size of the first gradient alone would be the same
        step(batch)
    torch.manual_seed(5)
    trainer = others.build_trainer(looped, config)
    trainer.args.num_train_epochs = 3
    trainer.train_dataset = [
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": label}
        for ids, mask, types, label in zip(
            batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.labels, strict=True
        )
    ]
    trainer.train()
    assert trainer.state.global_step == 3
    before, found, expected = (parameters(c.network) for c in (tiny_contest(), stepped, looped))
    for name in expected:
        if "key.bias" not in name:  # its gradient is rounding error, and Adam's first step is its sign
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    moved = [name for name in before if not torch.allclose(before[name], found[name], atol=1e-3)]
    assert len(moved) > 30 and all(name.startswith("bert.") for name in moved)


def test_from_its_own_embeddings_the_network_gives_its_logits():
    network, batch = tiny_contest().network, batch_of(padding=4)
    embeddings = network.bert.get_input_embeddings()(batch.input_ids)
    expected = network(batch.input_ids, batch.token_type_ids, batch.attention_mask)
    torch.testing.assert_close(others.embedded_forward(network, batch)(embeddings), expected)


def test_smart_pytorch_is_skipped_with_a_reason_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "smart_pytorch", None)
    with pytest.raises(UserError, match=r"not installed; .*pip install --no-deps smart-pytorch==0\.0\.4"):
        ROWS["smart-pytorch"].build(tiny_contest())


def test_an_encoder_that_has_no_classifier_is_told():
    contest = tiny_contest()
    contest.network.bert.config = type("Config", (), {"model_type": "strange"})()
    with pytest.raises(UserError, match="no classifier for strange"):
        ROWS["trainer"].build(contest)


def test_an_encoders_operations_are_those_that_torch_counts():
    contest = tiny_contest()
    batch = batch_of()
    with FlopCounterMode(display=False) as counter:
        contest.network.bert.encoder(contest.network.bert.embeddings(batch.input_ids))
    assert counter.get_total_flops() == forward_flops(contest.network.bert.config, EXAMPLES, WIDTH) > 0


@pytest.mark.parametrize("name", [*OURS, "trainer", "standin", "standin-smart"])
def test_a_step_costs_as_many_forwards_as_its_row_says(name: str):
    if name == "plain-onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    contest = tiny_contest(hidden_size=128, intermediate_size=512)
    step, batch = ROWS[name].build(contest), batch_of(width=LONGEST)
    with FlopCounterMode(display=False) as counter:
        step(batch)
        step(batch)
    forwards = counter.get_total_flops() / 2 / forward_flops(contest.network.bert.config, EXAMPLES, LONGEST)
    assert forwards == pytest.approx(ROWS[name].forwards, rel=0.01)  # beside it: poolers, heads


def test_steps_leave_the_weights_as_they_are():
    contest = tiny_contest(dropout=0.1)
    before = parameters(contest.network)
    steps = [ROWS[name].build(contest) for name in ("sift", "trainer", "standin-smart")]
    for step in [*steps, *steps]:  # each after each other's gradients
        step(batch_of())
    for name, tensor in parameters(contest.network).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-7)


def test_what_is_compared_is_in_the_bench():
    assert {name for pair in COMPARED for name in pair} <= set(ROWS)
