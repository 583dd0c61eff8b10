"""Every command line of the project answers a user's mistake as one, be it an unknown flag or a number out of range."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.errors import FlagError, OneLineParser, UserError, at_least

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("data_utils", "docs_build", "examples", "experiments", "module", "mt_dnn", "tasks")
SOURCES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in SOURCES
    if path.read_text(encoding="utf-8").endswith("    run_command_line(main)\n")
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_answers_an_unknown_flag_as_a_users_mistake(command: str) -> None:
    main = importlib.import_module(command).main
    with pytest.raises(UserError) as error:
        main(["--no_such_flag"])
    assert "no_such_flag" in str(error.value) or "required" in str(error.value)


def test_the_commands_are_found() -> None:
    assert {"train", "predict", "experiments.sift.matrix"} < set(COMMANDS)


@pytest.mark.parametrize("text", ["0", "-1", "x", "2.5", "", "1e3", "--1"])
def test_a_number_out_of_range_is_answered_with_what_is_accepted(text: str) -> None:
    parser = OneLineParser()
    parser.add_argument("--seeds", type=at_least(1))
    with pytest.raises(FlagError) as error:
        parser.parse_args([f"--seeds={text}"])
    assert str(error.value) == f"--seeds: found {text!r}, accepted: an integer, at least 1"


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("12", 12), (" 3", 3), ("+4", 4)])
def test_a_number_within_range_is_taken(text: str, number: int) -> None:
    assert at_least(1)(text) == number


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("prepro_std.py --help", 0, ""),
        ("prepro_std.py --from none.csv", 2, "error: none.csv: cannot be read"),
        ("prepro_std.py --from own.csv --text txt", 2, "error: own.csv: found no column 'txt'"),
        ("prepro_std.py --from own.csv --text text", 2, "error: own.csv, line 3: found no label"),
        ("predict.py --help", 0, ""),
        ("predict.py --model none --from none.csv --text a --output b.csv", 2, "error: none.*: (no|cannot)"),
        ("predict.py --model own.csv --from own.csv --text txt --output b.csv", 2, "found no column 'txt'"),
        ("predict.py --model none --from own.csv --text text --output b.csv", 2, "error: none: no such file or folder"),
        ("calc_metrics.py --help", 0, ""),
        ("train.py --help", 0, ""),
        ("train.py --config none.yml", 2, "error: none.yml: cannot be read"),
        ("train.py --config own.yml", 2, "error: own.yml, line 1: "),
    ],
)
def test_help_and_a_likely_mistake_do_not_wait_for_slow_imports(
    command: str, code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "own.csv").write_text("text,label\ngood,a\nbad,\n")
    (tmp_path / "own.yml").write_text("epoch: 3\n")
    script, *flags = command.split()
    given = [sys.executable, "-X", "importtime", str(ROOT / script), *flags]
    done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and re.search(said, done.stderr)
    slow = r"\|\s+transformers$" if script == "train.py" else r"\|\s+(torch|transformers)$"  # its methods are torch's
    assert not re.search(slow, done.stderr, re.MULTILINE)
