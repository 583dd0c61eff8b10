from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calc_metrics
from data_utils.errors import UserError
from data_utils.readers import read_score_file, read_token_json, write_score_file
from data_utils.storage.text_files import write_lines
from mt_dnn.batcher import SingleTaskDataset
from tasks import Task, get_task
from tasks.definition import TaskDefs
from tests.mt_dnn.runs import RUN, TASK_DEF


def flags(task: str, labels: Path, scores: Path) -> list[str]:
    return f"--task_def {TASK_DEF} --task {task} --std_input {labels} --score {scores}".split()


@pytest.mark.parametrize("dataset", ["cola_dev", "mnli_matched_dev", "stsb_dev"])
def test_metrics_of_mtdnns_score_files_are_those_in_them(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    scores = RUN / f"{dataset}_scores_epoch_0.json"
    calc_metrics.main(flags(dataset.split("_")[0], RUN / "tinydata" / f"{dataset}.json", scores))
    found, expected = json.loads(capsys.readouterr().out), read_score_file(scores)["metrics"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_labels_of_a_tsv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("contradiction", "neutral", "entailment")
    samples = [sample for _, sample in read_token_json(RUN / "tinydata" / "mnli_matched_dev.json")]
    write_lines(tmp_path / "gold.tsv", (f"{own['uid']}\t{names[own['label']]}\ta\tb" for own in samples))
    scores = RUN / "mnli_matched_dev_scores_epoch_0.json"
    calc_metrics.main(flags("mnli", tmp_path / "gold.tsv", scores))
    assert json.loads(capsys.readouterr().out) == pytest.approx(read_score_file(scores)["metrics"])


def test_lists_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two sentences, seven tokens of which five are words, four words are right."""
    definition = "toy: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 5, metric_meta: [ACC], labels: "
    (tmp_path / "tasks.yml").write_text(definition + "[a, b, X, CLS, SEP]}\n")
    golds = [[3, 0, 1, 4], [3, 0, 2, 1, 1, 4]]
    predictions = [[0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
    write_lines(
        tmp_path / "gold.json",
        (json.dumps({"uid": str(n), "label": own, "token_id": [1] * len(own)}) for n, own in enumerate(golds)),
    )
    scores = [[[0.2] * 5] * len(own) for own in predictions]
    write_score_file(tmp_path / "scores.json", {}, predictions, ["0", "1"], scores)
    given = f"--task_def {tmp_path / 'tasks.yml'} --task toy --std_input {tmp_path / 'gold.json'} --score "
    calc_metrics.main([*given.split(), str(tmp_path / "scores.json")])
    assert json.loads(capsys.readouterr().out) == {"ACC": 80.0}


def test_mistakes_are_told(tmp_path: Path) -> None:
    cola = RUN / "tinydata" / "cola_dev.json"
    for task, labels, message in (
        ("mnli", RUN / "tinydata" / "mnli_train.json", "not of the"),
        ("mnli", cola, "holds 20 scores; 30 were expected"),
        ("cola", tmp_path / "no.tsv", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            calc_metrics.main(flags(task, labels, RUN / "cola_dev_scores_epoch_0.json"))


def definition(task_type: str, data_format: str, n_class: int, metrics: str, labels: str = "") -> str:
    more = f", labels: [{labels}]" if labels else ""
    kind = f"data_format: {data_format}, task_type: {task_type}, n_class: {n_class}"
    return f"toy: {{{kind}, metric_meta: [{metrics}]{more}}}\n"


def candidates(count: int, seed: int, **more: object) -> dict[str, Any]:
    return {"uid": str(seed), "token_id": [[2, seed]] * count, "label": seed % count, **more}


TEXT = "red blue green white"
OFFSETS = [None, [0, 3], [4, 8], [9, 14], [15, 20]]


def windows(*labels: list[int]) -> list[dict[str, Any]]:
    """A question in two windows, whose answer is `blue`, and one without an answer."""
    answers = ({"text": ["blue"], "answer_start": [4]}, {"text": [], "answer_start": []})
    both = ((OFFSETS[:4], 0, 0), ([None, *OFFSETS[2:]], 1, 0), (OFFSETS, 0, 1))
    return [
        {
            "uid": f"q{question}", "token_id": [2] * len(offsets), "offset_mapping": offsets, "null_ans_index": 0,
            "context": TEXT, "window_start": start, "answer": answers[question], "label": label,
        }
        for label, (offsets, start, question) in zip(labels, both, strict=True)
    ]  # fmt: skip


ANSWERED = windows([2, 2], [1, 1], [3, 4])
ANSWERED[2]["answer"] = {"text": ["green white"], "answer_start": [9]}
OF_TYPES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "Ranking": (
        definition("Ranking", "PremiseAndMultiHypothesis", 1, "ACC, F1"),
        [candidates(count, count, ruid=[f"{count}-{n}" for n in range(count)]) for count in (2, 3, 4)],
    ),
    "ClozeChoice": (
        definition("ClozeChoice", "ClozeChoice", 1, "EmF1, ACC"),
        [candidates(3, n, choice="['red car', 'car', 'blue']", answer="['car']", olabel=[0, 1, 0]) for n in range(4)],
    ),
    "SeqenceLabeling": (
        definition("SeqenceLabeling", "Seqence", 6, "SeqEval, ACC", "O, B-A, I-A, X, CLS, SEP"),
        [{"uid": str(n), "token_id": [2] * 6, "label": [4, 1, 2, 3, 0, 5]} for n in range(4)],
    ),
    "SpanClassification": (definition("SpanClassification", "CLUE_SPAN", 2, "EmF1, EmF12"), ANSWERED),
    "SpanClassificationYN": (
        definition("SpanClassificationYN", "CLUE_SPAN", 2, "EmF12"),
        windows([2, 2, 1], [1, 1, 1], [0, 0, 0]),
    ),
    "SpanSeqenceLabeling": (
        definition("SpanSeqenceLabeling", "CLUE_SPAN", 3, "ACC, F1MAC"),
        windows([0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0, 0]),
    ),
    "MultiLabel": (
        definition("MultiLabel", "PremiseOnly", 3, "F1MIC, F1MAC, ACC, AUC", "a, b, c"),
        [{"uid": str(n), "token_id": [2], "label": own} for n, own in enumerate(([1, 0, 1], [0, 1, 1], [0, 0, 0.2]))],
    ),
    "SeqenceGeneration": (
        definition("SeqenceGeneration", "PremiseOnly", 1, "ACC, EmF1"),
        [{"uid": str(n), "token_id": [2], "label": [0, 3, 1], "answer": f"word {n}"} for n in range(3)],
    ),
}  # fmt: skip


def scored(task: Task, dataset: SingleTaskDataset, draw: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """Scores and predictions of each example, drawn, in the form that `predict` gives them."""
    if task.view == "next_tokens":
        return draw.normal(size=len(dataset)).tolist(), ["word 0", "word one", "2"]
    shapes = {"groups": lambda own: (len(own),), "tokens": lambda own: (own[0], -1), "labels": lambda own: (1, -1)}
    shape = shapes.get(task.view, lambda own: (2, own[0]))
    counts = [
        (task.soft_count(own["lengths"]), shape(own["lengths"]))
        for own in map(dataset.__getitem__, range(len(dataset)))
    ]
    scores = [draw.random(count).reshape(own) for count, own in counts]
    if task.view == "groups":
        return scores, [(own == own.max()).astype(int) for own in scores]
    if task.view == "labels":
        return [own[0] for own in scores], [(own[0] >= 0.5).astype(int) for own in scores]
    return scores, [own.argmax(-1) for own in scores]


@pytest.mark.parametrize("name", OF_TYPES)
def test_metrics_of_a_score_file_are_those_of_the_evaluation_that_wrote_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, samples = OF_TYPES[name]
    (tmp_path / "tasks.yml").write_text(text)
    write_lines(tmp_path / "gold.json", map(json.dumps, samples))
    task_def = TaskDefs(tmp_path / "tasks.yml").get_task_def("toy")
    dataset = SingleTaskDataset(tmp_path / "gold.json", False, 0, task_def)
    given = f"--task_def {tmp_path / 'tasks.yml'} --task toy --std_input {tmp_path / 'gold.json'} --score "
    seen = set()
    for seed in range(8):
        scores, predictions = scored(dataset.task, dataset, np.random.default_rng(seed))
        expected = dataset.task.evaluate(dataset, task_def.metric_meta, scores, predictions)
        order = np.random.default_rng(seed).permutation(len(expected.uids))  # entries stand under their ids
        parts = ([list(values)[place] for place in order] for values in expected[1:3])
        shown = [*parts, [expected.uids[place] for place in order]]
        write_score_file(tmp_path / "scores.json", {}, shown[0], shown[2], shown[1])
        capsys.readouterr()
        calc_metrics.main([*given.split(), str(tmp_path / "scores.json")])
        found = json.loads(capsys.readouterr().out)
        assert found == pytest.approx({key: own for key, own in expected.metrics.items() if "best" not in key})
        seen.add(tuple(found.values()))
    assert len(seen) > 1 or name == "SeqenceGeneration"


def test_what_has_no_labels_or_no_such_source_is_told(tmp_path: Path) -> None:
    mask = definition("MaskLM", "MLM", 1, "ACC")
    for text, suffix, message in (
        (mask, "json", "MaskLM has no labels in a file"),
        (OF_TYPES["Ranking"][0], "tsv", r"found .tsv for Ranking; accepted: .json \(.tsv for Classification, Reg"),
    ):
        (tmp_path / "tasks.yml").write_text(text)
        given = f"--task_def {tmp_path / 'tasks.yml'} --task toy --std_input {tmp_path}/gold.{suffix} --score x"
        with pytest.raises(UserError, match=message):
            calc_metrics.main(given.split())


def test_as_many_predictions_as_labels_are_asked_for(tmp_path: Path) -> None:
    """Of an example with three tokens."""
    definition = "toy: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 2, metric_meta: [ACC]}\n"
    (tmp_path / "tasks.yml").write_text(definition)
    write_lines(tmp_path / "gold.json", [json.dumps({"uid": "0", "label": [0, 1, 0], "token_id": [1, 2, 3]})])
    write_score_file(tmp_path / "scores.json", {}, [[0, 1]], ["0"], [0.5] * 4)
    given = f"--task_def {tmp_path / 'tasks.yml'} --task toy --std_input {tmp_path / 'gold.json'} --score "
    with pytest.raises(UserError, match=r"scores.json: found the prediction \[0, 1\]; accepted: 3 labels"):
        calc_metrics.main([*given.split(), str(tmp_path / "scores.json")])


@pytest.mark.parametrize("name", [*sorted({*OF_TYPES} - {"SpanSeqenceLabeling"}), "Classification"])
def test_a_prediction_that_is_none_of_its_type_is_told(name: str, tmp_path: Path) -> None:
    text, _ = OF_TYPES.get(name, (definition("Classification", "PremiseOnly", 2, "ACC"), []))
    (tmp_path / "tasks.yml").write_text(text)
    task_def = TaskDefs(tmp_path / "tasks.yml").get_task_def("toy")
    for wrong in (-1, 9, None, [9, 0]):
        with pytest.raises(ValueError, match=r"found the prediction .*; accepted: "):
            get_task(task_def).shapes_of_scores([wrong], [[0, 1]])


def test_a_text_without_its_answer_is_told(tmp_path: Path) -> None:
    """There is no tokenizer that could read it from the label."""
    text, samples = OF_TYPES["SeqenceGeneration"]
    (tmp_path / "tasks.yml").write_text(text)
    samples = [{key: own[key] for key in own if key != "answer" or own["uid"] != "1"} for own in samples]
    write_lines(tmp_path / "gold.json", map(json.dumps, samples))
    given = f"--task_def {tmp_path / 'tasks.yml'} --task toy --std_input {tmp_path / 'gold.json'} --score x"
    with pytest.raises(UserError, match=r"gold.json, line 2: found no answer"):
        calc_metrics.main(given.split())


def test_a_metric_that_the_task_does_not_have_is_told(tmp_path: Path) -> None:
    """Of a regression whose gold numbers are whole the predictions, all 0, would give an accuracy."""
    (tmp_path / "tasks.yml").write_text(definition("Regression", "PremiseOnly", 1, "ACC"))
    write_lines(tmp_path / "gold.json", [json.dumps({"uid": "0", "label": 0, "token_id": [1, 2]})])
    write_score_file(tmp_path / "scores.json", {}, [0], ["0"], [0.5])
    given = f"--task_def {tmp_path / 'tasks.yml'} --task toy --std_input {tmp_path / 'gold.json'} --score "
    with pytest.raises(UserError, match="'metric_meta': found ACC, accepted: Pearson, Spearman for Regression with"):
        calc_metrics.main([*given.split(), str(tmp_path / "scores.json")])


def test_labels_without_an_area_are_named_beside_the_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, for stdout is read by programs."""
    (tmp_path / "tasks.yml").write_text(definition("MultiLabel", "PremiseOnly", 2, "AUC, ACC", "rude, loud"))
    write_lines(tmp_path / "gold.tsv", ["0\t[1, 0]\ta", "1\t[0, 0]\tb"])
    write_score_file(tmp_path / "scores.json", {}, [[1, 0], [1, 0]], ["0", "1"], [[0.9, 0.1], [0.8, 0.1]])
    given = f"--task_def {tmp_path / 'tasks.yml'} --task toy --std_input {tmp_path / 'gold.tsv'} --score "
    calc_metrics.main([*given.split(), str(tmp_path / "scores.json")])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"AUC": 100.0, "ACC": 50.0}
    assert printed.err == "AUC is the mean over 1 of 2 labels; all examples have, or none has: loud\n"
