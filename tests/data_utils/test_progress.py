"""Bars as a reader of a terminal, or of a log file, has them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from data_utils.progress import print_line, progress
from tests.terminal import Terminal, run_in_terminal, seen

ROOT = Path(__file__).parents[2]
BAR = r"[█▏▎▍▌▋▊▉ ]+"
SCRIPT = """
import time

from data_utils.progress import print_line, progress

with progress(total=40, unit="update", leave=True) as bar:
    for update in range(40):
        time.sleep(0.01)
        bar.update()
        if update == 19:
            bar.set_postfix_str("loss 0.693, R 0.00213")
            for batch in progress(range(3), name="reviews_dev", unit="batch"):
                print_line("while scored " + "x" * 90)
                time.sleep(0.12)
            print_line("scored " + "y" * 90)
"""
TOLD = ["while scored " + "x" * 90] * 3 + ["scored " + "y" * 90]


def shown(columns: int, **environment: str) -> tuple[list[str], list[str]]:
    """What the script leaves in a terminal, and every state of its line."""
    code, text = run_in_terminal([sys.executable, "-c", SCRIPT], columns, ROOT, environment)
    assert code == 0, text
    return seen(text, columns or 80), [state.rstrip() for state in re.split(r"[\r\n]+", text)]


FIGURES = r"\[\d\d:\d\d<\d\d:\d\d, .+update/s, loss 0.693, R 0.00213\]"
WIDE = (rf" 50%\|{BAR}\| 20/40 {FIGURES}", rf"reviews_dev: 100%\|{BAR}\| 3/3 .*", rf"100%\|{BAR}\| 40/40 {FIGURES}")
NARROW = (
    r"50% \d\d:\d\d [\d.]+/s loss 0.693 R 0.00213",
    r"reviews_dev 100% 00:00 [\d.]+/s",
    r"100% 00:00 [\d.]+/s loss 0.693 R 0.00213",
)


@pytest.mark.parametrize(
    ("columns", "states", "last"),
    [
        pytest.param(120, WIDE[:2], WIDE[2], id="wide"),
        pytest.param(80, WIDE[:2], WIDE[2], id="80 columns"),
        pytest.param(0, WIDE[:2], WIDE[2], id="of unknown width"),
        pytest.param(40, NARROW[:2], NARROW[2], id="40 columns"),
        pytest.param(12, (r"50% \d\d:\d\d", "reviews_dev"), r"100% 00:00", id="12 columns"),
    ],
)
def test_a_terminal_shows_one_line_below_whole_lines_of_the_log(
    columns: int, states: tuple[str, ...], last: str
) -> None:
    lines, found = shown(columns)
    assert lines[:-2] == TOLD
    assert re.fullmatch(last, lines[-2]) and lines[-1] == ""
    for state in states:
        assert any(re.fullmatch(state, line) for line in found), (state, found)


def test_a_bar_fills_its_line_but_for_the_last_column() -> None:
    for columns in (40, 80):
        _, text = run_in_terminal([sys.executable, "-c", SCRIPT], columns, ROOT)
        widths = {len(state) for state in re.findall(r"\r([^\r\n]*\d%[^\r\n]*)", text)}
        assert widths == {columns - 1}


def test_tqdm_disable_is_respected() -> None:
    lines, _ = shown(80, TQDM_DISABLE="1")
    assert lines == [*TOLD, ""]


def use(**settings: object) -> None:
    for _ in progress(range(3), **settings):  # type: ignore[arg-type]
        print_line("a line")


def test_without_a_terminal_there_is_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    use()
    assert capfd.readouterr() == ("a line\n" * 3, "")


def test_only_the_main_process_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for main in (True, False):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        use(main=main)
        assert bool(terminal.getvalue()) == main
    assert capsys.readouterr().out == "a line\n" * 6


def test_a_terminal_that_went_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(total=2) as bar:
        bar.fp = terminal  # whose fileno raises, as the size of a terminal that hung up does
        bar.update()
        bar.refresh()
    assert "50%" in terminal.getvalue()


def test_what_was_done_before_counts_as_done_and_not_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(total=10, initial=5) as bar:
        bar.refresh()
    assert "5/10 [00:00<?" in terminal.getvalue()
