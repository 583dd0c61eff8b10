"""Messages: one line that a terminal can show, whatever is quoted in it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from io import BytesIO
from itertools import chain
from pathlib import Path

import pytest
import torch

from data_utils.errors import (
    LONGEST_MESSAGE,
    LONGEST_REASON,
    DataError,
    FlagError,
    TaskDefError,
    UserError,
    first_line,
)
from experiments.bench import data
from experiments.sift import plot
from mt_dnn.checkpoints.checkpoint import write_tensors
from mt_dnn.export import export as hf_export
from tests.test_no_code_from_data import sources


def test_what_does_not_print_is_escaped() -> None:
    assert str(UserError("a\nb\x1b[31m\u202e\u2028é")) == "a\\nb\\x1b[31m\\u202e\\u2028é"
    assert str(DataError("found 'x'", "a\rb", 3)) == "a\\rb, line 3: found 'x'"


def test_a_task_definition_has_a_line_a_mistake() -> None:
    assert str(TaskDefError("a\nb\x07")) == "a\nb\\x07"


def test_of_a_long_message_beginning_and_end_stay() -> None:
    text = str(UserError("where: " + "x" * 10_000 + " accepted: y"))
    assert len(text) == LONGEST_MESSAGE and text.startswith("where: x") and text.endswith("x accepted: y")


def main_blocks(path: Path) -> list[list[str]]:
    """The statements of each block that runs where the file is the command."""
    return [
        [ast.unparse(statement) for statement in node.body]
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
    ]


def test_every_command_goes_through_run_command_line() -> None:
    # Examples are to be copied: they use nothing of this project but the library.
    paths = (path for path in sources() if path.parent.name != "examples")
    commands = {path: blocks for path in paths if (blocks := main_blocks(path))}
    assert len(commands) > 30
    for path, (*before, last) in commands.items():
        assert last[-1].startswith("run_command_line("), f"{path}: {last}"
        for statement in [*chain(*before), *last[:-1]]:
            assert statement.startswith(("sys.path.insert(", "os.environ.setdefault(")), f"{path}: {statement}"


def test_of_an_error_from_outside_the_first_line_is_reported() -> None:
    assert first_line(ValueError("\n it broke.\nand more")) == "it broke"
    assert first_line(RuntimeError(" \n")) == "RuntimeError"
    assert len(first_line(RuntimeError("x" * 999))) == LONGEST_REASON


def test_a_writer_of_torch_that_says_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="torch cannot write it .RuntimeError."):
        write_tensors(BytesIO(), {})


@pytest.mark.parametrize("main", [hf_export.main, plot.main])
def test_commands_for_a_users_own_runs_answer_a_missing_flag_in_a_line(main: Callable[[list[str]], None]) -> None:
    with pytest.raises(FlagError, match="^the following arguments are required: "):
        main([])


@pytest.mark.parametrize("flag", ["--parts=nothing", "--examples=x", "--bogus"])
def test_the_bench_of_data_refuses_a_mistake_as_others_do(flag: str) -> None:
    with pytest.raises(FlagError, match="parts|examples|bogus"):
        data.main([flag])
