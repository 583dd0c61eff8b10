"""Version, changelog and citation say the same; commits that CONTRIBUTING names are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import mt_dnn

ROOT = Path(__file__).parents[1]
COMMITS = re.findall(r"`([0-9a-f]{7})`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def test_one_version() -> None:
    newest = re.search(
        r"^## (\S+) – (?:Unreleased|\d{4}-\d\d-\d\d)$",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    assert newest is not None
    assert mt_dnn.__version__ == newest[1] == cited


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
@pytest.mark.parametrize("commit", COMMITS)
def test_the_commits_that_are_named_are_in_the_history(commit: str) -> None:
    shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True)
    if shallow.stdout.strip() != "false":
        pytest.skip("a checkout without its history")
    assert subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT).returncode == 0
