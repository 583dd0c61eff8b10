"""A folder of a run, a checkpoint, a folder of --save_hf: which model is taken, and what is none."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, pipeline

from data_utils.errors import UserError
from mt_dnn.checkpoints.checkpoint import load_checkpoint
from mt_dnn.export.export import export
from mt_dnn.prediction import TextModel, load_model
from tests.mt_dnn.prediction.test_text_model import texts_of
from tests.mt_dnn.runs import RUN
from tests.tasks.learning import write_small_encoder

TEXTS = texts_of(30)


@pytest.fixture(scope="module")
def folders(every_type: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`all`: a folder of --save_hf with two tasks; `one`: with one."""
    root = tmp_path_factory.mktemp("folders")
    content = torch.load(every_type / "model_0.pt", weights_only=False)
    for settings in (content["config"], content["settings"]):
        settings["train_datasets"] = ["one", "several", "number"]
    kept = {"one": 0, "several": 3, "number": 2}
    definitions = content["config"]["task_def_list"]
    content["config"]["task_def_list"] = [definitions[place].replaced(actf="tanh") for place in kept.values()]
    state = {name: own for name, own in content["state"].items() if not name.startswith("scoring_list")}
    for new, old in enumerate(kept.values()):
        begin = f"scoring_list.{old}."
        for name, own in content["state"].items():
            if name.startswith(begin):
                state[f"scoring_list.{new}.{name.removeprefix(begin)}"] = own
    torch.save({**content, "state": state}, root / "model_0.pt")
    export(root / "model_0.pt", root / "all")
    for task in kept:
        export(root / "model_0.pt", root / f"only-{task}", task)
    return root


@pytest.mark.parametrize("task", ["one", "several", "number"])
def test_a_folder_of_save_hf_gives_the_answers_of_the_checkpoint_and_of_the_pipeline(folders: Path, task: str) -> None:
    expected = load_model(folders / "model_0.pt", cuda=False).predict(TEXTS, task)
    classify = pipeline("text-classification", str(folders / f"only-{task}"), top_k=None, device="cpu")
    for place in (folders / "all", folders / f"only-{task}"):
        model = load_model(place, cuda=False)
        found = model.predict(TEXTS, task if place.name == "all" else None)
        for answer, own, shown in zip(found, expected, classify(TEXTS), strict=True):
            scores = {entry["label"]: entry["score"] for entry in shown}
            if task == "number":
                assert answer.label == pytest.approx(own.label, abs=1e-5)
                assert [answer.label] == pytest.approx(list(scores.values()), abs=1e-5)
            else:
                assert answer.label == own.label
                assert answer.probabilities == pytest.approx(own.probabilities, abs=1e-5)
                assert answer.probabilities == pytest.approx(scores, abs=1e-5)


def test_the_folder_of_several_tasks_says_which_folders_transformers_opens(folders: Path) -> None:
    with pytest.raises((OSError, ValueError)):
        pipeline("text-classification", str(folders / "all"), device="cpu")
    card = (folders / "all" / "README.md").read_text()
    told = "Each task has a folder here: `one`, `several`, `number`. transformers opens one of these, not this folder."
    assert told in card
    assert "Each task has a folder here" not in (folders / "only-one" / "README.md").read_text()


def test_a_pair_of_a_folder_of_save_hf_is_the_pipelines(tmp_path: Path, folders: Path) -> None:
    folder = shutil.copytree(folders / "only-one", tmp_path / "pair")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("mt_dnn_task") == {"data_format": "PremiseOnly", "metric_meta": ["ACC", "F1MAC"]}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(folder, cuda=False)  # of a folder that does not tell, one text or two
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    classify = pipeline("text-classification", str(folder), top_k=None, device="cpu")
    shown = classify([{"text": first, "text_pair": second} for first, second in pairs])
    for answer, entries in zip(model.predict(pairs), shown, strict=True):
        scores = {entry["label"]: entry["score"] for entry in entries}
        assert answer.probabilities == pytest.approx(scores, abs=1e-5)
    assert len(model.predict(TEXTS)) == len(TEXTS)
    for mixed, which in (([TEXTS[0], None, pairs[0]], 3), ([pairs[0], TEXTS[0]], 2)):
        with pytest.raises(UserError, match=rf"texts, row {which}: found .* column.*, accepted: .* as in the rows"):
            model.predict(mixed)
    assert set(model.evaluate(TEXTS, ["a", "b", "c"] * 10)) == {"ACC", "F1MAC"}
    with pytest.raises(UserError, match="task only-one takes 1 column \\(text\\), found 2"):
        load_model(folders / "only-one", cuda=False).predict(pairs)


def test_a_run_is_its_best_epochs_checkpoint(
    every_type: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch, scale in ((0, 1.0), (1, 3.0)):
        content = torch.load(every_type / "model_0.pt", weights_only=False)
        content["state"]["scoring_list.0.1.weight"] *= scale
        torch.save(content, tmp_path / f"model_{epoch}.pt")
    expected = [load_model(tmp_path / f"model_{epoch}.pt", cuda=False).predict(TEXTS, "one") for epoch in (0, 1)]
    assert expected[0] != expected[1]
    for best in (0, 1):
        (tmp_path / "results.json").write_text(json.dumps({"best_epoch": best, "history": []}))
        assert load_model(tmp_path, cuda=False).predict(TEXTS, "one") == expected[best]
    (tmp_path / "results.json").write_text('{"best_epoch": 5}')
    with pytest.raises(
        UserError, match=r"model_5.pt: missing, the best epoch's checkpoint.*found: model_0.pt, model_1"
    ):
        load_model(tmp_path, cuda=False)
    (tmp_path / "results.json").write_text('{"best_epoch": "all"}')
    with pytest.raises(UserError, match="names no best epoch"):
        load_model(tmp_path, cuda=False)
    (tmp_path / "results.json").unlink()
    with caplog.at_level(logging.WARNING, "mt_dnn"):
        assert load_model(tmp_path, cuda=False).predict(TEXTS, "one") == expected[1]
    assert "has no results.json; the newest checkpoint is taken, model_1.pt" in caplog.text


def test_mtdnns_checkpoint_needs_its_tokenizer_named(tmp_path: Path) -> None:
    """MT-DNN's names a folder that is not there; its vocabulary is that of the tokenizer given."""
    small = write_small_encoder(tmp_path / "small", (f"w{number}" for number in range(190)))
    content = load_checkpoint(RUN / "model_0.pt")
    assert content["config"]["vocab_size"] >= 195
    with pytest.raises(UserError, match="--tokenizer: the model's is not found") as caught:
        load_model(RUN / "model_0.pt", cuda=False)
    assert "\n" not in str(caught.value)
    model = load_model(RUN / "model_0.pt", tokenizer=str(small), cuda=False)
    assert list(model.tasks) == ["cola", "mnli", "stsb"]
    (answer,) = model.predict([("w1 w2", "w3")], "mnli")
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    big = write_small_encoder(tmp_path / "big", (f"w{number}" for number in range(40_000)))
    with pytest.raises(UserError, match="has 40005 tokens, the encoder's vocabulary"):
        load_model(RUN / "model_0.pt", tokenizer=str(big), cuda=False)


def _bare_encoder(folder: Path, every_type: Path) -> None:
    shutil.copytree(every_type / "small", folder / "bare")


def _other_head(folder: Path, every_type: Path) -> None:
    config = AutoConfig.from_pretrained(every_type / "small")
    AutoModel.from_config(config).save_pretrained(folder / "bare")


@pytest.mark.parametrize("make", [_bare_encoder, _other_head])
def test_an_encoder_without_a_head_is_no_classifier(make: Any, every_type: Path, tmp_path: Path) -> None:
    make(tmp_path, every_type)
    with pytest.raises(UserError, match="its weights have no parameter 'classifier.bias'; accepted: a folder of"):
        load_model(tmp_path / "bare", cuda=False)


@pytest.mark.parametrize(
    ("place", "flags", "message"),
    [
        ("nowhere", {}, "nowhere: no such file or folder; accepted: the folder of a run, a checkpoint"),
        ("nowhere.pt", {}, "nowhere.pt: no such file or folder"),
        (".", {}, "holds no model; accepted"),
        ("tasks.yml", {}, "tasks.yml: is damaged or"),
        ("model_0.pt", {"task": "oen"}, "--task: found 'oen' (did you mean 'one'?), accepted: one, pair"),
        ("model_0.pt", {"max_seq_len": 65}, "--max_seq_len: found 65, accepted: at most 64, which the encoder has"),
        ("model_0.pt", {"max_seq_len": 2}, "--max_seq_len: found 2, accepted: at least 5"),
        ("model_0.pt", {"tokenizer": "nowhere/at-all"}, "--tokenizer: the model's is not found"),
        ("small", {}, "its weights have no parameter"),
    ],
)
def test_a_mistake_is_one_line(
    place: str, flags: dict[str, Any], message: str, every_type: Path, tmp_path: Path
) -> None:
    folder = tmp_path if place == "." else every_type
    with pytest.raises(UserError) as caught:
        load_model(folder / place, cuda=False, **flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(every_type: Path) -> None:
    with pytest.raises(UserError, match="--cuda: found no GPU"):
        load_model(every_type / "model_0.pt", cuda=True)


def test_a_damaged_folder_of_save_hf_is_one_line(folders: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders / "only-one", tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="holds no classifier that can be loaded"):
        load_model(folder, cuda=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"1": "a", "2": "b", "7": "c"}},
        {"id2label": {}},
        {"id2label": None},
        {"model_type": "nonsense"},
        {"num_hidden_layers": 10**9},
        {"problem_type": "many"},
        {"problem_type": "regression"},
    ],
)
def test_a_configuration_that_makes_no_classifier_is_one_line(
    changes: dict[str, Any], folders: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders / "only-one", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    try:
        assert load_model(folder, cuda=False).predict(["red"])[0].label is not None
    except UserError as error:
        assert "\n" not in str(error) and str(folder) in str(error)


def test_a_task_in_a_configuration_is_data(folders: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders / "only-one", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    for known in ([], {"data_format": 7, "metric_meta": "ACC"}, {"metric_meta": ["Pearson", "nonsense", 3]}):
        (folder / "config.json").write_text(json.dumps({**config, "mt_dnn_task": known}))
        model = load_model(folder, cuda=False)
        assert model.predict(["red"]) and set(model.evaluate(["red"], ["a"])) == {"ACC", "F1MAC"}


def test_the_model_answers_as_it_was_loaded(model: TextModel) -> None:
    assert list(model.tasks)[:3] == ["one", "pair", "number"]
    assert not model.tasks["one"].network.training  # type: ignore[attr-defined]
