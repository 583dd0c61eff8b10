"""Processes that are killed, stopped, starved or fed with nonsense: one message, an exit code, no hang."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch.distributed import TCPStore

import mt_dnn.checkpoints.checkpoint
import mt_dnn.training.stop_signals
import train
from data_utils.errors import run_command_line
from mt_dnn.checkpoints.resumption import RunCheckpoints
from mt_dnn.model import MTDNNModel
from mt_dnn.training.objective import TrainingObjective
from mt_dnn.training.stop_signals import StopSignals
from tests.faults import command, in_fork
from tests.mt_dnn.runs import SIFT, assert_same, parameters
from tests.test_faults_disk import KEPT, at, flags

ROOT = Path(__file__).parents[1]
MOST_SECONDS = 60
LONG = (*SIFT, "--epochs", "999")
LOST = "error: another process of the run ended or cannot be reached, and so this one ends"


# Runs of several processes start from a clean one: threads of torch's, which other tests leave here, survive no fork.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


class Run(NamedTuple):
    """Processes of one run, as torchrun starts them, each writing to a file of its own."""

    output: Path
    children: list[ForkServerProcess]
    texts: list[Path]
    store: TCPStore

    def wait_for_checkpoint(self) -> None:
        deadline = time.monotonic() + 2 * MOST_SECONDS
        while not list(self.output.glob("model_*.pt.sha256")):
            assert time.monotonic() < deadline, [text.read_text() for text in self.texts]
            time.sleep(0.02)

    def send(self, number: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.children)):
            pid = self.children[rank].pid
            assert pid is not None
            with suppress(ProcessLookupError):  # the first signal may have ended it
                os.kill(pid, number)

    def ended(self) -> tuple[list[int | None], str]:
        """Exit codes, and all that was printed; no process may be there after a minute."""
        deadline = time.monotonic() + MOST_SECONDS
        for child in self.children:
            child.join(max(0, deadline - time.monotonic()))
        codes = [child.exitcode for child in self.children]
        text = "".join(text.read_text() for text in self.texts)
        assert None not in codes, f"a process hung: {text}"
        return codes, text


def start(folder: Path, processes: int, *more: object, before: Callable[[int], Any] = int) -> Run:
    """A run; `before` is called in each process first, with its number."""
    # torchrun holds the store by which its processes find one another, so that it outlives them.
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    texts = [folder / f"output_{rank}.txt" for rank in range(processes)]
    children = []
    for rank, text in enumerate(texts):
        given = (text, rank, processes, store.port, before, flags(folder / "run", *more))
        children.append(SERVER.Process(target=_be_process, args=given))
        children[-1].start()
    return Run(folder / "run", children, texts, store)


def _be_process(
    text: Path, rank: int, processes: int, port: int, before: Callable[[int], Any], given: list[str]
) -> None:
    torch.set_num_threads(1)
    descriptor = os.open(text, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if processes > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})
        os.environ.update({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"})
    before(rank)
    run_command_line(lambda: train.main(given))


# dead processes


@pytest.mark.parametrize("dead", [0, 1])
def test_where_one_of_two_dies_the_other_ends_with_one_message(dead: int, tmp_path: Path) -> None:
    run = start(tmp_path, 2, *LONG)
    run.wait_for_checkpoint()
    run.send(signal.SIGKILL, dead)
    codes, text = run.ended()
    assert codes[dead] == -signal.SIGKILL and codes[1 - dead] == 2
    assert text.count(LOST) == text.count("error: ") == 1 and "Traceback" not in text, text
    assert re.search(r"\(.*\); the last checkpoint is kept: --resume goes on with it", text)


def test_of_three_that_are_left_one_tells(tmp_path: Path) -> None:
    run = start(tmp_path, 4, *LONG)
    run.wait_for_checkpoint()
    run.send(signal.SIGKILL, 3)
    codes, text = run.ended()
    assert codes == [2, 2, 2, -signal.SIGKILL]
    assert text.count("error: ") == 1, text


def starve(failing: int, rank: int) -> None:
    def happen() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if rank == failing:
        at(TrainingObjective, "forward", 5, happen)()


@pytest.mark.parametrize("failing", [0, 1])
def test_what_befalls_one_process_is_told_and_the_other_is_silent(failing: int, tmp_path: Path) -> None:
    codes, text = start(tmp_path, 2, *LONG, before=partial(starve, failing)).ended()
    assert codes == [2, 2]
    assert text.count("error: out of memory; what helps: a smaller --batch_size") == text.count("error: ") == 1, text


def fill(rank: int) -> None:
    def happen() -> None:
        raise OSError(28, "No space left on device")

    at(mt_dnn.checkpoints.checkpoint, "write_tensors", 2, happen)()


def test_a_full_disk_ends_both_with_its_own_message(tmp_path: Path) -> None:
    codes, text = start(tmp_path, 2, before=fill).ended()
    assert codes == [2, 2]
    assert re.search(f"error: .*model_1.pt: cannot be written: No space left on device; {KEPT}", text), text
    assert text.count("error: ") == 1, text


@pytest.mark.slow
@pytest.mark.parametrize("dead", ["0", "1"])
def test_under_torchrun_the_message_is_the_same(dead: str, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    kill = (
        "import os, sys, train\n"
        "from data_utils.errors import run_command_line\n"
        "from mt_dnn.checkpoints.resumption import RunCheckpoints\n"
        "save, count = RunCheckpoints.save, []\n"
        "def dying(*arguments):\n"
        "    count.append(1)\n"
        f"    os.kill(os.getpid(), 9) if len(count) == 2 and os.environ['RANK'] == '{dead}' else save(*arguments)\n"
        "RunCheckpoints.save = dying\n"
        "run_command_line(train.main)\n"
    )
    (tmp_path / "dying.py").write_text(kill)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    found = subprocess.run(
        [*launcher, str(tmp_path / "dying.py"), *flags(tmp_path / "run", *LONG)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert time.monotonic() - begun < 2 * MOST_SECONDS
    assert found.returncode == 1 and found.stderr.count("error: ") <= 1
    assert "[rank" not in found.stderr  # a traceback of one of the run's processes
    assert (tmp_path / "run" / "model_0.pt").is_file()


# signals


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_its_code(number: int, processes: int, tmp_path: Path) -> None:
    run = start(tmp_path, processes, *LONG)
    run.wait_for_checkpoint()
    # To all, as a terminal and torchrun do, and again, as torchrun does with what the terminal sent to all.
    for _ in range(2):
        run.send(number)
        time.sleep(0.05)
    codes, text = run.ended()
    assert codes == [128 + number] * processes, text
    line = rf"stopped by {signal.Signals(number).name} after update \d+; (\S+) holds the run: --resume goes on with it"
    (saved,) = re.findall(line, text)
    assert Path(saved + ".sha256").is_file() and "Traceback" not in text


def ask_one(rank: int) -> None:
    if rank == 1:
        at(MTDNNModel, "update", 5, lambda: os.kill(os.getpid(), signal.SIGINT))()


def test_one_process_that_is_asked_stops_both_after_that_update(tmp_path: Path) -> None:
    codes, text = start(tmp_path, 2, *LONG, "--batch_size", 2, before=ask_one).ended()
    assert codes == [128 + signal.SIGTERM, 128 + signal.SIGINT]
    assert text.count("stopped by") == text.count("stopped by SIGTERM after update 5; ") == 1
    assert [path.name for path in (tmp_path / "run").glob("model_*.pt")] == ["model_0_5.pt"]


def after(owner: Any, name: str, happen: Callable[[], None]) -> None:
    """Lets `happen` come each time that a function has ended."""
    original = getattr(owner, name)

    def followed(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        happen()
        return found

    setattr(owner, name, followed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (RunCheckpoints, "save"),
        (MTDNNModel, "end"),
        (StopSignals, "__exit__"),
        (ExitStack, "__exit__"),  # which lets go of the output folder
        (signal, "signal"),  # which the command line ignores signals with
    ],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_a_second_signal_is_the_same_wish_until_the_process_ends(
    owner: Any, name: str, number: int, tmp_path: Path
) -> None:
    sent: list[int] = []

    def send() -> None:
        sent.append(number)
        os.kill(os.getpid(), number)

    def before() -> None:
        at(MTDNNModel, "update", 2, send)()
        after(owner, name, lambda: send() if sent else None)

    ended = command(train.main, flags(tmp_path / "run", *LONG), before)
    assert ended.code == 128 + number, ended.output
    assert ended.last.startswith(f"stopped by {signal.Signals(number).name} after update 2; "), ended.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_that_of_another_process_is_the_same_wish(number: int) -> None:
    signals = StopSignals(accelerator=SimpleNamespace(num_processes=2))  # type: ignore[arg-type]

    def work() -> None:
        with signals:
            assert signals.agreed(True) and signals.received == signal.SIGTERM
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    assert in_fork(work) == (0, "")


def tell_threads(rank: int) -> None:
    def tell() -> None:
        names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
        print("threads:", *sorted(names))

    after(MTDNNModel, "end", tell)


@pytest.mark.parametrize("more", [(), ("--fsdp",)], ids=["", "sharded"])
def test_a_run_of_several_processes_ends_without_threads_that_wait_for_the_interpreter(
    more: Sequence[str], tmp_path: Path
) -> None:
    codes, text = start(tmp_path, 2, *SIFT, *more, before=tell_threads).ended()
    assert codes == [0, 0] and text.count("threads: ") == 2
    assert "gloo" not in text, text


@pytest.mark.usefixtures("sigint_interrupts")
def test_a_later_second_signal_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = StopSignals(accelerator=None)  # type: ignore[arg-type]
    monkeypatch.setattr(mt_dnn.training.stop_signals, "SAME_REQUEST_SECONDS", 0.05)
    with signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        time.sleep(0.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def kill_one(rank: int) -> None:
    if rank == 1:
        at(RunCheckpoints, "save", 2, lambda: os.kill(os.getpid(), signal.SIGKILL))()


def test_a_run_of_two_processes_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    assert_goes_on(tmp_path, 2, SIFT, kill_one)


def assert_goes_on(folder: Path, processes: int, given: Sequence[object], kill: Callable[[int], Any]) -> str:
    """A run of which one process was killed ends, resumed, as the one that nobody killed; what the killed one printed.

    Args:
        kill: called in each process first, with its number; lets one of them die after the first checkpoint.
    """
    whole, killed = folder / "whole", folder / "killed"
    whole.mkdir(), killed.mkdir()
    assert start(whole, processes, *given).ended()[0] == [0] * processes
    codes, text = start(killed, processes, *given, before=kill).ended()
    assert sorted(filter(None, codes)) == [-signal.SIGKILL, *[2] * (processes - 1)]
    assert [path.name for path in (killed / "run").glob("model_*.pt")] == ["model_0.pt"]
    assert start(killed, processes, *given, "--resume").ended()[0] == [0] * processes
    assert_same(parameters(whole / "run" / "model_2.pt"), parameters(killed / "run" / "model_2.pt"))
    return text
