"""How many inputs a reader is given, and the table of what they came to.

`FUZZ_INPUTS` says how many: 200 where it is not set, always the same ones; `make fuzz` asks for 20,000 new ones.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.fuzz.check import TALLIES

FEW = 200
INPUTS = int(os.environ.get("FUZZ_INPUTS", FEW))
MOST_MEMORY = 6 << 30  # bytes of address space beside what is there: an input that wants more fails its test

settings.register_profile(
    "fuzz",
    max_examples=INPUTS,
    derandomize=INPUTS <= FEW,
    deadline=None,  # `check.reading` has one that a busy machine does not break
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")


@pytest.fixture(autouse=True, scope="package")
def no_waiting_for_disks() -> Iterator[None]:
    """Files are synced before they are renamed; here that would be most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="package")
def bounded_memory() -> Iterator[None]:
    """A reader that takes memory without bound gets an error, not the machine."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was really run."""
    if not TALLIES:
        return
    terminalreporter.section("inputs tried")
    for name, tally in sorted(TALLIES.items()):
        terminalreporter.write_line(
            f"{name:44} {tally.tried:8,} tried {tally.accepted:8,} read {tally.refused:8,} refused "
            f"{tally.seconds:8.1f} s, longest {tally.longest:.2f} s"
        )
