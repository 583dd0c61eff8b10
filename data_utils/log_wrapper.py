"""The run's log: lines on standard output, above the progress bar, and in a file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from data_utils.errors import WriteError
from data_utils.progress import print_line


class _BarHandler(logging.Handler):
    """Prints above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print_line(self.format(record))
        except OSError as error:
            raise WriteError(f"cannot be written: {error.strerror or error}", "standard output") from error


class _FileHandler(logging.FileHandler):
    """Raises a `WriteError`, where logging's own handler prints a traceback for each line and continues."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        raise WriteError(f"log cannot be written: {error.strerror or error}", self.baseFilename) from error


def create_logger(log_file: Path | str | None, quiet: bool = False) -> logging.Logger:
    """The logger `mt_dnn`, with fresh handlers: standard output, and `log_file` where one is given.

    Args:
        log_file: appended to; its folder is made.
        quiet: log nothing (processes other than the main one).
    """
    logger = logging.getLogger("mt_dnn")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.CRITICAL + 1 if quiet else logging.INFO)
    handlers: list[logging.Handler] = [_BarHandler()]
    if log_file is not None and not quiet:
        try:
            Path(log_file).parent.mkdir(parents=True, exist_ok=True)
            handlers.append(_FileHandler(log_file, encoding="utf-8"))
        except OSError as error:
            raise WriteError(f"log cannot be written: {error.strerror}", log_file) from error
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    return logger
