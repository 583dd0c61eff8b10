from __future__ import annotations

import json
from pathlib import Path

import pytest

import calc_metrics
from data_utils.errors import UserError
from data_utils.readers import read_score_file, read_token_json, write_score_file
from data_utils.text_files import write_lines
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
        ("mnli", cola, "scores; of 3 classes"),
        ("cola", tmp_path / "no.tsv", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            calc_metrics.main(flags(task, labels, RUN / "cola_dev_scores_epoch_0.json"))


def test_as_many_predictions_as_labels_are_asked_for(tmp_path: Path) -> None:
    """Of an example with three tokens."""
    definition = "toy: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 2, metric_meta: [ACC]}\n"
    (tmp_path / "tasks.yml").write_text(definition)
    write_lines(tmp_path / "gold.json", [json.dumps({"uid": "0", "label": [0, 1, 0], "token_id": [1, 2, 3]})])
    write_score_file(tmp_path / "scores.json", {}, [[0, 1]], ["0"], [0.5] * 4)
    given = f"--task_def {tmp_path / 'tasks.yml'} --task toy --std_input {tmp_path / 'gold.json'} --score "
    with pytest.raises(UserError, match=r"scores.json: the prediction for '0' is \[0, 1\]; the example has 3 labels"):
        calc_metrics.main([*given.split(), str(tmp_path / "scores.json")])
