"""Messages: one line that a terminal can show, whatever is quoted in it."""

from __future__ import annotations

from data_utils.errors import LONGEST_MESSAGE, DataError, TaskDefError, UserError


def test_what_does_not_print_is_escaped() -> None:
    assert str(UserError("a\nb\x1b[31m\u202e\u2028é")) == "a\\nb\\x1b[31m\\u202e\\u2028é"
    assert str(DataError("found 'x'", "a\rb", 3)) == "a\\rb, line 3: found 'x'"


def test_a_task_definition_has_a_line_a_mistake() -> None:
    assert str(TaskDefError("a\nb\x07")) == "a\nb\\x07"


def test_of_a_long_message_beginning_and_end_stay() -> None:
    text = str(UserError("where: " + "x" * 10_000 + " accepted: y"))
    assert len(text) == LONGEST_MESSAGE and text.startswith("where: x") and text.endswith("x accepted: y")
