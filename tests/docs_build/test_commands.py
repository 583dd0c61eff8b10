"""The page of flags holds what the parsers hold."""

from __future__ import annotations

import argparse

import pytest

from docs_build.commands import called, commands, flags_page, parser_of
from docs_build.slugs import slug
from mt_dnn.configuration.config import GROUPS
from mt_dnn.configuration.flags import flags_of


@pytest.fixture(scope="module")
def page() -> str:
    return flags_page()


def test_every_command_has_its_heading_and_its_flags(page: str) -> None:
    for module in commands():
        start = page.index(f"### `{called(module)}`\n")
        section = page[start : page.find("\n### ", start + 1)]
        for action in parser_of(module)._actions:
            if not isinstance(action, argparse._HelpAction):
                assert all(f"`{name}`" in section for name in action.option_strings or [action.dest])


def test_the_flags_of_train_stand_in_their_groups_with_defaults(page: str) -> None:
    start = page.index("### `python train.py`")
    section = page[start : page.index("\n## ", start)]
    assert all(f"| `--{name}` |" in section for group in GROUPS.values() for name in flags_of(group))
    assert "| `--epochs` | passes over the training data (default: 5) |" in section


def test_commands_are_found_where_they_lie() -> None:
    found = set(commands())
    assert {
        "train",
        "prepro_std",
        "predict",
        "experiments.sift.matrix",
        "experiments.bench",
        "mt_dnn.export.export",
    } <= found
    assert called("experiments.glue.glue_prepro") == "python experiments/glue/glue_prepro.py"
    assert called("experiments.bench") == "python -m experiments.bench"


def test_anchors_are_github_s() -> None:
    assert slug("The methods: `--adv_opt`".replace("`", "")) == "the-methods---adv_opt"
    assert slug("Size and α: the sweeps") == "size-and-α-the-sweeps"
