"""The project's commands and their flags, for the page of flags and the tests of the docs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
PLACES = ("*.py", "mt_dnn/**/*.py", "experiments/**/*.py", "examples/*.py")
MARKS = ("\n    run_command_line(main)\n", "\n    main()\n")  # the last line of a file that is a command
WITHOUT_FLAGS = "experiments.sift.running.study_run"  # only the study starts it
TITLES = {  # of the page's sections, by the package of the commands
    "": "Training and data",
    "mt_dnn": "Export",
    "experiments": "Public data sets",
    "experiments.sift": "The study",
    "experiments.bench": "Speed",
    "examples": "Examples",
}


class _Found(Exception):
    """Carries a parser out of the command that would use it."""

    def __init__(self, parser: argparse.ArgumentParser):
        super().__init__()
        self.parser = parser


def commands() -> Iterator[str]:
    """The modules that are commands, as `python -m` takes them."""
    for place in PLACES:
        for path in sorted(ROOT.glob(place)):
            if path.read_text(encoding="utf-8").endswith(MARKS):
                parts = path.relative_to(ROOT).with_suffix("").parts
                module = ".".join(part for part in parts if part != "__main__")
                if module != WITHOUT_FLAGS:
                    yield module


def parser_of(module: str) -> argparse.ArgumentParser:
    """The argument parser of a command.

    Raises:
        ModuleNotFoundError: there is no such command.
    """

    def leave(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Found(parser)

    path = ROOT / Path(*module.split("."))
    loaded = importlib.import_module(f"{module}.__main__" if path.is_dir() else module)
    with patch.object(argparse.ArgumentParser, "parse_known_args", leave):
        try:
            loaded.main([])
        except _Found as found:
            return found.parser
    raise AssertionError(f"{module} parses no flags")


def called(module: str) -> str:
    """The command line that calls a command from the project's folder."""
    as_file = "." not in module or module.endswith("prepro") or module.endswith("extractor")
    return f"python {module.replace('.', '/')}.py" if as_file else f"python -m {module}"


def flags_page() -> str:
    """The page of flags in Markdown: sections, a heading for each command, a table for each group of flags."""
    of_section: dict[str, list[str]] = {title: [] for title in TITLES.values()}
    for module in commands():
        of_section[_section(module)].append(module)
    lines: list[str] = []
    for title, modules in of_section.items():
        lines += [f"## {title}", ""]
        for module in modules:
            lines += _command(module)
    return "\n".join(lines)


def _section(module: str) -> str:
    """The title of the innermost package that has one."""
    parts = module.split(".")
    while ".".join(parts) not in TITLES:
        parts.pop()
    return TITLES[".".join(parts)]


def _command(module: str) -> Iterator[str]:
    parser = parser_of(module)
    about = (parser.description or "").strip().split("\n\n")[0]
    yield from [f"### `{called(module)}`", "", _cell(about), ""]
    for group in parser._action_groups:  # argparse has no other way to them
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            yield from [f"**{group.title}**", ""]
        yield from ["| flag | meaning |", "| --- | --- |"]
        for action in actions:
            names = " ".join(f"`{name}`" for name in action.option_strings or [action.dest])
            yield f"| {names} | {_cell(_meaning(parser, action))} |"
        yield ""


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An action's help, with choices and default added if the text lacks them."""
    formatter = parser._get_formatter()
    text = formatter._expand_help(action) if action.help else ""
    choices = [str(choice) for choice in action.choices or ()]
    if isinstance(action.metavar, str) and action.metavar.startswith("{"):
        choices = action.metavar.strip("{}").split(",")
    if choices:
        text += f"; one of {', '.join(choices)}"
    if action.required and action.option_strings:
        text += " (required)"
    elif "default" not in text and action.default not in (None, False, argparse.SUPPRESS, [], ""):
        text += f" (default: {action.default})"
    return text


def _cell(text: str) -> str:
    """The text escaped for a cell of a Markdown table."""
    for sign in "\\*<>|[]$":
        text = text.replace(sign, f"&#{ord(sign)};")
    return " ".join(text.split())
