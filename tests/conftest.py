"""Set-up of all tests: one thread, for the models are tiny."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)

# Its cases fork this process, which is safe before other tests have started threads of torch's in it.
FORKING = "test_faults_processes.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != FORKING)
