from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import DataError, FlagError
from experiments.superglue import multirc_eval
from experiments.superglue.superglue_prepro import TASKS, main
from mt_dnn.configuration.config import parse_args
from mt_dnn.data.run_data import RunData
from tasks.definition import TaskDefs
from tests.experiments.publish import converted, trained, write_json
from tests.experiments.scripts import EXPERIMENTS, calls_of, run_script

TASK_DEF = EXPERIMENTS / "superglue" / "superglue_task_def.yml"
RUN = "superglue/run_superglue_finetuning.sh"

PASSAGE = "Ann met Bob in Rome.\n@highlight\nBob likes Rome and Ann"
ENTITIES = [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 15, "end": 18}, {"start": 32, "end": 34}]
# a row of each task's files as they are published, its label and what is then in a TSV
ROWS: dict[str, dict[str, Any]] = {
    "BoolQ": {"question": "is it good", "passage": "Good -- it\tis.", "idx": 3, "label": True},
    "CB": {"premise": "It is good.", "hypothesis": "it is bad", "label": "contradiction", "idx": 3},
    "COPA": {"premise": "It fell.", "choice1": "It was bad.", "choice2": "It was cut.", "question": "cause", "label": 1,
             "idx": 3},
    "MultiRC": {"idx": 3, "version": 1.1, "passage": {"text": "<b>Sent 1: </b>Good.<br>", "questions": [
        {"question": "What?", "idx": 5,
         "answers": [{"text": "Good", "idx": 0, "label": 1}, {"text": "Bad", "idx": 1, "label": 0}]},
        {"question": "Who?", "answers": [{"text": "Ann", "idx": 2, "label": 0}], "idx": 6},
    ]}},
    "RTE": {"premise": "It is good.", "hypothesis": "It is.", "label": "entailment", "idx": 3},
    "ReCoRD": {"source": "CNN", "passage": {"text": PASSAGE, "entities": ENTITIES}, "idx": 7, "qas": [
        {"query": "@placeholder likes it", "idx": 11, "answers": [
            {"start": 8, "end": 10, "text": "Bob"}, {"start": 21, "end": 23, "text": "Bob"}]},
    ]},
    "WSC": {"target": {"span2_index": 4, "span1_index": 0, "span1_text": "Ann", "span2_text": "she"},
            "text": "Ann met Bob and she, too, left.", "idx": 3, "label": False},
    "WiC": {"word": "place", "sentence1": "Do you want to come over to my place?", "sentence2": "A political place.",
            "idx": 3, "label": False, "start1": 31, "end1": 36, "start2": 12, "end2": 17, "version": 1.1},
}  # fmt: skip
CHOICES = '["Ann", "Bob", "Rome"]'
FLAT = PASSAGE.replace("\n", " ")
EXPECTED = {
    "boolq": ["3\t1\tGood -- it is.\tis it good"],
    "cb": ["3\tcontradiction\tIt is good.\tit is bad"],
    "copa": ["3\t3-0,3-1\t0,1\tIt fell.\tbecause It was bad.\tbecause It was cut."],
    "multirc": [
        "3_5_0\t1\t<b>Sent 1: </b>Good.<br>\tWhat? Good",
        "3_5_1\t0\t<b>Sent 1: </b>Good.<br>\tWhat? Bad",
        "3_6_2\t0\t<b>Sent 1: </b>Good.<br>\tWho? Ann",
    ],
    "rte": ["3\tentailment\tIt is good.\tIt is."],
    "record": [f'11\t{CHOICES}\t["Bob"]\t0,1,0\t{FLAT}\tAnn likes it\tBob likes it\tRome likes it'],
    "wic": ["3\t0\tplace Do you want to come over to my place?\tA political place."],
    "wsc": ["3\t0\tAnn met Bob and she, too, left.\tAnn met Bob and Ann, too, left."],
}


def unlabeled(row: Any) -> Any:
    """A row of a test file."""
    if isinstance(row, dict):
        return {key: unlabeled(value) for key, value in row.items() if key not in ("label", "answers")}
    return [unlabeled(part) for part in row] if isinstance(row, list) else row


def publish(folder: Path, copies: int = 1) -> None:
    for name, row in ROWS.items():
        test = unlabeled(row)
        if name == "MultiRC":
            for question, own in zip(test["passage"]["questions"], row["passage"]["questions"], strict=True):
                question["answers"] = [unlabeled(answer) for answer in own["answers"]]
        for split, own in (("train", row), ("val", row), ("test", test)):
            write_json(folder / name / f"{split}.jsonl", [own] * copies)


def test_tasks_are_those_of_the_yaml():
    assert set(TaskDefs(TASK_DEF).names) == set(TASKS)


def test_texts_and_labels_of_every_task(tmp_path: Path):
    publish(tmp_path)
    found = converted(main, tmp_path)
    assert set(found) == {f"{task}_{split}" for task in TASKS for split in ("train", "dev", "test")}
    assert {task: found[f"{task}_dev"] for task in TASKS} == EXPECTED
    for task in set(TASKS) - {"record"}:
        assert found[f"{task}_train"] == EXPECTED[task]
        place = 2 if task == "copa" else 1
        for test, dev in zip(found[f"{task}_test"], EXPECTED[task], strict=True):
            fields = dev.split("\t")
            assert test.split("\t") == [*fields[:place], "", *fields[place + 1 :]]
    assert found["record_test"] == [EXPECTED["record"][0].replace('["Bob"]\t0,1,0', "[]\t")]


def test_an_effect_is_linked_with_so(tmp_path: Path):
    write_json(tmp_path / "COPA" / "val.jsonl", [{**ROWS["COPA"], "question": "effect", "label": 0}])
    assert converted(main, tmp_path)["copa_dev"] == [
        "3\t3-0,3-1\t1,0\tIt fell.\tso It was bad.\tso It was cut."
    ]  # fmt: skip


def test_record_trains_on_pairs_of_a_wrong_and_a_right_entity(tmp_path: Path):
    rows = [{**ROWS["ReCoRD"], "qas": [{**ROWS["ReCoRD"]["qas"][0], "idx": number}]} for number in range(20)]
    write_json(tmp_path / "ReCoRD" / "train.jsonl", rows)
    first, again, other = (
        converted(main, tmp_path, *flags)["record_train"] for flags in ([], [], ["--seed", "14"])
    )  # fmt: skip
    assert first == again and first != other
    fields = [line.split("\t") for line in first]
    assert [uid for uid, *_ in fields] == [str(number) for number in range(20) for _ in range(2)]
    orders = set()
    for number, (_, choices, answers, relevances, text, *gaps) in enumerate(fields):
        wrong, places = ("Ann", "Rome")[number % 2], json.loads(choices)
        assert sorted(places) == sorted([wrong, "Bob"]) and json.loads(answers) == ["Bob"] and text == FLAT
        assert relevances == ("1,0" if places[0] == "Bob" else "0,1")
        assert gaps == [f"{place} likes it" for place in places]
        orders.add(relevances)
    assert orders == {"1,0", "0,1"}


def test_what_is_no_question_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    question = ROWS["ReCoRD"]["qas"][0]
    row = {**ROWS["ReCoRD"], "qas": [question, {**question, "answers": [{"start": 0, "end": 1, "text": "Eve"}]}]}
    write_json(tmp_path / "ReCoRD" / "val.jsonl", [row])
    alone = {"text": "Bob left.", "entities": [{"start": 0, "end": 2}]}
    write_json(tmp_path / "ReCoRD" / "train.jsonl", [row, {**ROWS["ReCoRD"], "passage": alone}])
    converted(main, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(
        "2 examples; 1 left out, whose answers are no entities of the passage; "
        "1 left out, whose passage names no wrong entity"
    )
    assert printed[1].endswith("1 examples; 1 left out, whose answers are no entities of the passage")


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("Ann saw it. She left.", (3, "She", "Ann"), "Ann saw it. Ann left."),
        # the pronoun is a word further than its index says; marks that were taken along are not
        ('It  fell. "He" said.', (1, "He", "Bob,"), 'It fell. "Bob" said.'),
    ],
)
def test_a_pronoun_is_replaced_by_its_noun(tmp_path: Path, text: str, target: tuple[Any, ...], expected: str):
    spans = dict(zip(("span2_index", "span2_text", "span1_text"), target, strict=True))
    write_json(tmp_path / "WSC" / "val.jsonl", [{"text": text, "target": spans, "idx": 0, "label": True}])
    assert converted(main, tmp_path)["wsc_dev"] == [f"0\t1\t{text}\t{expected}"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("BoolQ", {"label": "maybe"}, "found the label 'maybe', accepted: true or false"),
        ("BoolQ", {"passage": None}, "cannot be read as it is published"),
        ("MultiRC", {"passage": {"text": "x"}}, "found no 'questions'; the row has idx, version, passage"),
        ("COPA", {"question": "why"}, "found no 'why'"),
        ("WSC", {"text": "Bob left."}, "found no 'she' at word 4 of the text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, name: str, change: dict[str, Any], words: str):
    path = tmp_path / name / "val.jsonl"
    write_json(path, [ROWS[name], {**ROWS[name], **change}])
    with pytest.raises(DataError, match=words) as caught:
        converted(main, tmp_path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert not list((tmp_path / "canonical_data").iterdir())


@pytest.mark.parametrize("name", ["BoolQ", "CB", "COPA", "RTE", "WSC", "WiC", "MultiRC", "ReCoRD"])
def test_only_a_test_set_may_lack_labels(tmp_path: Path, name: str):
    write_json(tmp_path / name / "val.jsonl", [unlabeled(ROWS[name])])
    with pytest.raises(DataError, match=r"line 1: found no '(label|answers)'"):
        converted(main, tmp_path)


def test_what_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="boolq: BoolQ; cb: CB.*--data_dir"):
        main(["--root_dir", str(tmp_path)])
    with pytest.raises(FlagError, match=r"'recrd' \(did you mean 'record'\?\)"):
        main(["--root_dir", str(tmp_path), "--tasks", "recrd"])


def test_a_missing_set_names_both_commands(tmp_path: Path):
    words = f"--task_def {TASK_DEF} --data_dir {tmp_path / 'x'} --train_datasets copa --test_datasets copa"
    with pytest.raises(DataError, match="make it with: python .*superglue_prepro.py, then python prepro_std.py"):
        RunData(parse_args(words.split()))
    (tmp_path / "copa_train.tsv").touch()
    with pytest.raises(DataError, match="make it with: python prepro_std.py"):
        RunData(parse_args(words.split()))


def test_from_the_release_to_the_scores(tmp_path: Path):
    publish(tmp_path, copies=3)
    converted(main, tmp_path)
    sift = ("--adv_train", "--adv_norm_level", "post_ln")
    found = trained(tmp_path, RUN, "mtdnn", *sift, task_def=TASK_DEF)
    assert set(found) == {f"{task}_{split}" for task in TASKS for split in ("dev", "test")}
    for task in TASKS:
        metrics = TaskDefs(TASK_DEF).get_task_def(task).metric_meta
        assert {metric.name for metric in metrics} <= set(found[f"{task}_dev"]["metrics"])
        assert not found[f"{task}_test"]["metrics"]
    assert found["copa_dev"]["uids"] == ["3-0", "3-1"] * 3 and sum(found["copa_dev"]["predictions"]) == 3
    assert set(found["record_test"]["predictions"]) <= {"Ann", "Bob", "Rome"}
    assert len(found["record_test"]["scores"]) == 9


def test_a_question_is_right_where_all_its_answers_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two of three questions; answers: 2 right ones found, 1 found wrongly, 0 missed."""
    golds = {"3_5_0": 1, "3_5_1": 0, "3_6_0": 0, "3_6_1": 1, "4_5_0": 0}
    predictions = {**golds, "3_6_0": 1}
    write_json(
        tmp_path / "multirc_dev.json", [{"uid": uid, "label": own, "token_id": [2]} for uid, own in golds.items()]
    )
    uids = sorted(golds, key=lambda uid: uid[::-1])  # answers of a question need not stand together
    scores = [float(predictions[uid] == column) for uid in uids for column in (0, 1)]
    write_json(
        tmp_path / "scores.json",
        [{"metrics": {}, "uids": uids, "predictions": [predictions[uid] for uid in uids], "scores": scores}],
    )
    flags = ["--std_input", str(tmp_path / "multirc_dev.json"), "--score", str(tmp_path / "scores.json")]
    multirc_eval.main(flags)
    assert json.loads(capsys.readouterr().out) == pytest.approx({"F1a": 80, "EM": 200 / 3})
    for wrong in ("right", 2):
        told = {"metrics": {}, "uids": uids, "predictions": [wrong] * len(uids), "scores": scores}
        write_json(tmp_path / "wrong.json", [told])
        with pytest.raises(DataError, match="wrong.json: found the prediction .*; accepted: classes from 0 to 1"):
            multirc_eval.main([*flags[:3], str(tmp_path / "wrong.json")])
    write_json(tmp_path / "multirc_dev.json", [{"uid": "1", "label": 1, "token_id": [2]}])
    with pytest.raises(DataError, match="expected ids such as 3_5_0"):
        multirc_eval.main(flags)


def test_settings_are_those_of_glue(tmp_path: Path):
    (call,) = calls_of(RUN, "d", "bert", "base", "record", 16, 1, "--seed", 3, folder=tmp_path)
    assert (call["train_datasets"], call["test_datasets"], call["seed"]) == ("record", "record", "3")
    assert (call["init_checkpoint"], call["data_dir"]) == ("bert-base-uncased", "d/bert-base-uncased")
    assert (call["epochs"], call["learning_rate"], call["batch_size"]) == ("3", "5e-5", "16")
    assert Path(call["task_def"]).samefile(TASK_DEF)
    finished = run_script(RUN, "d", "bert", folder=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: usage: run_superglue_finetuning.sh DATA_DIR MODEL_TYPE MODEL_SIZE TASK")
