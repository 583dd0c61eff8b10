"""Imports run downward: command lines → experiments → mt_dnn → tasks → module → data_utils, and never in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up.
FOLDERS = ("data_utils", "module", "tasks", "mt_dnn", "experiments")
COMMANDS = "the command lines"
FLOORS = (*FOLDERS, COMMANDS)
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")), *ROOT.glob("*.py")]
}


def floor_of(name: str) -> int:
    folder = name.partition(".")[0]
    return FLOORS.index(folder if folder in FOLDERS else COMMANDS)


def imported(name: str, text: str) -> set[str]:
    """The files of this project that the file of this name imports, within functions and for types too."""
    package = name if FILES.get(name, Path()).name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {inner if (inner := f"{module}.{alias.name}") in FILES else module for alias in node.names}
    return {target for target in found if target in FILES} - {name}


def upward(name: str, text: str) -> set[str]:
    """Of these, those on a higher floor."""
    return {target for target in imported(name, text) if floor_of(target) > floor_of(name)}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Files that import one another in a circle, once each."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append(way[way.index(name) :])
        elif name not in done:
            for target in sorted(arrows[name]):
                visit(target, [*way, name])
            done.add(name)

    for name in sorted(arrows):
        visit(name, [])
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_import_runs_upward(name: str) -> None:
    assert upward(name, FILES[name].read_text(encoding="utf-8")) == set()


def test_no_files_import_one_another_in_a_circle() -> None:
    # A package's __init__ hands on the names of its files, which may name the package.
    arrows = {
        name: {target for target in imported(name, path.read_text(encoding="utf-8")) if is_file(target)}
        for name, path in FILES.items()
        if is_file(name)
    }
    assert circles(arrows) == []


def is_file(name: str) -> bool:
    return FILES[name].name != "__init__.py"


def test_an_upward_import_and_a_circle_would_be_seen() -> None:
    assert upward("experiments.sift.demo", "import predict\n") == {"predict"}
    assert upward("module.pooler", "def f():\n    from mt_dnn.loss import CeCriterion\n") == {"mt_dnn.loss"}
    assert upward("tasks.base", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mt_dnn.model\n") == {
        "mt_dnn.model"
    }
    assert imported("mt_dnn.perturbation.base", "from .search import Search\nfrom ..loss import CeCriterion\n") == {
        "mt_dnn.perturbation.search",
        "mt_dnn.loss",
    }
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
