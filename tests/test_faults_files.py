"""Truncated, emptied and bit-flipped files of every kind that is read: named in a line, exit code 2, or passed over."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import calc_metrics
import predict
import prepare_distillation_data
import prepro_std
import strip_model
import train
from data_utils.storage import checksum
from data_utils.storage.checksum import checksum_of
from experiments.dump_embedding import extractor
from mt_dnn.checkpoints.checkpoint import deltas_of, load_checkpoint
from mt_dnn.checkpoints.resumption import RunCheckpoints
from mt_dnn.export import export as hf_export
from tests.encoder_folder import write_encoder
from tests.faults import command, cut, empty, flip
from tests.mt_dnn.runs import RUN, assert_same, parameters
from tests.test_faults_disk import CHECKPOINT, DATA, FREE, TASK_DEF, assert_told, flags

Damage = Callable[[Path], None]
DAMAGES = (cut, flip, empty)
EACH = pytest.mark.parametrize("damage", DAMAGES)


def flip_a_brace(path: Path) -> None:
    flip(path, path.read_bytes().rindex(b"}"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with kept noise and a Bregman teacher."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert command(train.main, flags(folder, *FREE, "--bregman_mu", 1)).code == 0
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of that run, in its place."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


# what a resume reads


@EACH
@pytest.mark.parametrize("kind", ["checkpoint", "its checksum", "its kept noise", "the checksum of the noise"])
def test_a_resume_goes_back_to_what_is_whole_and_ends_the_same(
    kind: str, damage: Damage, whole: Path, run: Path
) -> None:
    newest = run / "model_2.pt"
    file = deltas_of(newest) if "noise" in kind else newest
    damage(checksum_of(file) if "checksum" in kind else file)
    ended = command(train.main, flags(run, *FREE, "--bregman_mu", 1, "--resume"))
    assert ended.code == 0, ended.output
    line = f"{file}: is damaged: its checksum is not that in {checksum_of(file).name}; passed over"
    assert ended.output.count(line) == 1
    assert f"resumed from {run / 'model_1.pt'}" in ended.output
    assert_same(parameters(whole / "model_2.pt"), parameters(newest))


def test_a_resume_reads_each_checkpoint_once_and_none_before_the_newest_whole_one(run: Path) -> None:
    flip(run / "model_2.pt")

    def count() -> None:
        for owner, name in ((checksum, "sha256"), (torch, "load")):
            original = getattr(owner, name)

            def counted(path: Path, *arguments: Any, _name: str = name, _of: Any = original, **options: Any) -> Any:
                print("read:", _name, path.name)
                return _of(path, *arguments, **options)

            setattr(owner, name, counted)
        RunCheckpoints.save = lambda *arguments: None  # type: ignore[method-assign]

    ended = command(train.main, flags(run, *FREE, "--bregman_mu", 1, "--resume"), count)
    assert ended.code == 0, ended.output
    assert [line.removeprefix("read: ") for line in ended.output.splitlines() if line.startswith("read: ")] == [
        "sha256 model_2.pt", "sha256 model_1.pt", "load model_1.pt", "sha256 model_1.deltas",
    ]  # fmt: skip


def test_a_bit_of_the_teacher_is_no_less_guarded(run: Path) -> None:
    newest = run / "model_2.pt"
    teacher = load_checkpoint(newest)["bregman"]
    name = max(teacher, key=lambda key: teacher[key].numel())
    place = newest.read_bytes().index(teacher[name].numpy().tobytes())
    flip(newest, place + 5)
    ended = command(train.main, flags(run, *FREE, "--bregman_mu", 1, "--resume"))
    assert f"{newest}: is damaged" in ended.output and f"resumed from {run / 'model_1.pt'}" in ended.output


@EACH
@pytest.mark.parametrize("kind", ["checkpoint", "noise"])
def test_a_damaged_checkpoint_that_was_asked_for_is_refused(kind: str, damage: Damage, run: Path) -> None:
    checkpoint = run / "model_2.pt"
    file = checkpoint if kind == "checkpoint" else deltas_of(checkpoint)
    damage(file)
    ended = command(train.main, flags(run, *FREE, "--bregman_mu", 1, "--resume", "--model_ckpt", checkpoint))
    assert_told(ended, f"{file}: is damaged: its checksum is not that in {checksum_of(file).name}")


@pytest.mark.parametrize("damage", [cut, empty, flip_a_brace])
def test_a_damaged_record_of_updates_loses_the_damaged_lines_alone(damage: Damage, run: Path) -> None:
    record = run / "metrics.jsonl"
    damage(record)
    # What is cut or flipped is the last line, or what is left of it.
    expected = record.read_bytes().decode().splitlines()[:-1]
    ended = command(train.main, flags(run, *FREE, "--bregman_mu", 1, "--resume"))
    assert ended.code == 0, ended.output
    assert record.read_text().splitlines() == expected
    assert bool(expected) == (damage is not empty)


# what every command reads of a checkpoint


def with_checkpoint(checkpoint: Path, folder: Path) -> dict[str, tuple[Any, list[object]]]:
    """Every command that reads a checkpoint, by its name."""
    scored: list[object] = ["--task_id", 0, "--prep_input", DATA / "cola_dev.json", "--score", folder / "scores.json"]
    return {
        "predict": (predict.main, ["--checkpoint", checkpoint, *scored]),
        "init_checkpoint": (train.main, flags(folder / "run", "--init_checkpoint", checkpoint)),
        "resume": (train.main, flags(folder / "run", "--resume", "--model_ckpt", checkpoint)),
        "strip_model": (strip_model.main, ["--checkpoint", checkpoint, "--fout", folder / "stripped.pt"]),
        "hf_export": (hf_export.main, ["--checkpoint", checkpoint, "--save_hf", folder / "hf"]),
    }


@pytest.mark.parametrize("name", with_checkpoint(CHECKPOINT, Path()))
@EACH
def test_commands_refuse_a_damaged_checkpoint(name: str, damage: Damage, run: Path, tmp_path: Path) -> None:
    checkpoint = run / "model_0.pt"
    damage(checkpoint)
    assert_told(command(*with_checkpoint(checkpoint, tmp_path)[name]), f"{checkpoint}: is damaged: its checksum is .*")


@pytest.mark.parametrize("name", with_checkpoint(CHECKPOINT, Path()))
@pytest.mark.parametrize("damage", [cut, empty])
def test_commands_refuse_a_broken_checkpoint_that_has_no_checksum(name: str, damage: Damage, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copy(CHECKPOINT, tmp_path / "foreign.pt"))
    damage(checkpoint)
    assert_told(command(*with_checkpoint(checkpoint, tmp_path)[name]), f"{checkpoint}: is damaged or .*")


# data, encoders, definitions, score files


def copies(folder: Path) -> tuple[Path, Path]:
    """Data and encoder of the tiny run."""
    data = shutil.copytree(DATA, folder / "data", ignore=shutil.ignore_patterns(".*"))
    return Path(data), Path(shutil.copytree(RUN / "tiny", folder / "tiny"))


def flip_the_head(path: Path) -> None:
    """A bit of a tensor's name, or of a key."""
    flip(path, path.read_bytes().index(b"attention") + 3)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (cut, r", line \d+: found no whole JSON object.*"),
        (flip_a_brace, r", line 24: found no whole JSON object.*"),
        (empty, ".*"),
    ],
)
def test_a_damaged_token_file_is_named_by_line(damage: Damage, what: str, tmp_path: Path) -> None:
    data, _ = copies(tmp_path)
    damage(data / "cola_train.json")
    assert_told(command(train.main, flags(tmp_path / "run", "--data_dir", data)), f"{data}/cola_train.json{what}")


@EACH
def test_a_damaged_cache_is_made_anew_and_changes_nothing(damage: Damage, tmp_path: Path) -> None:
    data, _ = copies(tmp_path)
    given = ("--data_dir", data)
    for file in data.iterdir():
        os.utime(file, (1, 1))
    assert command(train.main, flags(tmp_path / "first", *given)).code == 0
    cache = data / ".cola_train.cache"
    whole = cache.read_bytes()
    damage(cache)
    assert command(train.main, flags(tmp_path / "second", *given)).code == 0
    assert cache.read_bytes() == whole
    assert_same(parameters(tmp_path / "first" / "model_2.pt"), parameters(tmp_path / "second" / "model_2.pt"))


@pytest.mark.parametrize("damage", [cut, empty, flip_the_head])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_encoder_is_told_in_a_line(file: str, damage: Damage, tmp_path: Path) -> None:
    _, encoder = copies(tmp_path)
    damage(encoder / file)
    ended = command(train.main, flags(tmp_path / "run", "--init_checkpoint", encoder))
    if file == "config.json" and damage is flip_the_head:
        return  # a name that nobody knows, of a value that has a default
    assert_told(ended, f"encoder '{encoder}'.*")


def test_a_weight_that_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    _, encoder = copies(tmp_path)
    config = (encoder / "config.json").read_text()
    (encoder / "config.json").write_text(re.sub(r'"num_hidden_layers": \d+', '"num_hidden_layers": 3', config))
    ended = command(train.main, flags(tmp_path / "run", "--init_checkpoint", encoder))
    assert_told(ended, f"encoder '{encoder}': its weights have no parameter 'encoder.layer.2.*; are the files .*")


@pytest.mark.parametrize("damage", [cut, empty, lambda path: flip(path, 1)], ids=["cut", "empty", "flip"])
def test_a_damaged_tokenizer_is_told_in_a_line(damage: Damage, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    damage(encoder / "tokenizer.json")
    (tmp_path / "cola_train.tsv").write_text("0\t1\tgood fine\n")
    given = ["--model", encoder, "--root_dir", tmp_path, "--task_def", TASK_DEF]
    assert_told(command(prepro_std.main, given), f"tokenizer '{encoder}': .*")
    (tmp_path / "texts").write_text("good\n")
    given = ["--finput", tmp_path / "texts", "--foutput", tmp_path / "features", "--bert_model", encoder]
    assert_told(command(extractor.main, given), f"tokenizer '{encoder}': .*")


@pytest.mark.parametrize("damage", [cut, empty, lambda path: flip(path, 6)], ids=["cut", "empty", "flip"])
def test_a_damaged_definition_is_told(damage: Damage, tmp_path: Path) -> None:
    tasks = Path(shutil.copy(TASK_DEF, tmp_path / "tasks.yml"))
    damage(tasks)
    assert_told(command(train.main, flags(tmp_path / "run", "--task_def", tasks)), f"{tasks}: .*")


def scores_to(folder: Path) -> Sequence[tuple[Any, list[object]]]:
    teach: list[object] = ["--task_def", TASK_DEF, "--task", "cola", "--std_input", DATA / "cola_dev.json"]
    return [
        (calc_metrics.main, ["--task_def", TASK_DEF, "--task", "cola", "--std_input", DATA / "cola_dev.json"]),
        (prepare_distillation_data.main, [*teach, "--std_output", folder / "taught.json"]),
    ]


@pytest.mark.parametrize("command_number", [0, 1])
@pytest.mark.parametrize("damage", [cut, empty, flip_a_brace])
def test_a_damaged_score_file_is_told(damage: Damage, command_number: int, tmp_path: Path) -> None:
    scores = Path(shutil.copy(RUN / "cola_dev_scores_epoch_0.json", tmp_path / "scores.json"))
    damage(scores)
    main, given = scores_to(tmp_path)[command_number]
    assert_told(command(main, [*given, "--score", scores]), f"{scores}.*")
    assert not (tmp_path / "taught.json").exists()
