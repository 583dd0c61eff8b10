"""The lines at a run's start and end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd
import pytest

import predict
from data_utils.errors import FlagError
from mt_dnn.prediction import load_model
from mt_dnn.reporting.run_log import use
from mt_dnn.reporting.run_result import RunResult
from mt_dnn.training.trainer import Trainer
from tasks.definition import TaskDefs
from tests.mt_dnn.runs import SIFT, TASK_DEF, exportable, tiny_config, tiny_run

MODEL = Path("out/model_1.pt")


@pytest.fixture(scope="module")
def definitions() -> TaskDefs:
    return TaskDefs(TASK_DEF)


def test_one_task_is_used_by_its_folder_alone(definitions: TaskDefs) -> None:
    one = {"cola": definitions.get_task_def("cola")}
    command = "to use it: python predict.py --model {} --from new.csv --text TEXT --output answers.csv"
    assert list(use(one, MODEL)) == [command.format("out")]
    assert list(use(one, None)) == []
    assert list(use(one, None, Path("a model"))) == [
        command.format("'a model'"),
        'in Python: from transformers import pipeline; pipeline("text-classification", "a model", truncation=True)'
        '("A text.")',
    ]


def test_of_several_tasks_each_has_its_line(definitions: TaskDefs) -> None:
    tasks = {name: definitions.get_task_def(name) for name in ("cola", "mnli")}
    cola, mnli = use(tasks, MODEL)
    assert "--model out --task cola --from new.csv --text TEXT " in cola
    assert "--model out --task mnli --from new.csv --text PREMISE,HYPOTHESIS " in mnli
    _, _, command, python = use(tasks, MODEL, Path("hf"))
    assert "--model hf/mnli --from" in command
    assert python.endswith('"hf/mnli", truncation=True)({"text": "A text.", "text_pair": "A second text."})')


def test_the_opening_names_data_updates_device_and_files(tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tmp_path, *SIFT, "--train_datasets", "cola,mnli", "--test_datasets", "cola"))
    trainer.describe(trainer.config)
    told = [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()][-5:]
    assert told[0].startswith("SiFT: SMART's search at the normalized embeddings, radius 3 % of each vector")
    assert told[1].startswith("Settings that differ from the defaults: --data_dir ")
    assert (
        told[2]
        == "Data: 24 examples of cola_train, 24 of mnli_train to train on; 10 examples of cola_dev to evaluate on"
    )
    device = trainer.accelerator.device.type
    assert told[3].startswith(f"Training: 2 epochs, 12 updates, on {device} with 1 process; encoder ")
    assert told[4].endswith(f"{tmp_path}/model_0.pt after epoch 1, model_1.pt after epoch 2, and so on")


def test_the_last_lines_command_answers_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result: RunResult = tiny_run(tmp_path / "run", *exportable(tmp_path), "--save_hf", str(tmp_path / "hf"))
    assert result.best_epoch == 0
    lines = [line[20:] for line in capsys.readouterr().out.splitlines()]
    (command,) = (line for line in lines if line.startswith("to use it: python predict.py "))
    pd.DataFrame({"sentence": ["film", "film film"]}).to_csv("new.csv", index=False)
    predict.main(shlex.split(command.partition("predict.py ")[2].replace("TEXT", "sentence")))
    assert len(pd.read_csv("answers.csv")) == 2


@pytest.mark.parametrize("data_format", ["CLUE_CLASSIFICATION", "CLUE_SEQ"])
def test_a_run_on_token_files_of_a_format_without_a_reader_ends_without_a_command(
    data_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tmp_path / "tasks.yml"
    entry = f"{{data_format: {data_format}, task_type: Classification, n_class: 2, metric_meta: [ACC]}}"
    tasks.write_text(f"cola: {entry}")
    tiny_run(tmp_path / "run", "--task_def", str(tasks), "--train_datasets", "cola", "--test_datasets", "cola")
    told = capsys.readouterr().out
    assert "model: " in told and "to use it" not in told
    exportable(tmp_path)
    model = load_model(tmp_path / "run", tokenizer=str(tmp_path / "tokenizer"))
    with pytest.raises(FlagError, match=f"task cola takes no texts of a table .*{data_format}"):
        model.predict(["film"])
