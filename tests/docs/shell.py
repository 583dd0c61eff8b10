"""Shell blocks of the docs: their commands, each parsed by the program's own parser."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from functools import cache

from docs_build.commands import parser_of
from mt_dnn.configuration.config import Config
from tests.docs.pages import ROOT

# Programs that are not the project's own.
STRANGERS = ("pip", "git", "source", "tensorboard", "touch", "rm", "find", "pre-commit", "hf")
STRANGE_MODULES = ("pip", "venv", "pytest", "ruff", "mypy", "mkdocs")
PASS_ON = {"experiments.bench.processes": "train"}  # flags that a command does not know go to another
OWN_FOLDERS = ("experiments/", "docs/", "tests/", "examples/")
ASSIGNMENT = re.compile(r"[A-Z_]+=")
ELLIPSIS = "…"  # flags that a reader fills in

parser_of_command = cache(parser_of)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def check(words: Sequence[str]) -> None:
    """See that a command would be accepted: its flags and their values, and the project's files that it names.

    Raises:
        AssertionError: it would not, or nothing is known of its program.
    """
    words = [word for word in words if word != ELLIPSIS]
    while ASSIGNMENT.match(words[0]):
        words = words[1:]
    program, *rest = words
    for word in rest:
        assert not word.startswith(OWN_FOLDERS) or (ROOT / word).exists(), f"no such file: {word}"
    if program.endswith("python"):
        _check_python(rest)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        _check_launcher(get_args_parser(), rest)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert rest[0] == "launch"
        _check_launcher(launch_command_parser(), rest[1:])
    elif program == "make":
        _check_make(rest)
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), f"no such script: {rest[0]}"
    else:
        assert program in STRANGERS, f"nothing is known of {program!r}"


def _check_python(words: Sequence[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif words[0] == "-m":
        if words[1] not in STRANGE_MODULES:
            _check_flags(words[1], words[2:])
    else:
        assert (ROOT / words[0]).is_file(), f"no such file: {words[0]}"
        _check_flags(words[0].removesuffix(".py").replace("/", "."), words[1:])


def _check_flags(module: str, flags: Sequence[str]) -> None:
    found, unknown = parser_of_command(module).parse_known_args(list(flags))
    if module in PASS_ON:
        _check_flags(PASS_ON[module], unknown)
        return
    assert not unknown, f"{module} has no {' '.join(unknown)}"
    if module == "train":
        Config.from_flags({name: value for name, value in vars(found).items() if name != "config"})


def _check_launcher(parser: ArgumentParser, words: Sequence[str]) -> None:
    found: Namespace = parser.parse_args(list(words))
    start = ["-m"] if found.module else []
    _check_python([*start, found.training_script, *(word for word in found.training_script_args)])


def _check_make(words: Sequence[str]) -> None:
    """The target is there, and what it would run is accepted."""
    # the ARGS of the `make test` that runs this are not the command's
    own = {name: value for name, value in os.environ.items() if name not in ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES")}
    shown = subprocess.run(["make", "-n", *words], cwd=ROOT, env=own, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for words in commands(shown.stdout):
        if words[0].endswith("python") and words[1] == "-m":
            _check_python(words[1:])
