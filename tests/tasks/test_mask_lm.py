from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_utils.errors import FlagError, TaskDefError, UserError
from data_utils.readers import read_score_file
from mt_dnn.batcher import Batch, Collater, SingleTaskDataset
from mt_dnn.configuration.config import parse_args
from mt_dnn.loss import MlmCriterion
from mt_dnn.model import MTDNNModel
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.perturbation.outputs import Comparison
from tasks import get_task
from tasks.definition import TaskDefs
from tasks.mask_lm import MaskLMTask, packed, part_of
from tests.encoder_folder import write_encoder
from tests.mt_dnn.runs import assert_same, parameters
from tests.tasks.learning import PROBE, SIFT, SMART, WORDS, learned, write_small_encoder, write_task

DEFINITION = """
toy:
  data_format: MLM
  task_type: MaskLM
  n_class: 13
  metric_meta: [ACC]
class:
  data_format: PremiseOnly
  task_type: Classification
  n_class: 2
  metric_meta: [ACC]
"""
FLAGS = ("--short_seq_prob", "0", "--epochs", "5")


def sentences(count: int, seed: int) -> Iterator[str]:
    """Two words in turn, a document each: a masked word is the one that stands two places before and after."""
    draw = random.Random(seed)
    for _ in range(count):
        words = draw.sample(WORDS, 2)
        yield " ".join(words[place % 2] for place in range(draw.randint(8, 12)))
        yield ""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits: dict[str, Any] = {"toy_train.txt": sentences(800, 1), "toy_dev.txt": sentences(100, 2)}
    labeled = ((number, words) for number, words in enumerate(sentences(100, 3)) if words)
    splits["class_train"] = [f"{number}\t{int(words.startswith('red'))}\t{words}" for number, words in labeled]
    splits["class_dev"] = splits["class_train"][:20]
    return write_task(tmp_path_factory.mktemp("text"), DEFINITION, splits, encoder)


@pytest.fixture
def dev(data: Path) -> SingleTaskDataset:
    return SingleTaskDataset(data / "toy_dev.json", False, 0, TaskDefs(data.parent / "tasks.yml").get_task_def("toy"))


def model(data: Path, encoder: Path, *flags: str, **others: Any) -> MTDNNModel:
    """A model of the toy task, not trained."""
    names = f"--task_def {data.parent / 'tasks.yml'} --init_checkpoint {encoder} --dropout_p 0 --bert_dropout_p 0"
    config = parse_args([*names.split(), *flags])
    return MTDNNModel(config, [TaskDefs(data.parent / "tasks.yml").get_task_def("toy")], **others)


def masked(model: MTDNNModel, batch: Batch, update: int = 0) -> Batch:
    model.updates = update
    return model._prepare(batch).batch


# learning


def test_a_linear_probe_does_not_learn_it(data: Path, encoder: Path, tmp_path: Path):
    assert learned(data, encoder, tmp_path, "toy", "ACC", *FLAGS, *PROBE) < 60


@pytest.mark.parametrize("method", [(), SMART, SIFT])
def test_it_learns_what_stands_at_a_place(data: Path, encoder: Path, tmp_path: Path, method: tuple[str, ...]):
    assert learned(data, encoder, tmp_path, "toy", "ACC", *FLAGS, *method) > 95


def test_pre_training_with_alum_then_another_task(data: Path, encoder: Path, tmp_path: Path):
    first = tmp_path / "first"
    alum = ("--adv_train", "--adv_opt", "alum", "--epochs", "3", "--log_per_updates", "25")
    assert learned(data, encoder, first, "toy", "ACC", *FLAGS, *alum) > 80
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    with_r = {line["update"]: "R" in line for line in lines if line["kind"] == "update"}
    assert with_r == {1: False, 25: False, 50: False, 75: False, 100: True, 125: True, 150: True}  # of 150 updates
    # the encoder of the checkpoint, with a new head
    learned(data, encoder, tmp_path, "class", "ACC", "--init_checkpoint", str(first / "model_2.pt"), "--epochs", "1")
    before, after = (parameters(folder / name) for folder, name in ((first, "model_2.pt"), (tmp_path, "model_0.pt")))
    assert {name for name in after if "scoring_list" in name} == {
        f"scoring_list.0.{layer}.{kind}" for layer in ("0.dense", "1") for kind in ("weight", "bias")
    }
    name = "bert.embeddings.word_embeddings.weight"
    mask_token = 4  # which the second task does not have
    torch.testing.assert_close(after[name][mask_token], before[name][mask_token], rtol=1e-3, atol=1e-3)


def test_a_resume_goes_on_bit_for_bit(data: Path, encoder: Path, tmp_path: Path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    flags = ("--epochs", "2", "--bert_dropout_p", "0.1", *SIFT)
    learned(data, encoder, whole, "toy", "ACC", *flags)
    learned(data, encoder, resumed, "toy", "ACC", *flags, "--resume", "--model_ckpt", str(whole / "model_0.pt"))
    assert_same(parameters(whole / "model_1.pt"), parameters(resumed / "model_1.pt"))


# masks


def test_masks_depend_on_seed_update_and_sequence_alone(data: Path, encoder: Path, dev: SingleTaskDataset):
    own = model(data, encoder, "--short_seq_prob", "0.5")
    collater = Collater(0)
    together = masked(own, collater([dev[0], dev[1], dev[2]]))
    alone = masked(own, collater([dev[1]]))
    length = int(alone.attention_mask.sum())
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(getattr(together, name)[1, :length], getattr(alone, name)[0, :length]), name
    examples = [dev[index] for index in range(30)]
    again, later = masked(own, collater(examples)), masked(own, collater(examples), update=1)
    assert not torch.equal(again.input_ids, later.input_ids)
    other = masked(model(data, encoder, "--short_seq_prob", "0.5", "--seed", "1"), collater(examples))
    assert not torch.equal(again.input_ids, other.input_ids)
    assert torch.equal(masked(own, collater(examples)).input_ids, again.input_ids)


def test_masked_tokens_are_the_labels_and_the_rest_stays(data: Path, encoder: Path, dev: SingleTaskDataset):
    batch = Collater(0)([dev[index] for index in range(50)])
    found = masked(model(data, encoder, "--short_seq_prob", "0"), batch)
    is_masked = found.labels != -1
    assert torch.equal(found.labels[is_masked], batch.input_ids[is_masked])
    assert torch.equal(found.input_ids[~is_masked], batch.input_ids[~is_masked])
    assert torch.equal(found.attention_mask, batch.attention_mask)
    assert not (is_masked & (batch.attention_mask == 0)).any() and not is_masked[:, 0].any()
    assert is_masked.any(1).all() and (found.input_ids[is_masked] == 4).float().mean() > 0.6


def test_whether_a_masked_batch_has_padding_is_to_be_seen_anew(data: Path, encoder: Path, dev: SingleTaskDataset):
    batch = Collater(0)([dev[0]]).to("cpu")
    assert batch.padded is False
    assert model(data, encoder)._prepare(batch).batch.padded is None


def test_the_flags_of_masking_act(data: Path, encoder: Path, dev: SingleTaskDataset):
    batch = Collater(0)([dev[index] for index in range(50)])
    lengths = batch.attention_mask.sum(1)
    half = masked(model(data, encoder, "--masked_lm_prob", "0.5", "--short_seq_prob", "0"), batch)
    assert (half.labels != -1).sum(1).tolist() == [round(0.5 * length) for length in lengths.tolist()]
    flags = ("--masked_lm_prob", "0.5", "--max_predictions_per_seq", "2", "--short_seq_prob", "0.5")
    short = masked(model(data, encoder, *flags), batch)
    assert ((short.labels != -1).sum(1) == 2).all()
    shares = short.attention_mask.sum(1) / lengths
    assert 0.3 < (shares < 1).float().mean() < 0.6 and (shares > 0).all()
    for row, length in enumerate(short.attention_mask.sum(1).tolist()):
        # first and last token stand around what is left
        assert short.input_ids[row, 0] == 2 and short.input_ids[row, length - 1] == 3
        assert (short.input_ids[row, length:] == 0).all() and (short.labels[row, length:] == -1).all()


def test_a_part_is_a_run_of_tokens_between_the_special_ones():
    draw = np.random.default_rng(0)
    parts = [part_of(6, draw).tolist() for _ in range(200)]
    assert all(part[0] == 0 and part[-1] == 5 for part in parts)
    assert all(part[1:-1] == list(range(part[1], part[-2] + 1)) for part in parts)
    assert {len(part) for part in parts} == {4, 5, 6} and {part[1] for part in parts} == {1, 2, 3}


def test_sentences_are_packed_whole_and_cut_where_they_are_too_long():
    sentences = [[1, 1], [2, 2], [3, 3, 3], [4] * 9, [5]]
    assert list(packed(sentences, 4)) == [[1, 1, 2, 2], [3, 3, 3], [4] * 4, [4] * 4, [4, 5]]
    assert list(packed([], 4)) == []


# network


def test_scores_are_computed_for_masked_tokens_alone(data: Path, encoder: Path, dev: SingleTaskDataset):
    own = model(data, encoder)
    batch = masked(own, Collater(0)([dev[index] for index in range(8)]))
    network = own.network.eval()
    logits = network.run(batch)
    whole = network(batch.input_ids, batch.token_type_ids, batch.attention_mask)
    is_masked = batch.labels != -1
    assert whole.shape == (*batch.input_ids.shape, 13)
    torch.testing.assert_close(logits, whole[is_masked])
    loss = network.tasks[0].loss(MlmCriterion(), logits, batch)
    expected = -whole.log_softmax(-1)[is_masked, batch.labels[is_masked]].mean()
    torch.testing.assert_close(loss, expected)


def test_noise_enters_at_the_lookup_and_not_in_the_tied_scores(data: Path, encoder: Path, dev: SingleTaskDataset):
    own = model(data, encoder)
    network = own.network.eval()
    batch = masked(own, Collater(0)([dev[0], dev[1]]))
    bert, head = network.bert, network.scoring_list[0]
    table = bert.get_input_embeddings().weight
    delta = 0.3 * torch.randn(*batch.input_ids.shape, 32) * batch.attention_mask.unsqueeze(-1)
    with NoiseInjection(bert, "pre_ln").add(delta):
        perturbed = network.run(batch)
    embedded = table[batch.input_ids] + delta
    hidden = bert(inputs_embeds=embedded, attention_mask=batch.attention_mask).last_hidden_state
    normed = head.norm(torch.nn.functional.gelu(head.dense(hidden[batch.labels != -1])))
    torch.testing.assert_close(perturbed, normed @ table.T + head.bias)
    assert (perturbed - network.run(batch)).abs().max() > 1e-3


def test_the_word_table_learns_from_the_lookup_and_from_the_scores(data: Path, encoder: Path, dev: SingleTaskDataset):
    own = model(data, encoder, "--optimizer", "sgd", "--global_grad_clipping", "0", "--warmup", "0", *SIFT)
    assert own.word_gradient is None
    before = own.network.bert.get_input_embeddings().weight.detach().clone()
    own.update(Collater(0)([dev[0], dev[1]]))
    # every word's row, for the scores are of all words
    assert ((own.network.bert.get_input_embeddings().weight - before).abs().amax(1) > 0).all()


def test_masked_logits_alone_compare_as_all_tokens_do():
    counted = torch.tensor([[False, True, True], [True, False, False]])
    clean, perturbed = torch.randn(2, 2, 3, 5).unbind(0)
    perturbed[1, 0, 2] = torch.nan
    mask = torch.ones(2, 3)
    compared = []
    for view in (lambda logits: logits, lambda logits: logits[counted]):
        options = {"task_type": MaskLMTask.view, "loss_mask": counted}
        batch = Comparison(view(clean), mask, lambda p, q: (p - q).square().sum(), **options)
        (pair,) = batch.pairs(view(perturbed))
        compared.append((*pair, batch.finite(view(perturbed)).float()))
    for whole, alone in zip(*compared, strict=True):
        torch.testing.assert_close(whole, alone, equal_nan=True)
    assert compared[0][2].tolist() == [1, 0]


# evaluation


def test_accuracy_and_perplexity_are_of_the_masked_tokens(data: Path, encoder: Path, tmp_path: Path):
    learned(data, encoder, tmp_path, "toy", "ACC", "--epochs", "1")
    found = read_score_file(tmp_path / "toy_dev_scores_epoch_0.json")
    assert len(found["predictions"]) == 100
    count = sum(len(tokens) for tokens in found["predictions"])
    assert count == len(found["scores"])
    assert found["metrics"]["perplexity"] == pytest.approx(math.exp(-sum(found["scores"]) / count), rel=1e-5)
    # where the true token has more than half of the probability, it is the predicted one
    surely = sum(score > math.log(0.5) for score in found["scores"])
    assert surely <= round(found["metrics"]["ACC"] / 100 * count) <= count


def test_a_perfect_model_scores_a_hundred(dev: SingleTaskDataset, data: Path, encoder: Path):
    task = model(data, encoder).network.tasks[0]
    golds = [task._told(dev, index) for index in range(len(dev))]
    found = task.evaluate(dev, dev.task_def.metric_meta, [np.zeros(len(gold)) for gold in golds], golds)
    assert found.metrics == {"ACC": 100.0, "perplexity": 1.0}
    wrong = [gold + 1 for gold in golds]
    found = task.evaluate(dev, dev.task_def.metric_meta, [np.full(len(gold), -1.0) for gold in golds], wrong)
    assert found.metrics == {"ACC": 0.0, "perplexity": pytest.approx(math.e)}


def test_a_submission_has_a_sequence_s_predicted_tokens_in_a_cell(dev: SingleTaskDataset):
    task = get_task(dev.task_def)
    assert task.answers([], [np.array([7, 9]), np.zeros(0, np.int64)]) == ["[7, 9]", "[]"]


# mistakes


def test_a_mistake_is_told_in_a_line(data: Path, encoder: Path, dev: SingleTaskDataset, tmp_path: Path):
    (tmp_path / "tasks.yml").write_text(DEFINITION.replace("[ACC]", "[F1]", 1))
    with pytest.raises(TaskDefError, match=r"'metric_meta': found \['F1'\], accepted: \[ACC\] for MaskLM"):
        TaskDefs(tmp_path / "tasks.yml")
    with pytest.raises(FlagError, match="MaskLM: tokenizer .*: no tokenizer in this folder.*--tokenizer names another"):
        model(data, encoder, "--tokenizer", str(tmp_path))._prepare(Collater(0)([dev[0]]))
    tokenizer = write_encoder(tmp_path / "maskless")  # a tokenizer of four words
    with pytest.raises(FlagError, match="the tokenizer has no mask token"):
        model(data, encoder, "--tokenizer", str(tokenizer))._prepare(Collater(0)([dev[0]]))
    labeled = tmp_path / "toy_dev.json"
    labeled.write_text('{"uid": "0", "label": [1, 2], "token_id": [2, 3]}\n')
    with pytest.raises(UserError, match=r"label is \[1, 2\]; accepted are none: the tokens themselves"):
        SingleTaskDataset(labeled, False, 0, dev.task_def)
    with pytest.raises(FlagError, match="--adv_free: the tokens of a MaskLM task"):
        learned(data, encoder, tmp_path, "toy", "ACC", *SIFT, "--adv_free")
