"""docs/migration.md says of every flag and test what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mt_dnn.configuration.config import GROUPS
from mt_dnn.configuration.flags import flags_of
from tests.mt_dnn.configuration.test_config import ADVERSARIAL_FLAGS, DATA_FLAGS, MODEL_FLAGS, TRAINING_FLAGS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
MTDNN_FLAGS = DATA_FLAGS | MODEL_FLAGS | TRAINING_FLAGS | ADVERSARIAL_FLAGS


def section(start: str, end: str) -> str:
    return PAGE[PAGE.index(start) : PAGE.index(end)]


def first_column(text: str) -> set[str]:
    return {
        name
        for row in text.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`--(\w+)`", row.split("|")[1])
    }


def test_flags_without_use_are_those_that_say_so():
    without_use = {name for group in GROUPS.values() for name, spec in flags_of(group).items() if spec.notice}
    assert first_column(section("These have no use", "## Files")) == without_use


def test_flags_with_another_default_are_listed():
    other = {name for name, (_, _, default) in MTDNN_FLAGS.items() if default is ...}
    listed = first_column(section("## Flags", "These have no use"))
    assert other <= listed and listed <= set(MTDNN_FLAGS)


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(tests/[\w/.]+\.py(?:::\w+)?)`", PAGE))))
def test_the_tests_named_are_there(named: str):
    path, _, function = named.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8") if function else (ROOT / path).is_file()
