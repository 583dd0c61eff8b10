"""Every command line of the project answers a user's mistake as one, be it an unknown flag or a number out of range."""

from __future__ import annotations

import importlib
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
