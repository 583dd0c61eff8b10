from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import predict
import prepro_std
from data_utils.errors import DataError, FlagError, TaskDefError, UserError
from data_utils.metrics import Metric
from data_utils.readers import read_score_file
from data_utils.storage.text_files import write_lines
from data_utils.tokenizer import load_tokenizer
from mt_dnn.batcher import Collater, SingleTaskDataset
from mt_dnn.loss import SpanCeCriterion
from tasks import ModelInputs, Task, get_task
from tasks.definition import TaskDefs
from tests.tasks.learning import PROBE, SIFT, SMART, WORDS, learned, write_small_encoder, write_task
from tests.tasks.long_texts import byte_tokenizer, long_text

DEFINITION = """
toy:
  data_format: CLUE_SPAN
  task_type: SpanClassification
  n_class: 2
  metric_meta: [EmF1]
perhaps:
  data_format: CLUE_SPAN
  task_type: SpanClassificationYN
  n_class: 2
  metric_meta: [EmF12]
known:
  data_format: CLUE_SPAN
  task_type: SpanClassificationYN
  n_class: 3
  metric_meta: [EmF12]
"""
CUT = ("--max_seq_len", "8", "--max_query_len", "1", "--doc_stride", "2")  # windows of four words


def lines(count: int, seed: int, without: float = 0.0) -> Iterator[str]:
    """The question is a word; the answer is that word in the text, which may lack it."""
    draw = random.Random(seed)
    for number in range(count):
        words = draw.sample(WORDS, 5)
        context = " ".join(words)
        word = draw.choice(words)
        if draw.random() < without:
            yield f"{number}\t[]\t[]\t{context}\t{draw.choice([other for other in WORDS if other not in words])}"
        else:
            yield f"{number}\t['{word}']\t[{context.index(word)}]\t{context}\t{word}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"toy_train": lines(800, 1), "toy_dev": lines(100, 2)}
    for name in ("perhaps", "known"):
        splits |= {f"{name}_train": lines(800, 3, 0.4), f"{name}_dev": lines(100, 4, 0.4)}
    return write_task(tmp_path_factory.mktemp("spans"), DEFINITION, splits, encoder, *CUT)


def dataset_of(path: Path, definition: Path) -> SingleTaskDataset:
    name = path.stem.split("_")[0]
    return SingleTaskDataset(path, False, 0, TaskDefs(definition).get_task_def(name))


def task_of(dataset: SingleTaskDataset, **opt: Any) -> Task:
    return get_task(dataset.task_def, opt)


@pytest.mark.parametrize(("task", "metric", "most"), [("toy", "EmF1", 50), ("perhaps", "EmF12", 70)])
def test_a_linear_probe_does_not_learn_it(data: Path, encoder: Path, tmp_path: Path, task: str, metric: str, most: int):
    assert learned(data, encoder, tmp_path, task, metric, *PROBE, "--epochs", "3") < most


@pytest.mark.parametrize("method", [(), SMART, SIFT])
@pytest.mark.parametrize(("task", "metric"), [("toy", "EmF1"), ("known", "EmF12")])
def test_it_learns_to_find_the_answer(
    data: Path, encoder: Path, tmp_path: Path, task: str, metric: str, method: tuple[str, ...]
):
    assert learned(data, encoder, tmp_path, task, metric, *method, "--epochs", "2") > 95


def test_a_score_file_has_an_answer_a_question_and_the_run_s_flags_hold(data: Path, encoder: Path, tmp_path: Path):
    """A threshold that nothing reaches leaves no question unanswered, one below all leaves none answered."""
    for threshold, none in (("1000", 0), ("-1000", 100)):
        flags = ("--epochs", "1", "--null_score_diff_threshold", threshold)
        learned(data, encoder, tmp_path, "perhaps", "EmF12", *flags)
        found = read_score_file(tmp_path / "perhaps_dev_scores_epoch_0.json")
        assert found["uids"] == [str(number) for number in range(100)]
        assert found["predictions"].count("") == none
        assert len(found["scores"]) == 200
    words = ["--task", "perhaps", "--task_def", str(data.parent / "tasks.yml"), "--with_label"]
    words += ["--prep_input", str(data / "perhaps_dev.json"), "--score", str(tmp_path / "again.json")]
    predict.main([*words, "--checkpoint", str(tmp_path / "model_0.pt")])
    again = read_score_file(tmp_path / "again.json")
    assert (again["predictions"], again["metrics"]) == (found["predictions"], pytest.approx(found["metrics"]))


def test_padding_has_no_part_in_the_loss(data: Path):
    dataset = dataset_of(data / "known_dev.json", data.parent / "tasks.yml")
    task = task_of(dataset)
    rows = [index for index in range(len(dataset)) if dataset.labels[index][2]][:3]
    batch, wide = (Collater(0, do_padding=pad, max_seq_len=20)([dataset[row] for row in rows]) for pad in (False, True))
    torch.manual_seed(0)
    head = task.build_head(4, 0.0)
    hidden = torch.randn(3, 20, 4)

    class Network:
        def encode(self, ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return hidden[:, : ids.shape[1]]

    values = []
    for own in (batch, wide):
        inputs = (own.input_ids, own.token_type_ids, own.attention_mask)
        logits = task.forward(Network(), head, ModelInputs(*inputs))  # type: ignore[arg-type]
        values.append(task.loss(SpanCeCriterion(), logits, own))
    torch.testing.assert_close(values[0], values[1])
    # ½ (−log p(start) − log p(end)) over real tokens, and −log σ of the log-odds that there is an answer
    raw, labels = head(hidden), batch.labels
    assert labels is not None
    expected = []
    for row in range(3):
        length = int(batch.attention_mask[row].sum())
        ends = -raw[row, :length, :2].log_softmax(0)
        expected.append((ends[labels[row, 0], 0] + ends[labels[row, 1], 1]) / 2 - raw[row, 0, 2].sigmoid().log())
    torch.testing.assert_close(values[0], torch.stack(expected).mean())


# Long texts

LONG = """
long:
  data_format: CLUE_SPAN
  task_type: SpanClassificationYN
  n_class: 2
  metric_meta: [EmF12]
"""


def long_questions() -> Iterator[tuple[str, str, list[str], list[int]]]:
    """Id, text, answers and starts: each word of a long text is asked for, pairs and triples of words, and nothing."""
    context, words, starts = long_text()
    for size in (1, 2, 3):
        for first in range(0, len(words) - size + 1, size):
            begin, end = starts[first], starts[first + size - 1] + len(words[first + size - 1])
            yield f"{size}-{first}", context, [context[begin:end]], [begin]
    yield "none", context, [], []


def prepare(root: Path, model: str, *flags: str) -> SingleTaskDataset:
    root.mkdir(exist_ok=True)
    (root / "tasks.yml").write_text(LONG)
    rows = (
        "\t".join([uid, json.dumps(texts), str(starts), context, "Which?"])
        for uid, context, texts, starts in long_questions()
    )
    write_lines(root / "long_dev.tsv", rows)
    prepro_std.main(["--model", model, "--root_dir", str(root), "--task_def", str(root / "tasks.yml"), *flags])
    return dataset_of(root / Path(model).name / "long_dev.json", root / "tasks.yml")


def oracle(dataset: SingleTaskDataset) -> list[np.ndarray]:
    """Logits of a model that knows each window's label, and is a little unsure at all other tokens."""
    draw, found = np.random.default_rng(0), []
    for index in range(len(dataset)):
        scores = draw.normal(size=(2, int(dataset.lengths[index])))
        start, end, _ = dataset.labels[index]
        scores[0, start] = scores[1, end] = 9.0
        found.append(scores)
    return found


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("pieces", ("--max_seq_len", "48", "--max_query_len", "2", "--doc_stride", "24")),
        ("bytes", ("--max_seq_len", "200", "--max_query_len", "8", "--doc_stride", "100")),
    ],
)
def test_every_answer_of_a_long_text_is_given_back(tmp_path: Path, kind: str, flags: tuple[str, ...]):
    dataset = prepare(tmp_path, "embedded-minilm" if kind == "pieces" else byte_tokenizer(tmp_path / "bytes"), *flags)
    questions = list(long_questions())
    assert len(dataset) > 5 * len(questions)  # windows
    found = task_of(dataset, max_answer_len=90).evaluate(dataset, [Metric.EmF12], oracle(dataset), [])
    assert list(found.uids) == [uid for uid, *_ in questions]
    assert list(found.predictions) == [texts[0] if texts else "" for _, _, texts, _ in questions]
    assert found.metrics["EmF12"] == found.metrics["EmF12_exact"] == found.metrics["EmF12_best_f1"] == 100


def test_windows_overlap_hold_the_whole_text_and_point_at_the_answer(tmp_path: Path):
    dataset = prepare(tmp_path, "embedded-minilm", "--max_seq_len", "48", "--max_query_len", "2", "--doc_stride", "16")
    by_uid: dict[str, list[dict[str, Any]]] = {}
    for sample in dataset.samples():
        by_uid.setdefault(sample["uid"], []).append(sample)
    for uid, context, texts, starts in long_questions():
        windows, previous = by_uid[uid], None
        covered: set[int] = set()
        for window in windows:
            own = [tuple(offset) for offset in window["offset_mapping"] if offset is not None]
            assert len(window["token_id"]) <= 48 and window["mask"] == [1] * len(window["token_id"])
            assert previous is None or previous[-16:] == own[:16]
            previous = own
            covered |= {place for begin, end in own for place in range(begin, end)}
            first, last, answered = window["label"]
            if answered:
                begin, end = window["offset_mapping"][first][0], window["offset_mapping"][last][1]
                assert begin == starts[0] and texts[0].startswith(context[begin:end])
            else:
                assert (first, last) == (0, 0)
        assert any(window["label"][2] for window in windows) == bool(texts)
        # what no token holds is blank, or a mark that the tokenizer strips
        left = {context[place] for place in set(range(len(context))) - covered}
        assert left <= {" ", "\u0301", *"नमस्ते"}


def test_windows_are_those_of_transformers(tmp_path: Path):
    flags = ("--max_seq_len", "48", "--max_query_len", "8", "--doc_stride", "16")
    dataset = prepare(tmp_path, "embedded-minilm", *flags)
    _, context, *_ = next(long_questions())
    expected = load_tokenizer("embedded-minilm")(
        "Which?", context, truncation="only_second", max_length=48, stride=16, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    samples = [sample for sample in dataset.samples() if sample["uid"] == "1-0"]
    assert [sample["token_id"] for sample in samples] == expected["input_ids"]
    assert [sample["type_id"] for sample in samples] == expected["token_type_ids"]
    for window, sample in enumerate(samples):
        kept = [place for place, own in enumerate(expected.sequence_ids(window)) if own == 1]
        assert [place for place, own in enumerate(sample["offset_mapping"]) if own is not None] == kept
        for place in kept:
            assert tuple(sample["offset_mapping"][place]) == expected["offset_mapping"][window][place]


def test_the_length_bound_is_the_flag_s(tmp_path: Path):
    dataset = prepare(tmp_path, "embedded-minilm", "--max_seq_len", "48", "--max_query_len", "2", "--doc_stride", "24")
    flat = [np.zeros((2, int(length))) for length in dataset.lengths]
    for row, sample in enumerate(dataset.samples()):
        places = [place for place, own in enumerate(sample["offset_mapping"]) if own is not None]
        flat[row][0, places[0]] = flat[row][1, places[4]] = 9.0  # five tokens
        flat[row][1, places[1]] = 5.0  # the best of at most four ends there
    five, four = (task_of(dataset, max_answer_len=most).evaluate(dataset, [], flat, []) for most in (5, 4))
    assert all(row[0] == 18 for row in five.scores) and all(row[0] == 14 for row in four.scores)


def test_log_odds_of_an_answer_decide_with_the_first_token_s_logits(data: Path):
    dataset = dataset_of(data / "known_dev.json", data.parent / "tasks.yml")
    task = task_of(dataset)
    batch = Collater(0)([dataset[0]])
    width = batch.input_ids.shape[1]
    logits = torch.arange(width).float()[None], torch.zeros(1, width), torch.tensor([1.5])
    (scores,), (ends,) = task.predict(logits, batch)
    assert scores[0].tolist() == [-1.5, *range(1, width)] and ends.tolist() == [width - 1, 0]


# Mistakes


def one_line(tmp_path: Path, line: str, task: str = "toy", split: str = "dev", *flags: str) -> Path:
    (tmp_path / "tasks.yml").write_text(DEFINITION)
    write_lines(tmp_path / f"{task}_{split}.tsv", [line])
    words = ["--model", "embedded-minilm", "--root_dir", str(tmp_path), "--task_def", str(tmp_path / "tasks.yml")]
    prepro_std.main([*words, *flags])
    return tmp_path / "embedded-minilm" / f"{task}_{split}.json"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t['red']\t[1]\ta red car\tWhich?", "toy_dev.tsv, line 1: the answer 'red' is not at character 1"),
        ("1\t['red']\t[-9]\ta red car\tWhich?", "the answer 'red' is not at character -9"),
        ("1\t['red', 'a']\t[2]\ta red car\tWhich?", "found 2 answers and 1 starts"),
        ("1\tred\t[2]\ta red car\tWhich?", "answers: found 'red'; accepted: a list of texts"),
        ("1\t['red']\t['2']\ta red car\tWhich?", "starts: found .*; accepted: a list of whole numbers"),
        ("1\t['red']\t[True]\ta red car\tWhich?", "starts: found .*; accepted: a list of whole numbers"),
        ("1\t[]\t[]\ta red car\tWhich?", "found no answer; SpanClassificationYN is for questions without"),
        ("1\t\t\t\tWhich?", "found no token in the context"),
        ("1\t['red']\ta red car\tWhich?", "5 tab-separated columns .uid, answers, starts, context, question."),
    ],
)
def test_a_line_that_cannot_be_used_is_told(tmp_path: Path, line: str, message: str):
    with pytest.raises(DataError, match=message):
        one_line(tmp_path, line)
    assert not list(tmp_path.glob("embedded-minilm/*"))


def test_examples_without_labels_are_answered_and_not_scored(tmp_path: Path):
    path = one_line(tmp_path, "1\t\t\ta red car\tWhich?")
    dataset = dataset_of(path, tmp_path / "tasks.yml")
    assert dataset.labels is None
    (length,) = dataset.lengths
    scores = np.zeros((2, length))
    scores[:, -2] = 1.0
    found = task_of(dataset).evaluate(dataset, [Metric.EmF1], [scores], [])
    assert (found.metrics, found.predictions, found.golds) == ({}, ["car"], None)
    with pytest.raises(DataError, match="answers: found ''"):
        one_line(tmp_path, "1\t\t\ta red car\tWhich?", "toy", "train")


def test_windows_need_room(tmp_path: Path):
    with pytest.raises(
        FlagError, match="--max_seq_len: found 64, accepted: at least 196: --max_query_len 64, 3 special"
    ):
        one_line(tmp_path, "1\t['red']\t[2]\ta red car\tWhich?", "toy", "dev", "--max_seq_len", "64")
    with pytest.raises(FlagError, match="--doc_stride: found '-1', accepted: an integer, at least 0"):
        one_line(tmp_path, "1\t['red']\t[2]\ta red car\tWhich?", "toy", "dev", "--doc_stride", "-1")


@pytest.mark.parametrize(
    ("task", "label", "accepted"),
    [
        ("toy", [1, 2], True), ("toy", [2, 2], True), ("toy", [2, 1], False), ("toy", [0, 3], False),
        ("toy", [-1, 0], False), ("toy", [0, 0, 1], False), ("toy", 1, False), ("toy", [0.0, 1.0], False),
        ("known", [1, 2, 1], True), ("known", [0, 0, 0], True), ("known", [0, 0, 2], False), ("known", [0, 0], False),
        ("known", [0, 0, True], False),
    ],
)  # fmt: skip
def test_labels_of_token_files(data: Path, task: str, label: Any, accepted: bool):
    found = get_task(TaskDefs(data.parent / "tasks.yml").get_task_def(task)).accepts_label(label, [3])
    assert found is accepted


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_class: 2", "n_class: 3", "key 'n_class': found 3, accepted: 2 for spans"),
        ("[EmF1]", "[ACC]", "key 'metric_meta': found ACC, accepted: EmF1, EmF12 for this task_type"),
        ("n_class: 2", "n_class: 2\n  loss: CeCriterion", "key 'loss': found CeCriterion, accepted: SpanCeCriterion"),
    ],
)
def test_definitions_that_do_not_fit_spans(tmp_path: Path, old: str, new: str, message: str):
    first = DEFINITION.split("perhaps:")[0]
    (tmp_path / "tasks.yml").write_text(first.replace(old, new))
    with pytest.raises(TaskDefError, match=message):
        TaskDefs(tmp_path / "tasks.yml")


def test_a_token_file_that_lacks_what_evaluation_needs_is_told(data: Path, tmp_path: Path):
    samples: Sequence[dict[str, Any]] = [json.loads(line) for line in (data / "toy_dev.json").read_text().splitlines()][
        :2
    ]
    del samples[1]["offset_mapping"]
    write_lines(tmp_path / "toy_dev.json", map(json.dumps, samples))
    dataset = dataset_of(tmp_path / "toy_dev.json", data.parent / "tasks.yml")
    scores = [np.zeros((2, int(length))) for length in dataset.lengths]
    with pytest.raises(DataError, match="toy_dev.json: 0: found no context or no offset_mapping"):
        task_of(dataset).evaluate(dataset, [], scores, [])
    samples[1]["offset_mapping"] = [(0, 0) if own is None else own for own in samples[0]["offset_mapping"]]
    write_lines(tmp_path / "toy_dev.json", map(json.dumps, samples))
    with pytest.raises(DataError, match="toy_dev.json: 0: offset_mapping has to be null outside the context"):
        task_of(dataset).evaluate(dataset, [], scores, [])
    good = samples[0]["offset_mapping"]
    for key, value, words in (
        ("offset_mapping", [*good[:-2], [0], None], r"offset_mapping holds \[0\]; accepted: null"),
        ("offset_mapping", [*good[:-2], [0, 10**6], None], r"offset_mapping holds \[0, 1000000\]"),
        ("offset_mapping", [*good[:-2], [0.5, 1], None], r"offset_mapping holds \[0.5, 1\]"),
        ("null_ans_index", 10**6, "null_ans_index has to be the number of a token"),
        ("null_ans_index", "0", "null_ans_index has to be the number of a token"),
        ("answer", ["red"], "answer has to be an object with a text, a list of texts"),
        ("answer", {"text": [None]}, "answer has to be an object with a text, a list of texts"),
    ):
        write_lines(tmp_path / "toy_dev.json", [json.dumps(samples[0] | {key: value})])
        own = [np.zeros((2, len(samples[0]["token_id"])))]
        dataset = dataset_of(tmp_path / "toy_dev.json", data.parent / "tasks.yml")
        with pytest.raises(DataError, match=f"toy_dev.json: 0: {words}"):
            task_of(dataset).evaluate(dataset, [], own, [])
    write_lines(tmp_path / "toy_dev.json", [json.dumps(samples[0])])
    dataset = dataset_of(tmp_path / "toy_dev.json", data.parent / "tasks.yml")
    with pytest.raises(DataError, match="toy_dev.json: 0: no token of the context has a finite score"):
        task_of(dataset).evaluate(dataset, [], [np.full_like(scores[0], np.nan)], [])
    with pytest.raises(UserError, match="metric ACC is not one of SpanClassification's; accepted: EmF1, EmF12"):
        task_of(dataset).evaluate(dataset, [Metric.ACC], scores[:1], [])


@pytest.mark.parametrize("second", ["1\t['blue']\t[0]\tblue\tq", "1\t['sea']\t[4]\tred sea\tanother q"])
def test_two_questions_of_one_uid_are_told(tmp_path: Path, second: str):
    (tmp_path / "tasks.yml").write_text(DEFINITION)
    write_lines(tmp_path / "toy_dev.tsv", ["1\t['red']\t[0]\tred sea\tq", second])
    words = ["--model", "embedded-minilm", "--root_dir", str(tmp_path), "--task_def", str(tmp_path / "tasks.yml")]
    prepro_std.main(words)
    dataset = dataset_of(tmp_path / "embedded-minilm" / "toy_dev.json", tmp_path / "tasks.yml")
    scores = [np.zeros((2, int(length))) for length in dataset.lengths]
    with pytest.raises(DataError, match="1: two questions have this uid; accepted: one"):
        task_of(dataset).evaluate(dataset, [], scores, [])
