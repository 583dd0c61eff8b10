"""`make audit` says how much was looked at, and does not pass where nothing was."""

from __future__ import annotations

import json

import pytest

from tests.audit import audit

CLEAN = {"name": "clean", "version": "1", "vulns": []}
WEAK = {"name": "weak", "version": "2", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "last"),
    [
        ([CLEAN, UNKNOWN], 0, "1 packages looked up, 1 unknown to the service, 0 with weaknesses"),
        ([CLEAN, WEAK], 1, "2 packages looked up, 0 unknown to the service, 1 with weaknesses"),
        ([UNKNOWN], 3, "nothing was audited: the service knows none of 1 packages (a mirror of it?)"),
        (None, 3, "nothing was audited: pip-audit's service cannot be reached from here"),
    ],
)
def test_what_was_looked_up_is_counted(packages: list[dict[str, object]] | None, code: int, last: str) -> None:
    found = audit("" if packages is None else json.dumps({"dependencies": packages}))
    assert found[0] == code and found[1].splitlines()[-1] == last
    assert ("weak 2: PYSEC-1, PYSEC-2" in found[1]) == (packages is not None and WEAK in packages)
