from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import predict
from data_utils.errors import DataError, TaskDefError
from data_utils.metrics import Metric
from data_utils.readers import read_score_file
from mt_dnn.batcher import Collater, MultiTaskDataset, SingleTaskDataset
from mt_dnn.loss import RankCeCriterion, SymKlCriterion
from mt_dnn.perturbation.outputs import Comparison
from mt_dnn.training.delta_cache import DeltaCache
from tasks import get_task
from tasks.definition import TaskDefs
from tests.tasks.learning import PROBE, SIFT, SMART, WORDS, learned, write_small_encoder, write_task

DEFINITION = """
toy:
  data_format: PremiseAndMultiHypothesis
  task_type: Ranking
  n_class: 1
  metric_meta: [ACC, F1, AUC]
  loss: RankCeCriterion
"""


def lines(count: int, seed: int) -> Iterator[str]:
    """Of two to four pairs of words the one that holds the premise's word."""
    draw = random.Random(seed)
    for number in range(count):
        word, *others = draw.sample(WORDS, 8)
        candidates = [draw.sample(others, 2) for _ in range(draw.randint(2, 4))]
        gold = draw.randrange(len(candidates))
        candidates[gold][draw.randrange(2)] = word
        relevances = ",".join("1" if place == gold else "0" for place in range(len(candidates)))
        ruids = ",".join(f"{number}-{place}" for place in range(len(candidates)))
        yield "\t".join([str(number), ruids, relevances, word, *map(" ".join, candidates)])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"toy_train": lines(800, 1), "toy_dev": lines(100, 2)}
    return write_task(tmp_path_factory.mktemp("ranking"), DEFINITION, splits, encoder)


@pytest.fixture
def dev(data: Path) -> SingleTaskDataset:
    task_def = TaskDefs(data.parent / "tasks.yml").get_task_def("toy")
    return SingleTaskDataset(data / "toy_dev.json", False, 0, task_def)


def test_a_linear_probe_does_not_learn_it(data: Path, encoder: Path, tmp_path: Path):
    assert learned(data, encoder, tmp_path, "toy", "ACC", *PROBE) < 60


@pytest.mark.parametrize("method", [(), SMART, SIFT])
def test_it_learns_to_compare(data: Path, encoder: Path, tmp_path: Path, method: tuple[str, ...]):
    assert learned(data, encoder, tmp_path, "toy", "ACC", *method) > 90


def test_noise_is_kept_by_candidate_and_a_checkpoint_gives_the_runs_scores(data: Path, encoder: Path, tmp_path: Path):
    learned(data, encoder, tmp_path, "toy", "ACC", *SIFT, "--adv_free", "--epochs", "2")
    task_def = TaskDefs(data.parent / "tasks.yml").get_task_def("toy")
    train = SingleTaskDataset(data / "toy_train.json", True, 0, task_def)
    kept = DeltaCache(tmp_path / "model_1.deltas", train.row_lengths, 32, new=False)
    rows = len(train.row_lengths)
    assert rows > 2 * len(train)
    width = int(train.row_lengths.max())
    found = kept.of(range(rows), torch.arange(width) < torch.tensor(train.row_lengths)[:, None])
    assert found.known.all()
    # every real token of every candidate has noise of its own, and padding has none
    sizes = found.delta.abs().sum(-1)
    assert torch.equal(sizes > 0, torch.arange(width) < torch.tensor(train.row_lengths)[:, None])
    batch = Collater(0)(MultiTaskDataset([train, train])[1, [5, 2]])
    first = len(train.row_lengths)
    assert batch.positions == (*(first + row for row in train.rows_of(5)), *(first + row for row in train.rows_of(2)))

    task, scores = data.parent / "tasks.yml", tmp_path / "scores.json"
    words = f"--task_def {task} --prep_input {data / 'toy_dev.json'} --checkpoint {tmp_path / 'model_1.pt'}"
    predict.main([*words.split(), "--with_label", "--score", str(scores)])
    again, own = read_score_file(scores), read_score_file(tmp_path / "toy_dev_scores_epoch_1.json")
    assert again["uids"] == own["uids"] and again["metrics"] == own["metrics"]
    assert again["scores"] == pytest.approx(own["scores"], abs=1e-6)


# text


def converted(root: Path, encoder: Path, line: str, labels: str = "", split: str = "train") -> dict[str, Any]:
    definition = DEFINITION + labels
    return json.loads(
        (write_task(root, definition, {f"toy_{split}": [line]}, encoder) / f"toy_{split}.json").read_text()
    )


def test_relevances_are_read_one_a_candidate(encoder: Path, tmp_path: Path):
    example = converted(tmp_path, encoder, "7\ta,b,c\t0,2.5,1\tred\tblue one\ttwo\tthree")
    assert example == {
        "uid": "7",
        "label": 1,
        "token_id": [[2, 5, 3, 6, 9, 3], [2, 5, 3, 10, 3], [2, 5, 3, 11, 3]],
        "type_id": [[0] * 6, [0] * 5, [0] * 5],
        "attention_mask": [[1] * 6, [1] * 5, [1] * 5],
        "ruid": ["a", "b", "c"],
        "olabel": [0.0, 2.5, 1.0],
    }


def test_relevances_may_be_named(encoder: Path, tmp_path: Path):
    example = converted(tmp_path, encoder, "7\ta,b\tgood,bad\tred\tblue\ttwo", "  labels: [bad, good]")
    assert (example["label"], example["olabel"]) == (0, [1.0, 0.0])


def test_padding_that_a_file_has_is_left_out(data: Path, encoder: Path, dev: SingleTaskDataset, tmp_path: Path):
    folder = write_task(tmp_path, DEFINITION, {"toy_dev": lines(100, 2)}, encoder, "--do_padding", "--max_seq_len", "9")
    first = json.loads((folder / "toy_dev.json").read_text().splitlines()[0])
    assert {len(row) for row in first["token_id"]} == {9} and 0 in first["attention_mask"][0]
    padded = SingleTaskDataset(folder / "toy_dev.json", False, 0, dev.task_def)
    for one, other in zip(padded, dev, strict=True):
        assert one["lengths"] == other["lengths"] and one["label"] == other["label"]
        assert np.array_equal(one["token_id"], other["token_id"])


def test_an_example_may_lack_a_label_outside_training_sets(encoder: Path, tmp_path: Path):
    example = converted(tmp_path, encoder, "7\ta,b\t\tred\tblue\ttwo", split="test")
    assert list(example) == ["uid", "token_id", "type_id", "attention_mask", "ruid"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("7\ta,b\t0,1,0\tred\tblue\ttwo", "expected as many relevances as hypotheses, found 3 and 2"),
        ("7\ta\t0,1\tred\tblue\ttwo", r"expected as many ids \(ruid\) as hypotheses, found 1 and 2"),
        ("7\ta,b\t0,nan\tred\tblue\ttwo", "found the label '0,nan'; accepted: finite numbers such as"),
        ("7\ta,b\t0,yes\tred\tblue\ttwo", "found the label '0,yes'; accepted: finite numbers"),
        ("7\ta,b\t0,0\tred\tblue\ttwo", "found the label '0,0', which makes no candidate the gold"),
        ("7\ta,b\t\tred\tblue\ttwo", "expected as many relevances as hypotheses, found 1 and 2"),
        ("7\ta,b\t0,1\tred", "expected at least 5 tab-separated columns .* found 4"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(encoder: Path, tmp_path: Path, line: str, words: str):
    with pytest.raises(DataError, match=words) as caught:
        converted(tmp_path, encoder, line)
    assert str(caught.value).startswith(f"{tmp_path / 'toy_train.tsv'}, line 1: ")


def test_more_than_one_output_is_refused(tmp_path: Path):
    (tmp_path / "tasks.yml").write_text(DEFINITION.replace("n_class: 1", "n_class: 2"))
    with pytest.raises(TaskDefError, match="key 'n_class': found 2, accepted: 1"):
        TaskDefs(tmp_path / "tasks.yml")


# batches


def test_a_group_does_not_feel_the_others_in_its_batch(dev: SingleTaskDataset):
    examples = [dev[index] for index in range(4)]
    batch = Collater(0)(examples)
    assert batch.labels is not None
    assert batch.groups == tuple(len(example["lengths"]) for example in examples) and len(set(batch.groups)) > 1
    task = get_task(dev.task_def)
    logits = torch.randn(len(batch.input_ids), 1, requires_grad=True)
    parts = logits.flatten().split(list(batch.groups))
    golds = batch.labels.tolist()
    expected = [torch.logsumexp(part, 0) - part[gold] for part, gold in zip(parts, golds, strict=True)]
    loss = task.loss(RankCeCriterion(), logits, batch)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    for part, own, gold in zip(parts, gradient.flatten().split(list(batch.groups)), golds, strict=True):
        torch.testing.assert_close(own, (part.softmax(0) - torch.eye(len(part))[gold]) / 4)

    scores, predictions = task.predict(logits.detach(), batch)
    for part, score, prediction in zip(parts, scores, predictions, strict=True):
        np.testing.assert_allclose(score, part.detach().softmax(0).numpy(), rtol=1e-6)
        assert prediction.tolist() == [int(place == part.argmax()) for place in range(len(part))]


def test_noise_is_judged_by_groups(dev: SingleTaskDataset):
    batch = Collater(0)([dev[index] for index in range(4)])
    clean, perturbed = torch.randn(2, len(batch.input_ids), 1, dtype=torch.float64)
    compared = Comparison(
        clean, batch.attention_mask, SymKlCriterion(), task_type=get_task(dev.task_def).view, pairwise=batch.groups
    )
    ((found, held_against),) = compared.pairs(perturbed)
    expected = []
    for before, after in zip(*(part.flatten().split(list(batch.groups)) for part in (clean, perturbed)), strict=True):
        log_p, log_q = after.log_softmax(0), before.log_softmax(0)
        expected.append(((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum())
    torch.testing.assert_close(SymKlCriterion()(found, held_against), torch.stack(expected).mean())


# evaluation


def group(uid: int, relevances: list[float] | None, count: int, **more: Any) -> str:
    label = {} if relevances is None else {"label": relevances.index(max(relevances)), "olabel": relevances}
    return json.dumps({"uid": str(uid), "token_id": [[2, 5, 3]] * count, **label, **more})


def evaluated(folder: Path, lines: list[str], scores: list[list[float]], metrics: list[Metric]) -> Any:
    (folder / "tasks.yml").write_text(DEFINITION)
    (folder / "toy_dev.json").write_text("\n".join(lines) + "\n")
    task_def = TaskDefs(folder / "tasks.yml").get_task_def("toy")
    dataset = SingleTaskDataset(folder / "toy_dev.json", False, 0, task_def)
    arrays = [np.array(own) for own in scores]
    return dataset.task.evaluate(
        dataset, metrics, arrays, [np.eye(len(own), dtype=int)[own.argmax()] for own in arrays]
    )


def test_metrics_are_over_groups_or_over_candidates(tmp_path: Path):
    found = evaluated(
        tmp_path,
        [group(0, [0, 1, 0], 3, ruid=["a", "b", "c"]), group(1, [2, 0], 2), group(2, [1, 0, 1, 0], 4)],
        [[0.2, 0.7, 0.1], [0.4, 0.6], [0.1, 0.2, 0.4, 0.3]],
        [Metric.AUC, Metric.ACC, Metric.F1],
    )
    assert found.uids == ["a", "b", "c", "1", "1", "2", "2", "2", "2"]
    assert found.predictions.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]
    assert np.concatenate(found.golds).tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert found.scores.tolist() == [0.2, 0.7, 0.1, 0.4, 0.6, 0.1, 0.2, 0.4, 0.3]
    assert list(found.metrics) == ["AUC", "ACC", "F1"]
    # the first group is right, the second wrong, and the third has two golds of which one is the best
    assert found.metrics["ACC"] == pytest.approx(100 * 2 / 3)
    # of the candidates 2 true positives, 1 false positive, 2 false negatives
    assert found.metrics["F1"] == pytest.approx(100 * 4 / 7)
    # golds .7 .4 .1 .4 against others .2 .1 .6 .2 .3: 5 + 4 + 4 in order, and a half for .1 against .1
    assert found.metrics["AUC"] == pytest.approx(100 * 13.5 / 20)


def test_labels_are_enough_where_a_file_has_no_relevances(tmp_path: Path):
    lines = [json.dumps({"uid": "0", "label": 1, "token_id": [[2, 3]] * 3})]
    found = evaluated(tmp_path, lines, [[0.1, 0.8, 0.1]], [Metric.ACC])
    assert found.metrics == {"ACC": 100.0} and np.concatenate(found.golds).tolist() == [0, 1, 0]


def test_without_labels_there_are_scores_alone(tmp_path: Path):
    found = evaluated(tmp_path, [group(0, None, 2)], [[0.1, 0.9]], [Metric.ACC])
    assert found.metrics == {} and found.golds is None and found.predictions.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"label": 2}, "label is 2; accepted are the index of one of the example's sequences"),
        ({"olabel": [1.0]}, "olabel must be a list of 2 finite numbers"),
        ({"olabel": [1.0, None]}, "olabel must be a list of 2 finite numbers"),
        ({"olabel": "10"}, "olabel must be a list of 2 finite numbers"),
        ({"ruid": ["a"]}, r"ruid must be a list of as many ids as token_id has sequences \(2\)"),
    ],
)
def test_a_token_file_that_cannot_be_used_is_told(tmp_path: Path, more: dict[str, Any], words: str):
    with pytest.raises(DataError, match=words) as caught:
        evaluated(tmp_path, [group(0, [0, 1], 2, **more)], [[0.1, 0.9]], [Metric.ACC])
    assert str(caught.value).startswith(f"{tmp_path / 'toy_dev.json'}, line 1: ")
