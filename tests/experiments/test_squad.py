from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import prepro_std
from data_utils.errors import DataError
from data_utils.readers import read_score_file
from experiments.squad import squad_prepro
from mt_dnn.data.dataset import SingleTaskDataset
from tasks.definition import TaskDefs
from tests.encoder_folder import write_encoder
from tests.experiments.scripts import EXPERIMENTS, calls_of, run_script

TASK_DEF = EXPERIMENTS / "squad" / "squad_task_def.yml"
RUN = "squad/run_squad_finetuning.sh"
CONTEXT = "good fine\nbad poor good, fine bad \U0001f600 poor good bad fine poor; good bad."


def question(uid: str, answer: str | None, **more: Any) -> dict[str, Any]:
    answers = [] if answer is None else [{"text": answer, "answer_start": CONTEXT.index(answer)}] * 2
    return {"id": uid, "question": "poor\tgood?", "answers": answers, **more}


def squad_file(version: str, qas: list[dict[str, Any]]) -> str:
    paragraphs = [{"context": CONTEXT, "qas": qas}]
    return json.dumps({"version": version, "data": [{"title": "Good", "paragraphs": paragraphs}]})


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """The four public files, small."""
    ones = [question("5733be28", "fine\nbad"), question("5733be29", "\U0001f600 poor")]
    none = question("5733be30", None, is_impossible=True, plausible_answers=[{"text": "good", "answer_start": 0}])
    twos = [*({**own, "is_impossible": False} for own in ones), none]
    for split in ("train", "dev"):
        (tmp_path / f"{split}-v1.1.json").write_text(squad_file("1.1", ones))
        (tmp_path / f"{split}-v2.0.json").write_text(squad_file("v2.0", twos))
    return tmp_path


def test_public_files_become_canonical_lines(public: Path, capsys: pytest.CaptureFixture[str]):
    squad_prepro.main(["--root_dir", str(public)])
    lines = (public / "canonical_data" / "squad-v2_dev.tsv").read_text().splitlines()
    context = CONTEXT.replace("\n", " ")
    assert lines == [
        f'5733be28\t["fine bad", "fine bad"]\t[5, 5]\t{context}\tpoor good?',
        f'5733be29\t["\U0001f600 poor", "\U0001f600 poor"]\t[34, 34]\t{context}\tpoor good?',
        f"5733be30\t[]\t[]\t{context}\tpoor good?",
    ]
    assert (public / "canonical_data" / "squad_dev.tsv").read_text().splitlines() == lines[:2]
    assert "left out" not in capsys.readouterr().out


def test_other_names_and_what_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "squad").mkdir()
    wrong = question("2", "good")
    wrong["answers"] = [{"text": "good", "answer_start": 1}]
    (tmp_path / "squad" / "train.json").write_text(
        squad_file("1.1", [question("1", "bad"), wrong, question("3", None)])
    )
    squad_prepro.main(["--root_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (
        "1 examples; 1 left out, whose answer is not where it is said to be; 1 left out, without an answer" in printed
    )
    assert f"skipped, not in {tmp_path}: dev-v1.1.json, train-v2.0.json, dev-v2.0.json" in printed


def test_development_questions_stay_wherever_their_answer_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The official score counts every question of the file."""
    wrong, gone = question("2", "good"), question("3", "good")
    wrong["answers"] = [{"text": "good", "answer_start": 20}]
    gone["answers"] = [{"text": "excellent", "answer_start": 4}, {"text": "bad", "answer_start": 10}]
    (tmp_path / "dev-v1.1.json").write_text(squad_file("1.1", [question("1", "bad"), wrong, gone]))
    squad_prepro.main(["--root_dir", str(tmp_path)])
    root = tmp_path / "canonical_data"
    fields = [line.split("\t") for line in (root / "squad_dev.tsv").read_text().splitlines()]
    assert [own[1:3] for own in fields[1:]] == [['["good"]', "[19]"], ['["excellent", "bad"]', "[-1, 10]"]]
    assert "3 examples; 2 kept though an answer is not where it is said to be" in capsys.readouterr().out
    encoder = write_encoder(tmp_path / "bert-tiny-uncased")
    cut = ["--max_seq_len", "32", "--max_query_len", "3", "--doc_stride", "3"]
    prepro_std.main(["--model", str(encoder), "--root_dir", str(root), "--task_def", str(TASK_DEF), *cut])
    task_def = TaskDefs(TASK_DEF).get_task_def("squad")
    dataset = SingleTaskDataset(root / encoder.name / "squad_dev.json", False, 0, task_def)
    golds = dataset.task.golds(dataset)
    assert golds == [["bad", "bad"], ["good"], ["excellent", "bad"]]
    (root / "squad_train.tsv").write_text((root / "squad_dev.tsv").read_text())
    with pytest.raises(DataError, match="squad_train.tsv, line 3: the answer 'excellent' is not at character -1"):
        prepro_std.main(["--model", str(encoder), "--root_dir", str(root), "--task_def", str(TASK_DEF), *cut])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [', "dev-v1.1.json, line 1: found no whole JSON object"),
        (
            '{"data": [{"paragraphs": [{"qas": [{}]}]}]}',
            "is not built as SQuAD's files are .KeyError.'context'.*accepted",
        ),
        ("[]", "is not built as SQuAD's files are"),
        (squad_file("1.1", [question("1", "good") | {"id": 1}]), "is not built as SQuAD's files are .TypeError"),
        (squad_file("1.1", [question("1", "good") | {"question": None}]), "is not built as SQuAD's files are"),
        ("[" * 5000, "nested too deeply"),
        ('{"data": 1, "data": 2}', "found the key 'data' twice"),
    ],
)
def test_a_broken_file_is_told_and_nothing_written(tmp_path: Path, content: str, message: str):
    (tmp_path / "dev-v1.1.json").write_text(content)
    with pytest.raises(DataError, match=message):
        squad_prepro.main(["--root_dir", str(tmp_path)])
    assert not list(tmp_path.glob("canonical_data/*"))


def test_no_file_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"found none of train-v1.1.json, .*put SQuAD's public files there"):
        squad_prepro.main(["--root_dir", str(tmp_path)])


def test_from_public_files_to_a_trained_model_s_answers(public: Path):
    squad_prepro.main(["--root_dir", str(public)])
    encoder, root = write_encoder(public / "bert-tiny-uncased"), public / "canonical_data"
    cut = ["--max_seq_len", "12", "--max_query_len", "3", "--doc_stride", "3"]
    prepro_std.main(["--model", str(encoder), "--root_dir", str(root), "--task_def", str(TASK_DEF), *cut])
    both = ("--train_datasets", "squad,squad-v2", "--test_datasets", "squad,squad-v2")
    flags = (*both, "--epochs", "1", "--dataloader_num_workers", "0", "--adv_train", "--adv_norm_level", "post_ln")
    finished = run_script(RUN, root, "bert", "tiny", "squad", 4, 1, *flags, folder=public)
    assert finished.returncode == 0, finished.stderr
    for task, questions, columns, metric in (("squad", 2, 1, "EmF1"), ("squad-v2", 3, 2, "EmF12_best_f1")):
        found = read_score_file(public / "squad_app" / "squad" / encoder.name / f"{task}_dev_scores_epoch_0.json")
        assert found["uids"] == ["5733be28", "5733be29", "5733be30"][:questions]
        assert all(text in CONTEXT.replace("\n", " ") for text in found["predictions"])
        assert len(found["scores"]) == questions * columns
        assert metric in found["metrics"]


def test_the_script_s_flags(tmp_path: Path):
    (call,) = calls_of(RUN, "DATA", "roberta", "large", "squad", 16, 1, "--max_answer_len", 20, folder=tmp_path)
    assert call["task_def"] == str(TASK_DEF) and call["max_answer_len"] == "20"
    assert (call["train_datasets"], call["test_datasets"], call["init_checkpoint"]) == (
        "squad",
        "squad",
        "roberta-large",
    )
    assert call["output_dir"] == "squad_app/squad/roberta-large"
    assert run_script(RUN, "DATA", folder=tmp_path).returncode == 2


def test_the_definitions_are_mtdnns():
    tasks = TaskDefs(TASK_DEF)
    assert tasks.names == ("squad", "squad-v2")
    assert [tasks.get_task_def(name).n_class for name in tasks.names] == [2, 2]
