"""The text formats between the commands, of every task type: canonical TSV, token JSON lines, score files."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

import calc_metrics
import prepare_distillation_data
from data_utils.errors import UserError
from data_utils.prepro import Converter, Split, TokenizerSpec, convert_split
from data_utils.readers import canonical_suffix, read_canonical_tsv, read_score_file, write_score_file
from data_utils.storage.text_files import MARK, read_lines, write_lines
from data_utils.task_def import DataFormat
from mt_dnn.batcher import Collater, SingleTaskDataset
from mt_dnn.data.token_arrays import ARRAYS, read_token_arrays
from tasks import Task
from tasks.base import Evaluation
from tasks.definition import TaskDefs
from tests.encoder_folder import write_encoder
from tests.fuzz.check import reading
from tests.fuzz.inputs import DRAWN, Choices
from tests.fuzz.tasks import DEFINITIONS, TOKENS, TSV, TYPES, read_tasks


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> dict[str, Task]:
    return read_tasks(tmp_path_factory.mktemp("tasks"), encoder)


@pytest.fixture(scope="module")
def converter(encoder: Path) -> Converter:
    return Converter(TokenizerSpec(str(encoder), max_seq_len=16, doc_stride=2, max_query_len=4))


def joined(example: dict[str, Any]) -> str:
    """An example of a canonical TSV as its line."""
    return "\t".join("\t".join(field) if isinstance(field, list) else field for field in example.values())


@given(DRAWN)
def test_canonical_text(tmp_path: Path, tasks: dict[str, Task], converter: Converter, drawn: bytes) -> None:
    choices = Choices(drawn)
    kind, is_train = choices.of(TYPES), choices.of((True, False))
    content = choices.text([TSV[kind].encode()])
    task, tokens = tasks[kind], tmp_path / "tokens.json"
    data_format = task.task_def.data_type
    path, again = (tmp_path / f"{name}{canonical_suffix(data_format)}" for name in ("text", "again"))
    path.write_bytes(content)
    split = Split(path, task, is_train)

    def convert() -> tuple[list[dict[str, Any]], list[str]]:
        examples = list(read_canonical_tsv(path, data_format))
        return examples, list(convert_split(split, lambda jobs: map(converter, jobs)))

    found = reading("canonical text (TSV), tokenized", convert, path)
    if found is None:
        return
    examples, lines = found
    if data_format == DataFormat.MLM:
        rows = [line for example in examples for line in (*example["sentences"], "")]
    else:
        rows = [joined(example) for example in examples]
    write_lines(again, rows)
    if not rows[0].startswith(MARK):  # which is none of a file's text at its start
        assert list(read_canonical_tsv(again, data_format)) == examples
    # what is written of it can be trained on
    write_lines(tokens, lines)
    try:
        arrays = read_token_arrays(tokens, task, needs_labels=is_train and not task.own_labels)
    except UserError as error:
        assert "all or none may" in str(error) and not is_train  # of a file for evaluation
    else:
        assert len(arrays) == len(lines)


def fake_logits(task: Task, batch: Any) -> Any:
    """Logits such as the task's head gives."""
    rows, width = batch.input_ids.shape
    classes = task.task_def.n_class
    if task.view == "spans":
        ends = [torch.randn(rows, width).masked_fill(batch.attention_mask == 0, -1e30) for _ in range(2)]
        return (*ends, *[torch.randn(rows)] * (classes - 2))
    return torch.randn(rows, width, classes) if task.view == "tokens" else torch.randn(rows, classes)


def evaluated(task: Task, dataset: SingleTaskDataset) -> Evaluation | None:
    """Batches as a run has them, and an evaluation of made-up results."""
    examples = [dataset[index] for index in range(len(dataset))]
    scores: list[Any] = []
    predictions: list[Any] = []
    for item in examples:
        batch = Collater(0)([item])
        assert batch.input_ids.shape == batch.attention_mask.shape
        if task.own_labels:
            continue
        if task.generates:
            scores.append(np.zeros(1))
            predictions.append("good")
            continue
        own_scores, own_predictions = task.predict(fake_logits(task, batch), batch)
        scores += list(own_scores)
        predictions += list(own_predictions)
    if task.own_labels:
        return None
    return task.evaluate(dataset, task.task_def.metric_meta, scores, predictions)


@given(DRAWN)
def test_token_lines(tmp_path: Path, tasks: dict[str, Task], drawn: bytes) -> None:
    choices = Choices(drawn)
    kind, is_train = choices.of(TYPES), choices.of((True, False))
    content = choices.json_lines(TOKENS[kind])
    task, path, again = tasks[kind], tmp_path / "tokens.json", tmp_path / "again.json"
    path.write_bytes(content)
    dataset = reading("token lines (JSON)", lambda: SingleTaskDataset(path, is_train, 0, task.task_def, 16), path)
    if dataset is None:
        return
    write_lines(again, (json.dumps(json.loads(line)) for _, line in read_lines(path)))
    needs_labels = is_train and not task.own_labels
    first, second = (read_token_arrays(own, task, needs_labels=needs_labels) for own in (path, again))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    reading("token lines, evaluated", lambda: evaluated(task, dataset), path, Path("metric"))


BESIDE = ("uid", "offset_mapping", "null_ans_index", "context", "answer", "window_start", "choice", "ruid", "olabel")
EVALUATED = sorted(kind for kind in TYPES if any(key in TOKENS[kind][0] for key in BESIDE[1:]))


@given(DRAWN)
def test_what_evaluations_read_beside_the_tokens(tmp_path: Path, tasks: dict[str, Task], drawn: bytes) -> None:
    choices = Choices(drawn)
    kind, path = choices.of(EVALUATED), tmp_path / "tokens.json"
    task, line = tasks[kind], TOKENS[kind][0]
    changed = choices.value([{key: line[key] for key in BESIDE if key in line}])
    write_lines(path, [json.dumps(line | (changed if isinstance(changed, dict) else {}))])

    def read() -> Evaluation | None:
        return evaluated(task, SingleTaskDataset(path, False, 0, task.task_def, 16))

    reading("token lines, evaluated", read, path)


SCORES: dict[str, list[dict[str, Any]]] = {
    "class": [{"metrics": {"ACC": 50.0}, "predictions": [1, 0], "uids": ["0", "1"], "scores": [0.1, 0.9, 0.75, 0.25]}],
    "number": [{"metrics": {}, "predictions": [0, 0], "uids": ["0", "0"], "scores": [1.5, 3]}],
    "rank": [
        {"metrics": {}, "predictions": [0, 1, 1, 0], "uids": ["a", "b", "0", "0"], "scores": [0.1, 0.9, 0.6, 0.4]}
    ],
    "cloze": [{"metrics": {}, "predictions": ["a"], "uids": ["0"], "scores": [0.7, 0.3]}],
    "tags": [{"metrics": {}, "predictions": [[3, 0, 1, 4]] * 2, "uids": ["0", "0"], "scores": [0.2] * 40}],
    "span": [{"metrics": {}, "predictions": ["bad", "good"], "uids": ["0", "1"], "scores": [2.5, -1]}],
    "spanyn": [{"metrics": {}, "predictions": ["bad", ""], "uids": ["0", "1"], "scores": [2.5, -1, 0, 1]}],
    "spans": [{"metrics": {}, "predictions": [["bad"]], "uids": ["0"], "scores": [0.2, 0.5, 0.3, 1, 0, 0]}],
    "text": [{"metrics": {}, "predictions": ["good", ""], "uids": ["0", "0"], "scores": [-0.5, -2]}],
}


@pytest.fixture(scope="module", autouse=True)
def read_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A definition, which the commands would read anew for every input."""
    path = tmp_path_factory.mktemp("scored") / "tasks.yml"
    path.write_text(DEFINITIONS)
    known = TaskDefs(path)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tasks.definition", "prepare_distillation_data"):  # calc_metrics imports it when it runs
            patch.setattr(f"{module}.TaskDefs", lambda path: known)
        yield path


def score_files(folder: Path, drawn: bytes, kinds: Sequence[str]) -> tuple[Path, list[str]]:
    """A changed score file, and the commands' flags."""
    choices = Choices(drawn)
    kind, labels, path = choices.of(kinds), folder / "labels.json", folder / "scores.json"
    labels.write_text("".join(json.dumps(line) + "\n" for line in TOKENS[kind]))
    path.write_bytes(choices.json(SCORES[kind]))
    return path, ["--task", kind, "--std_input", str(labels), "--score", str(path)]


@given(DRAWN)
def test_score_files(tmp_path: Path, drawn: bytes) -> None:
    path, flags = score_files(tmp_path, drawn, sorted(SCORES))

    def metrics() -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            calc_metrics.main(flags)
        return printed.getvalue()

    printed, again = reading("score files (calc_metrics)", metrics, path, Path("metric")), tmp_path / "again.json"
    if printed is not None:
        assert all(np.isfinite(value) for value in json.loads(printed).values())
        found = read_score_file(path)
        write_score_file(again, found["metrics"], found["predictions"], found["uids"], found["scores"])
        assert json.dumps(read_score_file(again)) == json.dumps(found)  # as text, where NaN is equal to itself


@given(DRAWN)
def test_scores_of_teachers(tmp_path: Path, drawn: bytes) -> None:
    path, flags = score_files(tmp_path, drawn, ["class", "number", "rank", "tags"])
    target = tmp_path / "target.json"

    def distil() -> list[Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            prepare_distillation_data.main([*flags, "--add_soft_label", "--std_output", str(target)])
        return [json.loads(line)["softlabel"] for _, line in read_lines(target)]

    soft = reading("score files (distillation)", distil, path)
    assert soft is None or all(np.isfinite(own).all() for own in soft)
