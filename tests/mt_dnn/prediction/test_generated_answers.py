"""Answers that an encoder-decoder writes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers

import predict
from data_utils.readers import read_score_file
from mt_dnn.configuration.config import Config
from mt_dnn.model import MTDNNModel
from mt_dnn.prediction import Answer, load_model
from tasks.definition import TaskDefs
from tests.mt_dnn.prediction.test_text_model import texts_of
from tests.tasks.learning import WORDS, write_small_encoder, write_task

DEFINITION = """
toy: {data_format: PremiseOnly, task_type: SeqenceGeneration, n_class: 1, metric_meta: [ACC, EmF1]}
mrc: {data_format: CLUE_GEN, task_type: SeqenceGenerationMRC, n_class: 1, metric_meta: [EmF12]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model_0.pt` with both tasks, over a T5 of one layer each."""
    root = tmp_path_factory.mktemp("generation")
    encoder = write_small_encoder(root / "t5", [*WORDS, "no", "answer", ","])
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
    sizes |= {"vocab_size": 16, "eos_token_id": 3, "decoder_start_token_id": 0}
    config = transformers.T5Config(initializer_factor=5.0, **sizes)
    transformers.T5ForConditionalGeneration(config).save_pretrained(encoder)
    (root / "tasks.yml").write_text(DEFINITION)
    task_defs = TaskDefs(root / "tasks.yml")
    flags = {"init_checkpoint": str(encoder), "train_datasets": task_defs.names, "cuda": False, "max_answer_len": 4}
    model = MTDNNModel(Config.from_flags(flags), [task_defs.get_task_def(name) for name in task_defs.names])
    model.save(str(root / "model_0.pt"))
    return root


@pytest.mark.parametrize("task", ["toy", "mrc"])
def test_a_text_is_written_and_compared_with_the_right_one(folder: Path, tmp_path: Path, task: str) -> None:
    texts = texts_of(12)
    rows = texts if task == "toy" else [("four", text) for text in texts]
    columns = [texts, texts] if task == "toy" else [['["red"]'] * 12, texts, ["four"] * 12]
    lines = ["\t".join([str(row), *(column[row] for column in columns)]) for row in range(12)]
    data = write_task(tmp_path, DEFINITION, {f"{task}_dev": lines}, folder / "t5")
    words = ["--task_def", str(tmp_path / "tasks.yml"), "--task", task, "--checkpoint", str(folder / "model_0.pt")]
    words += ["--prep_input", str(data / f"{task}_dev.json"), "--score", str(tmp_path / "scores.json"), "--with_label"]
    predict.main([*words, "--cuda", "false"])
    expected = read_score_file(tmp_path / "scores.json")
    model = load_model(folder / "model_0.pt", cuda=False)
    answers = model.predict(rows, task)
    assert [answer.label for answer in answers] == expected["predictions"]
    assert any(expected["predictions"])
    assert [answer.probability for answer in answers] == pytest.approx(
        list(map(math.exp, expected["scores"])), abs=1e-6
    )
    labels = texts if task == "toy" else ["red", *[["red"]] * 11]
    assert model.evaluate(rows, labels, task) == pytest.approx(expected["metrics"])
    assert model.predict([""] if task == "toy" else [("", "red")], task) == [Answer(None)]
