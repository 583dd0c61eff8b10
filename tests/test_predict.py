"""predict.py: MT-DNN's checkpoint gives MT-DNN's score files; mistakes are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import predict
from data_utils.errors import UserError
from data_utils.readers import read_score_file
from mt_dnn import inference
from mt_dnn.training import processes
from tests.mt_dnn.runs import DEFAULT_RUN, RUN, TASK_DEF


class _Reached(Exception):
    """The model was made."""


def _reached(*_: Any) -> None:
    raise _Reached


def _flags(dataset: str, folder: Path, *flags: str, run: Path = RUN) -> list[str]:
    task, checkpoint = dataset.split("_")[0], run / "model_0.pt"
    given = f"--task_def {TASK_DEF} --task {task} --checkpoint {checkpoint} --score {folder / 'scores.json'}"
    return [*given.split(), "--prep_input", str(RUN / "tinydata" / f"{dataset}.json"), *flags]


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("dataset", ["cola_dev", "mnli_matched_dev", "mnli_mismatched_dev", "stsb_dev"])
@pytest.mark.parametrize("run", [RUN, DEFAULT_RUN], ids=["flags given", "default flags"])
def test_mtdnns_checkpoint_gives_mtdnns_score_file(run: Path, dataset: str, batch_size: int, tmp_path: Path) -> None:
    predict.main(_flags(dataset, tmp_path, "--with_label", "--batch_size_eval", str(batch_size), run=run))
    found = read_score_file(tmp_path / "scores.json")
    expected = read_score_file(run / f"{dataset}_scores_epoch_0.json")
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-6)
    assert found["uids"] == expected["uids"]
    assert found["predictions"] == expected["predictions"]
    # a correlation of outputs that differ in the fourth digit magnifies their rounding
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=0.05)


@pytest.mark.parametrize("value", [["False"], ["false", "--with_label"], []])
def test_cuda_takes_a_value_as_mtdnns_does(value: list[str], tmp_path: Path) -> None:
    given = predict.parse_args(_flags("cola_dev", tmp_path, "--cuda", *value))
    assert given.cuda is (not value) and given.with_label is ("--with_label" in value)


@pytest.mark.parametrize(("value", "on_cpu"), [(["false"], True), ([], False)])
def test_a_gpu_is_left_alone_if_cuda_is_false(
    value: list[str], on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def record(cpu: bool, **options: Any) -> Accelerator:
        asked.append(cpu)
        return Accelerator(cpu=True, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(processes, "Accelerator", record)
    with pytest.raises(_Reached):
        monkeypatch.setattr(inference, "eval_model", _reached)
        predict.main(_flags("cola_dev", tmp_path, *(("--cuda", *value) if value else ())))
    assert asked == [on_cpu]


def test_without_labels_there_are_scores_and_no_metrics(tmp_path: Path) -> None:
    predict.main(_flags("cola_dev", tmp_path))
    assert read_score_file(tmp_path / "scores.json")["metrics"] == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "mnlii"), "did you mean 'mnli'"),
        (("--task_id", "3"), "accepted: 0 to 2"),
        (("--metric", "MMC"), "--metric: found 'MMC'"),
        (("--metric", "ACC,Pearson", "--with_label"), "--metric: found Pearson, accepted: ACC, MCC, F1MAC"),
        (("--prep_input", "nowhere.json"), "nowhere.json: cannot be read"),
        (("--checkpoint", "nowhere.pt"), "nowhere.pt: missing"),
        (("--batch_size_eval", "0"), "--batch_size_eval: found '0'"),
        (("--batch_size_evil", "0"), "unrecognized arguments: --batch_size_evil"),
        (("--cuda", "maybe"), "found 'maybe' for a switch, accepted: true or false"),
        (("--by_window",), "--by_window: Classification reads no windows"),
        (("--task", "mnli", "--task_id", "0"), "head 0 is Classification with 2"),
    ],
)
def test_a_mistake_is_one_line(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        predict.main(_flags("cola_dev", tmp_path, *flags))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "scores.json").exists()
