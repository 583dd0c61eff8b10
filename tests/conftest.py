"""Set-up of all tests: one thread, for the models are tiny."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def the_log_is_as_imported() -> Iterator[None]:
    """What a command set up in a test is taken back behind it: handlers, level, and that `caplog` hears nothing."""
    yield
    logger = logging.getLogger("mt_dnn")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def sigint_interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt; a shell starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
