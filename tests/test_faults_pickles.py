"""Malicious pickles in every place that is read: nothing of them runs, and the command says so in a line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import calc_metrics
import train
from data_utils.errors import DataError
from mt_dnn.checkpoints.checkpoint import deltas_of, load_checkpoint, newest_checkpoint
from mt_dnn.export.export import export
from tasks.definition import checkpoint_globals
from tests.faults import Ended, command
from tests.mt_dnn.runs import RUN
from tests.test_faults_disk import CHECKPOINT, DATA, FREE, TASK_DEF, assert_told, flags
from tests.test_faults_files import with_checkpoint

REFUSED = r"{}: is damaged or holds objects that a checkpoint may not hold \(posix.system\); none was made"
PLACES: dict[str, Sequence[Any]] = {
    "the whole": (),
    "state": ("state",),
    "a tensor": ("state", "scoring_list.0.1.bias"),
    "optimizer": ("optimizer",),
    "its moments": ("optimizer", "state", 0),
    "config": ("config",),
    "task definitions": ("config", "task_def_list"),
    "a task definition": ("config", "task_def_list", 0),
    "a part of one": ("config", "task_def_list", 0, "metric_meta"),
    "progress": ("progress",),
    "random states": ("progress", "random_states"),
    "teacher": ("bregman",),
    "loss scaler": ("scaler",),
}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def as_pickle(content: Any, path: Path) -> None:
    """torch's older format: pickles one after the other."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


FORMATS = pytest.mark.parametrize("write", [as_pickle, as_zip])
Write = Callable[[Any, Path], None]


def malicious(place: Sequence[Any], target: Path) -> Any:
    """MT-DNN's checkpoint with a payload in that place."""
    if not place:
        return Payload(target)
    with torch.serialization.safe_globals(checkpoint_globals()):
        content = torch.load(CHECKPOINT, weights_only=True)
    content["config"]["task_def_list"] = load_checkpoint(CHECKPOINT)["config"]["task_def_list"]
    holder = content
    for name in place[:-1]:
        holder = holder.setdefault(name, {}) if isinstance(holder, dict) and name not in holder else holder[name]
    if place[-1] == "metric_meta":
        holder.metric_meta = Payload(target)
    else:
        holder[place[-1]] = Payload(target)
    return content


def runs_where_nothing_guards(path: Path, target: Path) -> bool:
    """Whether the file does what it is made for; removes what it wrote."""
    torch.load(path, weights_only=False)
    ran = target.exists()
    target.unlink(missing_ok=True)
    return ran


@FORMATS
@pytest.mark.parametrize("place", PLACES)
def test_a_payload_anywhere_in_a_checkpoint_runs_nothing(place: str, write: Write, tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "model_0.pt"
    write(malicious(PLACES[place], target), path)
    with pytest.raises(DataError, match=REFUSED.format(path)):
        load_checkpoint(path)
    assert not target.exists()
    assert runs_where_nothing_guards(path, target)


@FORMATS
@pytest.mark.parametrize("name", with_checkpoint(CHECKPOINT, Path()))
def test_every_command_that_reads_a_checkpoint_refuses_it(name: str, write: Write, tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "model_0.pt"
    write(malicious(("config", "task_def_list"), target), path)
    assert_told(command(*with_checkpoint(path, tmp_path)[name]), REFUSED.format(path))
    assert not target.exists()


@FORMATS
def test_a_resume_passes_over_it(write: Write, tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "model_0.pt"
    write(malicious(("progress",), target), path)
    told: list[str] = []
    with pytest.raises(DataError, match="holds no intact checkpoint"):
        newest_checkpoint(tmp_path, told.append)
    assert len(told) == 1 and told[0].endswith("passed over")
    assert not target.exists()


@FORMATS
@pytest.mark.parametrize("inside", [True, False], ids=["beside weights", "the whole"])
def test_a_payload_in_the_place_of_an_encoders_weights(inside: bool, write: Write, tmp_path: Path) -> None:
    target, encoder = tmp_path / "executed", Path(shutil.copytree(RUN / "tiny", tmp_path / "tiny"))
    weights = load_file(encoder / "model.safetensors")
    (encoder / "model.safetensors").unlink()
    write({**weights, "more": Payload(target)} if inside else Payload(target), encoder / "pytorch_model.bin")
    ended = command(train.main, flags(tmp_path / "run", "--init_checkpoint", encoder))
    assert_told(ended, f"encoder '{encoder}' cannot be loaded .its weights are a damaged pickle, or one that holds .*")
    assert not target.exists()
    assert runs_where_nothing_guards(encoder / "pytorch_model.bin", target)


def test_safetensors_come_before_a_pickle(tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(RUN / "tiny", tmp_path / "tiny"))
    as_zip(Payload(tmp_path / "executed"), encoder / "pytorch_model.bin")
    assert command(train.main, flags(tmp_path / "run", "--init_checkpoint", encoder)).code == 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("known", [True, False], ids=["of a known family", "of its own family"])
def test_code_in_an_encoders_folder_is_not_run(known: bool, tmp_path: Path) -> None:
    target, encoder = tmp_path / "executed", Path(shutil.copytree(RUN / "tiny", tmp_path / "tiny"))
    own = '{"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", null]},'
    config = (encoder / "config.json").read_text().replace("{", own, 1)
    (encoder / "config.json").write_text(config if known else config.replace('"bert"', '"evil"'))
    (encoder / "evil.py").write_text(f"import os\nos.system('touch {target}')\n")
    ended = command(train.main, flags(tmp_path / "run", "--init_checkpoint", encoder))
    assert not target.exists()
    if known:
        assert ended.code == 0, ended.output  # transformers' own class is taken
    else:
        assert_told(ended, f"encoder '{encoder}' cannot be loaded .*")


# files that hold no objects at all


def cache_of(folder: Path) -> tuple[Path, Callable[[], Ended]]:
    data = Path(shutil.copytree(DATA, folder / "data", ignore=shutil.ignore_patterns(".*")))
    return data / ".cola_train.cache", lambda: command(train.main, flags(folder / "run", "--data_dir", data))


def tokens_of(folder: Path) -> tuple[Path, Callable[[], Ended]]:
    cache, run = cache_of(folder)
    return cache.with_name("cola_train.json"), run


def kept_noise_of(folder: Path) -> tuple[Path, Callable[[], Ended]]:
    run = flags(folder / "run", *FREE)
    assert command(train.main, run).code == 0
    checkpoint = folder / "run" / "model_2.pt"
    return deltas_of(checkpoint), lambda: command(train.main, [*run, "--resume", "--model_ckpt", checkpoint])


def scores_of(folder: Path) -> tuple[Path, Callable[[], Ended]]:
    given = ["--task_def", TASK_DEF, "--task", "cola", "--std_input", DATA / "cola_dev.json"]
    return folder / "scores.json", lambda: command(calc_metrics.main, [*given, "--score", folder / "scores.json"])


def definition_of(folder: Path) -> tuple[Path, Callable[[], Ended]]:
    return folder / "tasks.yml", lambda: command(train.main, flags(folder / "run", "--task_def", folder / "tasks.yml"))


@FORMATS
@pytest.mark.parametrize("place", [cache_of, tokens_of, kept_noise_of, scores_of, definition_of])
def test_a_payload_in_the_place_of_another_file(
    place: Callable[[Path], tuple[Path, Callable[[], Ended]]], write: Write, tmp_path: Path
) -> None:
    target = tmp_path / "executed"
    path, run = place(tmp_path)
    write(Payload(target), path)
    ended = run()
    assert not target.exists()
    if place is cache_of:
        assert ended.code == 0, ended.output  # made anew
    else:
        assert_told(ended, f"{path}.*")


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path, run = definition_of(tmp_path)
    path.write_text(f"cola: !!python/object/apply:os.system ['touch {tmp_path / 'executed'}']\n")
    assert_told(run(), f"{path}: is no YAML that can be read: .*")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", ".", ""])
def test_a_checkpoints_names_do_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with torch.serialization.safe_globals(checkpoint_globals()):
        content = torch.load(CHECKPOINT, weights_only=True)
    content["config"]["task_def_list"] = load_checkpoint(CHECKPOINT)["config"]["task_def_list"]
    content["config"]["train_datasets"] = [name, "mnli", "stsb"]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(DataError, match="model.pt: names a task .*; accepted: a name that a folder may have"):
        export(tmp_path / "model.pt", tmp_path / "hf")
