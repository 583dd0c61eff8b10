"""Texts in, answers out: those of the network itself, in the texts' order, in the form that people read."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from tokenizers.normalizers import BertNormalizer

import predict
from data_utils.errors import DataError, FlagError, UserError
from data_utils.readers import read_score_file
from mt_dnn.prediction import Answer, TextModel, load_model
from mt_dnn.prediction.text_model import ready
from tests.device import DEVICE, NEEDS_DEVICE, ON_GPU
from tests.tasks.learning import WORDS, write_task

NOTHING = Answer(None)


def texts_of(count: int, longest: int = 20, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, longest))) for _ in range(count)]


def logits_of(model: TextModel, task: str, *texts: str) -> torch.Tensor:
    """Of one text or pair, by the network alone: no batch, no padding."""
    return raw_logits(model, task, *texts)[0]


def raw_logits(model: TextModel, task: str, *texts: str) -> Any:
    """The same as the network gives them; of spans start and end, (tokens,) each."""
    head = model.tasks[task]
    network: Any = head.network
    tokens = head.text.tokenizer(*texts, return_tensors="pt", truncation=True, max_length=64)
    with torch.inference_mode():
        logits = network(tokens["input_ids"], None, tokens["attention_mask"], task_id=head.task_id)
    return [own[0] for own in logits] if isinstance(logits, tuple) else logits


def test_a_class_has_its_name_and_the_networks_probability(model: TextModel) -> None:
    texts = texts_of(40)
    for text, answer in zip(texts, model.predict(texts, "one"), strict=True):
        expected = logits_of(model, "one", text).softmax(-1)
        assert answer.label == "abc"[int(expected.argmax())]
        assert list(answer.probabilities) == ["a", "b", "c"]
        assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
        assert answer.probability == answer.probabilities[answer.label]


def test_a_pair_is_read_as_a_pair(model: TextModel) -> None:
    pairs = list(zip(texts_of(10), texts_of(10, seed=1), strict=True))
    for pair, answer in zip(pairs, model.predict(pairs, "pair"), strict=True):
        expected = logits_of(model, "pair", *pair).softmax(-1)
        assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
        assert answer.label == int(expected.argmax())  # the definition has no names


def test_a_regression_answers_with_the_number(model: TextModel) -> None:
    texts = texts_of(10)
    found = [answer.label for answer in model.predict(texts, "number")]
    assert found == pytest.approx([float(logits_of(model, "number", text)[0]) for text in texts], abs=1e-6)


def test_several_labels_have_a_probability_each(model: TextModel) -> None:
    texts = texts_of(30)
    answers = model.predict(texts, "several")
    for text, answer in zip(texts, answers, strict=True):
        expected = logits_of(model, "several", text).sigmoid().tolist()
        assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-6)
        assert answer.label == [name for name, own in zip("xyz", expected, strict=True) if own >= 0.5]
        assert answer.probability == [answer.probabilities[name] for name in answer.label]
    assert len({len(answer.label) for answer in answers}) > 1


def test_a_ranking_answers_with_the_best_candidate(model: TextModel) -> None:
    groups = [("red", ["one", "two four"]), ("blue", ["three", "four", "one"])]
    for (premise, candidates), answer in zip(groups, model.predict(groups, "rank"), strict=True):
        logits = torch.cat([logits_of(model, "rank", premise, candidate) for candidate in candidates])
        expected = logits.softmax(-1)
        assert answer.probabilities == pytest.approx(expected.tolist(), abs=1e-6)
        assert answer.label == candidates[int(expected.argmax())]
    spread = [("red", "one", "two four"), ("blue", '["three", "four", "one"]')]
    assert [answer.label for answer in model.predict(spread[:1], "rank") + model.predict(spread[1:], "rank")] == [
        answer.label for answer in model.predict(groups, "rank")
    ]


def test_a_cloze_question_answers_with_the_choice(model: TextModel) -> None:
    (answer,) = model.predict([("red blue", "one @placeholder four", ["two", "three"])], "cloze")
    logits = [logits_of(model, "cloze", "red blue", f"one {choice} four") for choice in ("two", "three")]
    expected = torch.cat(logits).softmax(-1)
    assert answer.probabilities == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer.label == ["two", "three"][int(expected.argmax())]


@pytest.mark.parametrize("words", ["red blue unknown", ["red", "blue", "unknown"], '["red", "blue", "unknown"]'])
def test_a_sentence_has_a_label_for_each_word(model: TextModel, words: Any) -> None:
    (answer,) = model.predict([words], "tags")
    names = ["O", "B-N", "I-N", "X", "CLS", "SEP"]
    expected = logits_of(model, "tags", "red blue unknown").softmax(-1)[1:4]
    shown = [names[int(index)] for index in expected.argmax(-1)]
    assert answer.label == ["O" if name in ("X", "CLS", "SEP") else name for name in shown]
    assert answer.probability == pytest.approx(expected.max(-1).values.tolist(), abs=1e-6)
    assert list(answer.probabilities[2].values()) == pytest.approx(expected[2].tolist(), abs=1e-6)


def test_words_that_were_cut_off_have_no_label(model: TextModel) -> None:
    (answer,) = model.predict([["red"] * 70], "tags")
    assert len(answer.label) == 70 and answer.label[62:] == [None] * 8 and None not in answer.label[:62]


def test_a_gap_is_filled_with_the_likeliest_word(model: TextModel) -> None:
    (answer,) = model.predict(["red [MASK] four [MASK]"], "gaps")
    first, second, third, last = answer.label.split()
    assert (first, third) == ("red", "four")
    expected = logits_of(model, "gaps", "red [MASK] four [MASK]").softmax(-1)
    assert answer.probability == pytest.approx([float(expected[2].max()), float(expected[4].max())], abs=1e-6)
    tokenizer = model.tasks["gaps"].text.tokenizer
    assert [second, last] == tokenizer.convert_ids_to_tokens([int(expected[place].argmax()) for place in (2, 4)])
    with pytest.raises(UserError, match=r"texts, row 2: found no \[MASK\] in 'red'; accepted"):
        model.predict(["[MASK]", "red"], "gaps")


@pytest.mark.parametrize("task", ["span", "perhaps", "spans"])
def test_an_answer_is_a_part_of_the_text(model: TextModel, task: str) -> None:
    questions = [("red", " ".join(texts_of(12, seed=seed))) for seed in range(6)]
    assert max(len(context.split()) for _, context in questions) > 64  # read in windows
    answers = model.predict(questions, task)
    for (_, context), answer in zip(questions, answers, strict=True):
        for text in answer.label if task == "spans" else [answer.label]:
            assert text in context
        assert task == "spans" or 0 < answer.probability <= 1


@pytest.mark.parametrize(("threshold", "is_none"), [(1000.0, False), (-1000.0, True)])
def test_the_probability_of_an_answer_is_that_among_all_spans_and_none(
    every_type: Path, threshold: float, is_none: bool
) -> None:
    model = load_model(every_type / "model_0.pt", task="perhaps", cuda=False)
    model.tasks["perhaps"].task.opt = {"null_score_diff_threshold": threshold}
    (answer,) = model.predict([("red", "one two four")], "perhaps")
    start, end = (own.tolist() for own in raw_logits(model, "perhaps", "red", "one two four"))
    words = {3: "one", 4: "two", 5: "four"}  # after [CLS] red [SEP]
    spans = {(first, last): start[first] + end[last] for first in words for last in words if first <= last}
    best, none = max(spans, key=spans.__getitem__), start[0] + end[0]
    total = sum(map(math.exp, [*spans.values(), none]))
    assert answer.label == ("" if is_none else " ".join(words[place] for place in range(best[0], best[1] + 1)))
    assert answer.probability == pytest.approx(math.exp(none if is_none else spans[best]) / total, abs=1e-5)


@pytest.mark.parametrize(
    ("task", "texts"),
    [
        ("one", texts_of(50)),
        ("tags", texts_of(20)),
        ("rank", [("red", texts_of(count, seed=count)) for count in (1, 4, 2)]),
        ("span", [("red", text) for text in texts_of(10, 200)]),
        ("gaps", [f"[MASK] {text}" for text in texts_of(10)]),
    ],
)
def test_answers_are_in_order_whatever_else_is_asked(model: TextModel, task: str, texts: list[Any]) -> None:
    together = model.predict(texts, task)
    for answer, text in zip(together, texts, strict=True):
        (alone,) = model.predict([text], task, batch_size=1)
        assert answer.label == alone.label
        assert answer.probability == pytest.approx(alone.probability, abs=1e-5)


@pytest.mark.parametrize(
    ("task", "nothing", "text"),
    [
        ("one", ["", None, "  \n", float("nan")], "red"),
        ("pair", [("", "red"), ("red", None), None], ("red", "blue")),
        ("rank", [("red", []), ("red", ""), ("", ["one"])], ("red", ["one"])),
        ("tags", ["", [], None], "red"),
        ("span", [("red", ""), ("", "red")], ("red", "blue")),
    ],
)
def test_an_empty_text_gets_no_answer_and_moves_no_other(
    model: TextModel, task: str, nothing: list[Any], text: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given = [text, *nothing, text]
    with caplog.at_level(logging.WARNING, "mt_dnn"):
        first, *between, last = model.predict(given, task)
    assert between == [NOTHING] * len(nothing)
    assert first == last != NOTHING
    assert f"{len(nothing)} of {len(given)} rows have no text and get no answer: row 2" in caplog.text
    assert model.predict(nothing, task) == [NOTHING] * len(nothing)
    assert model.predict([], task) == []


def test_a_context_that_the_tokenizer_leaves_nothing_of_gets_no_answer(every_type: Path) -> None:
    model = load_model(every_type / "model_0.pt", task="span", cuda=False)
    model.tasks["span"].text.tokenizer.backend_tokenizer.normalizer = BertNormalizer()
    first, second = model.predict([("red", "\u200b"), ("red", "blue")])
    assert (first, second.label) == (NOTHING, "blue")


def test_a_long_text_is_cut_and_counted(model: TextModel, caplog: pytest.LogCaptureFixture) -> None:
    words = texts_of(1, 200, 5)[0].split()
    assert len(words) > 62
    with caplog.at_level(logging.WARNING, "mt_dnn"):
        long, short = model.predict([" ".join(words), " ".join(words[:62])], "one")
    assert long == short
    assert "1 of 2 texts are longer than 64 tokens and were cut" in caplog.text


def test_the_limit_of_tokens_may_be_set(every_type: Path, model: TextModel) -> None:
    shorter = load_model(every_type / "model_0.pt", max_seq_len=8, task="one", cuda=False)
    assert list(shorter.tasks) == ["one"]
    assert shorter.predict(["red blue one two three four white green"]) == pytest.approx(
        model.predict(["red blue one two three four"], "one")
    )


def test_metrics_are_scikit_learns_of_the_rows_with_a_label(model: TextModel, caplog: pytest.LogCaptureFixture) -> None:
    texts = texts_of(60)
    labels = [str(own) for own in np.random.default_rng(3).choice(list("abc"), 60)]
    found = [answer.label for answer in model.predict(texts, "one")]
    expected = {"ACC": 100 * accuracy_score(labels, found), "F1MAC": 100 * f1_score(labels, found, average="macro")}
    with caplog.at_level(logging.WARNING, "mt_dnn"):
        given = [*texts, "red", "blue", ""]
        assert model.evaluate(given, [*labels, None, "", "a"], "one") == pytest.approx(expected)
    assert "2 of 63 rows have no label and are in no metric" in caplog.text
    numbers = np.random.default_rng(3).integers(0, 2, 60).tolist()
    pairs = [(text, "red") for text in texts]
    found = [answer.label for answer in model.predict(pairs, "pair")]
    assert model.evaluate(pairs, numbers, "pair", ["MCC"])["MCC"] == pytest.approx(
        100 * matthews_corrcoef(numbers, found)
    )


def test_several_labels_may_be_given_by_name_or_as_zeros_and_ones(model: TextModel) -> None:
    texts = texts_of(40)
    draw = np.random.default_rng(3).integers(0, 2, (40, 3)).tolist()
    by_name = [[name for name, own in zip("xyz", row, strict=True) if own] for row in draw]
    found = [[int(name in answer.label) for name in "xyz"] for answer in model.predict(texts, "several")]
    expected = {"F1MIC": f1_score(draw, found, average="micro"), "F1MAC": f1_score(draw, found, average="macro")}
    expected = {name: 100 * value for name, value in expected.items()} | {"ACC": 100 * accuracy_score(draw, found)}
    for labels in (draw, by_name, [tuple(map(str, row)) for row in draw]):
        assert model.evaluate(texts, labels, "several") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "texts", "labels", "share"),
    [
        ("rank", [("red", ["one", "two"])], [0, "one", [1, 0]], None),
        ("tags", ["red blue"], ["O B-N", ["O", "B-N"]], None),
        ("span", [("red", "one two")], ["one", ["one"], {"text": ["one"], "answer_start": [0]}], None),
        ("cloze", [("red", "@placeholder", ["one", "two"])], ["one", ["one"]], None),
    ],
)
def test_labels_of_other_types_have_their_own_forms(
    model: TextModel, task: str, texts: list[Any], labels: list[Any], share: None
) -> None:
    found = [model.evaluate(texts, [label], task) for label in labels]
    assert found[0] and all(own == found[0] for own in found)


@pytest.mark.parametrize("task", ["one", "pair", "number", "several", "span", "spans", "tags", "rank"])
def test_answers_and_metrics_are_those_of_the_token_file(
    every_type: Path, model: TextModel, task: str, tmp_path: Path
) -> None:
    """prepro_std.py and predict.py --prep_input are the other way."""
    texts, draw = texts_of(20, 12), np.random.default_rng(4)
    rows: list[Any] = texts
    labels: list[Any] = [str(own) for own in draw.choice(list("abc"), 20)]
    columns = [labels, texts]
    if task == "pair":
        rows, labels = [(text, "red one") for text in texts], draw.integers(0, 2, 20).tolist()
        columns = [labels, texts, ["red one"] * 20]
    elif task == "number":
        labels = draw.normal(size=20).tolist()
        columns = [labels, texts]
    elif task == "several":
        labels = draw.integers(0, 2, (20, 3)).tolist()
        columns = [labels, texts]
    elif task == "tags":
        labels = [[str(own) for own in draw.choice(["O", "B-N", "I-N"], len(text.split()))] for text in texts]
        columns = [labels, [text.split() for text in texts]]
    elif task == "rank":
        rows = [(text, ["one", text]) for text in texts]
        labels = draw.integers(0, 2, 20).tolist()
        columns = [["a,b"] * 20, [("1,0", "0,1")[own] for own in labels], texts, ["one"] * 20, texts]
    elif task.startswith("span"):
        rows = [("red", text) for text in texts]
        labels = [[text.split()[0]] for text in texts]
        columns = [labels, [[0]] * 20, texts, ["red"] * 20]
    lines = ["\t".join([str(row), *(str(column[row]) for column in columns)]) for row in range(20)]
    definition = (every_type / "tasks.yml").read_text()
    cut = ["--max_seq_len", "64", "--doc_stride", "21", "--max_query_len", "21"]
    data = write_task(tmp_path, definition, {f"{task}_dev": lines}, every_type / "small", *cut)
    words = ["--task_def", str(tmp_path / "tasks.yml"), "--task", task, "--checkpoint", str(every_type / "model_0.pt")]
    words += ["--prep_input", str(data / f"{task}_dev.json"), "--score", str(tmp_path / "scores.json"), "--with_label"]
    predict.main([*words, "--cuda", "false"])
    expected = read_score_file(tmp_path / "scores.json")
    assert model.evaluate(rows, labels, task) == pytest.approx(expected["metrics"])
    answers = model.predict(rows, task)
    if task in ("one", "pair", "several"):
        flat = [own for answer in answers for own in answer.probabilities.values()]
        assert flat == pytest.approx(expected["scores"], abs=1e-6)
    elif task.startswith("span"):
        assert [answer.label for answer in answers] == expected["predictions"]


@pytest.mark.parametrize(
    ("task", "texts", "message"),
    [
        ("oen", ["red"], "--task: found 'oen' (did you mean 'one'?), accepted: one, pair"),
        (None, ["red"], "--task: found nothing, accepted: one, pair"),
        ("one", "red", "found the text 'red'; accepted: a list of texts"),
        ("one", ["red", ["red", "blue"]], "task one takes 1 column (text), found 2"),
        ("pair", ["red"], "task pair takes 2 columns (premise, hypothesis), found 1"),
        ("pair", [("a", "b", "c")], "found 3"),
        ("rank", [("red", "one")], "texts, row 1: found 'one', accepted: a list of texts such as"),
        ("cloze", [("red", "one", ["two"])], "accepted: a query with @placeholder where a choice stands"),
    ],
)
def test_a_mistake_is_one_line(model: TextModel, task: str | None, texts: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        model.predict(texts, task)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("task", "text", "label", "message"),
    [
        ("one", "red", "d", "texts, row 1: found the label 'd'; accepted: a, b, c"),
        ("number", "red", "many", "found the label 'many'; accepted: a finite number"),
        ("several", "red", ["x", "w"], "found 'w', accepted: 0 or 1 for each label, or a list of some of x, y, z"),
        ("several", "red", "x", "found 'x', accepted: a list of some of x, y, z"),
        ("tags", "red blue", "O", "found 'O', 1 labels of 2 words, accepted: a label a word"),
        ("rank", ("red", ["one"]), "two", "found 'two', accepted: one of the row's candidates"),
        ("span", ("red", "one"), "two", "found the answer 'two', which is not in the row's context"),
        ("cloze", ("red", "@placeholder", ["one"]), "two", "found 'two', accepted: one of the row's choices"),
        ("gaps", "[MASK]", "red", "MaskLM takes no label column"),
        ("one", "red", None, "--label: no row has a text and a label"),
    ],
)
def test_a_label_that_is_none_is_one_line(model: TextModel, task: str, text: Any, label: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        model.evaluate([text], [label], task)
    assert message in str(caught.value)


def test_labels_and_texts_are_as_many_and_metrics_have_names(model: TextModel) -> None:
    with pytest.raises(UserError, match="found 2 texts and 1 labels"):
        model.evaluate(["red", "blue"], ["a"], "one")
    with pytest.raises(FlagError, match="--metric: found 'ACCC' \\(did you mean 'ACC'"):
        model.evaluate(["red"], ["a"], "one", ["ACCC"])
    with pytest.raises(UserError, match="--metric: found Pearson, accepted: ACC"):
        model.evaluate(["red"], ["a"], "one", ["Pearson"])


def test_scores_that_are_no_numbers_are_no_answers(every_type: Path) -> None:
    broken = load_model(every_type / "model_0.pt", task="one", cuda=False)
    network: Any = broken.tasks["one"].network
    with torch.no_grad():
        network.scoring_list[0][1].weight.fill_(float("nan"))
    with pytest.raises(DataError, match="task one: the model's scores are not finite; its training diverged"):
        broken.predict(["red"])


@pytest.mark.cuda
@NEEDS_DEVICE
def test_a_gpu_gives_the_answers_of_the_cpu(every_type: Path, model: TextModel) -> None:
    on_gpu = load_model(every_type / "model_0.pt", cuda=ON_GPU)
    assert on_gpu.tasks["one"].device.type == DEVICE
    for task in ("one", "several", "number"):
        texts = texts_of(100)
        for own, expected in zip(on_gpu.predict(texts, task), model.predict(texts, task), strict=True):
            assert own.label == pytest.approx(expected.label, abs=1e-5)
            assert own.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_half_precision_is_made_single(model: TextModel) -> None:
    network = torch.nn.Linear(2, 2).half()
    assert ready(network, torch.device("cpu")).weight.dtype == torch.float32
