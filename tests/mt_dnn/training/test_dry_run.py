"""`--dry_run`: tries what a run needs, foretells it, and leaves nothing."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mt_dnn.training.dry_run
from data_utils.errors import FlagError, UserError, WriteError
from mt_dnn.batcher import Batch
from mt_dnn.model import MTDNNModel, UpdateReport
from mt_dnn.training.dry_run import dry_run
from mt_dnn.training.trainer import train
from tests.mt_dnn.runs import RUN, SIFT, TASK_DEF, exportable, tiny_config, tiny_run

ROOT = Path(__file__).parents[3]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was printed, without times."""
    return lambda: "\n".join(line[20:] for line in capsys.readouterr().out.splitlines())


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Of each update of a model: whether it had the regularizer, and its tokens, padding included."""
    found = []
    plain = MTDNNModel.update

    def counted(model: MTDNNModel, *batches: Batch, **settings: object) -> UpdateReport:
        found.append((model.regularized, sum(batch.input_ids.numel() for batch in batches)))
        return plain(model, *batches, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(MTDNNModel, "update", counted)
    return found


@pytest.mark.parametrize(
    "method",
    [
        (),
        SIFT,
        ("--adv_train", "--adv_opt", "alum"),
        (*SIFT, "--adv_every", "4"),
        (*SIFT, "--adv_free"),
        (*SIFT, "--grad_accumulation_step", "3"),
        ("--adv_train", "--adv_opt", "vat", "--unlabeled_datasets", "mnli", "--bregman_mu", "1"),
        ("--max_tokens_per_batch", "100"),
    ],
    ids=["plain", "sift", "alum", "every 4th", "free", "accumulated", "unlabeled", "by tokens"],
)
def test_it_tells_how_many_updates_of_each_kind_the_run_has_and_leaves_nothing(
    method: tuple[str, ...], tmp_path: Path, told: Callable[[], str], updates: list[tuple[bool, int]]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(RUN / "tinydata", data)
    shutil.copy(data / "mnli_train.json", data / "mnli_unlabeled.json")
    where = tmp_path / "a" / "b"
    flags = ("--data_dir", str(data), "--epochs", "3", *method)
    dry_run(tiny_config(where, *flags, "--tensorboard", "--tensorboard_logdir", str(tmp_path / "curves")))
    plan = told()
    assert not (tmp_path / "a").exists() and not (tmp_path / "curves").exists()
    rehearsed, updates[:] = list(updates), []
    train(tiny_config(where, *flags))
    for kind, name in ((True, "with the regularizer"), (False, "without the regularizer")):
        count = sum(regularized is kind for regularized, _ in updates)
        found = re.search(rf"^(\d+) updates {name}: .* s each, the mean of 3$", plan, re.M)
        assert (int(found[1]) if found else 0) == count
        assert sum(regularized is kind for regularized, _ in rehearsed[1:]) == (3 if count else 0)
    # Memory is that of the costlier kind of update, with the largest batch.
    assert rehearsed[0][0] == any(regularized for regularized, _ in updates)
    assert "--grad_accumulation_step" in method or rehearsed[0][1] == max(tokens for _, tokens in updates[:9])
    assert f"it left no file in {where}" in plan and "\nmemory: " in plan


def test_the_time_is_that_of_the_updates_and_evaluations_to_come(
    tmp_path: Path, told: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([99, 1, 2, 6, 4, 4, 1])  # the first for memory alone
    monkeypatch.setattr(mt_dnn.training.dry_run, "_step", lambda *_: next(seconds))
    monkeypatch.setattr(mt_dnn.training.dry_run, "_evaluation", lambda *_: 10)
    flags = ("--adv_train", "--adv_start_ratio", "0.25", "--epochs", "4", "--test_datasets", "cola,stsb")
    dry_run(tiny_config(tmp_path, *flags))
    # 36 updates: 9 of 3 s without, 27 of 3 s with; 4 evaluations of two sets
    assert "time: about 3.1 min (training 1.8 min, evaluation 1.3 min; " in told()


def test_of_a_resumed_run_it_tells_what_is_left(tmp_path: Path, told: Callable[[], str]) -> None:
    tiny_run(tmp_path, *SIFT, "--epochs", "3")
    (tmp_path / "model_2.pt").unlink()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir())
    told()
    dry_run(tiny_config(tmp_path, *SIFT, "--epochs", "3", "--resume", "--model_ckpt", ""))  # as left out
    plan = told()
    assert "9 updates with the regularizer" in plan and f"resumed from {tmp_path / 'model_1.pt'}" in plan
    assert sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir()) == before
    tiny_run(tmp_path, *SIFT, "--epochs", "3", "--resume")
    dry_run(tiny_config(tmp_path, *SIFT, "--epochs", "3", "--resume"))
    assert f"nothing is left to train, {tmp_path / 'model_2.pt'} is from the last epoch" in told()


def test_the_room_that_checkpoints_take(
    tmp_path: Path, told: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil._ntuple_diskusage(10**9, 0, 10**6)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    tiny_run(tmp_path / "real", "--epochs", "1")
    size = (tmp_path / "real" / "model_0.pt").stat().st_size
    fits = int(10**6 / size) - 1
    told()
    for epochs, more, expected in (
        (fits, (), f"disk: checkpoints: {fits} of {size / 1000:.3g} KB, 1 MB free\n"),
        (99, (), f"disk: checkpoints: 99 of {size / 1000:.3g} KB, 1 MB free: too little; --keep_last"),
        (99, ("--keep_last", "2"), "disk: checkpoints: 3 of"),
        (2, ("--save_per_updates_on", "--save_per_updates", "5"), f"disk: checkpoints: {2 + math.floor(18 / 5)} of"),
    ):
        dry_run(tiny_config(tmp_path / "run", "--epochs", str(epochs), *more))
        assert expected in told()


def test_of_the_noise_that_is_kept_the_disk_holds_that_of_the_newest_checkpoints(
    tmp_path: Path, told: Callable[[], str]
) -> None:
    flags = (*SIFT, "--adv_free", "--epochs", "9", "--save_per_updates_on", "--save_per_updates", "9")
    tiny_run(tmp_path, *flags, "--early_stop", "1", "--keep_last", "1")
    epoch = 1 + max(int(path.stem.split("_")[1]) for path in tmp_path.glob("model_*.pt"))
    sizes = {kind: next(tmp_path.glob(f"model_*.{kind}")).stat().st_size for kind in ("pt", "deltas")}
    told()
    dry_run(tiny_config(tmp_path, *flags, "--resume"))
    found = re.search(r"^disk: checkpoints: (\d+) of ([\d.]+) KB and 3 of ([\d.]+) KB for their noise", told(), re.M)
    assert found is not None and int(found[1]) == 2 * (9 - epoch)  # an epoch has nine updates
    for number, kind in ((2, "pt"), (3, "deltas")):
        assert float(found[number]) == pytest.approx(sizes[kind] / 1000, rel=0.05)


@pytest.mark.parametrize("folder", ["out/hf", "a/b/hf"])
def test_the_folders_of_a_model_for_transformers_are_not_left_either(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[[], str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = exportable(tmp_path)
    before = sorted(tmp_path.iterdir())
    for place in (folder, str(tmp_path / folder)):
        dry_run(tiny_config(tmp_path / "out", *flags, "--save_hf", place))
        assert "dry run: all that the run needs is there" in told()
        assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(FlagError, match="--save_hf: .* contains --output_dir"):
        dry_run(tiny_config(tmp_path / "out", *flags, "--save_hf", "out"))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("sigint_interrupts")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_interrupted_it_leaves_nothing(
    number: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        assert list(tmp_path.rglob("*"))
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(MTDNNModel, "update", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(error):
        dry_run(tiny_config(tmp_path / "a" / "run"))
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) is before


def test_what_would_stop_the_run_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"not finite in an update of \d+ examples of up to \d+ tokens"):
        dry_run(tiny_config(tmp_path / "run", *SIFT, "--adv_alpha", "1e39"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(FlagError, match="--save_hf"):
        dry_run(tiny_config(tmp_path / "run", "--save_hf", str(tmp_path / "taken")))
    (tmp_path / "none").write_text("a file")
    for folder in (tmp_path / "none", tmp_path / "none" / "run"):
        with pytest.raises(WriteError, match="none"):
            dry_run(tiny_config(folder))
    with pytest.raises(FlagError, match="--dry_run and --encode_mode: found both"):
        tiny_config(tmp_path / "run", "--dry_run", "--encode_mode")

    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(MTDNNModel, "update", too_much)
    with pytest.raises(UserError, match="out of memory; what helps: a smaller --batch_size"):
        dry_run(tiny_config(tmp_path / "run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none", "taken"]


def test_two_processes_tell_one_plan(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    command += [
        "--task_def",
        str(TASK_DEF),
        "--data_dir",
        str(RUN / "tinydata"),
        "--init_checkpoint",
        str(RUN / "tiny"),
    ]
    command += [
        "--train_datasets",
        "cola,mnli",
        "--test_datasets",
        "cola",
        *SIFT,
        "--output_dir",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*command, "--dry_run"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("30 updates with the regularizer") == found.stdout.count("dry run: all") == 1
    assert re.search(r"^[-\d]+ [:\d]+ disk: checkpoints: 5 of [1-9]", found.stdout, re.M), found.stdout
    assert not list(tmp_path.iterdir())
