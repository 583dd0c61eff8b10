"""A full disk and a read-only folder at every kind of file that is written: one line, exit code 2, nothing lost."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import mt_dnn.checkpoints.checkpoint
import mt_dnn.model
import mt_dnn.training.trainer as trainer_module
import predict
import prepare_distillation_data
import prepro_std
import strip_model
import train
from data_utils.errors import FlagError
from data_utils.storage import checksum
from data_utils.storage.files import folder_lock
from experiments.dump_embedding import extractor
from experiments.sift.running.runs import RunStore
from mt_dnn.export import export as hf_export
from mt_dnn.export.export import HfExport
from mt_dnn.reporting.telemetry import Telemetry
from mt_dnn.training.delta_cache import DeltaCache
from mt_dnn.training.trainer import Trainer
from tests import faults
from tests.encoder_folder import write_encoder
from tests.faults import Disk, Ended, command, with_disk
from tests.mt_dnn.runs import RUN, SIFT, TASK_DEF, assert_same, parameters

CHECKPOINT = RUN / "model_0.pt"
DATA = RUN / "tinydata"
FREE = (*SIFT, "--adv_free")
OFTEN = (*SIFT, "--batch_size", "1")  # so many lines of the log before the first checkpoint that a page is full
KEPT = r"the last checkpoint, \S*/model_0.pt, is kept: --resume goes on with it"
NONE_KEPT = "no checkpoint was written before"


def flags(output: Path, *more: object) -> list[str]:
    """A run on one task; the log is beside the output folder."""
    base = (
        f"--task_def {TASK_DEF} --data_dir {DATA} --train_datasets cola --test_datasets cola --epochs 3 "
        f"--init_checkpoint {RUN / 'tiny'} --output_dir {output} --log_file {output.parent / 'log.txt'} "
        "--optimizer adamw --learning_rate 1e-3 --dataloader_num_workers 0 --log_per_updates 1"
    )
    return [*base.split(), *map(str, more)]


def at(owner: Any, name: str, call: int, happen: Callable[[], None]) -> Callable[[], None]:
    """What lets `happen` come just before a function is called for the `call`th time."""
    original, calls = getattr(owner, name), []

    def faulty(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            happen()
        return original(*arguments, **options)

    return lambda: setattr(owner, name, faulty)


def assert_told(ended: Ended, message: str) -> None:
    """One line that says what it is, the last of all; exit code 2."""
    assert ended.code == 2, ended.output
    assert re.fullmatch(f"error: {message}", ended.last), ended.output
    assert "Traceback" not in ended.output and ended.output.count("error: ") == 1, ended.output


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


# what a run writes: at which call of what the disk is full, with which flags, which file is named, what is kept
WRITTEN_BY_A_RUN: dict[str, tuple[Any, str, int, Sequence[str], str, str]] = {
    "checkpoint": (mt_dnn.checkpoints.checkpoint, "write_tensors", 2, SIFT, r"model_1\.pt", KEPT),
    "its checksum": (checksum, "sha256", 2, SIFT, r"model_1\.pt\.sha256", KEPT.replace("_0", "_1")),
    "metrics.jsonl": (Telemetry, "flush", 2, OFTEN, r"metrics\.jsonl", NONE_KEPT),
    "score file": (trainer_module, "write_score_file", 2, (), r"cola_dev_scores_epoch_1\.json", KEPT),
    "submission": (
        trainer_module,
        "write_glue_submission",
        2,
        ("--glue_format_on",),
        r"\S*epoch_1\.tsv",
        KEPT,
    ),
    "results.json": (Trainer, "_write_result", 2, (), r"results\.json", KEPT),
    "copy of the kept noise": (DeltaCache, "save", 2, FREE, r"model_1\.deltas", KEPT),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], Path]:
    """The last checkpoint of the run with these flags on a disk with room."""
    found: dict[Sequence[str], Path] = {}

    def of(more: Sequence[str]) -> Path:
        if more not in found:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert command(train.main, flags(folder, *more)).code == 0
            found[more] = folder / "model_2.pt"
        return found[more]

    return of


@pytest.mark.parametrize("kind", WRITTEN_BY_A_RUN)
def test_a_full_disk_ends_a_run_in_a_line_and_with_room_it_goes_on(
    kind: str, whole: Callable[[Sequence[str]], Path], tmp_path: Path
) -> None:
    owner, name, call, more, file, kept = WRITTEN_BY_A_RUN[kind]
    expected = None if kept == NONE_KEPT else whole(more)

    def check(disk: Disk) -> None:
        output = disk.folder / "run"
        ended = command(train.main, flags(output, *more), at(owner, name, call, disk.fill))
        assert_told(ended, f"{output}/{file}: cannot be written: {disk.full}; {kept}")
        assert not left_over(output)
        if expected is not None:
            disk.free()
            assert command(train.main, flags(output, *more, "--resume")).code == 0
            assert_same(parameters(expected), parameters(output / "model_2.pt"))

    with_disk(tmp_path / "disk", check)


def test_room_for_the_kept_noise_is_taken_before_the_run_begins(tmp_path: Path) -> None:
    def check(disk: Disk) -> None:
        output = disk.folder / "run"
        ended = command(train.main, flags(output, *FREE), at(DeltaCache, "__init__", 1, disk.fill))
        assert_told(ended, rf"{output}/kept_deltas\.bin: cannot be made with \d+ bytes: {disk.full}")

    with_disk(tmp_path / "disk", check)


@pytest.mark.parametrize(("flag", "file"), [("--log_file", "log.txt"), ("--tensorboard_logdir", "curves")])
def test_a_full_disk_under_the_log_or_tensorboard_ends_the_run_too(flag: str, file: str, tmp_path: Path) -> None:
    def check(disk: Disk) -> None:
        place = disk.folder / file
        given = flags(tmp_path / "run", *OFTEN, "--epochs", "9", "--tensorboard", "--tensorboard_logdir", tmp_path)
        ended = command(train.main, [*given, flag, place], at(Telemetry, "flush", 2, disk.fill))
        what = "log cannot" if flag == "--log_file" else "cannot"
        assert_told(ended, rf"{place}: {what} be written: {disk.full}; ({KEPT}|{NONE_KEPT})")

    with_disk(tmp_path / "disk", check)


def test_hidden_states_that_find_no_room_are_told(tmp_path: Path) -> None:
    def check(disk: Disk) -> None:
        given = flags(disk.folder / "run", "--encode_mode")
        ended = command(train.main, given, at(trainer_module, "write_tensors", 1, disk.fill))
        assert_told(ended, f"{disk.folder}/run/cola_encoding.pt: cannot be written: {disk.full}; {NONE_KEPT}")

    with_disk(tmp_path / "disk", check)


def test_a_cache_that_finds_no_room_is_done_without(tmp_path: Path) -> None:
    def check(disk: Disk) -> None:
        for file in DATA.glob("cola_*.json"):
            shutil.copy(file, disk.folder)
            os.utime(disk.folder / file.name, (1, 1))
        ended = command(train.main, flags(tmp_path / "run", "--data_dir", disk.folder), disk.fill)
        if disk.mounted:
            assert ended.code == 0, ended.output
        assert f".cola_train.cache: cannot be written: {disk.full}; every run reads it again" in ended.output
        assert not left_over(disk.folder)

    with_disk(tmp_path / "disk", check)


# what the other commands write


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def predicting(disk: Path, _: Path) -> tuple[Any, list[object], str]:
    given: list[object] = ["--checkpoint", CHECKPOINT, "--task_id", 0, "--prep_input", DATA / "cola_dev.json"]
    return predict.main, [*given, "--score", disk / "scores.json"], r"/scores\.json"


def preparing(disk: Path, encoder: Path) -> tuple[Any, list[object], str]:
    (disk / "cola_train.tsv").write_text("0\t1\tgood fine\n1\t0\tbad poor\n")
    given: list[object] = ["--model", encoder, "--root_dir", disk, "--task_def", TASK_DEF]
    return prepro_std.main, given, r"/encoder\d+/cola_train\.json"


def teaching(disk: Path, _: Path) -> tuple[Any, list[object], str]:
    given: list[object] = ["--task_def", TASK_DEF, "--task", "cola", "--std_input", DATA / "cola_dev.json"]
    given += ["--score", RUN / "cola_dev_scores_epoch_0.json", "--std_output", disk / "taught.json"]
    return prepare_distillation_data.main, given, r"/taught\.json"


def stripping(disk: Path, _: Path) -> tuple[Any, list[object], str]:
    return strip_model.main, ["--checkpoint", CHECKPOINT, "--fout", disk / "stripped.pt"], r"/stripped\.pt"


def to_a_folder(disk: Path, _: Path) -> tuple[Any, list[object], str]:
    return strip_model.main, ["--checkpoint", CHECKPOINT, "--hf", disk / "hf"], "/hf"


def extracting(disk: Path, encoder: Path) -> tuple[Any, list[object], str]:
    (disk / "texts.txt").write_text("good ||| bad\n")
    given: list[object] = ["--finput", disk / "texts.txt", "--foutput", disk / "features", "--bert_model", encoder]
    return extractor.main, [*given, "--max_seq_length", 16], "/features"


def keeping_a_result(disk: Path, _: Path) -> tuple[Any, list[object], str]:
    return lambda _: RunStore(disk / "runs.jsonl").add({"key": "1" * 9000}), [], r"/runs\.jsonl"


COMMANDS = [predicting, preparing, teaching, stripping, to_a_folder, extracting, keeping_a_result]


@pytest.mark.parametrize("fault", ["full", "read_only"])
@pytest.mark.parametrize("writing", COMMANDS, ids=lambda function: function.__name__)
def test_other_commands_tell_it_in_a_line_and_leave_nothing(
    writing: Callable[..., Any], fault: str, encoder: Path, tmp_path: Path
) -> None:
    def check(disk: Disk) -> None:
        main, given, file = writing(disk.folder, encoder)
        before = sorted(disk.folder.rglob("*"))
        if fault == "read_only" and not disk.mounted and not os.geteuid() and main in (prepro_std.main, extractor.main):
            return  # they read from the folder, which root cannot make read-only without a disk of its own
        ended = command(main, given, disk.fill if fault == "full" else disk.protect)
        reason = disk.full if fault == "full" else disk.read_only
        assert_told(ended, rf"{disk.folder}{file}(/\S*)?: cannot be written: .*({reason}).*")
        if disk.mounted:
            left = [
                path
                for path in sorted(disk.folder.rglob("*"))
                if not re.fullmatch(rf"{faults.FILLER}|encoder\d+", path.name)
            ]
            assert [path for path in left if path.suffix != ".jsonl"] == before

    with_disk(tmp_path / "disk", check)


def test_an_export_that_finds_no_room_is_told_and_the_checkpoints_stay(encoder: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.yml"
    tasks.write_text(TASK_DEF.read_text().replace("}", ", actf: tanh}"))

    def check(disk: Disk) -> None:
        hf, output = disk.folder / "hf", tmp_path / "run"
        given = flags(output, "--save_hf", hf, "--tokenizer", encoder, "--task_def", tasks)
        ended = command(train.main, given, at(HfExport, "write", 1, disk.fill))
        last = KEPT.replace("_0", "_2")
        assert_told(ended, f"{hf}: cannot be written: .*{disk.full}.*; {last}")
        disk.free()
        again = ["--checkpoint", output / "model_2.pt", "--save_hf", hf]
        assert command(hf_export.main, again).code == 0
        assert (hf / "model.safetensors").is_file()

    with_disk(tmp_path / "disk", check)


# read-only folders


def test_a_read_only_folder_is_told_before_the_run_begins(tmp_path: Path) -> None:
    def check(disk: Disk) -> None:
        ended = command(train.main, flags(disk.folder / "run"), disk.protect)
        assert_told(ended, rf"{disk.folder}/run: cannot be written to: ({disk.read_only})")

    with_disk(tmp_path / "disk", check)


def test_a_folder_that_becomes_read_only_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def check(disk: Disk) -> None:
        given = flags(disk.folder)
        ended = command(train.main, given, at(mt_dnn.model, "save_checkpoint", 2, disk.protect))
        # Where a file has taken the folder's place there is nothing in it to be kept.
        kept = KEPT if disk.mounted or os.geteuid() else NONE_KEPT
        assert_told(ended, rf"{disk.folder}/\S*: cannot be written: ({disk.read_only}); {kept}")

    with_disk(tmp_path / "disk", check)


def test_where_nothing_can_be_mounted_the_faults_come_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_mount_tmpfs", lambda folder, size: False)
    test_a_folder_that_becomes_read_only_keeps_the_last_checkpoint(tmp_path)
    run = tmp_path / "full"

    def check(disk: Disk) -> None:
        ended = command(train.main, flags(run), at(mt_dnn.checkpoints.checkpoint, "write_tensors", 2, disk.fill))
        assert_told(ended, f"{run}/model_1.pt: cannot be written: File too large; {KEPT}")

    with_disk(tmp_path / "other", check)


def test_the_lock_of_a_full_disk_still_holds(tmp_path: Path) -> None:
    def check(disk: Disk) -> None:
        disk.fill()
        with (
            folder_lock(disk.folder, "output_dir"),
            pytest.raises(FlagError, match="in use by another run"),
            folder_lock(disk.folder, "output_dir"),
        ):
            pass

    with_disk(tmp_path / "disk", check)
