"""What befalls a run: signals, damaged checkpoints, numbers that are not finite, too little memory, a folder in use."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from data_utils.errors import DataError, FlagError, Stopped, UserError
from data_utils.storage.checksum import checksum_of
from data_utils.storage.files import LOCK, folder_lock
from mt_dnn.batcher import Batch
from mt_dnn.checkpoints.checkpoint import newest_checkpoint
from mt_dnn.data import token_arrays
from mt_dnn.training.failures import one_line_errors
from mt_dnn.training.selection import Selection
from mt_dnn.training.stop_signals import SIGNALS
from mt_dnn.training.trainer import Trainer
from tests.mt_dnn.data.test_token_arrays import mnli, task_defs, write  # noqa: F401
from tests.mt_dnn.runs import RUN, SIFT, assert_same, parameters, tiny_config, tiny_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with all its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_run(folder, *SIFT, "--epochs", "3")
    return folder


# signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A run that was stopped keeps its own, for its process is about to end; this one goes on."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stop_at(trainer: Trainer, update: int, number: int) -> None:
    """The signal comes while that update is under way."""
    step = trainer.model._step

    def signalled(report: Any) -> None:
        if trainer.model.updates == update - 1:
            os.kill(os.getpid(), number)
        step(report)

    trainer.model._step = signalled  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_update_saves_and_the_resumed_run_ends_as_the_unbroken_one(
    number: int, whole: Path, tmp_path: Path
) -> None:
    trainer = Trainer(tiny_config(tmp_path, *SIFT, "--epochs", "3"))
    stop_at(trainer, 3, number)
    with pytest.raises(
        Stopped, match=rf"stopped by {signal.Signals(number).name} after update 3; .*model_0_3.pt"
    ) as found:
        trainer.run()
    assert found.value.exit_code == 128 + number
    before = signal.getsignal(number)
    tiny_run(tmp_path, *SIFT, "--epochs", "3", "--resume")
    assert signal.getsignal(number) == before
    assert_same(parameters(whole / "model_2.pt"), parameters(tmp_path / "model_2.pt"))


def test_a_signal_in_an_evaluation_loses_nothing_of_the_epoch(whole: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tmp_path, *SIFT, "--epochs", "3"))
    evaluate = trainer._evaluate

    def signalled(epoch: int) -> None:
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        evaluate(epoch)

    trainer._evaluate = signalled  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        trainer.run()
    newest, _ = newest_checkpoint(tmp_path)
    assert newest.name == f"model_1_{trainer.model.updates}.pt"
    result = tiny_run(tmp_path, *SIFT, "--epochs", "3", "--resume")
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2]
    assert_same(parameters(whole / "model_2.pt"), parameters(tmp_path / "model_2.pt"))


def command(folder: Path, *flags: str) -> list[str]:
    config = (
        f"--task_def {RUN / 'task_def.yml'} --data_dir {RUN / 'tinydata'} --train_datasets cola --test_datasets cola"
    )
    rest = f"--init_checkpoint {RUN / 'tiny'} --output_dir {folder} --log_file {folder / 'log.txt'} --epochs 2000"
    return [sys.executable, "train.py", *config.split(), *rest.split(), "--dataloader_num_workers", "0", *flags]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A long run whose first checkpoint is written."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("model_*.pt")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_stopped_process_says_so_in_a_line_and_a_folder_in_use_is_refused(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    refused = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith(
        f"--output_dir: {tmp_path} is in use by another run (process {running.pid}); accepted: a folder of its own"
    )
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 143
    last = errors.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("stopped by SIGTERM after update ") and last.endswith("--resume goes on with it")


def test_a_killed_run_leaves_no_lock_behind(running: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(FlagError, match="is in use"), folder_lock(tmp_path, "output_dir"):
        pass
    running.kill()
    running.wait()
    with folder_lock(tmp_path, "output_dir"):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())


def test_a_run_lets_go_of_its_folder_whether_it_ends_or_fails(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "1")
    with pytest.raises(DataError):
        tiny_run(tmp_path, "--epochs", "1", "--resume", "--model_ckpt", "nothing.pt")
    with ExitStack() as held:
        Trainer(tiny_config(tmp_path, "--epochs", "1"), held)
        with pytest.raises(FlagError, match="is in use"):
            tiny_run(tmp_path, "--epochs", "1")
    tiny_run(tmp_path, "--epochs", "1")


# checkpoints


def test_a_checkpoint_has_its_checksum_beside_it(whole: Path) -> None:
    checked = subprocess.run(["sha256sum", "--check", "model_2.pt.sha256"], cwd=whole, capture_output=True, text=True)
    assert checked.stdout == "model_2.pt: OK\n"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_checkpoint_is_named_and_passed_over(damage: Any, tmp_path: Path) -> None:
    result = tiny_run(tmp_path, "--epochs", "3")
    before = parameters(tmp_path / "model_2.pt")
    times = [(tmp_path / f"model_{epoch}.pt").stat().st_mtime_ns for epoch in range(3)]
    for epoch in (1, 2):
        damage(tmp_path / f"model_{epoch}.pt")
        os.utime(tmp_path / f"model_{epoch}.pt", ns=(times[epoch], times[epoch]))
    again = tiny_run(tmp_path, "--epochs", "3", "--resume")
    log = (tmp_path / "log.txt").read_text()
    for epoch in (1, 2):
        line = f"model_{epoch}.pt: is damaged: its checksum is not that in model_{epoch}.pt.sha256; passed over"
        assert len(re.findall(re.escape(line), log)) == 1
    assert f"resumed from {tmp_path / 'model_0.pt'}" in log
    assert_same(before, parameters(tmp_path / "model_2.pt"))
    assert again.history == result.history


def test_without_a_checksum_a_checkpoint_has_to_be_readable(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "2")
    for epoch in range(2):
        checksum_of(tmp_path / f"model_{epoch}.pt").unlink()
    cut(tmp_path / "model_1.pt")
    told: list[str] = []
    assert newest_checkpoint(tmp_path, told.append)[0].name == "model_0.pt"
    assert len(told) == 1 and "model_1.pt: is damaged or no checkpoint" in told[0]
    cut(tmp_path / "model_0.pt")
    with pytest.raises(DataError, match="holds no intact checkpoint"):
        newest_checkpoint(tmp_path, told.append)


def test_the_newest_are_kept_and_the_best_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter([4.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(Selection, "value", lambda self, metrics: next(falling))
    assert tiny_run(tmp_path, "--epochs", "4", "--keep_last", "2").best_epoch == 0
    found = {path.name for path in tmp_path.glob("model_*")}
    assert found == {f"model_{epoch}.pt{end}" for epoch in (0, 2, 3) for end in ("", ".sha256")}


# numbers that are not finite


def spoil(trainer: Trainer, updates: Sequence[int], value: float = float("nan")) -> None:
    """The loss of these updates is no number."""
    objective = trainer.model._objective

    def spoilt(batch: Batch, *rest: Any) -> Any:
        found = objective(batch, *rest)
        if trainer.model.updates + 1 in updates:
            found = found._replace(loss=found.loss * value, task_loss=found.task_loss * value)
        return found

    trainer.model._objective = spoilt  # type: ignore[method-assign]


@pytest.mark.parametrize("clipping", ["0", "1"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_moves_nothing_and_is_named(value: float, clipping: str, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tmp_path, *SIFT, "--epochs", "1", "--global_grad_clipping", clipping))
    spoil(trainer, [3, 5], value)
    step, moved = trainer.model._step, {}

    def watched(report: Any) -> None:
        before = {name: tensor.clone() for name, tensor in trainer.model.network.state_dict().items()}
        rate = trainer.model.schedule.get_last_lr()
        step(report)
        after = trainer.model.network.state_dict()
        same = all(torch.equal(before[name], after[name]) for name in before)
        moved[trainer.model.updates] = not (same and rate == trainer.model.schedule.get_last_lr())

    trainer.model._step = watched  # type: ignore[method-assign]
    trainer.run()
    assert {update for update, did in moved.items() if not did} == {3, 5} and len(moved) > 6
    log = (tmp_path / "log.txt").read_text()
    assert len(re.findall(r"epoch 1, update [35], task (?:cola|mnli|stsb), examples \d[\d, …]*: the loss", log)) == 2
    assert trainer.model.skipped_steps == 2
    assert all(bool(tensor.isfinite().all()) for tensor in parameters(tmp_path / "model_0.pt").values())
    losses = [json.loads(line).get("loss", 0.0) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert None not in losses


def test_too_many_in_a_row_stop_the_run_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tmp_path, "--epochs", "2", "--max_skipped", "3"))
    batches = len(trainer.sampler)
    spoil(trainer, [2, 3, *range(batches + 2, batches + 9)])
    with pytest.raises(
        UserError, match=rf"3 updates in a row .* \(the last: update {batches + 4}, task .* is kept"
    ) as found:
        trainer.run()
    assert "\n" not in str(found.value)
    assert (tmp_path / "model_0.pt").is_file() and not (tmp_path / "model_1.pt").exists()


# memory


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
            "out of memory; what helps: a",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory; what"),
        (
            RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed."),
            "a process that collates batches died",
        ),
    ],
)
def test_too_little_memory_is_told_with_what_helps(error: Exception, said: str) -> None:
    with pytest.raises(UserError) as found, one_line_errors():
        raise error
    assert str(found.value).startswith(said) and "\n" not in str(found.value)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="a mistake of the program"), one_line_errors():
        raise RuntimeError("a mistake of the program")


def test_a_worker_that_is_killed_ends_the_run_in_a_line(tmp_path: Path) -> None:
    """In a process of its own, for torch's handler of SIGCHLD stays in the one that it was set in."""
    program = (
        "import os, signal, sys, torch, train\n"
        "from data_utils.errors import run_command_line\n"
        "from mt_dnn.model import MTDNNModel\n"
        "update = MTDNNModel.update\n"
        "def killing(*arguments, **options):\n"
        "    [os.kill(child.pid, signal.SIGKILL) for child in torch.multiprocessing.active_children()]\n"
        "    return update(*arguments, **options)\n"
        "MTDNNModel.update = killing\n"
        "run_command_line(train.main)\n"
    )
    _, _, *flags = command(tmp_path, "--dataloader_num_workers", "1", "--batch_size", "1")
    found = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 2
    last = found.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("error: a process that collates batches died (DataLoader worker (pid")


# two processes and one cache


def test_of_two_that_want_a_file_at_once_one_reads_it(
    tmp_path: Path,
    mnli: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write(tmp_path)
    read, calls = token_arrays.read_token_arrays, []

    def slowly(*arguments: Any) -> Any:
        calls.append(path)
        time.sleep(0.5)
        return read(*arguments)

    monkeypatch.setattr(token_arrays, "read_token_arrays", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: token_arrays.open_token_arrays(path, mnli), range(2)))
    assert len(calls) == 1
    assert all(arrays.cache is not None and len(arrays) == 20 for arrays in found)
