"""Runs in processes of their own, several at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean

from data_utils.errors import UserError
from data_utils.progress import print_line, progress
from experiments.sift.running.runs import Record
from experiments.sift.running.study import TRAINED
from experiments.sift.running.study_run import RunSpec, finished, write_spec

POLL_SECONDS = 0.5


def end_runs_on_sigterm() -> None:
    """Let SIGTERM end this process by an exception, so that `Jobs` ends the runs too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


class Jobs:
    """Runs in parallel processes.

    Args:
        count: how many processes run at a time.
        threads: of each process.
        metric: printed for each test of a finished run.
        report: gets a line when a run ends.
    """

    def __init__(self, count: int, threads: int, metric: str, report: Callable[[str], None] = print_line):
        self.count = count
        self.threads = threads
        self.metric = metric
        self.report = report
        self.running: dict[subprocess.Popen[bytes], tuple[RunSpec, float]] = {}

    def run(self, specs: Iterable[RunSpec], title: str) -> None:
        """Run those that are not finished, in their order.

        Args:
            title: of these runs, in the printed lines.

        Raises:
            UserError: runs failed; raised after all others are done.
        """
        planned = list(specs)
        waiting = [spec for spec in planned if finished(spec) is None]
        total, seconds, failed = len(planned), [], []
        self.report(f"{title}: {total} runs, {total - len(waiting)} of them done before")
        done = total - len(waiting)
        with progress(total=total, initial=done, name=title, unit="run") as bar:
            try:
                while waiting or self.running:
                    while waiting and len(self.running) < self.count:
                        spec = waiting.pop(0)
                        self.running[self._start(spec)] = (spec, time.monotonic())
                    bar.refresh()
                    time.sleep(POLL_SECONDS)
                    for process in [process for process in self.running if process.poll() is not None]:
                        spec, start = self.running.pop(process)
                        record = finished(spec)
                        if record is None:
                            failed.append(spec)
                            self.report(f"{spec.name}: failed; see {_log(spec)}")
                            continue
                        done += 1
                        bar.update()
                        seconds.append(time.monotonic() - start)
                        left = mean(seconds) * (len(waiting) + len(self.running)) / self.count / 60
                        time_left = f"{seconds[-1]:.0f} s, about {left:.0f} min left"
                        self.report(f"{done}/{total} {_line(record, self.metric)} ({time_left})")
            finally:
                for process in self.running:
                    process.terminate()
                for process in self.running:
                    process.wait()
                self.running.clear()
        if failed:
            reason = _last_line(_log(failed[0]))
            raise UserError(f"{len(failed)} of {total} runs failed; the first, {failed[0].name}: {reason}")

    def _start(self, spec: RunSpec) -> subprocess.Popen[bytes]:
        path = Path(f"{spec.work}.spec.json")
        write_spec(spec, path)
        threads = str(self.threads)
        variables = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with _log(spec).open("wb") as log:
            command = [sys.executable, "-m", "experiments.sift.running.study_run", str(path)]
            return subprocess.Popen(command, stdout=log, stderr=log, env=variables)


def _log(spec: RunSpec) -> Path:
    return Path(f"{spec.work}.log")


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _line(record: Record, metric: str) -> str:
    """A finished run in a line: its setting, method and seed, and a metric of each test."""
    shown = ["diverged"] if "diverged" in record else []
    for stage, tests in record["evaluation"].items():
        values = ", ".join(f"{test} {found['metrics'][metric]:.1f}" for test, found in tests.items())
        shown.append(values if stage == TRAINED else f"{stage}: {values}")
    return f"{record['setting']} {record['method']} seed {record['seed']}: {'; '.join(shown)}"
